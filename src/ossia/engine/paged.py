"""Keys and values in pages, and how a forward pass attends to them: the cache of the native CPU kernels.

Caches that were made together share the pages of each layer and have tables of their own, so one call serves them
all. A layer with a window has a few pages a sequence, and gives them in turn again.

Shapes: T new tokens of all sequences end to end, B sequences, M pages of a table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.errors import RequestError
from ossia.kernels.ops import AttentionPaged
from ossia.kernels.pages import PAGE, Pages, empty_pages, fill_random, page_bytes, ring_pages


@dataclass(slots=True, kw_only=True, eq=False)
class PagedCache:
    """What one sequence has been through: its length, and where its keys and values lie. Made by `paged_caches`."""

    layers: tuple[Pages, ...]
    """The same for all caches made together."""
    windows: tuple[int | None, ...]
    """Of each layer."""
    tables: Mapping[int | None, Tensor]
    """Window → int32 [M], the pages of this sequence in layers with that window."""
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
            fill_random(pages, self.tables[window][: _num_pages(num_tokens)], random)
        self.length = num_tokens


def paged_caches(config: ModelConfig, count: int, *, context: int, cache_type: str = "bf16") -> list[PagedCache]:
    """Empty caches for `count` sequences of up to `context` tokens each.

    Raises KernelError for an unknown type, and where the machine refuses the memory.
    """
    windows = tuple(config.window(layer) for layer in range(config.num_hidden_layers))
    full = _num_pages(context)
    widths = {window: full if window is None else min(full, ring_pages(window)) for window in windows}
    groups, head_dim = config.num_key_value_heads, config.head_dim
    layers = tuple(empty_pages(count * widths[window], groups, head_dim, cache_type) for window in windows)
    num_bytes = sum(widths[window] for window in windows) * page_bytes(groups, head_dim, cache_type)
    return [
        PagedCache(
            layers=layers,
            windows=windows,
            tables={
                window: torch.arange(index * width, (index + 1) * width, dtype=torch.int32)
                for window, width in widths.items()
            },
            context=context,
            num_bytes=num_bytes,
        )
        for index in range(count)
    ]


def _num_pages(num_tokens: int) -> int:
    return -(-num_tokens // PAGE)


@dataclass(frozen=True, slots=True)
class _Call:
    """Neighbouring sequences whose caches share their pages."""

    layers: tuple[Pages, ...]
    tables: Mapping[int | None, Tensor]
    """Window → int32 [B, M]."""
    starts: Tensor
    lengths: Tensor
    """int64 [B]."""
    num_tokens: int


class Paged:
    """Attention of new tokens to themselves and to what their caches hold: the `Attend` of one forward pass."""

    def __init__(self, attention: AttentionPaged, caches: Sequence[PagedCache], lengths: Sequence[int]) -> None:
        self._attention = attention
        self._calls: list[_Call] = []
        for _, run in groupby(zip(caches, lengths, strict=True), key=lambda pair: id(pair[0].layers)):
            together, new = zip(*run, strict=True)
            self._calls.append(
                _Call(
                    layers=together[0].layers,
                    tables={
                        window: torch.stack([cache.tables[window] for cache in together])
                        for window in together[0].tables
                    },
                    starts=torch.tensor([cache.length for cache in together]),
                    lengths=torch.tensor(new),
                    num_tokens=sum(new),
                )
            )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
        """See `model.attention.Attend`."""
        out: list[Tensor] = []
        first = 0
        for call in self._calls:
            rows = slice(first, first + call.num_tokens)
            out.append(
                self._attention(
                    q[rows],
                    k[rows],
                    v[rows],
                    sinks,
                    call.layers[layer],
                    call.tables[window],
                    call.starts,
                    call.lengths,
                    window,
                )
            )
            first += call.num_tokens
        return out[0] if len(out) == 1 else torch.cat(out)
