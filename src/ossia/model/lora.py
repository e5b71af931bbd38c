"""Leaves whose low-rank adapters train, beside frozen ones of any kind, packed too (LoRA, Hu et al. 2021).

A matrix W with an adapter multiplies as W + (alpha / rank) B A. Of experts each has its own A and B, on gate_up and on
down; the adapter of gate_up is added between the bias and SwiGLU. B starts at zero, so a new adapter changes nothing.
Adapters are float32 whatever the base is.

Shapes: T tokens, S slots sorted by expert, E experts, D hidden, I intermediate, R rows and C columns of a matrix, r its
adapter's rank.
"""

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ossia.kernels.mixture import groups
from ossia.model.experts import Experts


class LoraLinear(nn.Module):
    """A dense layer and its adapter: lora_a [r, C] and lora_b [R, r]."""

    def __init__(self, base: nn.Module, columns: int, rows: int, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = base
        self.scale = alpha / rank
        self.lora_a = nn.Parameter(torch.empty(rank, columns))
        self.lora_b = nn.Parameter(torch.empty(rows, rank))

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Start anew: see `fresh`."""
        fresh(self.lora_a, self.lora_b, generator)

    def forward(self, x: Tensor) -> Tensor:
        """[T, C] → [T, R]."""
        offsets = torch.tensor([0, x.shape[0]])
        return adapted(self.base(x), x, self.lora_a[None], self.lora_b[None], offsets, self.scale)


class LoraExperts(Experts):
    """Experts of any kind and their adapters.

    gate_up_a [E, r, D], gate_up_b [E, 2I, r] (rows as published: gate even, linear odd), down_a [E, r, I],
    down_b [E, D, r].
    """

    def __init__(self, base: Experts, hidden: int, intermediate: int, *, rank: int, alpha: float) -> None:
        nn.Module.__init__(self)  # The biases are the base's.
        self.base = base
        self.num_experts = e = base.num_experts
        self.scale = alpha / rank
        self.gate_up_a = nn.Parameter(torch.empty(e, rank, hidden))
        self.gate_up_b = nn.Parameter(torch.empty(e, 2 * intermediate, rank))
        self.down_a = nn.Parameter(torch.empty(e, rank, intermediate))
        self.down_b = nn.Parameter(torch.empty(e, hidden, rank))

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Start anew: see `fresh`."""
        fresh(self.gate_up_a, self.gate_up_b, generator)
        fresh(self.down_a, self.down_b, generator)

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """See `Experts`."""
        return self.by_product(x, expert_ids, expert_weights)

    def gate_up_product(self, x: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        b_ERr = self.base.in_own_order(self.gate_up_b)
        return adapted(self.base.gate_up_product(x, offsets), x, self.gate_up_a, b_ERr, offsets, self.scale)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """See `Experts`."""
        return self.base.swiglu(gate_up)

    def down_product(self, hidden: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        y_SD = self.base.down_product(hidden, offsets)
        return adapted(y_SD, hidden, self.down_a, self.down_b, offsets, self.scale)


def fresh(lora_a: Tensor, lora_b: Tensor, generator: torch.Generator | None = None) -> None:
    """An adapter that changes nothing yet: B zero, A uniform within 1 / sqrt(columns), which is PEFT's start too."""
    with torch.no_grad():
        bound = 1 / math.sqrt(lora_a.shape[-1])
        lora_a.uniform_(-bound, bound, generator=generator)
        lora_b.zero_()


def adapted(y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, offsets: Tensor, scale: float) -> Tensor:
    """y [S, R] + scale B (A x), written into y: x [S, C] by expert, lora_a [E, r, C], lora_b [E, R, r].

    offsets as in `ops.GroupedMxfp4`. Products are of the adapter's type. The backward pass remembers x and A x.
    """
    return cast(Tensor, _Adapted.apply(y, x, lora_a, lora_b, offsets, scale))


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, offsets: Tensor, scale: float
    ) -> Tensor:
        low_Sr = x.new_empty(x.shape[0], lora_a.shape[1], dtype=lora_a.dtype)
        for e, rows in groups(offsets):
            torch.mm(x[rows].to(lora_a.dtype), lora_a[e].mT, out=low_Sr[rows])
            y[rows].add_(low_Sr[rows] @ lora_b[e].mT, alpha=scale)
        ctx.mark_dirty(y)
        ctx.save_for_backward(x, lora_a, lora_b, offsets, low_Sr)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, lora_a, lora_b, offsets, low_Sr = ctx.saved_tensors
        grad_x = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        grad_a, grad_b = torch.zeros_like(lora_a), torch.zeros_like(lora_b)
        for e, rows in groups(offsets):
            grad_SR = grad[rows].to(lora_b.dtype)
            grad_low_Sr = (grad_SR @ lora_b[e]).mul_(ctx.scale)
            torch.mm(grad_SR.mT, low_Sr[rows], out=grad_b[e])
            torch.mm(grad_low_Sr.mT, x[rows].to(lora_a.dtype), out=grad_a[e])
            if grad_x is not None:
                grad_x[rows] = (grad_low_Sr @ lora_a[e]).to(x.dtype)
        return grad, grad_x, grad_a, grad_b.mul_(ctx.scale), None, None
