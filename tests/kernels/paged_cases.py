"""What every implementation of attention over pages is called with.

Shapes: T tokens, N query heads, G key/value heads, H head size, P pages, M pages of a table.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ossia.kernels.pages import PAGE, Pages, empty_pages, fill_random, ring_pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """New tokens of each sequence, and how many came before them."""

    new: tuple[int, ...]
    seen: tuple[int, ...]
    window: int | None = None
    heads: int = 4
    groups: int = 2
    head_dim: int = 16
    sink: float = 0.0
    """Added to random sinks of unit spread."""
    spread: float = 1.0
    """Of the queries."""


CASES = {
    "one token": Case(new=(1,), seen=(0,)),
    "one token, window": Case(new=(1,), seen=(0,), window=128),
    "a prompt": Case(new=(70,), seen=(0,)),
    "one below the window": Case(new=(2,), seen=(125,), window=128),
    "as long as the window": Case(new=(1,), seen=(127,), window=128),
    "one beyond the window": Case(new=(1,), seen=(128,), window=128),
    "a prompt beyond the window": Case(new=(140,), seen=(0,), window=128),
    "window of one": Case(new=(70,), seen=(60,), window=1),
    "window that is no multiple of a page": Case(new=(90,), seen=(100,), window=65),
    "window longer than all": Case(new=(3,), seen=(20,), window=10_000),
    "a ring that comes round": Case(new=(200,), seen=(300,), window=128),
    "a ring that has come round often": Case(new=(2,), seen=(100_000,), window=128),
    "across a page": Case(new=(5,), seen=(62,)),
    "across a segment": Case(new=(4,), seen=(510,)),
    "across a segment, window": Case(new=(4,), seen=(1022,), window=128),
    "beyond 1024": Case(new=(3,), seen=(1023,), heads=8, groups=1),
    "beyond 4096": Case(new=(2,), seen=(4095,), heads=8, groups=1),
    "ragged": Case(new=(1, 7, 66, 0, 3), seen=(0, 130, 5, 9, 1020)),
    "ragged, window": Case(new=(1, 7, 130, 0, 3), seen=(0, 130, 60, 9, 1020), window=128),
    "many sequences": Case(new=(1,) * 9, seen=tuple(range(0, 630, 70))),
    "published heads": Case(new=(3,), seen=(600,), heads=64, groups=8, head_dim=64),
    "one group a head": Case(new=(20,), seen=(50,), heads=3, groups=3),
    "heads that fill no tile": Case(new=(4,), seen=(50,), heads=13, groups=1),
    "head size 8": Case(new=(20,), seen=(50,), head_dim=8),
    "head size 40": Case(new=(20,), seen=(50,), head_dim=40),
    "head size 2": Case(new=(20,), seen=(50,), head_dim=2),
    "sink that dominates": Case(new=(4,), seen=(600,), sink=20.0),
    "sink that vanishes": Case(new=(4,), seen=(600,), sink=-200.0),
    "scores that saturate": Case(new=(4,), seen=(600,), spread=100.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """What the op is called with. Every table names pages of its own, in no order."""

    q: Tensor
    k: Tensor
    v: Tensor
    sinks: Tensor
    pages: Pages
    tables: Tensor
    starts: Tensor
    lengths: Tensor
    window: int | None

    def all(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)


def operands(case: Case, cache_type: str) -> Operands:
    random = torch.Generator().manual_seed(0)
    tokens, sequences = sum(case.new), len(case.new)
    width = -(-max(new + seen for new, seen in zip(case.new, case.seen, strict=True)) // PAGE)
    if case.window is not None:
        width = min(width, ring_pages(case.window))
    pages = empty_pages(width * sequences + 1, case.groups, case.head_dim, cache_type)
    tables = torch.randperm(width * sequences, generator=random).int().view(sequences, width)
    fill_random(pages, torch.arange(width * sequences + 1), random)
    return Operands(
        q=torch.randn(tokens, case.heads, case.head_dim, generator=random) * case.spread,
        k=torch.randn(tokens, case.groups, case.head_dim, generator=random),
        v=torch.randn(tokens, case.groups, case.head_dim, generator=random),
        sinks=torch.randn(case.heads, generator=random) + case.sink,
        pages=pages,
        tables=tables,
        starts=torch.tensor(case.seen),
        lengths=torch.tensor(case.new),
        window=case.window,
    )


def fresh(given: Operands) -> Operands:
    """The same operands on pages of their own."""
    return replace(given, pages=given.pages.clone())


def same_pages(one: Pages, other: Pages, head_dim: int) -> bool:
    pairs = [(one.keys, other.keys), (one.values[..., :head_dim], other.values[..., :head_dim])]
    pairs += [(one.key_scales, other.key_scales), (one.value_scales, other.value_scales)]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)
