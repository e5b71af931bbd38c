"""The forms in which the CPU kernels read weights, as plain torch: what is packed, and what it stands for.

Rows come in tiles of 16, columns in blocks of 32, and a tile's bytes lie in the order in which they are used: in one
64-byte piece every 32-bit lane is one row. Rows are filled up to whole tiles with zeros, columns to whole blocks.

    codes of 4 bits  uint8 [tiles, blocks, 256]   byte 64 p + 4 r + c of a block: row r, low nibble column 8 p + c,
                                                  high nibble column 8 p + 4 + c        (p, c in 0 .. 3)
    codes of 8 bits  uint8 [tiles, blocks, 512]   byte 64 p + 4 r + c of a block: row r, column 4 p + c    (p in 0 .. 7)
    scale bytes      uint8 [tiles, blocks, 16]    one a row

Four forms are made of these. `docs/numerics.md` says what each costs in error.

    MXFP4   4-bit codes as published, scale bytes as published: 4.25 bits a weight, nothing is lost.
    BF16    bfloat16 [tiles, C, 16]: the sixteen rows of a tile side by side, column by column. Nothing is lost.
    Q8      8-bit codes q + 128 with q in -127 .. 127; a scale byte k a block and a float32 scale s a row:
            weight = s k q. 8.25 bits a weight.
    Split   8 bits in two planes, for the unembedding. With q in -120 .. 120 and a dither u in -8 .. 7 a column,
            q + u = 16 h + m: the 4-bit codes h + 8 alone give an estimate whose error is uniform whatever the weights,
            and the nibbles m, laid out like them, complete it to q. 8.25 bits, read by halves.

Shapes: R rows, C columns, B blocks of 32 columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from ossia.errors import KernelError

TILE = 16
BLOCK = 32
MOST_Q8 = 127
MOST_SPLIT = 120
"""Largest code of each form; of Split so that every q + u has its h in -8 .. 7."""
MOST_MULTIPLIER = 255
TRIES = (0, -1, 1, 2)
"""How far a block's multiplier may be from the least that clips nothing: what 32 values lose in rounding depends on
luck, so the best of four draws is taken, the first of equals."""
_DITHER_SEED = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Mxfp4:
    """A matrix [R, C] in MXFP4, or [E, R, C] with E in front of every shape."""

    codes: Tensor
    """uint8 [R / 16, C / 32, 256]."""
    scales: Tensor
    """uint8 [R / 16, C / 32, 16]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bf16:
    """A matrix [R, C] as it is; R is that before filling up."""

    weight: Tensor
    """bfloat16 [tiles, C, 16]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Q8:
    """A matrix [R, C] in 8-bit codes; R and C are those before filling up."""

    codes: Tensor
    """uint8 [tiles, B, 512]."""
    multipliers: Tensor
    """uint8 [tiles, B, 16]."""
    row_scales: Tensor
    """float32 [16 tiles]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A matrix [R, C] in two planes of 4 bits."""

    high: Tensor
    """uint8 [tiles, B, 256]: h + 8."""
    low: Tensor
    """uint8 [tiles, B, 256]: m."""
    multipliers: Tensor
    """uint8 [tiles, B, 16]."""
    row_scales: Tensor
    """float32 [16 tiles]."""
    dither: Tensor
    """int8 [32 B]: u of each column."""


def pack_mxfp4(blocks: Tensor, scales: Tensor) -> Mxfp4:
    """From the published layout: blocks uint8 [..., R, B, 16], scales uint8 [..., R, B]; R a multiple of 16."""
    if blocks.shape[-3] % TILE:
        raise KernelError(
            f"the rows of a packed matrix come in tiles of {TILE}, and {blocks.shape[-3]} are not whole ones"
        )
    values_RC = torch.stack((blocks & 0x0F, blocks >> 4), dim=-1).flatten(-3)
    return Mxfp4(codes=_tile_nibbles(values_RC), scales=_tile_scales(scales))


def unpack_mxfp4(packed: Mxfp4) -> tuple[Tensor, Tensor]:
    """The published layout again: blocks and scales, byte for byte."""
    values = _untile_nibbles(packed.codes).unflatten(-1, (-1, BLOCK // 2, 2))
    return values[..., 0] | (values[..., 1] << 4), _untile_scales(packed.scales)


def gate_up_order(rows: int) -> Tensor:
    """Which published row of gate_up stands where in the packed one: 16 gate rows, their 16 linear rows, and so on.

    Published rows alternate, gate even and linear odd. int64 [rows]; the bias is put into the same order.
    """
    return torch.arange(rows).view(-1, TILE, 2).transpose(1, 2).flatten()


def pack_bf16(weight: Tensor) -> Bf16:
    """A floating matrix [R, C] as bfloat16 tiles."""
    weight_RC = pad(weight.to(torch.bfloat16), (0, 0, 0, -weight.shape[0] % TILE))
    return Bf16(weight=weight_RC.unflatten(0, (-1, TILE)).transpose(1, 2).contiguous())


def unpack_bf16(packed: Bf16) -> Tensor:
    """bfloat16 [16 tiles, C], filling included."""
    return packed.weight.transpose(1, 2).flatten(0, 1)


def pack_q8(weight: Tensor) -> Q8:
    """Quantise a floating matrix [R, C]: a row's scale follows from its widest block, each block takes a multiple.

    Raises KernelError where a weight is NaN or infinite.
    """
    codes_RC, multipliers_RB, row_scales_R = _quantize(weight, MOST_Q8)
    return Q8(
        codes=_tile_bytes((codes_RC + 128).to(torch.uint8)),
        multipliers=_tile_scales(multipliers_RB),
        row_scales=row_scales_R,
    )


def unpack_q8(packed: Q8) -> Tensor:
    """The weights as float32 [16 tiles, 32 B], filling included."""
    codes_RC = _untile_bytes(packed.codes).to(torch.float32) - 128
    return _scaled(codes_RC, packed.multipliers, packed.row_scales)


def pack_split(weight: Tensor) -> Split:
    """Quantise a floating matrix [R, C] and cut its codes in two planes."""
    codes_RC, multipliers_RB, row_scales_R = _quantize(weight, MOST_SPLIT)
    dither_C = dither(codes_RC.shape[1])
    sums_RC = (codes_RC + dither_C).to(torch.int16)
    high_RC, low_RC = sums_RC >> 4, (sums_RC & 15).to(torch.uint8)
    return Split(
        high=_tile_nibbles((high_RC + 8).to(torch.uint8)),
        low=_tile_nibbles(low_RC),
        multipliers=_tile_scales(multipliers_RB),
        row_scales=row_scales_R,
        dither=dither_C,
    )


def unpack_split(packed: Split) -> Tensor:
    """The weights as float32 [16 tiles, 32 B], filling included."""
    high_RC = _untile_nibbles(packed.high).to(torch.float32) - 8
    low_RC = _untile_nibbles(packed.low).to(torch.float32)
    return _scaled(16 * high_RC + low_RC - packed.dither, packed.multipliers, packed.row_scales)


def dither(columns: int) -> Tensor:
    """u of each column: int8 [columns] in -8 .. 7, the same for every matrix of this width."""
    generator = torch.Generator().manual_seed(_DITHER_SEED)
    return torch.randint(-8, 8, (columns,), generator=generator, dtype=torch.int8)


def _quantize(weight: Tensor, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes float32 [16 tiles, 32 B] within `most`, multipliers uint8 [16 tiles, B], row scales float32 [16 tiles]."""
    rows, columns = weight.shape
    weight_RC = pad(weight.to(torch.float32), (0, -columns % BLOCK, 0, -rows % TILE))
    blocks_RBC = weight_RC.unflatten(1, (-1, BLOCK))
    largest_RB = blocks_RBC.abs().amax(dim=-1)
    if not bool(torch.isfinite(largest_RB).all()):
        raise KernelError("weight holds NaN or infinity: 8 bits cannot store it, so find out where it came from")
    tiny = torch.finfo(torch.float32).tiny
    row_scales_R = largest_RB.amax(dim=-1) / (MOST_MULTIPLIER * most)
    wanted_RB = (largest_RB / most) / row_scales_R.clamp_min(tiny)[:, None]
    multipliers_RB = least_RB = wanted_RB.ceil().clamp_max(MOST_MULTIPLIER)
    codes_RBC, errors_RB = torch.zeros_like(blocks_RBC), torch.full_like(least_RB, torch.inf)
    for more in TRIES:
        tried_RB = (least_RB + more).clamp(1 if more else 0, MOST_MULTIPLIER)
        steps_RB1 = (tried_RB * row_scales_R[:, None])[..., None]
        rounded_RBC = (blocks_RBC / steps_RB1.clamp_min(tiny)).clamp(-most, most).round()
        error_RB = _sum_of_squares(rounded_RBC * steps_RB1 - blocks_RBC)
        # The first try counts in any case: squares of the largest numbers are infinite.
        better_RB = (error_RB < errors_RB) | (more == TRIES[0])
        errors_RB = torch.where(better_RB, error_RB, errors_RB)
        multipliers_RB = torch.where(better_RB, tried_RB, multipliers_RB)
        codes_RBC = torch.where(better_RB[..., None], rounded_RBC, codes_RBC)
    return codes_RBC.flatten(1), multipliers_RB.to(torch.uint8), row_scales_R


