"""The native ops on packed weights: against their references, and bit for bit against themselves.

Whatever the instructions, the threads and the companions, a token's numbers are the same. What is expected of each op
is its reference, which adds up in float64.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from tests.kernels.cases import CASES, EXPERTS_MXFP4, operands
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import cpu, mxfp4, ops, packed, reference_packed
from ossia.kernels.packed import Mxfp4

if not cpu.available():
    pytest.skip(str(cpu.why_not()), allow_module_level=True)

from ossia.kernels import _native, cpu_packed

ISAS = ("plain", "avx2", "avx512")[: ("plain", "avx2", "avx512").index(_native.best_isa()) + 1]
SETTINGS = list(product(ISAS, (1, 2, 3)))

LINEAR_SHAPES = [(1, 1), (16, 32), (33, 70), (40, 550), (100, 1056)]
"""Rows and columns: less than a tile, whole ones, ragged, more than one panel of 16 blocks."""
EXPERTS = {
    "experts_packed": 2e-3,  # A hidden value on the border between two codes may fall to either side of it.
    "experts_exact": 2e-6,
}
"""How far each op is from its reference at most, as a part of the largest magnitude."""
TOKENS = (0, 1, 2, 3, 11, 12, 13, 25, 97, 200)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    isa, threads = _native.isa(), _native.num_threads()
    yield
    _native.set_isa(isa)
    _native.set_num_threads(threads)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=generator(seed)) * spread


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest expected magnitude."""
    if not expected.numel():
        return 0.0
    assert expected.isfinite().all()
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


def same_everywhere(run: Callable[[], Tensor]) -> Tensor:
    """What `run` returns, if it is the same bits under all instructions and numbers of threads."""
    results: list[Tensor] = []
    for isa, threads in SETTINGS:
        _native.set_isa(isa)
        _native.set_num_threads(threads)
        results.append(run())
    for result, (isa, threads) in zip(results, SETTINGS, strict=True):
        assert same_bits(result, results[0]), f"{isa}, {threads} threads"
    return results[0]


def same_bits(got: Tensor, expected: Tensor) -> bool:
    """Equal, with NaN equal to NaN."""
    return torch.equal(got.isnan(), expected.isnan()) and torch.equal(got.nan_to_num(), expected.nan_to_num())


def experts_operands(name: str) -> tuple[Tensor, Mxfp4, Tensor, Mxfp4, Tensor, Tensor, Tensor, float]:
    """The named case of `experts_mxfp4`, with its experts in tiles."""
    x, up_blocks, up_scales, up_bias, down_blocks, down_scales, down_bias, ids, weights, limit = operands(
        "experts_mxfp4", name, torch.float32
    )
    assert isinstance(up_blocks, Tensor)
    order = packed.gate_up_order(up_blocks.shape[1])
    gate_up = packed.pack_mxfp4(up_blocks[:, order], up_scales[:, order])
    return (
        x,
        gate_up,
        up_bias[:, order].contiguous(),
        packed.pack_mxfp4(down_blocks, down_scales),
        down_bias,
        ids,
        weights,
        limit,
    )


def large_experts(tokens: int, seed: int = 0) -> tuple[Tensor, Mxfp4, Tensor, Mxfp4, Tensor, Tensor, Tensor, float]:
    """More than one panel of columns, 3 experts, 2 active."""
    num_experts, hidden, intermediate = 3, 544, 576
    codes = lambda *shape: torch.randint(256, shape, generator=generator(seed), dtype=torch.uint8)  # noqa: E731
    scales = lambda *shape: torch.randint(120, 124, shape, generator=generator(seed), dtype=torch.uint8)  # noqa: E731
    return (
        normal(tokens, hidden, seed=seed),
        Mxfp4(codes=codes(num_experts, 72, 17, 256), scales=scales(num_experts, 72, 17, 16)),
        normal(num_experts, 2 * intermediate, seed=1),
        Mxfp4(codes=codes(num_experts, 34, 18, 256), scales=scales(num_experts, 34, 18, 16)),
        normal(num_experts, hidden, seed=2),
        torch.rand(tokens, num_experts, generator=generator(3)).topk(2).indices,
        torch.rand(tokens, 2, generator=generator(4)),
        7.0,
    )


