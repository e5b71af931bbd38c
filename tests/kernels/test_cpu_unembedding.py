"""The unembedding from two planes: all logits against the reference, and the largest ones against all logits."""

import math
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import cpu, packed, reference_unembedding
from ossia.kernels.packed import Split

pytestmark = pytest.mark.skipif(not cpu.available(), reason=cpu.why_not() or "")

if cpu.available():
    from ossia.kernels import _native, cpu_unembedding

ISAS = ("plain", "avx2", "avx512")


@pytest.fixture(autouse=True)
def native_settings() -> Iterator[None]:
    """Whatever a test sets is put back."""
    isa, threads = _native.isa(), _native.num_threads()
    yield
    _native.set_isa(isa)
    _native.set_num_threads(threads)


def available_isas() -> tuple[str, ...]:
    return ISAS[: ISAS.index(_native.best_isa()) + 1]


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def heavy(rows: int, columns: int) -> Tensor:
    return gaussian(rows, columns) ** 5


def all_rows_equal() -> Tensor:
    return gaussian(1, 96).expand(400, 96).contiguous()


def rows_in_pairs() -> Tensor:
    return gaussian(200, 96).repeat_interleave(2, dim=0)


def zero_rows() -> Tensor:
    weight_RC = gaussian(300, 96)
    weight_RC[::3] = 0
    return weight_RC


def one_huge_column() -> Tensor:
    weight_RC = gaussian(500, 160)
    weight_RC[:, 77] *= 1000
    return weight_RC


def all_negative() -> Tensor:
    """Rows that fill up the last tile are 0, which is above every logit of ones."""
    return -gaussian(45, 64).abs() - 1


WEIGHTS = {
    "random": lambda: gaussian(1000, 192),
    "heavy tails": lambda: heavy(1000, 192),
    "all rows equal": all_rows_equal,
    "rows in pairs": rows_in_pairs,
    "zero rows": zero_rows,
    "nothing but zeros": lambda: torch.zeros(80, 64),
    "one huge column": one_huge_column,
    "all negative": all_negative,
    "fewer rows than a tile": lambda: gaussian(11, 64),
    "a partial last block": lambda: gaussian(150, 70),
    "large": lambda: gaussian(100, 64) * 1e30,
    "small": lambda: gaussian(100, 64) * 1e-36,
}


def activations(columns: int, seed: int = 0) -> Tensor:
    """Of every kind, [8, columns]."""
    x_TD = gaussian(8, columns, seed + 1000)
    x_TD[1] = 1
    x_TD[2] **= 5
    x_TD[3, 5] = 300
    x_TD[4] = 0
    x_TD[4, 2] = 1
    x_TD[5] *= 1e-20
    x_TD[6] *= 1e20
    x_TD[7] = 0
    return x_TD