def _sum_of_squares(values: Tensor) -> Tensor:
    """Of [..., 32], in the order of the native packer: halves are added until one number is left."""
    sums = values * values
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    return sums[..., 0]


def _scaled(codes: Tensor, multipliers: Tensor, row_scales: Tensor) -> Tensor:
    steps_RB = _untile_scales(multipliers).to(torch.float32) * row_scales[:, None]
    return (codes.unflatten(1, (-1, BLOCK)) * steps_RB[..., None]).flatten(1)


# -------------------------------------------------------------------- tiles


def _tile_nibbles(values: Tensor) -> Tensor:
    """uint8 [..., R, C] below 16 → [..., R/16, B, 256]."""
    pieces = values.unflatten(-1, (-1, 4, 2, 4)).unflatten(-5, (-1, TILE))  # tile, row, block, p, half, c
    pieces = pieces.movedim(-5, -3)  # tile, block, p, row, half, c
    return (pieces[..., 0, :] | (pieces[..., 1, :] << 4)).flatten(-3).contiguous()


def _untile_nibbles(codes: Tensor) -> Tensor:
    pieces = codes.unflatten(-1, (4, TILE, 4))  # tile, block, p, row, c
    halves = torch.stack((pieces & 15, pieces >> 4), dim=-2)  # tile, block, p, row, half, c
    return halves.movedim(-3, -5).flatten(-4).flatten(-3, -2)


def _tile_bytes(values: Tensor) -> Tensor:
    """uint8 [R, C] → [R/16, B, 512]."""
    pieces = values.unflatten(-1, (-1, 8, 4)).unflatten(-4, (-1, TILE))  # tile, row, block, p, c
    return pieces.movedim(-4, -2).flatten(-3).contiguous()


def _untile_bytes(codes: Tensor) -> Tensor:
    pieces = codes.unflatten(-1, (8, TILE, 4))  # tile, block, p, row, c
    return pieces.movedim(-2, -4).flatten(-3).flatten(-3, -2)


def _tile_scales(scales: Tensor) -> Tensor:
    """uint8 [..., R, B] → [..., R/16, B, 16]."""
    return scales.unflatten(-2, (-1, TILE)).transpose(-1, -2).contiguous()


def _untile_scales(scales: Tensor) -> Tensor:
    return scales.transpose(-1, -2).flatten(-3, -2)
