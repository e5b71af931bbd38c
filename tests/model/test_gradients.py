"""Gradients of every parameter of a whole model, sinks and routers included.

Torch's and training's kernels in float32 against reference kernels in float64, and torch's in float64 against
transformers' own backward pass in float64. Differences are a part of the largest gradient of the same parameter.
"""

import pytest
import torch
from tests.model.oracles import packed, random_tensors, small, transformers_model, transformers_name
from torch import Tensor

from ossia.config import ModelConfig
from ossia.kernels import select, select_for_training
from ossia.model.adapt import build, fill
from ossia.model.attention import Packed

LIMIT_FLOAT32 = 2e-4
"""Roundings of 2^-24 through three layers forward and back; up to 2e-5 was seen, and a mistake is of order 1."""
LIMIT_TRANSFORMERS = 2e-5
"""Even in float64 transformers computes norms, angles and the attention's softmax in float32; 3e-6 was seen."""

LENGTHS = (140, 9)
"""Two sequences, one of which is longer than the window."""

CONFIGS = {
    "three layers": small(),
    "one group, 16 experts": small(num_experts=16, num_key_value_heads=1, hidden_size=64, intermediate_size=96),
    "one key a head, early clamp": small(num_hidden_layers=1, num_key_value_heads=4, swiglu_limit=0.5),
}


def ids_of(config: ModelConfig, length: int) -> Tensor:
    return torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(length))


def weighting(config: ModelConfig, length: int) -> Tensor:
    """What the logits are multiplied with before they are summed: every one of them matters differently."""
    generator = torch.Generator().manual_seed(length)
    return torch.randn(length, config.vocab_size, generator=generator, dtype=torch.float64) / length


def gradients(
    config: ModelConfig, tensors: dict[str, Tensor], choice: str, dtype: torch.dtype, kind: str = "dense"
) -> dict[str, Tensor]:
    kernels = select_for_training() if choice == "training" else select(choice)
    model = fill(build(config, kernels, experts=kind), tensors.items(), dtype=dtype).requires_grad_()
    ids = torch.cat([ids_of(config, length) for length in LENGTHS])
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    weights = torch.cat([weighting(config, length) for length in LENGTHS])
    (model(ids, positions, Packed(kernels, LENGTHS)) * weights.to(dtype)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_near(got: dict[str, Tensor], expected: dict[str, Tensor], limit: float) -> None:
    assert got.keys() == expected.keys()
    off: dict[str, float] = {}
    for name, right in expected.items():
        largest = float(right.abs().max())
        assert largest > 0, f"{name} has no gradient to compare"
        off[name] = float((got[name].double() - right).abs().max()) / largest
    worst = max(off, key=lambda name: off[name])
    print(f"{len(off)} parameters, worst {worst} {off[worst]:.2e}")
    assert off[worst] <= limit, f"{worst}: {off[worst]}"


@pytest.mark.parametrize("choice", ["torch", "training"])
@pytest.mark.parametrize("name", CONFIGS)
def test_in_float32_against_the_reference_in_float64(name: str, choice: str) -> None:
    config = CONFIGS[name]
    tensors = random_tensors(config)
    expected = gradients(config, tensors, "reference", torch.float64)
    assert {"layers.0.attention.sinks", "layers.0.mlp.router.weight", "layers.0.mlp.router.bias"} <= expected.keys()
    assert_near(gradients(config, tensors, choice, torch.float32), expected, LIMIT_FLOAT32)


def test_through_packed_experts() -> None:
    """The packed weights stay as they are; biases, routers and all that lies before them get their gradients."""
    config = small(num_hidden_layers=2)
    tensors = packed(random_tensors(config))
    expected = gradients(config, tensors, "reference", torch.float64, "mxfp4")
    assert not any(name.endswith(("_blocks", "_scales")) for name in expected)
    assert "layers.0.mlp.experts.gate_up_bias" in expected
    assert_near(gradients(config, tensors, "torch", torch.float32, "mxfp4"), expected, LIMIT_FLOAT32)


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_in_float64_against_transformers(name: str) -> None:
    config = CONFIGS[name]
    tensors = random_tensors(config, dtype=torch.float64)
    theirs = transformers_model(config, tensors, torch.float64).train()
    for length in LENGTHS:
        logits = theirs(ids_of(config, length)[None], use_cache=False).logits[0]
        (logits * weighting(config, length)).sum().backward()
    state = dict(theirs.named_parameters())
    expected: dict[str, Tensor] = {}
    for ours in tensors:
        grad = state.pop(transformers_name(ours)).grad
        assert grad is not None, ours
        expected[ours] = grad.transpose(1, 2) if ours.endswith((".gate_up", ".down")) else grad
    assert not state
    assert_near(gradients(config, tensors, "torch", torch.float64), expected, LIMIT_TRANSFORMERS)
