"""MXFP4 against arithmetic written another way: fractions, a search over the grid, and two other implementations."""

import math
import struct
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import mxfp4

RULES = ("ceil", "floor", "even")
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def code_value(code: int) -> Fraction:
    """E2M1 from its bits: sign, two bits of exponent with bias 1, one bit of mantissa, subnormal at exponent 0."""
    exponent, mantissa = code >> 1 & 3, code & 1
    magnitude = Fraction(mantissa, 2) if exponent == 0 else (1 + Fraction(mantissa, 2)) * 2 ** (exponent - 1)
    return -magnitude if code & 8 else magnitude


def scale_value(byte: int) -> Fraction:
    return Fraction(2) ** (byte - 127)


def every_code_under_every_scale() -> tuple[Tensor, Tensor]:
    """blocks [255, 16, 16] and scales [255, 16]: row s holds all 256 bytes under scale byte s."""
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(255, 16, 16).contiguous()
    return blocks, torch.arange(255, dtype=torch.uint8).view(255, 1).expand(255, 16).contiguous()


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Equal, of one type, and zeros of one sign."""
    return one.dtype == other.dtype and torch.equal(one, other) and torch.equal(one.signbit(), other.signbit())


# ---------------------------------------------------------------- unpacking


def test_magnitudes() -> None:
    assert tuple(float(code_value(code)) for code in range(8)) == mxfp4.MAGNITUDES


def test_every_code_under_every_scale_is_exact() -> None:
    values = mxfp4.dequantize(*every_code_under_every_scale(), torch.float64).tolist()
    for scale in range(255):
        for byte in range(256):
            for nibble, code in enumerate((byte & 15, byte >> 4)):
                got = values[scale][2 * byte + nibble]
                assert Fraction(got) == code_value(code) * scale_value(scale), (scale, byte)
                assert math.copysign(1, got) == (-1 if code & 8 else 1), (scale, byte)


@pytest.mark.parametrize(("dtype", "letter"), [(torch.float32, "f"), (torch.float16, "e")], ids=["float32", "float16"])
def test_narrower_types_round_once(dtype: torch.dtype, letter: str) -> None:
    """As `struct` packs the exact value; what is too large becomes infinite."""
    values = mxfp4.dequantize(*every_code_under_every_scale(), dtype)
    for scale in range(255):
        for byte in range(0, 256, 17):  # Both nibbles the same code.
            exact = float(code_value(byte & 15) * scale_value(scale))
            try:
                (expected,) = struct.unpack(letter, struct.pack(letter, exact))
            except OverflowError:
                expected = math.copysign(math.inf, exact)
            assert values[scale, 2 * byte].item() == values[scale, 2 * byte + 1].item() == expected, (scale, byte)


def test_bfloat16_holds_all_that_float32_holds() -> None:
    packed = every_code_under_every_scale()
    assert same_bits(mxfp4.dequantize(*packed, torch.bfloat16).float(), mxfp4.dequantize(*packed))


def test_what_overflows_float32() -> None:
    """4 and 6 under scale byte 253, 2 to 6 under 254: multiples of 2^128 and more, and nothing else."""
    values = mxfp4.dequantize(*every_code_under_every_scale())[:, 0::2]  # The low nibble goes through all codes.
    infinite = {(scale, byte % 8) for scale, byte in values.isinf().nonzero().tolist()}
    assert infinite == {(253, 6), (253, 7), (254, 4), (254, 5), (254, 6), (254, 7)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_transformers_unpacks_the_same(dtype: torch.dtype) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks, scales = every_code_under_every_scale()
    theirs = convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0].T
    assert same_bits(mxfp4.dequantize(blocks, scales, dtype), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_official_code_unpacks_the_same(dtype: torch.dtype) -> None:
    from tests.model.oracles import official_dequantize

    blocks, scales = every_code_under_every_scale()
    assert same_bits(mxfp4.dequantize(blocks, scales, dtype), official_dequantize(blocks, scales, dtype))


def test_the_nan_scale_gives_nan() -> None:
    for dtype in FLOATS:
        values = mxfp4.dequantize(torch.zeros(2, 16, dtype=torch.uint8), torch.tensor([255, 0]).byte(), dtype)
        assert values[:32].isnan().all()
        assert not values[32:].isnan().any()


def test_the_even_index_is_in_the_low_nibble() -> None:
    codes = torch.arange(32, dtype=torch.uint8) % 16
    blocks = mxfp4.pack(codes)
    assert blocks[:2].tolist() == [0x10, 0x32]
    assert torch.equal(mxfp4.unpack(blocks), codes)


def test_every_byte_survives_unpacking_and_packing() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(4, 4, 16)
    assert mxfp4.unpack(blocks).shape == (4, 4, 32)
    assert torch.equal(mxfp4.pack(mxfp4.unpack(blocks)), blocks)


# ---------------------------------------------------------------- packing


def defined_exponent(values: list[float], rule: str) -> int:
    """The rules as they are defined, by search and in fractions."""
    largest = max(abs(Fraction(value)) for value in values)
    if not largest:
        return -3  # Any scale holds zeros.
    if rule == "ceil":
        exponent = next((e for e in range(-127, 128) if largest <= 6 * Fraction(2) ** e), 127)
    elif rule == "even":
        exponent = next((e for e in range(-127, 128) if largest < 7 * Fraction(2) ** e), 127)
    else:
        exponent = next((e for e in range(127, -128, -1) if 4 * Fraction(2) ** e <= largest), -127)
    return exponent


def nearest_code(value: float, exponent: int) -> int:
    """By search over the grid; of two that are as near, the even one; the sign of zero is kept."""
    scaled = abs(Fraction(value)) / Fraction(2) ** exponent
    code = min(range(8), key=lambda c: (abs(code_value(c) - scaled), c % 2))
    return code | (8 if math.copysign(1, value) < 0 else 0)


def check_block(values: list[float], rule: str, dtype: torch.dtype) -> None:
    weight = torch.tensor(values, dtype=dtype)
    values = weight.tolist()
    blocks, scales = mxfp4.quantize(weight, scale_rule=rule)
    exponent = defined_exponent(values, rule)
    assert scales.tolist() == [exponent + 127]
    assert mxfp4.unpack(blocks)[0].tolist() == [nearest_code(value, exponent) for value in values]


GRID = [sign * (a + b) / 2 for a, b in zip(mxfp4.MAGNITUDES, mxfp4.MAGNITUDES[1:], strict=False) for sign in (1, -1)]
"""The fourteen ties."""


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_ties_go_to_the_even_code(rule: str, dtype: torch.dtype) -> None:
    weight = torch.tensor([6.0, -6.0, *GRID, *[0.0] * 16], dtype=dtype)
    check_block(weight.tolist(), rule, dtype)
    values = mxfp4.dequantize(*mxfp4.quantize(weight, scale_rule=rule))
    assert values[2:16:2].tolist() == [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]


EDGES = [
    [0.0] * 32,
    [-0.0] * 32,
    [6.0] + [0.0] * 31,
    [math.nextafter(6.0, 7.0)] + [1.0] * 31,
    [7.99] * 32,
    [8.0, 0.1] * 16,
    [4.0, 3.999, -5.0, 5.001] * 8,
    [2.0**-126, 2.0**-127, 2.0**-130, 2.0**-149] * 8,
    [2.0**-149] * 32,
    [2.0**-133] * 32,
    [3.38e38, -3.3e38, 1e38, 1e30] * 8,
    [1e-30, 1e30] * 16,
    [2.0**120 * x for x in (1.0, 1.25, 1.5, 1.75)] * 8,
]


@pytest.mark.parametrize("values", EDGES, ids=lambda values: f"{values[0]:.3g}, {values[1]:.3g}")
@pytest.mark.parametrize("rule", RULES)
def test_edges(values: list[float], rule: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        check_block(values, rule, dtype)


@pytest.mark.parametrize("values", [[1e300] * 32, [1e-300, 1e-320] * 16, [2.0**130, 2.0**127] * 16])
@pytest.mark.parametrize("rule", RULES)
def test_beyond_what_a_scale_can_say(values: list[float], rule: str) -> None:
    """Only float64 goes there: the largest scale clips, the smallest gives zeros."""
    check_block(values, rule, torch.float64)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_block_is_what_the_search_finds(rule: str, data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([64, 32, 16]))
    dtype = {64: torch.float64, 32: torch.float32, 16: torch.float16}[width]
    value = st.floats(allow_nan=False, allow_infinity=False, width=width) | st.floats(-8, 8, width=width)
    check_block(data.draw(st.lists(value, min_size=32, max_size=32)), rule, dtype)


def test_the_two_rules_differ_only_where_the_largest_exceeds_six() -> None:
    for largest, ceil, floor in ((6.0, 127, 127), (6.5, 128, 127), (7.9, 128, 127), (8.0, 128, 128), (4.0, 127, 127)):
        weight = torch.zeros(32)
        weight[3] = largest
        assert mxfp4.quantize(weight, scale_rule="ceil")[1].item() == ceil
        assert mxfp4.quantize(weight, scale_rule="floor")[1].item() == floor


def test_even_is_between_them() -> None:
    for largest, exponent in ((6.0, 127), (6.99, 127), (7.0, 128), (7.9, 128), (8.0, 128), (3.5, 127), (3.49, 126)):
        weight = torch.zeros(32)
        weight[3] = largest
        assert mxfp4.quantize(weight, scale_rule="even")[1].item() == exponent


def test_stored_values_that_move_a_little_stay_what_they_are_under_even_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    stored = mxfp4.fake_quantize(torch.randn(1000, 320, generator=generator))
    moved = stored + 1e-6 * torch.randn(stored.shape, generator=generator)
    share = {rule: float((mxfp4.fake_quantize(moved, scale_rule=rule) != stored).float().mean()) for rule in RULES}
    assert share["even"] == 0
    assert share["ceil"] > 0.03
    assert share["floor"] > 0.001


def test_ceil_never_clips_and_floor_does() -> None:
    weight = torch.full((32,), 7.5)
    assert mxfp4.dequantize(*mxfp4.quantize(weight, scale_rule="ceil")).unique().tolist() == [8.0]
    assert mxfp4.dequantize(*mxfp4.quantize(weight, scale_rule="floor")).unique().tolist() == [6.0]


def test_shapes() -> None:
    blocks, scales = mxfp4.quantize(torch.randn(2, 3, 96, generator=torch.Generator().manual_seed(0)))
    assert (blocks.shape, blocks.dtype) == ((2, 3, 3, 16), torch.uint8)
    assert (scales.shape, scales.dtype) == ((2, 3, 3), torch.uint8)
    assert mxfp4.dequantize(blocks, scales).shape == (2, 3, 96)


def test_a_view_with_strides_is_read_in_order() -> None:
    weight = torch.randn(64, 5, generator=torch.Generator().manual_seed(0)).T
    for one, other in zip(mxfp4.quantize(weight), mxfp4.quantize(weight.contiguous()), strict=True):
        assert torch.equal(one, other)


# ---------------------------------------------------------------- training through it


def some_weights(dtype: torch.dtype) -> Tensor:
    """Blocks of very different spread, with zeros of both signs."""
    generator = torch.Generator().manual_seed(3)
    spread = 10.0 ** torch.linspace(-6, 3, 8)
    weight = (torch.randn(8, 96, generator=generator) * spread[:, None]).to(dtype)
    weight[0, :5], weight[1, :5], weight[2] = 0.0, -0.0, 0.0
    return weight


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_fake_quantize_is_what_packing_gives_bit_for_bit(rule: str, dtype: torch.dtype) -> None:
    weight = some_weights(dtype)
    packed = mxfp4.dequantize(*mxfp4.quantize(weight, scale_rule=rule), dtype)
    assert same_bits(mxfp4.fake_quantize(weight, scale_rule=rule), packed)
    assert not torch.equal(packed, weight)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_gradient_of_fake_quantize_is_the_identity(dtype: torch.dtype) -> None:
    weight = some_weights(dtype).requires_grad_()
    before = weight.detach().clone()
    grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    mxfp4.fake_quantize(weight).backward(grad)
    assert same_bits(weight.grad, grad)
    assert same_bits(weight.detach(), before)


def test_fake_quantize_of_a_frozen_weight_asks_for_no_gradient() -> None:
    assert not mxfp4.fake_quantize(some_weights(torch.float32)).requires_grad


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(st.floats(-(2.0**60), 2.0**60, width=32), min_size=32, max_size=32),
    again=st.sampled_from(RULES),
)
def test_what_is_packed_stays_as_it_is(rule: str, values: list[float], again: str) -> None:
    """Packed values pack to the same values, under either rule; bytes may differ, as 4 = 2 * 2 does."""
    once = mxfp4.fake_quantize(torch.tensor(values), scale_rule=rule)
    twice = mxfp4.dequantize(*mxfp4.quantize(once, scale_rule=again))
    assert same_bits(once, twice)
    assert same_bits(mxfp4.fake_quantize(once, scale_rule=again), once)


# ---------------------------------------------------------------- refusing


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_by_name(value: float) -> None:
    weight = torch.zeros(2, 64)
    weight[1, 40] = value
    with pytest.raises(KernelError, match=r"^layers.3.mlp.experts.down holds NaN or infinity"):
        mxfp4.quantize(weight, name="layers.3.mlp.experts.down")


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(3, 33), r"^w has shape \(3, 33\): MXFP4 needs a last dimension that is a multiple of 32"),
        (torch.zeros(()), r"^w has shape \(\)"),
        (torch.zeros(3, 0), r"^w has shape \(3, 0\)"),
        (torch.zeros(32, dtype=torch.int64), r"^w is torch.int64: MXFP4 packs floating-point values"),
    ],
    ids=["not a multiple", "no dimension", "nothing", "whole numbers"],
)
def test_what_cannot_be_packed_is_refused_by_name(weight: Tensor, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        mxfp4.quantize(weight, name="w")


@pytest.mark.parametrize(
    ("blocks", "scales", "message"),
    [
        (torch.zeros(2, 16), torch.zeros(2, dtype=torch.uint8), "must be uint8, not torch.float32 and torch.uint8"),
        (torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(2, dtype=torch.int8), "must be uint8"),
        (torch.zeros(2, 16, dtype=torch.uint8), torch.zeros(3, dtype=torch.uint8), r"do not go with scales \(3,\)"),
        (torch.zeros(2, 15, dtype=torch.uint8), torch.zeros(2, dtype=torch.uint8), r"expected \(2, 16\)"),
    ],
    ids=["blocks type", "scales type", "number", "block size"],
)
def test_blocks_and_scales_must_go_together(blocks: Tensor, scales: Tensor, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        mxfp4.dequantize(blocks, scales)


# ---------------------------------------------------------------- the figures of docs/mxfp4.md


def drawn(distribution: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (4000, 320)
    if distribution == "normal":
        return torch.randn(shape, generator=generator)
    if distribution == "uniform":
        return torch.rand(shape, generator=generator) * 2 - 1
    sign = torch.rand(shape, generator=generator) - 0.5
    return -torch.rand(shape, generator=generator).clamp(min=1e-30).log() * sign.sign()  # Laplace


@pytest.mark.parametrize(
    ("distribution", "rule", "error", "projection"),
    [
        ("normal", "ceil", 0.1155, 0.990),
        ("normal", "floor", 0.1150, 0.981),
        ("normal", "even", 0.1119, 0.990),
        ("Laplace", "ceil", 0.1322, 0.991),
        ("Laplace", "floor", 0.1267, 0.973),
        ("Laplace", "even", 0.1240, 0.990),
        ("uniform", "ceil", 0.0988, 1.005),
        ("uniform", "floor", 0.1441, 0.917),
        ("uniform", "even", 0.0989, 1.005),
    ],
)
def test_measured_errors(distribution: str, rule: str, error: float, projection: float) -> None:
    weight = drawn(distribution)
    packed = mxfp4.fake_quantize(weight, scale_rule=rule)
    power = weight.square().mean()
    assert float(((packed - weight).square().mean() / power).sqrt()) == pytest.approx(error, abs=5e-4)
    assert float((packed * weight).mean() / power) == pytest.approx(projection, abs=1.5e-3)
    largest = weight.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
    off = ((packed - weight).unflatten(-1, (-1, 32)).abs() / largest).max()
    assert float(off) <= (1 / 4 if rule == "floor" else 1 / 5) + 1e-6
