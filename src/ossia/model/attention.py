"""How a layer attends is passed in: what holds the keys and values decides, the architecture does not.

Shapes: T tokens of all sequences end to end, N query heads, G key/value heads, H head size.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ossia.kernels import Kernels


class Attend(Protocol):
    """One forward pass's way to attend. `Packed` serves training and scoring; the engine's caches serve generation."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
        """q [T, N, H] and the new keys and values k, v [T, G, H] of this layer, rotated; sinks [N] → [T, N, H]."""
        ...


@dataclass(frozen=True, slots=True)
class Packed:
    """Whole sequences end to end, each blind to the others; nothing is remembered."""

    kernels: Kernels
    lengths: tuple[int, ...]
    """Tokens of each sequence; they sum to T."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
        """See `Attend`."""
        return self.kernels.attention(q, k, v, sinks, self.lengths, self.lengths, window)
