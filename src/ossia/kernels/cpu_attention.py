"""Attention over pages in native code: a thin wrapper, called once a layer for every token that is decoded."""

import torch
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels.pages import Pages


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
    """See `ops.AttentionPaged`. Raises KernelError for operands of the wrong shape or type, with nothing written."""
    import ossia.kernels._native as native

    out = torch.empty(q.shape)
    try:
        native.attention_paged(
            q.contiguous().numpy(),
            k.contiguous().numpy(),
            v.contiguous().numpy(),
            sinks.detach().numpy(),
            *pages.arrays,
            tables.numpy(),
            starts.numpy(),
            lengths.numpy(),
            0 if window is None else window,
            out.numpy(),
        )
    except ValueError as error:
        raise KernelError(f"attention_paged: {error}") from None
    return out