def best_of(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    values_TR, ids_TR = logits.sort(dim=-1, descending=True, stable=True)
    return ids_TR[:, :count], values_TR[:, :count]


def assert_same_bits(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def native_best(x: Tensor, weight: Split, rows: int, count: int, deviations: float) -> tuple[Tensor, Tensor, Tensor]:
    """`cpu_unembedding.best_split` with a bound of any width, and how many rows were read in full."""
    ids, values = torch.empty(len(x), count, dtype=torch.int64), torch.empty(len(x), count)
    completed = torch.empty(len(x), dtype=torch.int64)
    out = (ids.numpy(), values.numpy(), completed.numpy())
    _native.best_split(x.numpy(), *arrays(weight).values(), rows, deviations, *out)
    return ids, values, completed


def arrays(weight: Split) -> dict[str, object]:
    return {field.name: getattr(weight, field.name).numpy() for field in fields(Split)}


def bounds(x: Tensor, weight: Split, deviations: float) -> Tensor:
    upper_TR = torch.empty(len(x), len(weight.row_scales))
    _native.bounds_split(x.numpy(), *arrays(weight).values(), deviations, upper_TR.numpy())
    return upper_TR


def estimate(x: Tensor, weight: Split) -> tuple[Tensor, Tensor]:
    """What the high plane alone says of every logit, and its standard error; in float64, from the definition.

    With 7 and with 8 in place of every nibble m the weights lie half a step to either side of the estimate.
    """
    below_RC = packed.unpack_split(replace(weight, low=torch.full_like(weight.low, 0x77))).double()
    above_RC = packed.unpack_split(replace(weight, low=torch.full_like(weight.low, 0x88))).double()
    x_TC = reference_unembedding.round_activations(x)
    variance_TR = 21.25 * x_TC.square() @ (above_RC - below_RC).square().T
    return x_TC @ ((below_RC + above_RC) / 2).T, variance_TR.sqrt()


class TestPacking:
    @pytest.mark.parametrize("name", WEIGHTS)
    def test_is_packed_byte_for_byte(self, name: str) -> None:
        weight = WEIGHTS[name]().bfloat16()
        for isa in available_isas():
            _native.set_isa(isa)
            got, expected = cpu_unembedding.pack_split(weight), packed.pack_split(weight)
            for field in fields(Split):
                assert torch.equal(getattr(got, field.name), getattr(expected, field.name)), (isa, field.name)

    def test_other_types_are_packed_too(self) -> None:
        weight = gaussian(20, 64)
        assert torch.equal(cpu_unembedding.pack_split(weight).low, packed.pack_split(weight).low)

    def test_a_weight_in_strides_is_refused(self) -> None:
        with pytest.raises(KernelError, match="pack_split: weight is not contiguous"):
            cpu_unembedding.pack_split(gaussian(32, 64).bfloat16().T)


class TestLogits:
    @pytest.mark.parametrize("name", WEIGHTS)
    def test_are_the_references(self, name: str) -> None:
        weight_RC = WEIGHTS[name]()
        rows, columns = weight_RC.shape
        weight, x_TD = packed.pack_split(weight_RC), activations(columns)
        expected_TR = reference_unembedding.logits_split(x_TD.double(), weight, rows)
        got_TR = cpu_unembedding.logits_split(x_TD, weight, rows).double()
        most = torch.finfo(torch.float32).max  # Large weights and large activations together overflow.
        off_TR = (got_TR.clamp(-most, most) - expected_TR.clamp(-most, most)).abs()
        # Roundings are a part of the sum of all magnitudes.
        x_TC = reference_unembedding.round_activations(x_TD)
        sizes_TR = x_TC.abs() @ packed.unpack_split(weight)[:rows].double().abs().T
        assert torch.all(off_TR <= 2e-6 * sizes_TR + 1e-44)

    def test_whole_numbers_need_no_reference(self) -> None:
        """Weights that are their own codes and activations that are theirs: integers, summed by hand."""
        generator = torch.Generator().manual_seed(0)
        weight_RC = torch.randint(-120, 121, (40, 96), generator=generator)
        x_TD = torch.randint(-32512, 32513, (3, 96), generator=generator)
        weight_RC[:, ::32] = 120
        x_TD[:, 7::32] = -32512
        got_TR = cpu_unembedding.logits_split(x_TD.float(), packed.pack_split(weight_RC.float()), 40)
        torch.testing.assert_close(got_TR.double(), (x_TD @ weight_RC.T).double(), rtol=0, atol=100)  # Of 10^8.

    def test_are_near_those_of_the_weights(self) -> None:
        weight_RC, x_TD = gaussian(500, 960).bfloat16(), gaussian(4, 960, seed=1)
        expected_TR = x_TD @ weight_RC.float().T
        error_TR = cpu_unembedding.logits_split(x_TD, packed.pack_split(weight_RC), 500) - expected_TR
        assert error_TR.std() < 0.008 * expected_TR.std()

    @pytest.mark.parametrize("name", ["random", "a partial last block", "fewer rows than a tile"])
    def test_do_not_depend_on_instructions_threads_or_companions(self, name: str) -> None:
        weight_RC = WEIGHTS[name]()
        rows, columns = weight_RC.shape
        weight, x_TD = packed.pack_split(weight_RC), torch.cat([activations(columns, seed) for seed in range(3)])
        _native.set_num_threads(1)
        expected_TR = torch.cat([cpu_unembedding.logits_split(x_D[None], weight, rows) for x_D in x_TD])
        for isa in available_isas():
            _native.set_isa(isa)
            for threads in (1, 2, 3):
                _native.set_num_threads(threads)
                for num_tokens in (1, 2, 3, 4, 7, len(x_TD)):
                    got_TR = cpu_unembedding.logits_split(x_TD[:num_tokens], weight, rows)
                    assert torch.equal(got_TR, expected_TR[:num_tokens]), (isa, threads, num_tokens)

    def test_no_tokens(self) -> None:
        weight = packed.pack_split(gaussian(20, 64))
        assert cpu_unembedding.logits_split(torch.empty(0, 64), weight, 20).shape == (0, 20)
        ids, values = cpu_unembedding.best_split(torch.empty(0, 64), weight, 20, 3)
        assert ids.shape == values.shape == (0, 3)


class TestTheLargest:
    @pytest.mark.parametrize("count", [1, 5, 50])
    @pytest.mark.parametrize("name", WEIGHTS)
    def test_are_those_of_all_logits(self, name: str, count: int) -> None:
        weight_RC = WEIGHTS[name]()
        rows, columns = weight_RC.shape
        count = min(count, rows)
        weight, x_TD = packed.pack_split(weight_RC), activations(columns)
        logits_TR = cpu_unembedding.logits_split(x_TD, weight, rows)
        expected_ids, expected_values = best_of(logits_TR, count)
        for isa in available_isas():
            _native.set_isa(isa)
            ids, values = cpu_unembedding.best_split(x_TD, weight, rows, count)
            assert torch.equal(ids, expected_ids), isa
            assert_same_bits(values, expected_values)

    def test_for_many_random_models(self) -> None:
        for seed in range(40):
            weight = packed.pack_split(gaussian(700, 96, seed))
            x_TD = gaussian(9, 96, seed + 500)
            for count in (1, 5, 50):
                expected_ids, expected_values = best_of(cpu_unembedding.logits_split(x_TD, weight, 700), count)
                ids, values = cpu_unembedding.best_split(x_TD, weight, 700, count)
                assert torch.equal(ids, expected_ids)
                assert torch.equal(values, expected_values)

    def test_too_narrow_a_bound_misses_some(self) -> None:
        """So the comparison above can fail, and rows are left out in earnest."""
        missed = 0
        for seed in range(20):
            weight = packed.pack_split(gaussian(3000, 96, seed))
            x_TD = gaussian(8, 96, seed + 500)
            ids, _, _ = native_best(x_TD, weight, 3000, 50, deviations=0)
            missed += int((ids != best_of(cpu_unembedding.logits_split(x_TD, weight, 3000), 50)[0]).sum())
        assert missed > 10

    def test_few_rows_are_read_in_full(self) -> None:
        weight, x_TD = packed.pack_split(gaussian(20_000, 256)), gaussian(8, 256, seed=1)
        *_, completed_T = native_best(x_TD, weight, 20_000, 1, cpu_unembedding.deviations(1))
        assert completed_T.max() < 400

    def test_the_reference_says_the_same(self) -> None:
        weight, x_TD = packed.pack_split(gaussian(300, 96)), gaussian(3, 96, seed=1)
        ids, values = cpu_unembedding.best_split(x_TD, weight, 300, 7)
        expected_ids, expected_values = reference_unembedding.best_split(x_TD.double(), weight, 300, 7)
        assert torch.equal(ids, expected_ids)
        torch.testing.assert_close(values.double(), expected_values, rtol=1e-5, atol=1e-5)

    def test_only_the_rows_asked_for(self) -> None:
        weight_RC = gaussian(64, 64)
        weight_RC[40:] *= 100
        weight, x_TD = packed.pack_split(weight_RC), gaussian(4, 64, seed=1)
        ids, values = cpu_unembedding.best_split(x_TD, weight, 37, 37)
        assert torch.equal(ids.sort()[0], torch.arange(37).expand(4, 37))
        assert torch.equal(values, best_of(cpu_unembedding.logits_split(x_TD, weight, 37), 37)[1])

    @pytest.mark.parametrize("threads", [1, 2, 3])
    def test_do_not_depend_on_threads_or_companions(self, threads: int) -> None:
        weight, x_TD = packed.pack_split(gaussian(900, 96)), gaussian(19, 96, seed=1)
        expected = [cpu_unembedding.best_split(x_D[None], weight, 900, 5) for x_D in x_TD]
        _native.set_num_threads(threads)
        ids, values = cpu_unembedding.best_split(x_TD, weight, 900, 5)
        assert torch.equal(ids, torch.cat([each[0] for each in expected]))
        assert torch.equal(values, torch.cat([each[1] for each in expected]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_hidden(value: float) -> None:
    """Also under rows of zeros, in every instruction set, and without harm to the other tokens."""
    weight_RC = gaussian(50, 96)
    weight_RC[7] = 0
    weight, x_TD = packed.pack_split(weight_RC), gaussian(3, 96, seed=1)
    clean_TR = cpu_unembedding.logits_split(x_TD, weight, 50)
    x_TD[1, 40] = value
    for isa in available_isas():
        _native.set_isa(isa)
        logits_TR = cpu_unembedding.logits_split(x_TD, weight, 50)
        assert logits_TR[1].isnan().all()
        assert torch.equal(logits_TR[[0, 2]], clean_TR[[0, 2]])
        ids, values = cpu_unembedding.best_split(x_TD, weight, 50, 4)
        assert values[1].isnan().all()
        assert ids[1].tolist() == [0, 1, 2, 3]
        assert torch.equal(values[[0, 2]], best_of(clean_TR, 4)[1][[0, 2]])
    assert reference_unembedding.logits_split(x_TD, weight, 50).isnan().all(dim=1).tolist() == [False, True, False]


class TestTheBound:
    def test_is_the_estimate_and_so_many_standard_errors(self) -> None:
        weight, x_TD = packed.pack_split(heavy(1000, 192)), activations(192)[:7]
        estimate_TR, error_TR = estimate(x_TD, weight)
        for deviations in (0.0, 1.0, 7.5):
            for isa in available_isas():
                _native.set_isa(isa)
                upper_TR = bounds(x_TD, weight, deviations).double()
                above_TR = (upper_TR - estimate_TR)[:, :1000] / error_TR[:, :1000]
                # No less, and no more than what all roundings can come to.
                assert above_TR.min() >= deviations
                assert above_TR.max() <= deviations + 0.003

    def test_holds_every_logit(self) -> None:
        weight, x_TD = packed.pack_split(gaussian(20_000, 192)), gaussian(8, 192, seed=1)
        assert torch.all(cpu_unembedding.logits_split(x_TD, weight, 20_000) <= bounds(x_TD, weight, 7.5)[:, :20_000])

    def test_errors_are_spread_as_computed(self) -> None:
        weight, x_TD = packed.pack_split(gaussian(20_000, 192)), gaussian(8, 192, seed=1)
        estimate_TR, error_TR = estimate(x_TD, weight)
        off_TR = (cpu_unembedding.logits_split(x_TD, weight, 20_000).double() - estimate_TR) / error_TR
        assert abs(off_TR.mean()) < 0.02
        assert abs(off_TR.square().mean() - 1) < 0.03
        assert off_TR.abs().max() < 6

    @pytest.mark.parametrize("kind", ["all equal", "multiples of 16", "few values", "one column"])
    def test_errors_are_spread_so_for_any_weights_over_the_draw(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One row that was made to be bad for fixed rounding, under 600 dithers."""
        columns = 320
        steps_C = {
            "all equal": torch.full((columns,), 120.0),
            "multiples of 16": 16 * torch.randint(-7, 8, (columns,), generator=torch.Generator().manual_seed(0)),
            "few values": torch.tensor([120.0, 7.0, 8.0, -8.0]).repeat(columns // 4),
            "one column": torch.zeros(columns).index_fill(0, torch.tensor(9), 120.0),
        }[kind]
        weight_RC, x_TD = steps_C.float()[None], torch.ones(1, columns)
        off: list[Tensor] = []
        for seed in range(600):
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randint(-8, 8, (columns,), generator=generator, dtype=torch.int8)
            monkeypatch.setattr(packed, "dither", lambda _, drawn=drawn: drawn)
            weight = packed.pack_split(weight_RC)
            estimate_TR, error_TR = estimate(x_TD, weight)
            logits_TR = cpu_unembedding.logits_split(x_TD, weight, 1).double()
            off.append((logits_TR - estimate_TR[:, :1]) / error_TR[:, :1])
        off_N = torch.cat(off).flatten()
        assert abs(off_N.mean()) < 0.15  # Of a standard error of 0.04.
        assert abs(off_N.square().mean() - 1) < 0.25  # Of 0.06.
        assert off_N.abs().max() < 5

    def test_so_many_standard_errors_are_enough(self) -> None:
        for count in (1, 50):
            failure = count * math.exp(-(cpu_unembedding.deviations(count) ** 2) / 2)
            assert failure == pytest.approx(1e-12)


class TestTheDoor:
    @pytest.mark.parametrize(
        ("operand", "value", "message"),
        [
            ("high", torch.zeros(2, 3, 256, dtype=torch.int8), "high is not of type uint8"),
            ("high", torch.zeros(2, 3, 255, dtype=torch.uint8), r"high does not have shape \[any, any, 256\]"),
            ("high", torch.zeros(3, 3, 256, dtype=torch.uint8), r"low does not have shape \[3, 3, 256\]"),
            ("high", torch.zeros(2, 0, 256, dtype=torch.uint8), "high has no columns"),
            ("low", torch.zeros(2, 2, 256, dtype=torch.uint8), r"low does not have shape \[2, 3, 256\]"),
            ("multipliers", torch.zeros(2, 3, 15, dtype=torch.uint8), r"multipliers does not have shape \[2, 3, 16\]"),
            ("row_scales", torch.zeros(31), r"row_scales does not have shape \[32\]"),
            ("row_scales", torch.zeros(64)[::2], "row_scales is not contiguous"),
            ("dither", torch.zeros(95, dtype=torch.int8), r"dither does not have shape \[96\]"),
            ("x", torch.zeros(2, 97), "x has 97 columns, which do not make 3 blocks of 32"),
            ("x", torch.zeros(2, 64), "x has 64 columns, which do not make 3 blocks of 32"),
            ("x", torch.zeros(2, 96, dtype=torch.float64), "x is not of type float32"),
            ("x", torch.zeros(96), r"x does not have shape \[any, any\]"),
            ("rows", 33, "rows is 33, and the weight has 32"),
            ("count", 0, "ids has room for 0 of 32 rows: ask for 1 to all"),
            ("count", 40, "ids has room for 40 of 32 rows: ask for 1 to all"),
        ],
    )
    def test_refuses(self, operand: str, value: object, message: str) -> None:
        weight = packed.pack_split(gaussian(32, 96))
        x_TD, rows, count = torch.zeros(2, 96), 32, 3
        if isinstance(value, int):
            rows, count = (value, count) if operand == "rows" else (rows, value)
        elif operand == "x":
            x_TD = value
        else:
            weight = replace(weight, **{operand: value})
        with pytest.raises(KernelError, match=f"^best_split: {message}"):
            cpu_unembedding.best_split(x_TD, weight, rows, count)
        if operand != "count":
            with pytest.raises(KernelError, match=f"^logits_split: {message}"):
                cpu_unembedding.logits_split(x_TD, weight, rows)

    def test_refuses_results_of_another_shape(self) -> None:
        weight = packed.pack_split(gaussian(32, 96))
        x, operands = torch.zeros(2, 96).numpy(), tuple(arrays(weight).values())
        out = torch.zeros(2, 32)
        with pytest.raises(ValueError, match=r"out does not have shape \[2, any\]"):
            _native.logits_split(x, *operands, out[:1].numpy())
        with pytest.raises(ValueError, match=r"out does not have shape \[2, 32\]"):
            _native.bounds_split(x, *operands, 7.0, out[:, :31].contiguous().numpy())
        with pytest.raises(ValueError, match="deviations is nan: give 0 or more"):
            _native.bounds_split(x, *operands, math.nan, out.numpy())
        ids, values = torch.zeros(2, 3, dtype=torch.int64).numpy(), torch.zeros(2, 3).numpy()
        with pytest.raises(ValueError, match=r"values does not have shape \[2, 3\]"):
            _native.best_split(x, *operands, 32, 7.0, ids, values[:, :2].copy(), ids[:, 0].copy())
        with pytest.raises(ValueError, match=r"completed does not have shape \[2\]"):
            _native.best_split(x, *operands, 32, 7.0, ids, values, ids[0].copy())
