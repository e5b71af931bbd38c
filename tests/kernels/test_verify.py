"""Checking mode: a broken op is caught where it is called, a good one passes, an unknown one is named."""

import pytest
import torch
from tests.kernels.cases import CASES, operands
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import ops, select, torch_ops
from ossia.kernels.verify import verified


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("op", CASES)
def test_a_good_op_passes_with_its_own_result(op: str, dtype: torch.dtype) -> None:
    implementation = ops.load(op, "torch")
    for name in list(CASES[op])[:5]:
        given = operands(op, name, dtype)
        assert torch.equal(verified(op, implementation)(*given), implementation(*given))


def window_too_wide(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, q_lengths, k_lengths, window) -> Tensor:
    return torch_ops.attention(q, k, v, sinks, q_lengths, k_lengths, window and window + 1)


def no_sink(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, *rest) -> Tensor:
    return torch_ops.attention(q, k, v, torch.full_like(sinks, -100.0), *rest)


def interleaved_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((first * cos - second * sin, second * cos + first * sin), -1).flatten(-2).to(x.dtype)


def bias_after_the_weighting(x, gate_up, gate_up_bias, down, down_bias, ids, weights, limit) -> Tensor:
    out = torch_ops.experts(x, gate_up, gate_up_bias, down, torch.zeros_like(down_bias), ids, weights, limit)
    return out + down_bias[ids].sum(1)


def nothing_finite(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("op", "name", "broken"),
    [
        ("attention", "one beyond the window", window_too_wide),
        ("attention", "full", no_sink),
        ("rope", "several", interleaved_pairs),
        ("experts", "several", bias_after_the_weighting),
        ("rms_norm", "several", nothing_finite),
    ],
)
def test_a_broken_op_is_caught(op: str, name: str, broken, dtype: torch.dtype) -> None:
    with pytest.raises(KernelError, match=f"^{op} strays from the reference by .* where values reach") as caught:
        verified(op, broken)(*operands(op, name, dtype))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda x, scale, eps: x[:2], r"returns torch.float32 \[2, 96\], the reference torch.float32 \[5, 96\]"),
        (lambda x, scale, eps: x.T, r"returns torch.float32 \[96, 5\]"),
        (lambda x, scale, eps: torch_ops.rms_norm(x, scale, eps).double(), r"returns torch.float64 \[5, 96\]"),
    ],
    ids=["short", "turned", "type"],
)
def test_a_result_of_another_shape_or_type_is_caught(broken, message: str) -> None:
    with pytest.raises(KernelError, match=f"^rms_norm {message}"):
        verified("rms_norm", broken)(*operands("rms_norm", "several", torch.float32))


def test_selecting_with_verification() -> None:
    kernels = select("torch", verify=("attention", "experts"))
    assert kernels.sources["attention"] == kernels.sources["experts"] == "torch (verified)"
    assert kernels.sources["rope"] == "torch"
    given = operands("attention", "full", torch.float32)
    assert torch.equal(kernels.attention(*given), torch_ops.attention(*given))
    with pytest.raises(KernelError, match="attention strays"):
        kernels.attention(given[0], given[1], given[2], torch.full_like(given[3], torch.nan), *given[4:])


def test_an_unknown_op_is_named() -> None:
    with pytest.raises(KernelError, match="cannot verify unknown op 'softmax': known are rms_norm, rope, attention"):
        select("torch", verify=("attention", "softmax"))
