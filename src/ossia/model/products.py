"""Products with packed weights, differentiable with respect to x: the backward pass is a kernel of its own.

Only the packed weight is remembered, and nothing of x, since packed weights do not train. Biases may.

Shapes: T tokens, S rows sorted by expert, E experts, R rows and C columns of a matrix.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.kernels import Kernels
from ossia.kernels.packed import Bf16, Mxfp4


def linear_bf16(kernels: Kernels, x: Tensor, weight: Bf16, bias: Tensor | None, rows: int) -> Tensor:
    """See `kernels.ops.LinearBf16`."""
    return cast(Tensor, _LinearBf16.apply(kernels, x, weight, bias, rows))


def grouped_mxfp4(kernels: Kernels, x: Tensor, weight: Mxfp4, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """See `kernels.ops.GroupedMxfp4`."""
    return cast(Tensor, _GroupedMxfp4.apply(kernels, x, weight, bias, offsets))


class _LinearBf16(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, kernels: Kernels, x: Tensor, weight: Bf16, bias: Tensor | None, rows: int
    ) -> Tensor:
        ctx.kernels, ctx.weight = kernels, weight
        return kernels.linear_bf16(_plain(x), weight, _detached(bias), rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, needs_x, _, needs_bias, _ = ctx.needs_input_grad
        grad_x = ctx.kernels.linear_bf16_transposed(_plain(grad), ctx.weight) if needs_x else None
        return None, grad_x, None, grad.sum(0) if needs_bias else None, None


class _GroupedMxfp4(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, kernels: Kernels, x: Tensor, weight: Mxfp4, bias: Tensor | None, offsets: Tensor
    ) -> Tensor:
        ctx.kernels, ctx.weight, ctx.offsets = kernels, weight, offsets
        return kernels.grouped_mxfp4(_plain(x), weight, _detached(bias), offsets)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        _, needs_x, _, needs_bias, _ = ctx.needs_input_grad
        grad_x = ctx.kernels.grouped_mxfp4_transposed(_plain(grad), ctx.weight, ctx.offsets) if needs_x else None
        sizes = ctx.offsets.diff().tolist()
        grad_bias = torch.stack([rows.sum(0) for rows in grad.split(sizes)]) if needs_bias else None
        return None, grad_x, None, grad_bias, None


def _plain(x: Tensor) -> Tensor:
    """As kernels read it, who know nothing of gradients."""
    return x.detach().contiguous()


def _detached(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
