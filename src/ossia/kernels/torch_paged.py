"""Attention over pages in torch: any torch device, pages of any floating type or in 8 bits.

Shapes as in `ops`; R tokens that are written or read, anywhere in the pages.
"""

import torch
from torch import Tensor

from ossia.kernels import torch_ops
from ossia.kernels.pages import MOST_Q8, PAGE, Pages


def attention_paged(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor,
    pages: Pages,
    tables: Tensor,
    starts: Tensor,
    lengths: Tensor,
    window: int | None,
) -> Tensor:
    """See `ops.AttentionPaged`."""
    out = torch.empty_like(q)
    room = tables.shape[1] * PAGE
    left = [
        (table_M, start, length, token)
        for table_M, start, length, token in zip(
            tables.to(q.device),
            starts.tolist(),
            lengths.tolist(),
            (lengths.cumsum(0) - lengths).tolist(),
            strict=True,
        )
        if length
    ]
    while left:
        now, left = left, []
        rows: list[Tensor] = []
        written: list[Tensor] = []
        read: list[Tensor] = []
        counts: list[int] = []
        for table_M, start, length, token in now:
            count = length
            if window is not None and start + length > room:
                # New tokens must not take the place in a ring of what the first of them sees.
                count = min(length, room - (window - 1))
            if count < length:
                left.append((table_M, start + count, length - count, token + count))
            first = 0 if window is None else max(0, start - window + 1)
            places_R = _places(table_M, first, start + count)
            rows.append(torch.arange(token, token + count, device=q.device))
            written.append(places_R[start - first :])
            read.append(places_R)
            counts.append(count)
        rows_R = torch.cat(rows)
        _write(pages, torch.cat(written), k[rows_R], v[rows_R])
        k_RGH, v_RGH = _read(pages, torch.cat(read), q)
        k_lengths = tuple(len(places_R) for places_R in read)
        out[rows_R] = torch_ops.attention(q[rows_R], k_RGH, v_RGH, sinks, tuple(counts), k_lengths, window)
    return out


def _places(table_M: Tensor, first: int, stop: int) -> Tensor:
    """Where positions first .. stop - 1 lie: page * PAGE + slot, int64 [R]."""
    positions_R = torch.arange(first, stop, device=table_M.device)
    return table_M[positions_R // PAGE % len(table_M)].long() * PAGE + positions_R % PAGE


def _write(pages: Pages, places_R: Tensor, k_RGH: Tensor, v_RGH: Tensor) -> None:
    page_R, slot_R = places_R // PAGE, places_R % PAGE
    if pages.key_scales is not None and pages.value_scales is not None:
        k_RGH, pages.key_scales[page_R, :, slot_R] = _quantized(k_RGH)
        v_RGH, pages.value_scales[page_R, :, slot_R] = _quantized(v_RGH)
    pages.keys[page_R, :, :, slot_R] = k_RGH.to(pages.keys.dtype)
    pages.values[page_R, :, slot_R, : v_RGH.shape[-1]] = v_RGH.to(pages.values.dtype)


def _quantized(x_RGH: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [R, G, H], and the scale of each row [R, G]."""
    most_RG = x_RGH.float().abs().amax(dim=-1)
    inverse_RG = torch.where(most_RG > 0, MOST_Q8 / most_RG, 0.0)
    return (x_RGH.float() * inverse_RG[..., None]).round(), most_RG * torch.tensor(1 / MOST_Q8)


def _read(pages: Pages, places_R: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [R, G, H] in the type of `like`."""
    page_R, slot_R = places_R // PAGE, places_R % PAGE
    k_RGH, v_RGH = pages.keys[page_R, :, :, slot_R], pages.values[page_R, :, slot_R, : like.shape[-1]]
    if pages.key_scales is not None and pages.value_scales is not None:
        k_RGH = k_RGH * pages.key_scales[page_R, :, slot_R].unsqueeze(-1)
        v_RGH = v_RGH * pages.value_scales[page_R, :, slot_R].unsqueeze(-1)
    return k_RGH.to(like.dtype), v_RGH.to(like.dtype)
