import math
from dataclasses import replace

import pytest
import torch
from tests.train.small import SMALL, batch_of, small_model

from ossia.train import loss
from ossia.train.loss import cross_entropy, hidden, logprobs
from ossia.train.routers import RouterWatch


def quiet(model):
    return RouterWatch.of(model)


def test_log_probabilities_by_hand():
    model = small_model()
    with torch.no_grad():
        model.unembedding.weight.zero_()
        model.unembedding.weight[1] = math.log(
            3.0
        )  # Against hidden states that sum to one: 3 to 1 for each other token.
    states = torch.zeros(2, SMALL.hidden_size)
    states[:, 5] = 1
    found = logprobs(model, states, torch.tensor([1, 0]))
    assert found.tolist() == pytest.approx([math.log(3 / 66), math.log(1 / 66)], rel=1e-6)


def test_the_loss_is_a_sum_and_weights_count():
    model, batch = small_model(), batch_of((6, 9), 0)
    total, told = cross_entropy(model, batch, quiet(model))
    single = -logprobs(model, hidden(model, batch), batch.targets)
    assert float(total.detach()) == pytest.approx(float(single.sum().detach()), rel=1e-6) == told["loss"]
    weights = torch.linspace(0, 2, len(batch.targets))
    weighted, _ = cross_entropy(model, replace(batch, weights=weights), quiet(model))
    assert float(weighted.detach()) == pytest.approx(float((single * weights).sum().detach()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_give_the_same_gradients_and_never_all_logits(dtype, monkeypatch):
    model, batch = small_model(dtype), batch_of((20, 11), 1)
    results = []
    for at_once in (2**24, 64 * 4):
        monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
        largest = []
        handle = model.unembedding.register_forward_hook(lambda _m, _i, out, seen=largest: seen.append(len(out)))
        total, _ = cross_entropy(model, batch, quiet(model))
        total.backward()
        handle.remove()
        results.append((float(total.detach()), {n: p.grad.float() for n, p in model.named_parameters()}))
        model.zero_grad(set_to_none=True)
        assert max(largest) == (len(batch.rows) if at_once > 256 else 4)
    (whole, gradients), (pieces, again) = results
    assert pieces == pytest.approx(whole, rel=1e-6)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for name, gradient in gradients.items():
        assert float((again[name] - gradient).abs().max()) <= tolerance * float(gradient.abs().max()), name


def test_a_batch_with_nothing_to_learn_has_a_loss_of_zero():
    model, batch = small_model(), batch_of((4,), 0, learn=0.0)
    total, told = cross_entropy(model, batch, quiet(model))
    total.backward()
    assert told == {"loss": 0.0}
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())