class TestLinear:
    @pytest.mark.parametrize("rows, columns", LINEAR_SHAPES)
    def test_q8_is_the_reference_and_the_same_everywhere(self, rows: int, columns: int) -> None:
        weight = packed.pack_q8(normal(rows, columns))
        for tokens in TOKENS:
            x, bias = normal(tokens, columns, seed=tokens, spread=3), normal(rows, seed=1)
            result = same_everywhere(lambda x=x, bias=bias: cpu_packed.linear_q8(x, weight, bias, rows))
            assert result.shape == (tokens, rows)
            assert difference(result, reference_packed.linear_q8(x, weight, bias, rows)) < 2e-6

    @pytest.mark.parametrize("rows, columns", LINEAR_SHAPES)
    def test_bf16_is_the_reference_and_the_same_everywhere(self, rows: int, columns: int) -> None:
        weight = packed.pack_bf16(normal(rows, columns))
        for tokens in TOKENS:
            x, bias = normal(tokens, columns, seed=tokens, spread=3), normal(rows, seed=1)
            result = same_everywhere(lambda x=x, bias=bias: cpu_packed.linear_bf16(x, weight, bias, rows))
            assert result.shape == (tokens, rows)
            assert difference(result, reference_packed.linear_bf16(x, weight, bias, rows)) < 2e-6

    @pytest.mark.parametrize("op", ["linear_q8", "linear_bf16"])
    def test_no_bias_is_a_bias_of_zero(self, op: str) -> None:
        rows, columns = 33, 70
        pack = {"linear_q8": packed.pack_q8, "linear_bf16": packed.pack_bf16}[op]
        linear, weight, x = ops.load(op, "cpu"), pack(normal(rows, columns)), normal(5, columns)
        assert torch.equal(linear(x, weight, None, rows), linear(x, weight, torch.zeros(rows), rows))
        assert difference(linear(x, weight, None, rows), ops.load(op, "reference")(x, weight, None, rows)) < 2e-6

    @pytest.mark.parametrize("op", ["linear_q8", "linear_bf16"])
    @pytest.mark.parametrize("isa", ISAS)
    def test_a_token_does_not_depend_on_its_companions(self, op: str, isa: str) -> None:
        _native.set_isa(isa)
        rows, columns, tokens = 40, 550, 140
        pack = {"linear_q8": packed.pack_q8, "linear_bf16": packed.pack_bf16}[op]
        linear, weight, x = ops.load(op, "cpu"), pack(normal(rows, columns)), normal(tokens, columns)
        together = linear(x, weight, None, rows)
        for size in (1, 7, 128):
            assert torch.equal(together, torch.cat([linear(part, weight, None, rows) for part in x.split(size)]))

    @pytest.mark.parametrize("op", ["linear_q8", "linear_bf16"])
    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    def test_what_is_not_finite_stays_in_its_token(self, op: str, bad: float) -> None:
        rows, columns = 33, 70
        pack = {"linear_q8": packed.pack_q8, "linear_bf16": packed.pack_bf16}[op]
        linear, weight, x = ops.load(op, "cpu"), pack(normal(rows, columns)), normal(15, columns)
        expected = linear(x, weight, None, rows)
        x[7, 69] = bad
        result = same_everywhere(lambda: linear(x, weight, None, rows))
        assert not result[7].isfinite().any()
        others = torch.arange(15) != 7
        assert torch.equal(result[others], expected[others])

    @pytest.mark.parametrize("spread", [0.0, 1e-44, 1e-38, 1e-30, 1e30, 1e32])
    def test_activations_of_any_size(self, spread: float) -> None:
        weight = packed.pack_q8(normal(33, 70, spread=0.01))
        x = normal(15, 70).clamp(-3, 3) * spread
        x[3, :32] = 0
        result = same_everywhere(lambda: cpu_packed.linear_q8(x, weight, None, 33))
        if spread >= 1e-30:
            assert difference(result, reference_packed.linear_q8(x, weight, None, 33)) < 2e-6
        else:  # What is lost is below what float32 calls normal.
            assert float(result.abs().max()) < 1e-36


