"""The ops on packed weights as their definition: unpack, round activations where the kernels do, add up in float64.

Read it for what the result must be. Shapes as in `ops`; B blocks of 32 columns.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from ossia.kernels import mxfp4, reference
from ossia.kernels.packed import BLOCK, Q8, TILE, Bf16, Mxfp4, gate_up_order, unpack_bf16, unpack_mxfp4, unpack_q8


def linear_bf16(x: Tensor, weight: Bf16, bias: Tensor | None, rows: int) -> Tensor:
    """See `ops.LinearBf16`."""
    return _linear(x.double(), unpack_bf16(weight)[:rows].double(), bias).float()


def linear_q8(x: Tensor, weight: Q8, bias: Tensor | None, rows: int) -> Tensor:
    """See `ops.LinearQ8`."""
    weight_RC = unpack_q8(weight)[:rows, : x.shape[1]]
    return _linear(round_activations(x), weight_RC.double(), bias).float()


def linear_bf16_transposed(grad: Tensor, weight: Bf16) -> Tensor:
    """See `ops.LinearBf16Transposed`."""
    return (grad.double() @ unpack_bf16(weight)[: grad.shape[1]].double()).float()


def grouped_mxfp4(x: Tensor, weight: Mxfp4, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """See `ops.GroupedMxfp4`."""
    matrices = [_unpack(weight, e) for e in range(len(offsets) - 1)]
    rows = [
        _linear(x_C.double(), matrices[e], None if bias is None else bias[e])
        for e, x_C in zip(_expert_of_each(offsets), x, strict=True)
    ]
    return torch.stack(rows).float() if rows else x.new_empty(0, TILE * weight.codes.shape[1])


def grouped_mxfp4_transposed(grad: Tensor, weight: Mxfp4, offsets: Tensor) -> Tensor:
    """See `ops.GroupedMxfp4Transposed`."""
    matrices = [_unpack(weight, e) for e in range(len(offsets) - 1)]
    rows = [grad_R.double() @ matrices[e] for e, grad_R in zip(_expert_of_each(offsets), grad, strict=True)]
    return torch.stack(rows).float() if rows else grad.new_empty(0, BLOCK * weight.codes.shape[2])


def experts_packed(
    x: Tensor,
    gate_up: Mxfp4,
    gate_up_bias: Tensor,
    down: Mxfp4,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
) -> Tensor:
    """See `ops.ExpertsPacked`."""
    return _experts(round_activations, x, gate_up, gate_up_bias, down, down_bias, expert_ids, expert_weights, limit)


def experts_exact(
    x: Tensor,
    gate_up: Mxfp4,
    gate_up_bias: Tensor,
    down: Mxfp4,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
) -> Tensor:
    """See `ops.ExpertsPacked`."""
    return _experts(Tensor.double, x, gate_up, gate_up_bias, down, down_bias, expert_ids, expert_weights, limit)


def round_activations(x: Tensor) -> Tensor:
    """float32 [..., C] as the kernels see it, in float64: codes of 8 bits times a scale a block of 32 columns."""
    columns = x.shape[-1]
    blocks = pad(x, (0, -columns % BLOCK)).unflatten(-1, (-1, BLOCK))
    largest = blocks.abs().amax(dim=-1, keepdim=True)  # NaN where one is.
    # A division of tensors: a number over a tensor would be its reciprocal, rounded once more.
    inverse = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0)
    codes = torch.nan_to_num(blocks * inverse, nan=0, posinf=0, neginf=0).round()
    scales = largest * torch.tensor(1 / 127, dtype=torch.float32)
    return (codes.double() * scales.double()).flatten(-2)[..., :columns]


def _experts(
    seen: Callable[[Tensor], Tensor],
    x: Tensor,
    gate_up: Mxfp4,
    gate_up_bias: Tensor,
    down: Mxfp4,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
) -> Tensor:
    """`seen` says what products make of activations. One expert at a time: all of them may not fit into memory."""
    published = torch.argsort(gate_up_order(gate_up_bias.shape[1]))
    x_TD = seen(x)
    slots_TKD = torch.zeros(*expert_ids.shape, x.shape[1], dtype=torch.float64)
    for e in expert_ids.unique().tolist():
        gate_up_ID = _unpack(gate_up, e)[published]
        down_DI = _unpack(down, e)
        for t, k in (expert_ids == e).nonzero().tolist():
            h_I = reference.swiglu(_linear(x_TD[t], gate_up_ID, gate_up_bias[e, published]), limit)
            slots_TKD[t, k] = _linear(seen(h_I.float()), down_DI, down_bias[e])
    return (expert_weights.double()[..., None] * slots_TKD).sum(dim=1).float()


def _expert_of_each(offsets: Tensor) -> list[int]:
    """The expert of every row."""
    return [e for e in range(len(offsets) - 1) for _ in range(int(offsets[e]), int(offsets[e + 1]))]


def _unpack(packed: Mxfp4, expert: int) -> Tensor:
    one = Mxfp4(codes=packed.codes[expert], scales=packed.scales[expert])
    return mxfp4.dequantize(*unpack_mxfp4(one), torch.float64)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    product = x @ weight.transpose(-1, -2)
    return product if bias is None else product + bias.double()
