"""The native ops of training: values and gradients against the reference, whatever the instructions and the threads.

Values of the ops that inference has too are also held to the reference in test_ops.py, case by case.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from tests.kernels.cases import CASES, operands
from torch import Tensor

from ossia.kernels import cpu, mxfp4, ops, select, select_for_training

if not cpu.available():
    pytest.skip(str(cpu.why_not()), allow_module_level=True)

from ossia.kernels import _native, cpu_training

TOLERANCES = {
    torch.float32: 2e-5,
    torch.bfloat16: 2e-2,  # Results are stored with 2^-9, and so are the products on the way.
}
ISAS = ("plain", "avx2", "avx512")
ISAS = ISAS[: ISAS.index(_native.best_isa()) + 1]


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    cpu.configure(isa=_native.best_isa())


def gradients(function: Callable[..., Tensor], given: tuple[object, ...]) -> list[Tensor]:
    """The result, and the gradients of a fixed weighting of it in every floating operand that has one."""
    given = tuple(
        o.detach().clone().requires_grad_(o.is_floating_point()) if isinstance(o, Tensor) else o for o in given
    )
    out = function(*given)
    out.backward(torch.linspace(-1, 2, out.numel()).view(out.shape).to(out.dtype))
    return [out.detach()] + [o.grad for o in given if isinstance(o, Tensor) and o.grad is not None]


def widened(operand: object) -> object:
    return operand.double() if isinstance(operand, Tensor) and operand.is_floating_point() else operand


def assert_near(got: list[Tensor], expected: list[Tensor], limit: float) -> None:
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        largest = float(other.abs().max()) if other.numel() else 0.0
        assert float((one.double() - other.double()).abs().max()) <= limit * max(largest, 1e-30), largest


# Where an operand ends in the clamp of SwiGLU or eps decides, bfloat16 rounds to the other side of it.
COMPARED = [
    pytest.param(op, name, dtype, id=f"{op}: {name}, {dtype}")
    for op in ("rms_norm", "rope", "attention", "experts")
    for name in CASES[op]
    for dtype in TOLERANCES
    if "no token" not in name and not (dtype == torch.bfloat16 and name in ("clamped", "scores that saturate"))
]


@pytest.mark.parametrize(("op", "name", "dtype"), COMPARED)
def test_gradients_are_those_of_torch_in_float64(op: str, name: str, dtype: torch.dtype) -> None:
    """Sinks, router weights and biases included. Torch's in float64 are those of the reference: test_ops.py."""
    given = operands(op, name, dtype)
    fixed = given[1:] if op == "rope" else ()  # Angles are no parameters.
    given = given[: len(given) - len(fixed)]
    expected = gradients(lambda *own: ops.load(op, "torch")(*own, *fixed), tuple(map(widened, given)))
    assert_near(gradients(lambda *own: ops.load(op, "training")(*own, *fixed), given), expected, TOLERANCES[dtype])


@pytest.mark.parametrize("head_dim", cpu_training.HEAD_SIZES)
@pytest.mark.parametrize("window", [None, 1, 5, 31, 32, 33, 128])
def test_attention_around_its_blocks(head_dim: int, window: int | None) -> None:
    """Lengths and windows about the blocks of 8, 16 and 32 in which the native code works."""
    generator = torch.Generator().manual_seed(0)
    lengths = (1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 65, 150)
    q, k, v, sinks = (
        torch.randn(shape, generator=generator)
        for shape in ((sum(lengths), 4, head_dim), *2 * [(sum(lengths), 2, head_dim)], (4,))
    )
    given = (q, k, v, sinks, lengths, lengths, window)
    expected = gradients(ops.load("attention", "torch"), tuple(map(widened, given)))
    assert_near(gradients(cpu_training.attention, given), expected, 2e-5)


