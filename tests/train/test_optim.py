import copy
import math

import pytest
import torch
from tests.train.small import run, small_model

from ossia.errors import TrainingError
from ossia.kernels.mxfp4 import dequantize, quantize
from ossia.train.optim import BETAS, EPS, Masters, Schedule, orthogonal


def masters_of(optimizer="adamw", *, dtype=torch.float32, stored=torch.bfloat16, qat=True, rate=1e-2, weight_decay=0.0):
    model = small_model(dtype)
    weights = {name: parameter.float() for name, parameter in small_model().named_parameters()}
    return model, Masters.of(
        model,
        weights,
        optimizer=optimizer,
        learning_rate=rate,
        weight_decay=weight_decay,
        qat=qat,
        stored=stored,
    )


def test_schedule_warms_up_stays_and_decays():
    schedule = Schedule(steps=100, warmup_steps=10, decay_steps=20)
    assert [schedule(step) for step in (0, 4, 9, 50, 80)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    assert schedule(90) == 0.5
    assert schedule(99) == pytest.approx(1 / 20)
    assert Schedule(steps=4, decay_steps=200)(0) == 1


def is_expert(name):
    return name.endswith(("experts.gate_up", "experts.down"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_holds_exactly_what_a_checkpoint_would(dtype):
    model, masters = masters_of("muon", dtype=dtype)
    run(model).float().square().mean().backward()
    masters.step(1.0)
    for name, parameter in model.named_parameters():
        master = masters.weights[name]
        rounded = dequantize(*quantize(master, scale_rule="even")) if is_expert(name) else master.bfloat16().float()
        assert torch.equal(parameter.float(), rounded), name
        if is_expert(name):  # The default rule of an export packs the same values.
            assert torch.equal(dequantize(*quantize(parameter)), parameter.float()), name
        assert parameter.dtype == dtype


def test_in_float32_masters_are_published_as_they_are():
    model, masters = masters_of(stored=torch.float32, qat=False)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, masters.weights[name])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_steps_lower_the_loss_and_move_every_master(optimizer):
    model, masters = masters_of(optimizer)
    before = copy.deepcopy(masters.weights)
    target = torch.arange(50) % 7
    losses = []
    for _ in range(5):
        loss = torch.nn.functional.cross_entropy(run(model), target)
        loss.backward()
        update = masters.step(1.0, clip=1.0)
        assert update.gradient_norm > 0 and 0 < update.flips < 1
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not [name for name, weight in masters.weights.items() if torch.equal(weight, before[name])]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_adamw_is_that_of_torch_with_weight_decay_for_matrices_alone():
    model, masters = masters_of(stored=torch.float32, qat=False, rate=3e-3, weight_decay=0.1)
    theirs = copy.deepcopy(model)
    decayed = [p for n, p in theirs.named_parameters() if not n.endswith(("bias", "scale", "sinks"))]
    others = [p for n, p in theirs.named_parameters() if n.endswith(("bias", "scale", "sinks"))]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    torch_adamw = torch.optim.AdamW(groups, lr=3e-3, betas=BETAS, eps=EPS)
    for _ in range(4):
        for each in (model, theirs):
            torch.nn.functional.cross_entropy(run(each), torch.arange(50) % 7).backward()
        masters.step(1.0)
        torch_adamw.step()
        torch_adamw.zero_grad()
    for name, parameter in theirs.named_parameters():
        assert torch.allclose(masters.weights[name], parameter, rtol=1e-4, atol=1e-6), name


def test_muon_is_that_of_torch_on_each_experts_matrix():
    model, masters = masters_of("muon", stored=torch.float32, qat=False, rate=3e-3, weight_decay=0.1)
    assert {name.rpartition(".")[2] for name in masters.moments["momentum"]} == {"weight", "gate_up", "down"}
    assert not [name for name in masters.moments["momentum"] if "router" in name or "embedding" in name]
    slices = {
        name: [torch.nn.Parameter(part.clone()) for part in (weight if weight.ndim == 3 else [weight])]
        for name, weight in masters.weights.items()
        if name in masters.moments["momentum"]
    }
    theirs = torch.optim.Muon(
        [part for parts in slices.values() for part in parts],
        lr=3e-3,
        weight_decay=0.1,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    for _ in range(3):
        torch.nn.functional.cross_entropy(run(model), torch.arange(50) % 7).backward()
        for name, parts in slices.items():
            gradient = model.get_parameter(name).grad
            for part, piece in zip(parts, gradient if gradient.ndim == 3 else [gradient], strict=True):
                part.grad = piece.clone()
        masters.step(1.0)
        theirs.step()
    for name, parts in slices.items():
        expected = torch.stack([part.detach() for part in parts]).view(masters.weights[name].shape)
        assert torch.allclose(masters.weights[name], expected, rtol=0, atol=1e-6), name


def test_orthogonal_factors_have_singular_values_near_one():
    torch.manual_seed(0)
    for shape in ((3, 40, 64), (64, 40)):
        singular = torch.linalg.svdvals(orthogonal(torch.randn(shape)).float())
        assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3


def test_gradients_pass_the_quantiser_as_if_it_were_the_identity():
    model, masters = masters_of()
    run(model).square().sum().backward()
    name = "layers.0.mlp.experts.down"
    gradient = model.get_parameter(name).grad.clone()
    before = masters.weights[name].clone()
    masters.step(1.0)
    moved = masters.weights[name] - before
    assert bool((gradient != 0).any())
    # The first step of Adam is the sign of the gradient times the rate.
    chosen = gradient.abs() > 1e-6
    assert torch.allclose(moved[chosen], (-1e-2 * gradient.sign())[chosen], atol=1e-5)


def test_a_tiny_rate_flips_nothing_of_stored_experts():
    model, _masters = masters_of()
    stored = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    again = Masters.of(model, stored, learning_rate=1e-7, qat=True)
    run(model).square().mean().backward()
    assert again.step(1.0).flips == 0


def test_gradients_are_collected_in_float32_and_clipped_together():
    model, masters = masters_of(dtype=torch.bfloat16)
    for _ in range(3):
        (run(model).float().square().sum() * 1e3).backward()
        masters.collect()
    assert {gradient.dtype for gradient in masters.gradients.values()} == {torch.float32}
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in masters.gradients.values()))
    held = dict(masters.gradients)
    assert masters.step(1.0, clip=0.5).gradient_norm == pytest.approx(norm, rel=1e-5)
    clipped = math.sqrt(sum(float(gradient.square().sum()) for gradient in held.values()))
    assert clipped == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_tensors_restore_bit_for_bit(optimizer):
    (one_model, one), (other_model, other) = masters_of(optimizer), masters_of(optimizer)
    for model, masters, steps in ((one_model, one, 3), (other_model, other, 1)):
        for _ in range(steps):
            run(model).square().mean().backward()
            masters.step(1.0)
    assert "weights.layers.0.mlp.experts.down" in one.tensors()
    assert ("momentum" if optimizer == "muon" else "exp_avg") + ".layers.0.mlp.experts.down" in one.tensors()
    for name, tensor in other.tensors().items():
        tensor.copy_(one.tensors()[name])
    other.resume(one.updates)
    for model, masters in ((one_model, one), (other_model, other)):
        run(model).square().mean().backward()
        masters.step(1.0)
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name


def test_gradients_that_are_not_finite_move_nothing():
    model, masters = masters_of()
    before = copy.deepcopy(masters.weights)
    (run(model).sum() * float("inf")).backward()
    with pytest.raises(TrainingError, match=r"the norm of the gradients is (nan|inf).*--resume"):
        masters.step(1.0)
    assert all(torch.equal(weight, before[name]) for name, weight in masters.weights.items())


def test_only_what_requires_a_gradient_has_a_master():
    model = small_model().requires_grad_(False)
    model.layers[0].attention.q.weight.requires_grad_(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    masters = Masters.of(model, before, learning_rate=1e-2, stored=torch.float32)
    run(model).square().mean().backward()
    masters.step(1.0)
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])]
    assert moved == list(masters.weights) == ["layers.0.attention.q.weight"]
