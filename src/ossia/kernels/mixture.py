"""A mixture of experts product by product, where gradients or adapters are: rows go sorted by expert.

What the two products are is passed in, so packed, dense and adapted experts share it.

Shapes: T tokens, K experts a token, S = T K slots sorted by expert, E experts, D hidden, I intermediate.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Product = Callable[[Tensor, Tensor], Tensor]
"""Rows sorted by expert and offsets int64 [E + 1], as in `ops.GroupedMxfp4` → each expert's product with its rows."""

_SLOPE = 1.702
_ROWS = 32
"""Slots of which SwiGLU is made at a time."""


def mixture(
    x: Tensor,
    gate_up: Product,
    swiglu: Callable[[Tensor], Tensor],
    down: Product,
    expert_ids: Tensor,
    expert_weights: Tensor,
    num_experts: int,
) -> Tensor:
    """Weighted sum of the chosen experts' outputs, as in `ops.Experts`: x [T, D], the other two [T, K] → [T, D]."""
    num_active = expert_ids.shape[-1]
    chosen_S, order_S = expert_ids.flatten().sort(stable=True)
    offsets = torch.searchsorted(chosen_S, torch.arange(num_experts + 1, device=x.device))
    y_SD = down(swiglu(gate_up(x.index_select(0, order_S // num_active), offsets)), offsets)
    # Back in the order of the tokens, then summed over K as a product, which remembers no more than its operands.
    y_TKD = y_SD.index_select(0, order_S.argsort()).unflatten(0, (-1, num_active))
    return (expert_weights.unsqueeze(1) @ y_TKD).squeeze(1).to(x.dtype)


def groups(offsets: Tensor) -> Iterator[tuple[int, slice]]:
    """The experts that have rows, and which."""
    for e, (start, stop) in enumerate(pairwise(offsets.tolist())):
        if start < stop:
            yield e, slice(start, stop)


def of_each_row(values: Tensor, offsets: Tensor) -> Tensor:
    """values [E, R], one row an expert → [S, R], one row a slot."""
    return values.repeat_interleave(offsets.diff(), dim=0)


def swiglu(gate_up: Tensor, limit: float, run: int) -> Tensor:
    """Clamped SwiGLU of [S, 2I] in which `run` gate values are followed by their `run` linear ones → [S, I].

    Remembers its operand alone, and works on a few rows at a time so that what lies between stays in the cache.
    """
    return cast(Tensor, _SwiGLU.apply(gate_up, limit, run))


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, limit: float, run: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(gate_up)
        ctx.limit, ctx.run = limit, run
        out_SI = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)
        for y, out in zip(gate_up.split(_ROWS), out_SI.split(_ROWS), strict=True):
            gate, linear = y.unflatten(-1, (-1, 2, run)).unbind(-2)
            gate = gate.clamp(max=limit)
            h = torch.sigmoid(gate * _SLOPE).mul_(gate)
            torch.mul(h, linear.clamp(-limit, limit).add_(1), out=out.unflatten(-1, (-1, run)))
        return out_SI

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gate_up,), limit, run = ctx.saved_tensors, ctx.limit, ctx.run
        out_SR = torch.empty_like(gate_up)
        for y, grad_y, out in zip(gate_up.split(_ROWS), grad.split(_ROWS), out_SR.split(_ROWS), strict=True):
            gate, linear = y.unflatten(-1, (-1, 2, run)).unbind(-2)
            grad_gate, grad_linear = out.unflatten(-1, (-1, 2, run)).unbind(-2)
            within, grad_y = gate <= limit, grad_y.unflatten(-1, (-1, run))
            gate = gate.clamp(max=limit)
            sigmoid = torch.sigmoid(gate * _SLOPE)
            # The derivative of g s(g) is s + slope g s (1 - s); outside its bounds a clamped value moves nothing.
            slope = (1 - sigmoid).mul_(gate).mul_(_SLOPE).add_(1).mul_(sigmoid)
            bounded = linear.clamp(-limit, limit)
            torch.mul(slope.mul_(bounded + 1).mul_(within), grad_y, out=grad_gate)
            torch.mul(sigmoid.mul_(gate).mul_(bounded == linear), grad_y, out=grad_linear)
        return out_SR, None, None


def differentiated(*operands: Tensor | None) -> bool:
    """Whether a gradient will be asked for with respect to any of these."""
    return torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in operands)
