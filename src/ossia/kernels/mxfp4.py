"""MXFP4: blocks of 32 values in four bits each, under one power-of-two scale byte.

A code is E2M1: one sign bit and eight magnitudes. A byte holds two codes, the even index in the low nibble. A scale
byte s stands for 2^(s - 127), and 255 for NaN. Format: OCP Microscaling Formats v1.0; layout: published checkpoints.

Shapes: `...` any leading dimensions, N values along the last one, B = N / 32 blocks.
"""

from typing import Any, Literal, cast

import torch
from torch import Tensor

from ossia.errors import KernelError

BLOCK = 32
"""Values under one scale."""
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Value of each three-bit code; the fourth bit is the sign."""
NAN_SCALE = 255

ScaleRule = Literal["ceil", "floor", "even"]
"""How the scale follows from the largest magnitude of a block. "ceil": the smallest power of two under which nothing
exceeds 6, so nothing is clipped. "floor": the rule of the OCP text, which may clip magnitudes above 6 to 6 and
spends the codes on the smaller values. "even": as floor, but magnitudes that round to 8 take the next scale. Under it
alone a block of stored values keeps its scale when they move a little either way, which is what training needs: all
three give back a stored block's values, but 6 lies on the edge of ceil, and 4 on that of floor."""

_BIAS = 127
_LARGEST_BYTE = 254


def quantize(weight: Tensor, *, scale_rule: ScaleRule = "ceil", name: str = "weight") -> tuple[Tensor, Tensor]:
    """Pack `weight` [..., N] of a floating type into blocks uint8 [..., B, 16] and scales uint8 [..., B].

    Magnitudes round to the nearest code, ties to the even one. Raises KernelError that says `name` where N is not a
    multiple of 32 or a value is NaN or infinite.
    """
    values_B32 = _blocked(weight, name)
    exponent_B = _exponents(values_B32, scale_rule)
    rounded_B32 = _round_e2m1(values_B32.abs(), exponent_B)
    grid = torch.tensor(MAGNITUDES, dtype=rounded_B32.dtype, device=weight.device)
    codes_B32 = torch.bucketize(rounded_B32.contiguous(), grid).to(torch.uint8) | (
        values_B32.signbit().to(torch.uint8) << 3
    )
    return pack(codes_B32), (exponent_B + _BIAS).to(torch.uint8)


