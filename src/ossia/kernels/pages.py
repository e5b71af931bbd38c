"""Pages of keys and values: where the CPU kernels keep what a layer has seen.

A page holds 64 neighbouring positions, from a multiple of 64 on. Keys lie column by column, so that neighbouring
tokens are neighbouring lanes; values lie token by token. In 8 bits a value is q * scale, q in -127 .. 127, with one
scale a token and head, the largest magnitude over 127; rounding is to the nearest, ties to even.

A sequence's table says which page is whose: position p is in page `table[p // 64 % M]`, at p % 64. Where all positions
fit, a table is a list; a layer with a window gives its M pages in turn again, as a ring.

Shapes: P pages, M pages of a table, G key/value heads, H head size, W = H filled up to a multiple of 16.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ossia.errors import KernelError

CacheType = Literal["bf16", "q8"]
CACHE_TYPES: tuple[str, ...] = get_args(CacheType)

PAGE = 64
"""Positions of a page."""
_LANES = 16
MOST_Q8 = 127
_RANDOM_PAGES = 16
_RANDOM_SCALE = 1 / 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """One layer's pages."""

    keys: Tensor
    """bfloat16 or int8 [P, G, H, 64]; in `plain_pages` any floating type."""
    values: Tensor
    """The same type [P, G, 64, W]; what lies beyond H is never read."""
    key_scales: Tensor | None = None
    """float32 [P, G, 64], with int8."""
    value_scales: Tensor | None = None
    arrays: tuple[Any, Any, Any, Any] = field(init=False, repr=False, compare=False)
    """The same memory in numpy's terms, bfloat16 as uint16: what the native kernels are given. None elsewhere."""

    def __post_init__(self) -> None:
        arrays = (_array(self.keys), _array(self.values), _array(self.key_scales), _array(self.value_scales))
        object.__setattr__(self, "arrays", arrays)

    def clone(self) -> "Pages":
        """The same content in memory of its own."""
        if self.key_scales is None or self.value_scales is None:
            return Pages(keys=self.keys.clone(), values=self.values.clone())
        return Pages(
            keys=self.keys.clone(),
            values=self.values.clone(),
            key_scales=self.key_scales.clone(),
            value_scales=self.value_scales.clone(),
        )


def _array(x: Tensor | None) -> Any:
    if x is None or x.device.type != "cpu":
        return None
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def empty_pages(num_pages: int, num_groups: int, head_dim: int, cache_type: str = "bf16") -> Pages:
    """Room for `num_pages` pages, which takes memory only as it is written to.

    Raises KernelError for an unknown type, and where the machine refuses the memory.
    """
    if cache_type not in CACHE_TYPES:
        raise KernelError(f"unknown cache type {cache_type!r}: choose one of {', '.join(CACHE_TYPES)}")
    keys, values = (num_pages, num_groups, head_dim, PAGE), (num_pages, num_groups, PAGE, _width(head_dim))
    scales = (num_pages, num_groups, PAGE)
    try:
        if cache_type == "q8":
            return Pages(
                keys=_empty(keys, torch.int8),
                values=_empty(values, torch.int8),
                key_scales=_empty(scales, torch.float32),
                value_scales=_empty(scales, torch.float32),
            )
        return Pages(keys=_empty(keys, torch.bfloat16), values=_empty(values, torch.bfloat16))
    except MemoryError:
        raise KernelError(
            f"this machine refuses the memory of {num_pages * PAGE:,} tokens of keys and values: "
            "choose a smaller context, or q8 as cache type"
        ) from None


def plain_pages(num_pages: int, num_groups: int, head_dim: int, like: Tensor) -> Pages:
    """As `empty_pages`, in the type and on the device of `like`: for kernels that are not native."""
    keys, values = (num_pages, num_groups, head_dim, PAGE), (num_pages, num_groups, PAGE, _width(head_dim))
    return Pages(keys=like.new_empty(keys), values=like.new_empty(values))


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory by numpy, which asks for huge pages: reading far back is a sixth faster for them."""
    return torch.from_numpy(np.empty(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def _width(head_dim: int) -> int:
    return head_dim + -head_dim % _LANES


def page_bytes(num_groups: int, head_dim: int, cache_type: str = "bf16") -> int:
    """Bytes of one page of one layer, keys and values."""
    width = _width(head_dim)
    if cache_type == "q8":
        return num_groups * PAGE * (head_dim + width + 2 * 4)
    return num_groups * PAGE * 2 * (head_dim + width)


def ring_pages(window: int) -> int:
    """Pages of a ring for a window: room for what a query sees, and for a page of new tokens at once."""
    return -(-(window - 1 + PAGE) // PAGE)


def fill_random(pages: Pages, table: Tensor, random: torch.Generator) -> None:
    """Keys and values of about unit spread in the pages of a table; the same ones every few pages, for speed."""
    if not table.numel():
        return
    for codes, scales in ((pages.keys, pages.key_scales), (pages.values, pages.value_scales)):
        block = torch.randn(min(_RANDOM_PAGES, table.numel()), *codes.shape[1:], generator=random)
        if scales is not None:
            block = (block / _RANDOM_SCALE).round_().clamp_(-MOST_Q8, MOST_Q8)
            scales.index_fill_(0, table.long(), _RANDOM_SCALE)
        block = block.to(codes.dtype)
        for index, page in enumerate(table.tolist()):
            codes[page] = block[index % len(block)]
