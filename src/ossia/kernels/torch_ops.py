"""The ops vectorised in torch: any torch device, differentiable, and the fallback of every other implementation.

Shapes as in `ops`; B sequences, L queries and M keys of a padded rectangle.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.kernels import mxfp4

ExpertWeights = Callable[[int], tuple[Tensor, Tensor, Tensor, Tensor]]
"""Expert id → gate_up [2I, D], its bias [2I], down [D, I], its bias [D]."""
PLAIN_UP_TO_KEYS = 1024
"""Keys up to which attention in training in bfloat16 writes its scores to memory: they still fit the cache."""


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """See `ops.RmsNorm`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(wide), (x.shape[-1],), scale.to(wide), eps).to(x.dtype)


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `ops.Rope`."""
    first, second = x.to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    q_lengths: tuple[int, ...],
    k_lengths: tuple[int, ...],
    window: int | None,
) -> Tensor:
    """See `ops.Attention`.

    Neighbours of like length are padded into one rectangle, so order ragged batches by length.
    """
    out: list[Tensor] = []
    q_start = k_start = 0
    for run in _runs_of_like_length(q_lengths, k_lengths):
        lengths_q, lengths_k = q_lengths[run], k_lengths[run]
        q_stop, k_stop = q_start + sum(lengths_q), k_start + sum(lengths_k)
        q_BLNH = _padded(q[q_start:q_stop], lengths_q)
        k_BMGH, v_BMGH = _padded(k[k_start:k_stop], lengths_k), _padded(v[k_start:k_stop], lengths_k)
        out_BLNH = _rectangle(q_BLNH, k_BMGH, v_BMGH, sinks, lengths_q, lengths_k, window)
        out.extend(row[:length] for row, length in zip(out_BLNH, lengths_q, strict=True))
        q_start, k_start = q_stop, k_stop
    return torch.cat(out) if out else q


def _runs_of_like_length(q_lengths: tuple[int, ...], k_lengths: tuple[int, ...]) -> list[slice]:
    """Cut a batch into runs of neighbours in which padding adds at most half to the work of attention."""
    runs: list[slice] = []
    first = needed = longest_q = longest_k = 0
    for i, (q_length, k_length) in enumerate(zip(q_lengths, k_lengths, strict=True)):
        longest_q, longest_k = max(longest_q, q_length), max(longest_k, k_length)
        needed += q_length * k_length
        if i > first and (i + 1 - first) * longest_q * longest_k > 1.5 * needed:
            runs.append(slice(first, i))
            first, needed, longest_q, longest_k = i, q_length * k_length, q_length, k_length
    return [*runs, slice(first, len(q_lengths))] if q_lengths else []


def _padded(x: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """[T, ...] into [B, longest, ...], zeros at the end of short sequences; a view where all are equally long."""
    if len(set(lengths)) == 1:
        return x.unflatten(0, (len(lengths), -1))
    return torch.nn.utils.rnn.pad_sequence(list(x.split(lengths)), batch_first=True)


def _rectangle(
    q_BLNH: Tensor,
    k_BMGH: Tensor,
    v_BMGH: Tensor,
    sinks: Tensor,
    q_lengths: tuple[int, ...],
    k_lengths: tuple[int, ...],
    window: int | None,
) -> Tensor:
    """Attention of a padded batch through torch's fused kernel, which knows nothing of sinks.

    The sink becomes one more key with a zero value: queries gain components that hold the sink (times sqrt(H), which
    the scaling takes away), all keys hold 0 there and the sink's key 1. So its gradient comes by itself, and a padded
    query always has something to attend to. It takes two components, what the type can hold and the rest of it.
    """
    head_dim = q_BLNH.shape[-1]
    extra = -(head_dim + 2) % 8 + 2  # The fused kernels are fastest at multiples of 8.
    sinks = sinks.to(torch.promote_types(sinks.dtype, torch.float32)) * math.sqrt(head_dim)
    rounded = sinks.to(q_BLNH.dtype)
    sink_N2 = torch.stack((rounded, (sinks - rounded).to(q_BLNH.dtype)), dim=-1)
    q_BLNH = torch.cat((q_BLNH, F.pad(sink_N2, (0, extra - 2)).expand(*q_BLNH.shape[:-1], extra)), dim=-1)
    sink_key = F.pad(k_BMGH.new_ones(2), (head_dim, extra - 2))
    k_BMGH = torch.cat((sink_key.expand(k_BMGH.shape[0], 1, k_BMGH.shape[2], -1), F.pad(k_BMGH, (0, extra))), dim=1)
    v_BMGH = F.pad(v_BMGH, (0, extra, 0, 0, 1, 0))
    visible = _visible(q_lengths, k_lengths, window, q_BLNH.device)
    trained = q_BLNH.requires_grad and q_BLNH.dtype == torch.bfloat16 and k_BMGH.shape[1] <= PLAIN_UP_TO_KEYS
    softmax_attention = plain_attention if trained else fused_attention
    out_BNLH = softmax_attention(
        q_BLNH.transpose(1, 2), k_BMGH.transpose(1, 2), v_BMGH.transpose(1, 2), visible, head_dim**-0.5
    )
    return out_BNLH.transpose(1, 2)[..., :head_dim]


def fused_attention(q_BNLH: Tensor, k_BGMH: Tensor, v_BGMH: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Never holds the scores, and adds them up in float32."""
    return F.scaled_dot_product_attention(q_BNLH, k_BGMH, v_BGMH, attn_mask=visible, scale=scale, enable_gqa=True)


