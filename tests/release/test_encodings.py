"""Encodings against the gguf package: the same bytes, or the same values read back."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from hypothesis import given
from hypothesis import strategies as st

from ossia.kernels import mxfp4
from ossia.release.encodings import GgufType, encode, mxfp4_blocks, q8_0


@given(st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=32, max_size=32))
def test_q8_0_is_ggmls_bit_for_bit(block: list[float]) -> None:
    values = np.array([block], dtype=np.float32)
    with np.errstate(all="ignore"):
        expected = quants.quantize(values, GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(q8_0(torch.from_numpy(values)).numpy(), expected)


def test_q8_0_of_many_rows_of_bfloat16() -> None:
    values = torch.randn(7, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    values[3, 32:64] = 0
    packed = encode(values, GgufType.Q8_0)
    assert packed.shape == (7, 3 * 34)
    np.testing.assert_array_equal(packed.numpy(), quants.quantize(values.float().numpy(), GGMLQuantizationType.Q8_0))


def test_mxfp4_keeps_every_code_under_every_scale() -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (5, 51, 2, 16), dtype=torch.uint8, generator=generator)
    scales = torch.arange(5 * 51, dtype=torch.uint8).view(5, 51, 1).repeat(1, 1, 2)
    scales[..., 1] = 254 - scales[..., 0]  # 0 to 254: 255 is NaN.
    ours = mxfp4.dequantize(blocks, scales).numpy()
    packed = mxfp4_blocks(blocks, scales)
    assert packed.shape == (5, 51, 2 * 17)
    with np.errstate(over="ignore"):
        theirs = quants.dequantize(packed.numpy(), GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(theirs, ours)
    assert len(np.unique(ours)) > 1000


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [
        (GgufType.F32, GGMLQuantizationType.F32),
        (GgufType.F16, GGMLQuantizationType.F16),
        (GgufType.BF16, GGMLQuantizationType.BF16),
    ],
)
def test_floats(kind: GgufType, theirs: GGMLQuantizationType) -> None:
    values = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    raw = encode(values, kind).numpy()
    expected = quants.quantize(values.numpy(), theirs).view(np.uint8).reshape(raw.shape)
    np.testing.assert_array_equal(raw, expected)


def test_numbers_and_blocks_are_ggmls() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    for kind in GgufType:
        assert GGML_QUANT_SIZES[GGMLQuantizationType[kind.name]] == kind.block
        assert GGMLQuantizationType[kind.name] == kind
