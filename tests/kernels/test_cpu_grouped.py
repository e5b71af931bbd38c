"""The native products of training: against their references, and bit for bit against themselves.

Sums are in float32 in a fixed order; what is expected adds up in float64. 5e-7 was seen.
"""

from collections.abc import Iterator
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import cpu, mxfp4, ops, packed, torch_packed
from ossia.kernels.packed import Mxfp4

if not cpu.available():
    pytest.skip(str(cpu.why_not()), allow_module_level=True)

from ossia.kernels import _native

ISAS = ("plain", "avx2", "avx512")[: ("plain", "avx2", "avx512").index(_native.best_isa()) + 1]
SETTINGS = list(product(ISAS, (1, 2, 3)))
LIMIT = 2e-6

CASES = {
    "one row": (1, 16, 32, (0, 1)),
    "no row": (3, 32, 64, (0, 0, 0, 0)),
    "empty experts": (5, 64, 96, (0, 0, 7, 7, 30, 30)),
    "all rows of one expert": (3, 48, 64, (0, 0, 130, 130)),
    "ragged, more than a panel": (2, 272, 1056, (0, 13, 114)),
    "more rows than pass a panel by": (2, 32, 32, (0, 1, 400)),
    "more rows than are taken at once": (3, 16, 32, (0, 600, 1300, 1301)),
}
"""Experts, rows, columns, offsets."""
LINEAR = [(1, 1, 1), (17, 33, 5), (70, 600, 100), (8200, 40, 3), (33, 70, 500), (20, 40, 0), (0, 40, 3)]
"""Rows, columns, tokens: less than a tile, ragged ones, more than a slab of rows, more tokens than pass a panel by."""


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    isa, threads = _native.isa(), _native.num_threads()
    yield
    _native.set_isa(isa)
    _native.set_num_threads(threads)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def weights(experts: int, rows: int, columns: int) -> Mxfp4:
    return packed.pack_mxfp4(*mxfp4.quantize(normal(experts, rows, columns)))


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest expected magnitude."""
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-30)) if expected.numel() else 0.0


def assert_right(op: str, *given: object) -> None:
    """Every implementation is the reference, and the native one the same bits under all instructions and threads."""
    expected = ops.load(op, "reference")(*given)
    assert difference(ops.load(op, "torch")(*given), expected) < LIMIT
    results: list[Tensor] = []
    for isa, threads in SETTINGS:
        _native.set_isa(isa)
        _native.set_num_threads(threads)
        results.append(ops.load(op, "cpu")(*given))
        assert torch.equal(results[-1], results[0]), f"{isa}, {threads} threads"
    assert difference(results[0], expected) < LIMIT


@pytest.mark.parametrize("name", CASES)
def test_grouped_is_the_reference_and_the_same_everywhere(name: str) -> None:
    experts, rows, columns, bounds = CASES[name]
    weight, offsets = weights(experts, rows, columns), torch.tensor(bounds)
    x, grad, bias = normal(bounds[-1], columns, seed=1), normal(bounds[-1], rows, seed=2), normal(experts, rows, seed=3)
    assert_right("grouped_mxfp4", x, weight, bias, offsets)
    assert_right("grouped_mxfp4", x, weight, None, offsets)
    assert_right("grouped_mxfp4_transposed", grad, weight, offsets)


@pytest.mark.parametrize("rows, columns, tokens", LINEAR)
def test_the_transposed_linear_is_the_reference_and_the_same_everywhere(rows: int, columns: int, tokens: int) -> None:
    weight = packed.pack_bf16(normal(rows, columns))
    assert_right("linear_bf16_transposed", normal(tokens, rows, seed=1), weight)


def test_the_references_are_what_plain_matrices_say() -> None:
    """From the published layout, by broadcasting instead of by expert."""
    dense = mxfp4.dequantize(*mxfp4.quantize(normal(3, 48, 64)), torch.float64)
    expert_of_each = torch.tensor([0, 0, 1, 2, 2])
    weight, offsets, bias = weights(3, 48, 64), torch.tensor([0, 2, 3, 5]), normal(3, 48, seed=1)
    x, grad = normal(5, 64, seed=2), normal(5, 48, seed=3)
    expected = torch.einsum("src,sc->sr", dense[expert_of_each], x.double()) + bias[expert_of_each]
    assert difference(ops.load("grouped_mxfp4", "reference")(x, weight, bias, offsets), expected.float()) < 1e-7
    expected = torch.einsum("src,sr->sc", dense[expert_of_each], grad.double())
    assert difference(ops.load("grouped_mxfp4_transposed", "reference")(grad, weight, offsets), expected.float()) < 1e-7
    matrix = normal(33, 70).bfloat16()
    grad = normal(4, 33, seed=4)
    expected = torch.einsum("rc,tr->tc", matrix.double(), grad.double()).float()
    result = ops.load("linear_bf16_transposed", "reference")(grad, packed.pack_bf16(matrix))
    assert difference(result, expected) < 1e-7


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_does_not_depend_on_its_companions(isa: str) -> None:
    _native.set_isa(isa)
    weight, bounds = weights(3, 160, 544), (0, 20, 20, 150)
    offsets = torch.tensor(bounds)
    for op, x in (("grouped_mxfp4", normal(150, 544)), ("grouped_mxfp4_transposed", normal(150, 160))):
        extra = (None,) if op == "grouped_mxfp4" else ()
        together = ops.load(op, "cpu")(x, weight, *extra, offsets)
        for first, stop in pairwise((0, 1, 9, 20, 31, 149, 150)):
            part = (offsets - first).clamp(0, stop - first)
            assert torch.equal(ops.load(op, "cpu")(x[first:stop], weight, *extra, part), together[first:stop])
    linear, tiles, grad = ops.load("linear_bf16_transposed", "cpu"), packed.pack_bf16(normal(70, 90)), normal(60, 70)
    assert torch.equal(linear(grad, tiles), torch.cat([linear(part, tiles) for part in grad.split(7)]))


@pytest.mark.parametrize("scale_byte", [0, 1, 2, 127, 253, 254])
def test_every_kind_of_scale(scale_byte: int) -> None:
    weight = weights(2, 32, 64)
    # Magnitudes 0 and 1/2: others may be infinite in float32 under the last scale.
    weight = Mxfp4(codes=weight.codes & 0b1001_1001, scales=torch.full_like(weight.scales, scale_byte))
    offsets, size = torch.tensor([0, 5, 12]), torch.tensor(min(124 - scale_byte, 100))
    x, grad = torch.ldexp(normal(12, 64), size), torch.ldexp(normal(12, 32, seed=1), size)
    assert_right("grouped_mxfp4", x, weight, None, offsets)
    assert_right("grouped_mxfp4_transposed", grad, weight, offsets)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    weight, offsets, grad = weights(2, 32, 64), torch.tensor([0, 4, 9]), normal(9, 32)
    transposed = ops.load("grouped_mxfp4_transposed", "cpu")
    expected = transposed(grad, weight, offsets)
    grad[3, 17] = bad
    result = transposed(grad, weight, offsets)
    others = torch.arange(9) != 3
    assert not result[3].isfinite().all()
    assert torch.equal(result[others], expected[others])


@pytest.mark.parametrize("bounds", [(0, 4, 8), (1, 4, 9), (0, 10, 9), (0, -1, 9), (0, 4, 2**62)])
def test_offsets_that_do_not_rise_to_the_number_of_rows(bounds: tuple[int, ...]) -> None:
    weight, offsets = weights(2, 32, 64), torch.tensor(bounds)
    with pytest.raises(KernelError, match="grouped_mxfp4: offsets does not rise from 0 to 9"):
        ops.load("grouped_mxfp4", "cpu")(normal(9, 64), weight, None, offsets)
    with pytest.raises(KernelError, match="grouped_mxfp4_transposed: offsets does not rise from 0 to 9"):
        ops.load("grouped_mxfp4_transposed", "cpu")(normal(9, 32), weight, offsets)


def test_blocks_as_published_pass_gradients_on_and_keep_nothing_unpacked() -> None:
    blocks, scales = mxfp4.quantize(normal(3, 48, 64))
    dense = mxfp4.dequantize(blocks, scales, torch.float64)
    offsets = torch.tensor([0, 2, 2, 7])
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    x = normal(7, 64).double().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = torch_packed.grouped_blocks(x, blocks, scales, offsets, mxfp4.dequantize)
    assert {tensor.dtype for tensor in saved} == {torch.uint8, torch.int64}
    grad = normal(7, 48, seed=1).double()
    out.backward(grad)
    expert_of_each = torch.tensor([0, 0, 2, 2, 2, 2, 2])
    assert x.grad is not None
    assert torch.allclose(out, torch.einsum("src,sc->sr", dense[expert_of_each], x), rtol=0, atol=1e-12)
    assert torch.allclose(x.grad, torch.einsum("src,sr->sc", dense[expert_of_each], grad), rtol=0, atol=1e-12)
