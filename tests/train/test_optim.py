import copy

import pytest
import torch
from tests.train.small import SMALL, run

from ossia.errors import ConfigError, TrainingError
from ossia.kernels import select
from ossia.kernels.mxfp4 import dequantize, quantize
from ossia.model.adapt import build, fill
from ossia.train.optim import Masters, Schedule, initial_weights


def masters_of(optimizer, *, dtype=torch.float32, learning_rate=1e-2):
    model = build(SMALL, select("torch"))
    weights = dict(initial_weights(model, 0))
    fill(model, [(name, weight.clone()) for name, weight in weights.items()], dtype=dtype)
    model.requires_grad_(True)
    return Masters.of(
        model,
        weights,
        optimizer=optimizer,
        learning_rate=learning_rate,
        weight_decay=0.0,
        quantize_experts=True,
    )


def test_schedule_warms_up_stays_and_decays():
    schedule = Schedule(steps=100, warmup_steps=10, decay_steps=20)
    assert [schedule(step) for step in (0, 4, 9, 50, 80)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert schedule(90) == 0.5
    assert schedule(99) == pytest.approx(1 / 20)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_holds_exactly_what_a_checkpoint_would(dtype):
    masters = masters_of("muon", dtype=dtype)
    for name, parameter in masters.model.named_parameters():
        master = masters.weights[name]
        stored = dequantize(*quantize(master)) if master.ndim == 3 else master.bfloat16().float()
        assert torch.equal(parameter.float(), stored), name
        assert parameter.dtype == dtype


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_lowers_the_loss_and_moves_every_master(optimizer):
    masters = masters_of(optimizer)
    before = {name: weight.clone() for name, weight in masters.weights.items()}
    target = torch.arange(50) % 7
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(run(masters.model), target)
        loss.backward()
        assert masters.step(1.0, clip=1.0) > 0
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    still = [name for name, weight in masters.weights.items() if torch.equal(weight, before[name])]
    assert not still
    assert all(parameter.grad is None for parameter in masters.model.parameters())


def test_gradients_pass_the_quantiser_as_if_it_were_the_identity():
    masters = masters_of("adamw")
    run(masters.model).square().sum().backward()
    name = "layers.0.mlp.experts.down"
    gradient = dict(masters.model.named_parameters())[name].grad.clone()
    before = masters.weights[name].clone()
    masters.step(1.0, clip=1e9)
    moved = masters.weights[name] - before
    assert bool((gradient != 0).any())
    # The first step of Adam is the sign of the gradient times the rate.
    expected = -1e-2 * gradient.sign()
    chosen = gradient.abs() > 1e-6
    assert torch.allclose(moved[chosen], expected[chosen], atol=1e-5)


def test_gradients_are_clipped_together():
    masters = masters_of("adamw")
    (run(masters.model).square().sum() * 1e6).backward()
    norm = masters.step(1.0, clip=0.5)
    clipped = sum(float(view.grad.square().sum()) for _, _, view in masters._views) ** 0.5
    assert norm > 1e3
    assert clipped == pytest.approx(0.5, rel=1e-3)


def test_state_restores_bit_for_bit():
    one, other = masters_of("muon"), masters_of("muon")
    for masters, steps in ((one, 3), (other, 1)):
        for _ in range(steps):
            run(masters.model).square().mean().backward()
            masters.step(1.0, clip=1.0)
    other.restore(copy.deepcopy(one.state()))
    for masters in (one, other):
        run(masters.model).square().mean().backward()
        masters.step(1.0, clip=1.0)
    for name, weight in one.weights.items():
        assert torch.equal(weight, other.weights[name]), name


def test_gradients_that_are_not_finite_move_nothing():
    masters = masters_of("adamw")
    before = copy.deepcopy(masters.weights)
    (run(masters.model).sum() * float("inf")).backward()
    with pytest.raises(TrainingError, match=r"the norm of the gradients is (nan|inf)"):
        masters.step(1.0, clip=1.0)
    assert all(torch.equal(weight, before[name]) for name, weight in masters.weights.items())


def test_a_restored_run_keeps_its_own_rate():
    one, other = masters_of("muon"), masters_of("muon", learning_rate=1e-3)
    other.restore(copy.deepcopy(one.state()))
    assert [group["base_lr"] for optimizer in other.optimizers for group in optimizer.param_groups] == [1e-3] * 3


def test_an_unknown_optimizer_is_named():
    with pytest.raises(ConfigError, match="sgd"):
        masters_of("sgd")
