"""Keys and values of tokens already seen, and how a forward pass attends to them.

Shapes: T new tokens of all sequences end to end, S keys, N query heads, G key/value heads, H head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.errors import RequestError
from ossia.kernels import Kernels

_SMALLEST = 256
"""Tokens of room in a new layer's store; small enough to be nothing, large enough for most prompts to grow it once."""


class LayerStore:
    """One layer of one sequence: rows in order of time in two buffers with spare room behind.

    A full layer doubles its buffers when they are full. A windowed layer then moves the rows that a later query can
    still see to the front instead, about once every `window` tokens. Either way the rows are always one contiguous
    piece, so attention reads them in place.
    """

    __slots__ = ("_end", "_keys", "_start", "_values", "window")

    def __init__(self, window: int | None) -> None:
        self.window = window
        self._start = self._end = 0
        self._keys = self._values = torch.empty(0)

    @property
    def num_rows(self) -> int:
        """Tokens whose keys and values are held."""
        return self._end - self._start

    @property
    def capacity(self) -> int:
        """Tokens for which there is room before the next move."""
        return self._keys.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory taken, spare room included."""
        return 2 * self._keys.nbytes

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v [T, G, H]; return all rows [S, G, H] that the T new queries may see, as views."""
        num_new = k.shape[0]
        if self.window is not None:
            # The oldest new query sees window - 1 rows before its own.
            self._start = max(self._start, self._end - self.window + 1)
        if self._end + num_new > self.capacity:
            self._make_room(num_new, k)
        stop = self._end + num_new
        self._keys[self._end : stop] = k
        self._values[self._end : stop] = v
        self._end = stop
        return self._keys[self._start : stop], self._values[self._start : stop]

    def _make_room(self, num_new: int, like: Tensor) -> None:
        kept = self.num_rows
        size = max(_SMALLEST, 2 * (kept + num_new))
        keys, values = like.new_empty(size, *like.shape[1:]), like.new_empty(size, *like.shape[1:])
        if kept:
            keys[:kept] = self._keys[self._start : self._end]
            values[:kept] = self._values[self._start : self._end]
        self._keys, self._values, self._start, self._end = keys, values, 0, kept


class Cache:
    """What one sequence has been through: its length and, layer by layer, the keys and values still needed."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        context: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """An empty cache. `fill_random` needs dtype and device; what a model brings along is kept as it is."""
        self.length = 0
        """Tokens seen, which is also the position of the next one."""
        self.context = config.max_position_embeddings if context is None else context
        """Tokens it may hold."""
        self.layers = [LayerStore(config.window(layer)) for layer in range(config.num_hidden_layers)]
        self._like = torch.empty(0, config.num_key_value_heads, config.head_dim, dtype=dtype, device=device)

    def clear(self) -> None:
        """Forget everything."""
        self.length = 0
        self.layers = [LayerStore(store.window) for store in self.layers]

    @property
    def num_bytes(self) -> int:
        """Memory taken so far."""
        return sum(store.num_bytes for store in self.layers)

    def fill_random(self, num_tokens: int, seed: int = 0) -> None:
        """As if `num_tokens` tokens had been seen by an empty cache; for measurements.

        Raises RequestError where there is no room.
        """
        if not 0 <= num_tokens <= self.context:
            raise RequestError(f"{num_tokens:,} tokens do not fit a cache of {self.context:,}: give at most that many")
        random = torch.Generator(self._like.device).manual_seed(seed)
        for store in self.layers if num_tokens else ():
            rows = num_tokens if store.window is None else min(num_tokens, store.window)
            new = self._like.new_empty(2, rows, *self._like.shape[1:]).normal_(generator=random)
            store.extend(new[0], new[1])
        self.length = num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached:
    """Attention of new tokens to themselves and to what their cache holds: the `Attend` of prefill and decoding.

    One forward pass each: the passes' keys and values stay in the cache.
    """

    kernels: Kernels
    cache: Cache

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
        """See `model.attention.Attend`."""
        k, v = self.cache.layers[layer].extend(k, v)
        return self.kernels.attention(q, k, v, sinks, (q.shape[0],), (k.shape[0],), window)
