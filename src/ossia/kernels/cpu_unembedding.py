"""The unembedding from two planes in native code: thin wrappers.

`docs/numerics.md` says why the rows that `best_split` returns are the largest.
"""

import math

import torch
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import packed
from ossia.kernels.packed import Split

FAILURE = 1e-12
"""The probability, over the draw of the dither, that one call of `best_split` misses a row of one token."""


def logits_split(x: Tensor, weight: Split, rows: int) -> Tensor:
    """See `ops.LogitsSplit`. Raises KernelError where the operands do not fit."""
    import ossia.kernels._native as native

    out_TR = torch.empty(x.shape[0], rows)
    try:
        native.logits_split(x.numpy(), *_arrays(weight), out_TR.numpy())
    except ValueError as error:
        raise KernelError(f"logits_split: {error}") from None
    return out_TR


def best_split(x: Tensor, weight: Split, rows: int, count: int) -> tuple[Tensor, Tensor]:
    """See `ops.BestSplit`. NaN comes before all numbers: where x is not finite every value returned is NaN.

    Raises KernelError where the operands do not fit, or `count` is not within 1 .. rows.
    """
    import ossia.kernels._native as native

    num_tokens = x.shape[0]
    ids_TK, values_TK = torch.empty(num_tokens, count, dtype=torch.int64), torch.empty(num_tokens, count)
    completed_T = torch.empty(num_tokens, dtype=torch.int64)
    out = (ids_TK.numpy(), values_TK.numpy(), completed_T.numpy())
    try:
        native.best_split(x.numpy(), *_arrays(weight), rows, deviations(count), *out)
    except ValueError as error:
        raise KernelError(f"best_split: {error}") from None
    return ids_TK, values_TK


def deviations(count: int) -> float:
    """By how many standard errors `count` estimates may all fall short, but with probability `FAILURE`."""
    return math.sqrt(2 * math.log(max(count, 1) / FAILURE))


def pack_split(weight: Tensor) -> Split:
    """`packed.pack_split`, byte for byte; in native code where `weight` is bfloat16 [R, C]."""
    import ossia.kernels._native as native

    if weight.dtype != torch.bfloat16:
        return packed.pack_split(weight)
    rows, columns = weight.shape
    tiles, blocks = -(-rows // packed.TILE), -(-columns // packed.BLOCK)
    out = Split(
        high=torch.empty(tiles, blocks, packed.TILE * packed.BLOCK // 2, dtype=torch.uint8),
        low=torch.empty(tiles, blocks, packed.TILE * packed.BLOCK // 2, dtype=torch.uint8),
        multipliers=torch.empty(tiles, blocks, packed.TILE, dtype=torch.uint8),
        row_scales=torch.empty(tiles * packed.TILE),
        dither=packed.dither(blocks * packed.BLOCK),
    )
    high, low, multipliers, row_scales, dither = _arrays(out)
    try:
        native.pack_split(weight.view(torch.uint16).numpy(), dither, high, low, multipliers, row_scales)
    except ValueError as error:
        raise KernelError(f"pack_split: {error}") from None
    return out


def _arrays(weight: Split) -> tuple[object, object, object, object, object]:
    return (
        weight.high.numpy(),
        weight.low.numpy(),
        weight.multipliers.numpy(),
        weight.row_scales.numpy(),
        weight.dither.numpy(),
    )
