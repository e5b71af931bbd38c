"""The ops of training in native code, forward and backward, in float32 or bfloat16 on the CPU; the rest is torch's.

Each is a `torch.autograd.Function` around `ossia.kernels._native`, with the values of `torch_ops` up to the order of
additions: sums are float32 and do not depend on threads. Matrix products are torch's. Importing it needs the native
module.

Shapes: T tokens, D hidden, N query heads, G key/value heads, H head size, E experts, K experts a token, I intermediate,
S rows sorted by expert, R rows of logits, V vocabulary.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ossia.kernels import _native, mxfp4, torch_ops
from ossia.kernels.cpu_packed import refusals
from ossia.kernels.mixture import groups

HEAD_SIZES = (16, 32, 64, 128)
GROUP = 64
"""Rows that an expert is given are padded to a multiple of this, so that few shapes of products occur: torch compiles
code for each new one, which takes as long as the product."""
PIECE = 128
"""Blocks of MXFP4 whose changes are counted together: kPiece of csrc/training.hpp."""


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `ops.RmsNorm`."""
    if not _native_type(x, scale):
        return torch_ops.rms_norm(x, scale, eps)
    return cast(Tensor, _RmsNorm.apply(x, scale, eps))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ops.Rope`."""
    if not _native_type(x):
        return torch_ops.rope(x, cos, sin)
    return cast(Tensor, _Rope.apply(x, cos, sin))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    q_lengths: tuple[int, ...],
    k_lengths: tuple[int, ...],
    window: int | None,
) -> Tensor:
    """See `ops.Attention`. Whole sequences of head sizes 16, 32, 64 and 128; torch attends for the others."""
    if q_lengths != k_lengths or q.shape[-1] not in HEAD_SIZES or not _native_type(q, k, v):
        return torch_ops.attention(q, k, v, sinks, q_lengths, k_lengths, window)
    starts = torch.tensor([0, *accumulate(q_lengths)])
    return cast(Tensor, _Attention.apply(q, k, v, sinks, starts, window or 0))


def experts(
    x: Tensor,
    gate_up: Tensor,
    gate_up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
) -> Tensor:
    """See `ops.Experts`."""
    if not _native_type(x, gate_up, gate_up_bias, down, down_bias, expert_weights):
        return torch_ops.experts(x, gate_up, gate_up_bias, down, down_bias, expert_ids, expert_weights, limit)
    return cast(Tensor, _Experts.apply(x, gate_up, gate_up_bias, down, down_bias, expert_ids, expert_weights, limit))


def surprise(logits: Tensor, targets: Tensor) -> Tensor:
    """See `ops.Surprise`."""
    if not _native_type(logits):
        return torch_ops.surprise(logits, targets)
    return cast(Tensor, _Surprise.apply(logits, targets))


def store_mxfp4(weight: Tensor, stored: Tensor, scale_rule: mxfp4.ScaleRule) -> Tensor:
    """See `ops.StoreMxfp4`."""
    blocks_N32, stored_N32 = weight.view(-1, mxfp4.BLOCK), stored.view(-1, mxfp4.BLOCK)
    changed = torch.empty(-(-len(blocks_N32) // PIECE), dtype=torch.int64)
    _run(_native.store_mxfp4, blocks_N32, _DOUBLED[scale_rule], stored_N32, changed)
    return changed.sum()


_DOUBLED: dict[mxfp4.ScaleRule, int] = {"ceil": 0x400001, "floor": 0x800000, "even": 0x600000}
"""The least mantissa of a block's largest magnitude, in units of 2^-23, for which its scale is doubled."""


def _native_type(x: Tensor, *others: Tensor) -> bool:
    """Whether all are of one type that the native code knows, on the CPU."""
    known = x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
    return known and all(other.dtype == x.dtype for other in others)


def _run(op: Callable[..., None], *operands: Tensor | float | None) -> None:
    """Call a native op; bfloat16 goes over as uint16. Raises KernelError where it refuses an operand."""
    with refusals(op.__name__):
        op(*(_array(operand) if isinstance(operand, Tensor) else operand for operand in operands))


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    x = x.detach()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x.contiguous()
        out, inverse_T = torch.empty_like(x), torch.empty(x.shape[0])
        _run(_native.rms_norm_training, x, scale, eps, out, inverse_T)
        ctx.save_for_backward(x, scale, inverse_T)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, scale, inverse_T = ctx.saved_tensors
        x_grad, scale_grad = torch.empty_like(x), torch.empty_like(scale)
        _run(_native.rms_norm_backward, x, scale, inverse_T, grad.contiguous(), x_grad, scale_grad)
        return x_grad, scale_grad, None


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return _rotated(grad, *ctx.saved_tensors, back=True), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    _run(_native.rope_training, x, cos, sin, back, out)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, starts: Tensor, window: int
    ) -> Tensor:
        q, k, v, wide = q.contiguous(), k.contiguous(), v.contiguous(), sinks.float()
        out, log_sums_TN = torch.empty_like(q), torch.empty(q.shape[:2])
        _run(_native.attention_training, q, k, v, wide, starts, window, out, log_sums_TN)
        ctx.save_for_backward(q, k, v, wide, starts, out, log_sums_TN)
        ctx.window, ctx.sinks_type = window, sinks.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, wide, starts, out, log_sums_TN = ctx.saved_tensors
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        sink_grads_BN = torch.empty(len(starts) - 1, len(wide))
        given = (q, k, v, wide, starts, ctx.window, out, log_sums_TN, grad.contiguous())
        _run(_native.attention_training_backward, *given, q_grad, k_grad, v_grad, sink_grads_BN)
        return q_grad, k_grad, v_grad, sink_grads_BN.sum(0).to(ctx.sinks_type), None, None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        x: Tensor,
        gate_up: Tensor,
        gate_up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        expert_ids: Tensor,
        expert_weights: Tensor,
        limit: float,
    ) -> Tensor:
        expert_weights = expert_weights.contiguous()
        offsets, tokens_S, places_TK = _sorted_by_expert(expert_ids, len(gate_up))
        x_SD = x.index_select(0, tokens_S)
        gate_up_S2I = x.new_empty(len(tokens_S), gate_up.shape[1])
        hidden_SI, out_SD = x.new_empty(len(tokens_S), down.shape[2]), torch.empty_like(x_SD)
        for e, rows in groups(offsets):
            torch.addmm(gate_up_bias[e], x_SD[rows], gate_up[e].t(), out=gate_up_S2I[rows])
        _run(_native.swiglu, gate_up_S2I, limit, hidden_SI)
        for e, rows in groups(offsets):
            torch.addmm(down_bias[e], hidden_SI[rows], down[e].t(), out=out_SD[rows])
        out = x.new_empty(x.shape)
        _run(_native.combine_rows, out_SD, places_TK, expert_weights, out)
        ctx.save_for_backward(gate_up, down, expert_weights, offsets, places_TK, x_SD, gate_up_S2I, out_SD)
        ctx.limit = limit
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        gate_up, down, expert_weights, offsets, places_TK, x_SD, gate_up_S2I, out_SD = ctx.saved_tensors
        grad = grad.contiguous()
        out_grad_SD, weights_grad_TK = torch.zeros_like(out_SD), torch.empty_like(expert_weights)
        operands = (out_SD, places_TK, expert_weights, grad)
        _run(_native.combine_rows_backward, *operands, out_grad_SD, weights_grad_TK)
        hidden_grad_SI = gate_up_S2I.new_empty(len(x_SD), down.shape[2])
        for e, rows in groups(offsets):
            torch.mm(out_grad_SD[rows], down[e], out=hidden_grad_SI[rows])
        gate_up_grad_S2I, hidden_SI = torch.empty_like(gate_up_S2I), torch.empty_like(hidden_grad_SI)
        _run(_native.swiglu_backward, gate_up_S2I, hidden_grad_SI, ctx.limit, gate_up_grad_S2I, hidden_SI)
        x_grad_SD, gate_up_grad, down_grad = torch.empty_like(x_SD), torch.zeros_like(gate_up), torch.zeros_like(down)
        for e, rows in groups(offsets):
            torch.mm(out_grad_SD[rows].t(), hidden_SI[rows], out=down_grad[e])
            torch.mm(gate_up_grad_S2I[rows].t(), x_SD[rows], out=gate_up_grad[e])
            torch.mm(gate_up_grad_S2I[rows], gate_up[e], out=x_grad_SD[rows])
        gate_up_bias_grad, down_bias_grad = gate_up.new_empty(gate_up.shape[:2]), down.new_empty(down.shape[:2])
        _run(_native.sum_rows, gate_up_grad_S2I, offsets, gate_up_bias_grad)
        _run(_native.sum_rows, out_grad_SD, offsets, down_bias_grad)
        x_grad = torch.empty_like(grad)
        _run(_native.combine_rows, x_grad_SD, places_TK, None, x_grad)
        return x_grad, gate_up_grad, gate_up_bias_grad, down_grad, down_bias_grad, None, weights_grad_TK, None


def _sorted_by_expert(expert_ids: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where each expert's rows begin and the last end [E + 1], the token of each row [S], each choice's row [T, K].

    Rows that only fill up a group are those of token 0, which nobody reads.
    """
    chosen, order = expert_ids.flatten().sort(stable=True)
    counts = chosen.bincount(minlength=num_experts)
    padded = (counts + (GROUP - 1)) // GROUP * GROUP
    ends = padded.cumsum(0)
    # A row's place: that among all that are sorted, moved by the filling of the experts before its own.
    moved = (ends - padded) - (counts.cumsum(0) - counts)
    places_S = torch.arange(len(chosen)) + moved[chosen]
    tokens_S = torch.zeros(int(ends[-1]), dtype=torch.int64)
    tokens_S[places_S] = order // expert_ids.shape[-1]
    places_TK = torch.empty_like(order)
    places_TK[order] = places_S
    return F.pad(ends, (1, 0)), tokens_S, places_TK.view_as(expert_ids)


class _Surprise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits = logits.contiguous()
        surprise_R, log_sums_R = torch.empty(len(logits)), torch.empty(len(logits))
        _run(_native.surprise, logits, targets, surprise_R, log_sums_R)
        ctx.save_for_backward(logits, targets, log_sums_R)
        return surprise_R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, targets, log_sums_R = ctx.saved_tensors
        logits_grad = torch.empty_like(logits)
        _run(_native.surprise_backward, logits, targets, log_sums_R, grad.contiguous(), logits_grad)
        return logits_grad, None