def dequantize(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Unpack blocks uint8 [..., B, 16] and scales uint8 [..., B] into values [..., N] of `dtype`.

    Exact wherever `dtype` can hold the value: always in float64; in float32 and bfloat16 magnitudes of 2^128 and more
    (4 and 6 under scale byte 253, 2 to 6 under 254) become infinite. Scale byte 255 gives NaN. Raises KernelError on a
    wrong shape or type.
    """
    check_packed(blocks, scales)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    pairs = _byte_values(wide, blocks.device).index_select(0, blocks.reshape(-1).int())
    values_B32 = pairs.view(*scales.shape, BLOCK) * _scale_values(scales, wide).unsqueeze(-1)
    return values_B32.flatten(-2).to(dtype)


def fake_quantize(weight: Tensor, *, scale_rule: ScaleRule = "ceil") -> Tensor:
    """`weight` [..., N] as it will be after packing, in its own type, with the identity as its gradient.

    Equal to `dequantize(*quantize(weight), weight.dtype)` bit for bit: what is trained through this is what is exported
    (straight-through estimator, Bengio et al. 2013). NaN is not looked for: the training loop watches the loss.
    """
    with torch.no_grad():
        values_B32 = weight.unflatten(-1, (-1, BLOCK))
        exponent_B = _exponents(values_B32, scale_rule)
        rounded_B32 = _round_e2m1(values_B32.abs(), exponent_B).copysign_(values_B32)
        packed = torch.ldexp(rounded_B32, exponent_B.unsqueeze(-1)).flatten(-2).to(weight.dtype)
    return cast(Tensor, _StraightThrough.apply(weight, packed))


class _StraightThrough(torch.autograd.Function):
    """The second operand, with its gradient handed to the first."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, packed: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return packed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


def pack(codes: Tensor) -> Tensor:
    """Two four-bit codes a byte, the even index low: uint8 [..., 32] of values 0 to 15 into uint8 [..., 16]."""
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def unpack(blocks: Tensor) -> Tensor:
    """The inverse of `pack`: uint8 [..., 16] into codes uint8 [..., 32]."""
    return torch.stack((blocks & 0x0F, blocks >> 4), dim=-1).flatten(-2)


def check_packed(blocks: Tensor, scales: Tensor) -> None:
    """Raises KernelError unless blocks is uint8 [..., B, 16] and scales uint8 [..., B]."""
    if blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise KernelError(f"MXFP4 blocks and scales must be uint8, not {blocks.dtype} and {scales.dtype}")
    if blocks.shape != (*scales.shape, BLOCK // 2):
        raise KernelError(
            f"MXFP4 blocks {tuple(blocks.shape)} do not go with scales {tuple(scales.shape)}: "
            f"expected {(*scales.shape, BLOCK // 2)}"
        )


def _blocked(weight: Tensor, name: str) -> Tensor:
    if not weight.is_floating_point():
        raise KernelError(f"{name} is {weight.dtype}: MXFP4 packs floating-point values")
    if weight.ndim == 0 or weight.shape[-1] % BLOCK or not weight.numel():
        raise KernelError(
            f"{name} has shape {tuple(weight.shape)}: MXFP4 needs a last dimension that is a multiple of {BLOCK}"
        )
    if not bool(torch.isfinite(weight).all()):
        raise KernelError(f"{name} holds NaN or infinity: MXFP4 cannot store it, so find out where it came from")
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return wide.unflatten(-1, (-1, BLOCK))


def _exponents(values_B32: Tensor, scale_rule: ScaleRule) -> Tensor:
    """int32 [..., B]: the exponent of each block's scale, within what a scale byte can say."""
    mantissa_B, exponent_B = torch.frexp(values_B32.abs().amax(dim=-1))  # largest = mantissa * 2^exponent, in [.5, 1)
    exponent_B = exponent_B - 3  # floor(log2(largest)) - 2: the top code, 6, lies in the binade of 4 = 2^2.
    if scale_rule == "ceil":
        exponent_B = exponent_B + (mantissa_B > 0.75).int()
    elif scale_rule == "even":
        exponent_B = exponent_B + (mantissa_B >= 0.875).int()
    return exponent_B.clamp(-_BIAS, _LARGEST_BYTE - _BIAS)


def _round_e2m1(magnitudes_B32: Tensor, exponent_B: Tensor) -> Tensor:
    """Magnitudes over their block's scale, rounded to the E2M1 grid, ties to the even code."""
    scaled_B32 = torch.ldexp(magnitudes_B32, -exponent_B.unsqueeze(-1))
    # Spacing of the grid: one half below 2, one below 4, two above.
    step_B32 = 0.5 + 0.5 * (scaled_B32 >= 2) + (scaled_B32 >= 4)
    return (scaled_B32 / step_B32).round_().mul_(step_B32).clamp_(max=MAGNITUDES[-1])


def _byte_values(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256, 2]: the two values that each packed byte stands for, before scaling."""
    signed = torch.tensor([*MAGNITUDES, *(-m for m in MAGNITUDES)], dtype=dtype, device=device)
    byte = torch.arange(256, device=device)
    return torch.stack((signed[byte & 0x0F], signed[byte >> 4]), dim=-1)


def _scale_values(scales: Tensor, dtype: torch.dtype) -> Tensor:
    powers = torch.ldexp(
        torch.ones(256, dtype=dtype, device=scales.device), torch.arange(256, device=scales.device) - _BIAS
    )
    powers[NAN_SCALE] = torch.nan
    return powers.index_select(0, scales.reshape(-1).int()).view(scales.shape)
