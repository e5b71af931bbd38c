"""Keys and values in pages, and how a forward pass attends to them.

Tables say which page is whose, so one call serves many sequences. In the cache of one sequence a layer with a window
has a few pages, and gives them in turn again.

Shapes: B sequences, M pages of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.errors import RequestError
from ossia.kernels.ops import AttentionPaged
from ossia.kernels.pages import PAGE, Pages, empty_pages, fill_random, page_bytes, ring_pages
from ossia.model.transformer import Transformer


@dataclass(slots=True, kw_only=True, eq=False)
class PagedCache:
    """What one sequence has been through: its length, and where its keys and values lie. Made by `paged_cache`."""

    layers: tuple[Pages, ...]
    windows: tuple[int | None, ...]
    """Of each layer."""
    tables: Mapping[int | None, Tensor]
    """Window → int32 [M], the pages in layers with that window."""
    context: int
    """Tokens for which there is room."""
    num_bytes: int
    """Memory of a full cache; what has not been written to yet is only set aside."""
    length: int = 0
    """Tokens seen, which is also the position of the next one."""

    def clear(self) -> None:
        """Forget everything; what was written is written over."""
        self.length = 0

    def fill_random(self, num_tokens: int, seed: int = 0) -> None:
        """As if `num_tokens` tokens had been seen; for measurements. Raises RequestError where there is no room."""
        if not 0 <= num_tokens <= self.context:
            raise RequestError(f"{num_tokens:,} tokens do not fit a cache of {self.context:,}: give at most that many")
        random = torch.Generator().manual_seed(seed)
        for pages, window in zip(self.layers, self.windows, strict=True):
            fill_random(pages, self.tables[window][: num_pages(num_tokens)], random)
        self.length = num_tokens


def paged_cache(config: ModelConfig, *, context: int, cache_type: str = "bf16") -> PagedCache:
    """An empty cache for one sequence of up to `context` tokens.

    Raises KernelError for an unknown type, and where the machine refuses the memory.
    """
    windows = tuple(config.window(layer) for layer in range(config.num_hidden_layers))
    full = num_pages(context)
    widths = {window: full if window is None else min(full, ring_pages(window)) for window in windows}
    groups, head_dim = config.num_key_value_heads, config.head_dim
    return PagedCache(
        layers=tuple(empty_pages(widths[window], groups, head_dim, cache_type) for window in windows),
        windows=windows,
        tables={window: torch.arange(width, dtype=torch.int32) for window, width in widths.items()},
        context=context,
        num_bytes=sum(widths[window] for window in windows) * page_bytes(groups, head_dim, cache_type),
    )


def holds_pages(model: Transformer) -> bool:
    """Whether the model's kernels are native ones that read pages: those of a CPU, with activations in float32."""
    scale = model.norm.scale
    return model.kernels.native and (scale.dtype, scale.device.type) == (torch.float32, "cpu")


def num_pages(num_tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-num_tokens // PAGE)


@dataclass(frozen=True, slots=True)
class Paged:
    """Attention of new tokens to themselves and to what the pages hold: the `Attend` of one forward pass."""

    attention: AttentionPaged
    layers: Sequence[Pages]
    tables: Mapping[int | None, Tensor]
    """Window → int32 [B, M]."""
    starts: Tensor
    """int64 [B], the position of each sequence's first new token."""
    lengths: Tensor
    """int64 [B], its new tokens."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
        """See `model.attention.Attend`."""
        return self.attention(
            q, k, v, sinks, self.layers[layer], self.tables[window], self.starts, self.lengths, window
        )