def every_op(dtype: torch.dtype) -> list[Tensor]:
    """Results and gradients of each op on a case of many rows."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    angles = torch.rand(300, 8, generator=generator) * 6
    lengths = (40, 200, 60)
    ids = torch.rand(300, 6, generator=generator).topk(2).indices
    experts = (normal(300, 40), normal(6, 56, 40), normal(6, 56), normal(6, 40, 28), normal(6, 40))
    targets = torch.randint(50, (300,), generator=generator)
    heads = (normal(300, 4, 16), normal(300, 2, 16), normal(300, 2, 16), normal(4))
    stored = torch.zeros(300, 64, dtype=dtype)
    changed = cpu_training.store_mxfp4(normal(300, 64).float(), stored, "even")
    return [
        *gradients(cpu_training.rms_norm, (normal(300, 40), normal(40), 1e-5)),
        *gradients(lambda x: cpu_training.rope(x, angles.cos(), angles.sin()), (normal(300, 3, 16),)),
        *gradients(cpu_training.attention, (*heads, lengths, lengths, 32)),
        *gradients(cpu_training.experts, (*experts, ids, normal(300, 2), 2.0)),
        *gradients(cpu_training.surprise, (normal(300, 50), targets)),
        changed,
        stored,
    ]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_neither_threads_nor_instructions_change_a_bit(isa: str, dtype: torch.dtype) -> None:
    cpu.configure(1)
    expected = every_op(dtype)
    for threads in (1, 2, 3):
        cpu.configure(threads, isa)
        for one, other in zip(every_op(dtype), expected, strict=True):
            assert torch.equal(one, other)


def test_a_document_does_not_see_its_neighbours() -> None:
    """Nor do its gradients: alone or beside others, the same bits."""
    generator = torch.Generator().manual_seed(1)
    lengths = (30, 75, 12)
    q, k, v = (torch.randn(sum(lengths), heads, 32, generator=generator) for heads in (4, 2, 2))
    sinks = torch.randn(4, generator=generator)

    def attend(rows: slice, lengths: tuple[int, ...]) -> list[Tensor]:
        ours = [x[rows].clone().requires_grad_() for x in (q, k, v)]
        out = cpu_training.attention(*ours, sinks, lengths, lengths, 16)
        out.backward(q[rows].sin())
        return [out.detach(), *(x.grad for x in ours if x.grad is not None)]

    together, start = attend(slice(None), lengths), 0
    for length in lengths:
        rows = slice(start, start + length)
        for one, other in zip(together, attend(rows, (length,)), strict=True):
            assert torch.equal(one[rows], other)
        start += length


# ---------------------------------------------------------------- what only training has


@pytest.mark.parametrize("source", ["torch", "training"])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 300])
def test_surprise(source: str, dtype: torch.dtype, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(9, width, generator=generator) * 5).to(dtype)
    targets = torch.randint(width, (9,), generator=generator)
    result, grad = gradients(ops.load("surprise", source), (logits, targets))
    expected, expected_grad = gradients(ops.load("surprise", "reference"), (logits.double(), targets))
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() <= 1e-5
    assert grad.dtype == dtype
    assert (grad - expected_grad).abs().max() <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("rule", ["ceil", "floor", "even"])
def test_what_is_stored_is_what_the_quantiser_says_and_changes_are_counted(
    rule: mxfp4.ScaleRule, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 64, generator=generator) * torch.exp2(torch.arange(300) * 0.9 - 150)[:, None]
    weight[0] = 0
    weight[1] = -0.0
    weight[2] = torch.tensor([6.0, 6.5, 7.0, -7.5, 0.25, -0.75, 1.25, 2.5]).repeat(8)  # Ties, and each rule's edge.
    stored = torch.zeros(300, 64, dtype=dtype)
    expected = mxfp4.fake_quantize(weight, scale_rule=rule).to(dtype)
    for source in ("reference", "training"):
        stored.zero_()
        store = ops.load("store_mxfp4", source)
        assert store(weight, stored, rule) == (expected != 0).sum()
        assert torch.equal(stored, expected)
        assert torch.equal(stored.signbit(), expected.signbit())
        assert store(weight, stored, rule) == 0
        stored[5, 7] += 1e-20
        assert store(weight, stored, rule) == int(expected[5, 7] + 1e-20 != expected[5, 7])


# ---------------------------------------------------------------- choosing


def test_training_on_a_cpu_gets_the_native_ops() -> None:
    kernels = select_for_training()
    native = {op for op, source in kernels.sources.items() if source == "training"}
    assert native == {"rms_norm", "rope", "attention", "experts", "surprise", "store_mxfp4"}
    assert kernels.attention is cpu_training.attention
    assert not kernels.native


def test_training_elsewhere_gets_torch() -> None:
    assert select_for_training(device="cuda").sources == select("torch", device="cuda").sources


@pytest.mark.parametrize("op", ["rms_norm", "rope", "attention", "experts"])
def test_float64_goes_to_torch(op: str) -> None:
    """Bit for bit, gradients too."""
    given = operands(op, "several" if op != "attention" else "ragged", torch.float64)
    for one, other in zip(
        gradients(ops.load(op, "training"), given), gradients(ops.load(op, "torch"), given), strict=True
    ):
        assert torch.equal(one, other)
