"""The definition of attention over pages: one token, then one query and one head at a time.

It works in the type of the queries, on keys and values rounded to that of the pages. In which order the native kernels
add is described in csrc/attention.hpp.
"""

import math

import torch
from torch import Tensor

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
    num_heads, head_dim = q.shape[1:]
    group = num_heads // k.shape[1]
    out: list[Tensor] = []
    token = 0
    for table_M, start, length in zip(tables, starts.tolist(), lengths.tolist(), strict=True):
        for position in range(start, start + length):
            _write(pages, int(table_M[position // PAGE % len(table_M)]), position % PAGE, k[token], v[token])
            first = 0 if window is None else max(0, position - window + 1)
            k_SGH, v_SGH = _read(pages, table_M, torch.arange(first, position + 1), head_dim)
            heads: list[Tensor] = []
            for n in range(num_heads):
                scores_S = k_SGH[:, n // group].to(q.dtype) @ q[token, n] / math.sqrt(head_dim)
                with_sink = torch.cat((scores_S, sinks[n].view(1)))
                heads.append(torch.softmax(with_sink, dim=0)[:-1] @ v_SGH[:, n // group].to(q.dtype))
            out.append(torch.stack(heads))
            token += 1
    return torch.stack(out) if out else torch.empty_like(q)


def _write(pages: Pages, page: int, slot: int, k_GH: Tensor, v_GH: Tensor) -> None:
    if pages.key_scales is not None and pages.value_scales is not None:
        k_GH, pages.key_scales[page, :, slot] = _quantized(k_GH)
        v_GH, pages.value_scales[page, :, slot] = _quantized(v_GH)
    pages.keys[page, :, :, slot] = k_GH.to(pages.keys.dtype)
    pages.values[page, :, slot, : v_GH.shape[-1]] = v_GH.to(pages.values.dtype)


def _quantized(x_GH: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers [G, H], and the scale of each row [G]."""
    most_G = x_GH.float().abs().amax(dim=-1)
    inverse_G = torch.where(most_G > 0, MOST_Q8 / most_G, 0.0)
    return (x_GH.float() * inverse_G[:, None]).round(), most_G * torch.tensor(1 / MOST_Q8)


def _read(pages: Pages, table_M: Tensor, positions_S: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Keys and values [S, G, H] at these positions."""
    page_S, slot_S = table_M[positions_S // PAGE % len(table_M)].long(), positions_S % PAGE
    k_SGH = pages.keys[page_S, :, :, slot_S].float()
    v_SGH = pages.values[page_S, :, slot_S, :head_dim].float()
    if pages.key_scales is not None and pages.value_scales is not None:
        k_SGH *= pages.key_scales[page_S, :, slot_S].unsqueeze(-1)
        v_SGH *= pages.value_scales[page_S, :, slot_S].unsqueeze(-1)
    return k_SGH, v_SGH