@pytest.mark.parametrize("op", EXPERTS)
class TestExperts:
    @pytest.mark.parametrize("name", EXPERTS_MXFP4)
    def test_is_the_reference_and_the_same_everywhere(self, op: str, name: str) -> None:
        experts = ops.load(op, "cpu")
        x, *others = experts_operands(name)
        given = (x.clamp(-(2.0**119), 2.0**119), *others)  # Beyond, sums in float32 may be infinite.
        result = same_everywhere(lambda: experts(*given))
        assert result.shape == x.shape
        assert difference(result, ops.load(op, "reference")(*given)) < EXPERTS[op]

    @pytest.mark.parametrize("tokens", [1, 2, 5, 13, 40, 160])
    def test_more_than_a_panel_of_columns(self, op: str, tokens: int) -> None:
        experts = ops.load(op, "cpu")
        given = large_experts(tokens)
        result = same_everywhere(lambda: experts(*given))
        if tokens <= 13:
            assert difference(result, ops.load(op, "reference")(*given)) < EXPERTS[op]

    def test_more_tokens_than_are_taken_at_once(self, op: str) -> None:
        experts = ops.load(op, "cpu")
        given = large_experts(700)
        together = experts(*given)
        x, *weights, ids, expert_weights, limit = given
        for part in (slice(0, 3), slice(505, 520), slice(699, 700)):
            alone = experts(x[part], *weights, ids[part], expert_weights[part], limit)
            assert torch.equal(together[part], alone)

    @pytest.mark.parametrize("isa", ISAS)
    def test_a_token_does_not_depend_on_its_companions(self, op: str, isa: str) -> None:
        experts = ops.load(op, "cpu")
        _native.set_isa(isa)
        x, *weights, ids, expert_weights, limit = large_experts(60)
        together = experts(x, *weights, ids, expert_weights, limit)
        for size in (1, 7, 31):
            parts = zip(x.split(size), ids.split(size), expert_weights.split(size), strict=True)
            alone = [experts(a, *weights, b, c, limit) for a, b, c in parts]
            assert torch.equal(together, torch.cat(alone))

    @pytest.mark.parametrize("scale_byte", [0, 1, 2, 60, 67, 68, 188, 189, 190, 254])
    def test_every_kind_of_scale_among_many_tokens(self, op: str, scale_byte: int) -> None:
        """Many tokens take another way where scales are moderate; x is scaled against the weights."""
        experts = ops.load(op, "cpu")
        x, gate_up, up_bias, down, down_bias, ids, weights, limit = large_experts(30)
        gate_up = replace(gate_up, scales=torch.full_like(gate_up.scales, scale_byte))
        gate_up = replace(gate_up, codes=gate_up.codes & 0b1001_1001)  # Magnitudes 0 and 1/2.
        x = torch.ldexp(x, torch.tensor(min(124 - scale_byte, 100)))
        x[5, 64:96] = 0
        together = same_everywhere(lambda: experts(x, gate_up, up_bias, down, down_bias, ids, weights, limit))
        alone = [
            experts(a, gate_up, up_bias, down, down_bias, b, c, limit)
            for a, b, c in zip(x.split(1), ids.split(1), weights.split(1), strict=True)
        ]
        assert same_bits(together, torch.cat(alone))
        some = slice(3, 7)
        expected = ops.load(op, "reference")(
            x[some], gate_up, up_bias, down, down_bias, ids[some], weights[some], limit
        )
        assert difference(together[some], expected) < EXPERTS[op]

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("tokens", [1, 30])
    def test_what_is_not_finite_stays_in_its_token(self, op: str, bad: float, tokens: int) -> None:
        experts = ops.load(op, "cpu")
        given = large_experts(tokens)
        expected = experts(*given)
        given[0][tokens // 2, 100] = bad
        result = same_everywhere(lambda: experts(*given))
        assert not result[tokens // 2].isfinite().any()
        others = torch.arange(tokens) != tokens // 2
        assert torch.equal(result[others], expected[others])

    def test_the_same_expert_twice(self, op: str) -> None:
        experts = ops.load(op, "cpu")
        x, *weights, _, _, limit = large_experts(1)
        result = experts(x, *weights, torch.tensor([[2, 2]]), torch.tensor([[0.25, 0.5]]), limit)
        once = experts(x, *weights, torch.tensor([[2]]), torch.tensor([[0.75]]), limit)
        assert difference(result, once) < 1e-6

    @pytest.mark.parametrize("bad", [-1, 3, 2**62])
    def test_an_expert_that_is_not_there(self, op: str, bad: int) -> None:
        experts = ops.load(op, "cpu")
        given = large_experts(4)
        given[5][3, 1] = bad
        with pytest.raises(KernelError, match=f"{op}: expert_ids holds {bad}: there are 3 experts"):
            experts(*given)


class TestSmallOps:
    @pytest.mark.parametrize(("op", "name"), [(op, name) for op in ("rms_norm", "rope") for name in CASES[op]])
    def test_the_same_everywhere(self, op: str, name: str) -> None:
        """That they are what the reference says is looked at in test_ops.py."""
        given = operands(op, name, torch.float32)
        same_everywhere(lambda: ops.load(op, "cpu")(*given))

    def test_norms_of_any_width_and_of_many_tokens(self) -> None:
        for tokens, hidden in ((1, 1), (3, 17), (300, 70), (40, 2880)):
            x, scale = normal(tokens, hidden), normal(hidden, seed=1)
            result = same_everywhere(lambda x=x, scale=scale: cpu_packed.rms_norm(x, scale, 1e-5))
            assert difference(result, ops.load("rms_norm", "reference")(x.double(), scale.double(), 1e-5)) < 1e-6

    def test_rope_reads_slices_of_a_larger_product(self) -> None:
        x = normal(40, 30, 16)
        cos, sin = normal(40, 8, seed=1), normal(40, 8, seed=2)
        for part in (slice(0, 20), slice(20, 25), slice(25, 30)):
            result = cpu_packed.rope(x[:, part], cos, sin)
            assert torch.equal(result, cpu_packed.rope(x[:, part].contiguous(), cos, sin))

    def test_what_is_differentiated_is_left_to_torch(self) -> None:
        x = normal(3, 32).requires_grad_()
        cpu_packed.rms_norm(x, torch.ones(32), 1e-5).square().sum().backward()
        assert x.grad is not None
        with torch.no_grad():
            assert not cpu_packed.rms_norm(x, torch.ones(32), 1e-5).requires_grad


class TestPackers:
    @pytest.mark.parametrize("rows, columns", [*LINEAR_SHAPES, (0, 32), (3, 2880)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_dense_ones_are_packed_py_byte_for_byte(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        weight = (normal(rows, columns) * normal(rows, 1, seed=1).exp()).to(dtype)
        if rows > 2:
            weight[1] = 0
            weight[2, : columns // 2] = 0
        q8, bf16 = packed.pack_q8(weight), packed.pack_bf16(weight)
        for isa, threads in SETTINGS:
            _native.set_isa(isa)
            _native.set_num_threads(threads)
            result = cpu_packed.pack_q8(weight)
            assert torch.equal(result.row_scales, q8.row_scales)
            assert torch.equal(result.multipliers, q8.multipliers)
            assert torch.equal(result.codes, q8.codes)
            assert torch.equal(cpu_packed.pack_bf16(weight).weight, bf16.weight)

    @pytest.mark.parametrize("spread", [1e-44, 1e-40, 1e-36, 1e37])
    def test_extreme_weights(self, spread: float) -> None:
        weight = normal(20, 100).clamp(-3, 3) * spread
        result, expected = cpu_packed.pack_q8(weight), packed.pack_q8(weight)
        assert torch.equal(result.codes, expected.codes)
        assert torch.equal(result.multipliers, expected.multipliers)
        assert torch.equal(result.row_scales, expected.row_scales)

    def test_mxfp4_is_packed_py_byte_for_byte(self) -> None:
        blocks = torch.randint(256, (3, 96, 5, 16), generator=generator(), dtype=torch.uint8)
        scales = torch.randint(256, (3, 96, 5), generator=generator(), dtype=torch.uint8)
        order = packed.gate_up_order(96)
        expected, ordered = packed.pack_mxfp4(blocks, scales), packed.pack_mxfp4(blocks[:, order], scales[:, order])
        for isa, threads in SETTINGS:
            _native.set_isa(isa)
            _native.set_num_threads(threads)
            for result, wanted in (
                (cpu_packed.pack_mxfp4(blocks, scales), expected),
                (cpu_packed.pack_mxfp4(blocks, scales, order), ordered),
            ):
                assert torch.equal(result.codes, wanted.codes)
                assert torch.equal(result.scales, wanted.scales)
        alone = cpu_packed.pack_mxfp4(blocks[1], scales[1])
        assert torch.equal(alone.codes, expected.codes[1])

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_q8_refuses_what_is_not_finite(self, bad: float, dtype: torch.dtype) -> None:
        weight = normal(20, 40).to(dtype)
        weight[19, 39] = bad
        with pytest.raises(KernelError, match="pack_q8: weight holds NaN or infinity"):
            cpu_packed.pack_q8(weight)

    def test_wrong_operands_are_refused(self) -> None:
        blocks, scales = torch.zeros(24, 1, 16, dtype=torch.uint8), torch.zeros(24, 1, dtype=torch.uint8)
        with pytest.raises(KernelError, match="multiple of 16 rows"):
            cpu_packed.pack_mxfp4(blocks, scales)
        with pytest.raises(KernelError, match="do not go with scales"):
            cpu_packed.pack_mxfp4(blocks, scales[:3])
        with pytest.raises(KernelError, match="order holds 16: there are 16 rows"):
            cpu_packed.pack_mxfp4(blocks[:16], scales[:16], torch.full((16,), 16))
        with pytest.raises(KernelError, match="weight is not of type"):
            cpu_packed.pack_q8(torch.zeros(3, 3, dtype=torch.float64))
        with pytest.raises(KernelError, match="weight does not have shape"):
            cpu_packed.pack_q8(torch.zeros(3))
        with pytest.raises(KernelError, match="weight is not contiguous"):
            cpu_packed.pack_q8(torch.zeros(3, 4).t())


NATIVE: dict[str, dict[str, Tensor | float | None]] = {
    "linear_q8": {
        "x": torch.zeros(3, 40),
        "codes": torch.zeros(2, 2, 512, dtype=torch.uint8),
        "multipliers": torch.zeros(2, 2, 16, dtype=torch.uint8),
        "row_scales": torch.zeros(32),
        "bias": torch.zeros(20),
        "out": torch.zeros(3, 20),
    },
    "linear_bf16": {
        "x": torch.zeros(3, 40),
        "weight": torch.zeros(2, 40, 16, dtype=torch.uint16),
        "bias": torch.zeros(20),
        "out": torch.zeros(3, 20),
    },
    "experts_packed": {
        "x": torch.zeros(3, 32),
        "gate_up_codes": torch.zeros(2, 8, 1, 256, dtype=torch.uint8),
        "gate_up_scales": torch.zeros(2, 8, 1, 16, dtype=torch.uint8),
        "gate_up_bias": torch.zeros(2, 128),
        "down_codes": torch.zeros(2, 2, 2, 256, dtype=torch.uint8),
        "down_scales": torch.zeros(2, 2, 2, 16, dtype=torch.uint8),
        "down_bias": torch.zeros(2, 32),
        "expert_ids": torch.zeros(3, 1, dtype=torch.int64),
        "expert_weights": torch.zeros(3, 1),
        "limit": 7.0,
        "out": torch.zeros(3, 32),
    },
    "rms_norm": {"x": torch.zeros(3, 40), "scale": torch.zeros(40), "eps": 1e-5, "out": torch.zeros(3, 40)},
    "rope": {
        "x": torch.zeros(3, 2, 8),
        "cos": torch.zeros(3, 4),
        "sin": torch.zeros(3, 4),
        "out": torch.zeros(3, 2, 8),
    },
    "pack_mxfp4": {
        "blocks": torch.zeros(32, 3, 16, dtype=torch.uint8),
        "scales": torch.zeros(32, 3, dtype=torch.uint8),
        "order": torch.arange(32),
        "codes": torch.zeros(2, 3, 256, dtype=torch.uint8),
        "tile_scales": torch.zeros(2, 3, 16, dtype=torch.uint8),
    },
    "pack_q8": {
        "weight": torch.zeros(20, 40),
        "codes": torch.zeros(2, 2, 512, dtype=torch.uint8),
        "multipliers": torch.zeros(2, 2, 16, dtype=torch.uint8),
        "row_scales": torch.zeros(32),
    },
    "pack_bf16": {
        "weight": torch.zeros(20, 40, dtype=torch.uint16),
        "packed": torch.zeros(2, 40, 16, dtype=torch.uint16),
    },
}
NATIVE["experts_exact"] = NATIVE["experts_packed"]
"""Operands that each native function takes."""


@pytest.mark.parametrize(
    ("op", "operand"),
    [(op, name) for op, given in NATIVE.items() for name, value in given.items() if isinstance(value, Tensor)],
)
def test_the_door_refuses(op: str, operand: str) -> None:
    """Every operand with elements too many, a dimension too many, another type, or holes between its elements."""
    call, given = getattr(_native, op), NATIVE[op]
    call(**given)
    good = given[operand]
    assert isinstance(good, Tensor)
    longer = torch.zeros(*good.shape[:-1], 3 * good.shape[-1], dtype=good.dtype)
    apart = torch.zeros(*good.shape[:-1], 2 * good.shape[-1], dtype=good.dtype)[..., ::2]
    if good.shape[-1] == 1:
        apart = torch.zeros(2 * good.shape[0], 1, dtype=good.dtype)[::2]
    wrong = [good[None], good.to(torch.int16), good.to(torch.complex64), apart, torch.zeros(0, dtype=good.dtype)]
    # Another width of x or out is another matrix, which then does not go with the rest: some other operand is named.
    for value in [*wrong, longer]:
        with pytest.raises((ValueError, TypeError)) as caught:
            call(**(given | {operand: value}))
        assert value is longer or operand in str(caught.value)


def test_operands_in_another_place_or_type_are_a_kernel_error() -> None:
    weight = packed.pack_q8(normal(20, 40))
    with pytest.raises(KernelError, match="linear_q8: x is not of type float32"):
        cpu_packed.linear_q8(torch.zeros(3, 40, dtype=torch.float64), weight, None, 20)
    with pytest.raises(KernelError, match="linear_q8: codes does not have shape"):
        cpu_packed.linear_q8(torch.zeros(3, 80), weight, None, 20)
    with pytest.raises(KernelError, match=r"linear_q8: .*numpy"):
        cpu_packed.linear_q8(torch.zeros(3, 40, requires_grad=True), weight, None, 20)


@pytest.mark.parametrize(("op", "tolerance"), [("experts_packed", 2e-2), ("experts_exact", 2e-6)])
def test_published_weights_say_the_same_packed(op: str, tolerance: float) -> None:
    """From the published layout, without any of our own inverses: packing and product against plain de-quantisation."""
    x, up_blocks, up_scales, up_bias, down_blocks, down_scales, down_bias, ids, weights, limit = operands(
        "experts_mxfp4", "several", torch.float32
    )
    assert isinstance(up_bias, Tensor)
    order = packed.gate_up_order(up_bias.shape[1])
    result = ops.load(op, "cpu")(
        x,
        cpu_packed.pack_mxfp4(up_blocks, up_scales, order),
        up_bias[:, order].contiguous(),
        cpu_packed.pack_mxfp4(down_blocks, down_scales),
        down_bias,
        ids,
        weights,
        limit,
    )
    expected = ops.load("experts_mxfp4", "reference")(
        x, up_blocks, up_scales, up_bias, down_blocks, down_scales, down_bias, ids, weights, limit
    )
    assert difference(result, expected) < tolerance
    assert mxfp4.BLOCK == packed.BLOCK
