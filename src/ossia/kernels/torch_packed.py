"""Products with packed weights in torch, one expert unpacked at a time and let go of: on any device, differentiable.

A product remembers the packed weight for its backward pass and unpacks it there once more; no unpacked weight is ever
kept, and none of x, since packed weights do not train.

Shapes: as in `ops`; S rows sorted by expert, R rows and C columns of a matrix.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.kernels import mxfp4, torch_ops
from ossia.kernels.mixture import Product, differentiated, groups, mixture, of_each_row, swiglu
from ossia.kernels.packed import TILE, Bf16, Mxfp4, unpack_bf16, unpack_mxfp4

Dequantize = Callable[[Tensor, Tensor, torch.dtype], Tensor]
"""Blocks and scales of a matrix → its values [R, C] in a floating type."""

_ROWS = 16 * TILE
"""Of a dense matrix, unpacked at a time."""


def linear_bf16_transposed(grad: Tensor, weight: Bf16) -> Tensor:
    """See `ops.LinearBf16Transposed`."""
    out_TC = grad.new_zeros(grad.shape[0], weight.weight.shape[1])
    for grad_TR, tiles in zip(grad.split(_ROWS, dim=1), weight.weight.split(_ROWS // TILE), strict=True):
        out_TC += grad_TR @ unpack_bf16(Bf16(weight=tiles))[: grad_TR.shape[1]].to(grad.dtype)
    return out_TC


def grouped_mxfp4(x: Tensor, weight: Mxfp4, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """See `ops.GroupedMxfp4`."""
    out_SR = x.new_empty(x.shape[0], TILE * weight.codes.shape[1])
    for e, rows in groups(offsets):
        out_SR[rows] = F.linear(x[rows], _unpacked(weight, e, x.dtype), None if bias is None else bias[e])
    return out_SR


def grouped_mxfp4_transposed(grad: Tensor, weight: Mxfp4, offsets: Tensor) -> Tensor:
    """See `ops.GroupedMxfp4Transposed`."""
    out_SC = grad.new_empty(grad.shape[0], mxfp4.BLOCK * weight.codes.shape[2])
    for e, rows in groups(offsets):
        out_SC[rows] = grad[rows] @ _unpacked(weight, e, grad.dtype)
    return out_SC


def grouped_blocks(x: Tensor, blocks: Tensor, scales: Tensor, offsets: Tensor, dequantize: Dequantize) -> Tensor:
    """As `ops.GroupedMxfp4` without bias, from published blocks and scales and in the type of x; differentiable."""
    return cast(Tensor, _GroupedBlocks.apply(x, blocks, scales, offsets, dequantize))


class _GroupedBlocks(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, blocks: Tensor, scales: Tensor, offsets: Tensor, dequantize: Dequantize
    ) -> Tensor:
        ctx.save_for_backward(blocks, scales, offsets)
        ctx.dequantize = dequantize
        out_SR = x.new_empty(x.shape[0], blocks.shape[1])
        for e, rows in groups(offsets):
            out_SR[rows] = x[rows] @ dequantize(blocks[e], scales[e], x.dtype).mT
        return out_SR

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        blocks, scales, offsets = ctx.saved_tensors
        out_SC = grad.new_empty(grad.shape[0], mxfp4.BLOCK * blocks.shape[2])
        for e, rows in groups(offsets):
            out_SC[rows] = grad[rows] @ ctx.dequantize(blocks[e], scales[e], grad.dtype)
        return out_SC, None, None, None, None


def experts_mxfp4(
    x: Tensor,
    gate_up_blocks: Tensor,
    gate_up_scales: Tensor,
    gate_up_bias: Tensor,
    down_blocks: Tensor,
    down_scales: Tensor,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
    *,
    dequantize: Dequantize = mxfp4.dequantize,
) -> Tensor:
    """See `ops.ExpertsMxfp4`. One expert is unpacked at a time, forward and backward."""
    if not differentiated(x, gate_up_bias, down_bias, expert_weights):
        return torch_ops.experts_mxfp4(
            x,
            gate_up_blocks,
            gate_up_scales,
            gate_up_bias,
            down_blocks,
            down_scales,
            down_bias,
            expert_ids,
            expert_weights,
            limit,
        )

    def product(blocks: Tensor, scales: Tensor, bias: Tensor) -> Product:
        return lambda x, offsets: grouped_blocks(x, blocks, scales, offsets, dequantize) + of_each_row(bias, offsets)

    gate_up = product(gate_up_blocks, gate_up_scales, gate_up_bias)
    down = product(down_blocks, down_scales, down_bias)
    return mixture(x, gate_up, lambda y: swiglu(y, limit, 1), down, expert_ids, expert_weights, len(down_bias))


def _unpacked(weight: Mxfp4, expert: int, dtype: torch.dtype) -> Tensor:
    one = Mxfp4(codes=weight.codes[expert], scales=weight.scales[expert])
    return mxfp4.dequantize(*unpack_mxfp4(one), dtype)