def plain_attention(q_BNLH: Tensor, k_BGMH: Tensor, v_BGMH: Tensor, visible: Tensor, scale: float) -> Tensor:
    """Holds the scores, in the type of the operands; heads that share keys are rows of one product.

    For training in bfloat16, where forward and backward together take half the time of the fused kernel's on a CPU
    (benchmarks/attention.py); in float32 it is the other way round.
    """
    num_groups, length = k_BGMH.shape[1], q_BNLH.shape[2]
    q_BGRH = q_BNLH.unflatten(1, (num_groups, -1)).flatten(2, 3) * scale
    hidden = torch.zeros(visible.shape, dtype=q_BNLH.dtype, device=visible.device).masked_fill_(~visible, -torch.inf)
    scores_BGRM = q_BGRH @ k_BGMH.transpose(-1, -2)
    scores_BGRM = scores_BGRM.unflatten(2, (-1, length)).add_(hidden.unsqueeze(1)).softmax(dim=-1).flatten(2, 3)
    return (scores_BGRM @ v_BGMH).unflatten(2, (-1, length)).flatten(1, 2)


def _visible(
    q_lengths: tuple[int, ...], k_lengths: tuple[int, ...], window: int | None, device: torch.device
) -> Tensor:
    """bool [B or 1, 1, L, 1 + M]: what each query sees; the first column is the sink, seen by all."""
    offsets = [j - i for i, j in zip(q_lengths, k_lengths, strict=True)]
    if len(set(offsets)) == 1:
        offsets = offsets[:1]
    offset = torch.tensor(offsets, device=device)[:, None, None, None]
    query = torch.arange(max(q_lengths), device=device)[:, None] + offset
    key = torch.arange(max(k_lengths), device=device)
    visible = key <= query
    if window is not None:
        visible &= key > query - window
    return F.pad(visible, (1, 0), value=True)


def surprise(logits: Tensor, targets: Tensor) -> Tensor:
    """See `ops.Surprise`."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return F.cross_entropy(logits.to(wide), targets, reduction="none")


def swiglu(gate_up: Tensor, limit: float) -> Tensor:
    """Clamped SwiGLU of interleaved rows: [..., 2I] into [..., I]."""
    gate, linear = gate_up.unflatten(-1, (-1, 2)).unbind(-1)
    gate, linear = gate.clamp(max=limit), linear.clamp(-limit, limit)
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
    return experts_by_group(
        x, lambda e: (gate_up[e], gate_up_bias[e], down[e], down_bias[e]), expert_ids, expert_weights, limit
    )


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
    """See `ops.ExpertsMxfp4`. One expert is de-quantised at a time, so that memory stays that of the packed weights."""

    def unpacked(e: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gate_up = mxfp4.dequantize(gate_up_blocks[e], gate_up_scales[e], x.dtype)
        return gate_up, gate_up_bias[e], mxfp4.dequantize(down_blocks[e], down_scales[e], x.dtype), down_bias[e]

    return experts_by_group(x, unpacked, expert_ids, expert_weights, limit)


def experts_by_group(
    x: Tensor, weights_of: ExpertWeights, expert_ids: Tensor, expert_weights: Tensor, limit: float
) -> Tensor:
    """Mixture of experts, one expert at a time over all of its tokens; experts that nobody chose are never asked for.

    x [T, D], expert_ids int64 [T, K], expert_weights [T, K] → [T, D].
    """
    num_active = expert_ids.shape[-1]
    chosen, order = expert_ids.flatten().sort(stable=True)
    tokens = order // num_active
    ids, counts = torch.unique_consecutive(chosen, return_counts=True)
    groups = tokens.split(counts.tolist())
    outputs: list[Tensor] = []
    for e, rows in zip(ids.tolist(), groups, strict=True):
        gate_up, gate_up_bias, down, down_bias = weights_of(e)
        hidden = swiglu(F.linear(x.index_select(0, rows), gate_up, gate_up_bias), limit)
        outputs.append(F.linear(hidden, down, down_bias))
    if not outputs:
        return x
    scaled = torch.cat(outputs) * expert_weights.flatten()[order].unsqueeze(-1)
    # Back in the order of the tokens, then summed over K: a fixed order of addition, unlike index_add.
    return scaled[order.argsort()].unflatten(0, (-1, num_active)).sum(1).to(x.dtype)
