"""The definition of each op: complete, slow, one token and one head at a time, differentiable in any floating type.

Written to be read and believed, in plain tensor arithmetic. Shapes as in `ops`; small letters are single indices.
"""

import math

import torch
from torch import Tensor

from ossia.kernels import mxfp4


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `ops.RmsNorm`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    rows = [row * torch.rsqrt(row.square().mean() + eps) * scale.to(wide) for row in x.to(wide)]
    return torch.stack(rows).to(x.dtype) if rows else x


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ops.Rope`."""
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    out: list[Tensor] = []
    for x_NH, cos_h, sin_h in zip(x.to(wide), cos, sin, strict=True):
        first, second = x_NH[:, :half], x_NH[:, half:]
        out.append(torch.cat((first * cos_h - second * sin_h, second * cos_h + first * sin_h), dim=-1))
    return torch.stack(out).to(x.dtype) if out else x


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    q_lengths: tuple[int, ...],
    k_lengths: tuple[int, ...],
    window: int | None,
) -> Tensor:
    """See `ops.Attention`."""
    num_heads, head_dim = q.shape[1:]
    group = num_heads // k.shape[1]
    wide = torch.promote_types(q.dtype, torch.float32)
    out: list[Tensor] = []
    q_start = k_start = 0
    for q_length, k_length in zip(q_lengths, k_lengths, strict=True):
        for i in range(q_length):
            position = k_length - q_length + i
            first = 0 if window is None else max(0, position - window + 1)
            visible = slice(k_start + first, k_start + position + 1)
            heads: list[Tensor] = []
            for n in range(num_heads):
                q_H = q[q_start + i, n].to(wide)
                scores_S = k[visible, n // group].to(wide) @ q_H / math.sqrt(head_dim)
                with_sink = torch.cat((scores_S, sinks[n].to(wide).view(1)))
                heads.append(torch.softmax(with_sink, dim=0)[:-1] @ v[visible, n // group].to(wide))
            out.append(torch.stack(heads))
        q_start, k_start = q_start + q_length, k_start + k_length
    return torch.stack(out).to(q.dtype) if out else q


def swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """Clamped SwiGLU of interleaved rows: [..., 2I] into [..., I]."""
    gate = gate_up[..., 0::2].clamp(max=limit)
    linear = gate_up[..., 1::2].clamp(-limit, limit)
    return gate * torch.sigmoid(1.702 * gate) * (linear + 1)


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
    out: list[Tensor] = []
    for x_D, ids_K, weights_K in zip(x, expert_ids.tolist(), expert_weights, strict=True):
        y_D = torch.zeros_like(x_D)
        for e, weight in zip(ids_K, weights_K, strict=True):
            h_I = swiglu(gate_up[e] @ x_D + gate_up_bias[e], limit)
            y_D = y_D + weight * (down[e] @ h_I + down_bias[e])
        out.append(y_D)
    return torch.stack(out) if out else x


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
) -> Tensor:
    """See `ops.ExpertsMxfp4`."""
    gate_up = mxfp4.dequantize(gate_up_blocks, gate_up_scales, x.dtype)
    down = mxfp4.dequantize(down_blocks, down_scales, x.dtype)
    return experts(x, gate_up, gate_up_bias, down, down_bias, expert_ids, expert_weights, limit)


def surprise(logits: Tensor, targets: Tensor) -> Tensor:
    """See `ops.Surprise`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    rows = [row.exp().sum().log() - row[target] for row, target in zip(wide, targets.tolist(), strict=True)]
    return torch.stack(rows) if rows else wide.new_empty(0)


def store_mxfp4(weight: Tensor, stored: Tensor, scale_rule: mxfp4.ScaleRule) -> Tensor:
    """See `ops.StoreMxfp4`."""
    packed = mxfp4.fake_quantize(weight, scale_rule=scale_rule).to(stored.dtype)
    changed = (packed != stored).sum()
    stored.copy_(packed)
    return changed
