"""The packed forms: where each weight lies, that what is unpacked is what was packed, and what 8 bits cost."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import mxfp4, packed

SHAPES = [(1, 1), (16, 32), (17, 33), (48, 96), (5, 100)]


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(got: Tensor, expected: Tensor) -> float:
    """Root mean square, as a part of that of what is expected."""
    return float((got - expected).norm() / expected.norm())


def q8_0(weight: Tensor) -> Tensor:
    """What llama.cpp's Q8_0 makes of rows of whole blocks: codes of 8 bits, one half-precision scale a block."""
    blocks = weight.double().unflatten(1, (-1, 32))
    scales = (blocks.abs().amax(-1, keepdim=True) / 127).half().double()
    return ((blocks / scales).round().clamp(-127, 127) * scales).flatten(1).float()


def test_where_each_code_of_4_bits_lies() -> None:
    """Said once more with numbers: byte 64 p + 4 r + c, low nibble column 8 p + c, high nibble column 8 p + 4 + c."""
    blocks = torch.randint(256, (32, 3, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    scales = torch.randint(256, (32, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    result = packed.pack_mxfp4(blocks, scales)
    values = mxfp4.unpack(blocks)  # Rows, blocks, columns.
    for tile, block, p, r, c in np.ndindex(2, 3, 4, 16, 4):
        byte = int(result.codes[tile, block, 64 * p + 4 * r + c])
        row = 16 * tile + r
        assert (byte & 15, byte >> 4) == (int(values[row, block, 8 * p + c]), int(values[row, block, 8 * p + 4 + c]))
        assert result.scales[tile, block, r] == scales[row, block]


def test_where_each_code_of_8_bits_lies() -> None:
    weight = gaussian(32, 64)
    result = packed.pack_q8(weight)
    for tile, block, p, r, c in np.ndindex(2, 2, 8, 16, 4):
        row, column = 16 * tile + r, 32 * block + 4 * p + c
        code = int(result.codes[tile, block, 64 * p + 4 * r + c]) - 128
        step = float(result.multipliers[tile, block, r]) * float(result.row_scales[row])
        assert code * step == pytest.approx(float(weight[row, column]), abs=step)


def test_mxfp4_unpacks_to_the_published_bytes() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 48, 5, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(256, (3, 48, 5), generator=generator, dtype=torch.uint8)
    again = packed.unpack_mxfp4(packed.pack_mxfp4(blocks, scales))
    assert torch.equal(again[0], blocks)
    assert torch.equal(again[1], scales)


def test_mxfp4_needs_whole_tiles() -> None:
    with pytest.raises(KernelError, match="tiles of 16, and 24 are not whole ones"):
        packed.pack_mxfp4(torch.zeros(24, 1, 16, dtype=torch.uint8), torch.zeros(24, 1, dtype=torch.uint8))


def test_gate_rows_stand_before_their_linear_rows() -> None:
    assert packed.gate_up_order(64).tolist() == [
        *range(0, 32, 2),
        *range(1, 32, 2),
        *range(32, 64, 2),
        *range(33, 64, 2),
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_bf16_keeps_every_bit_and_fills_up_with_zeros(shape: tuple[int, int]) -> None:
    weight = gaussian(*shape).bfloat16()
    again = packed.unpack_bf16(packed.pack_bf16(weight))
    assert again.shape == (math.ceil(shape[0] / 16) * 16, shape[1])
    assert torch.equal(again[: shape[0]], weight)
    assert not again[shape[0] :].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["q8", "split"])
def test_8_bits_fill_up_with_zeros_and_stay_within_a_step(shape: tuple[int, int], form: str) -> None:
    pack, unpack, most = {
        "q8": (packed.pack_q8, packed.unpack_q8, packed.MOST_Q8),
        "split": (packed.pack_split, packed.unpack_split, packed.MOST_SPLIT),
    }[form]
    weight = gaussian(*shape)
    again = unpack(pack(weight))
    assert not again[shape[0] :].any()
    assert not again[:, shape[1] :].any()
    # Within half a step of a block, where nothing is cut off; two multipliers too large or one too small at most.
    largest = weight.abs().amax(dim=1, keepdim=True)
    assert bool(((again[: shape[0], : shape[1]] - weight).abs() <= 1.1 * largest / most).all())


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("gaussian", gaussian(64, 2880)),
        ("heavy columns", gaussian(64, 2880) * gaussian(1, 2880, 1).exp()),
        ("long tails", gaussian(64, 2880) / gaussian(64, 2880, 1).abs().clamp_min(0.05)),
        ("in bfloat16", gaussian(64, 2880).bfloat16().float()),
    ],
)
def test_q8_loses_less_than_q8_0(name: str, weight: Tensor) -> None:
    assert error(packed.unpack_q8(packed.pack_q8(weight)), weight) < 0.99 * error(q8_0(weight), weight)


def test_the_best_multiplier_is_taken() -> None:
    """No other within reach leaves a smaller squared error, by more than float32 can tell."""
    weight = gaussian(16, 320)
    result = packed.pack_q8(weight)
    scale = result.row_scales[:, None].double()
    chosen = result.multipliers.transpose(1, 2).flatten(0, 1).double()
    least = (weight.unflatten(1, (-1, 32)).abs().amax(-1).double() / 127 / scale).ceil().clamp(max=255)
    blocks = weight.double().unflatten(1, (-1, 32))

    def loss(multipliers: Tensor) -> Tensor:
        steps = (multipliers * scale)[..., None]
        return ((blocks / steps).round().clamp(-127, 127) * steps - blocks).square().sum(-1)

    assert bool((chosen != least).any())
    for more in packed.TRIES:
        assert bool((loss(chosen) <= loss((least + more).clamp(1, 255)) * (1 + 1e-5)).all())


def test_extreme_blocks() -> None:
    weight = torch.zeros(2, 96)
    weight[0, 0] = 3e38
    weight[0, 40] = 1.0  # Nothing beside the widest block: lost, but not turned into anything.
    weight[1, 70] = -1e-42  # Subnormal.
    again = packed.unpack_q8(packed.pack_q8(weight))
    assert again[0, 0] == pytest.approx(3e38, rel=1e-6)
    assert again[0, 1:].abs().max() < 3e38 / 255
    assert again.isfinite().all()
    assert again[1].abs().max() <= 2e-42


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("pack", [packed.pack_q8, packed.pack_split])
def test_what_is_not_finite_is_refused(pack: object, bad: float) -> None:
    assert callable(pack)
    weight = gaussian(3, 40)
    weight[2, 39] = bad
    with pytest.raises(KernelError, match="weight holds NaN or infinity"):
        pack(weight)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 100))
def test_the_planes_of_a_split_matrix_make_its_codes(rows: int, columns: int, seed: int) -> None:
    weight = gaussian(rows, columns, seed)
    split = packed.pack_split(weight)
    again = packed.unpack_split(split)[:rows, :columns]
    assert error(again, weight) < 0.02
    # Codes are whole numbers of their steps.
    steps = split.multipliers.transpose(1, 2).flatten(0, 1).float() * split.row_scales[:, None]
    codes = again.double() / steps.double().repeat_interleave(32, 1)[:rows, :columns].clamp_min(1e-30)
    assert float((codes - codes.round()).abs().max()) < 1e-4
    assert float(codes.abs().max()) <= packed.MOST_SPLIT + 1e-4
