import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ossia.errors import KernelError
from ossia.kernels import cpu, mxfp4, torch_ops

BLOCK_SHAPES = [(0,), (1,), (3,), (2, 0), (2, 3), (2, 3, 5)]

needs_native = pytest.mark.skipif(not cpu.available(), reason=cpu.why_not() or "")


def packed(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(shape))
    blocks = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    return blocks, scales


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal with NaN equal to itself, and -0 not equal to 0."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(got.signbit()[~got.isnan()], expected.signbit()[~expected.isnan()])


@needs_native
def test_every_byte_under_every_scale_is_what_the_reference_gives() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(256, 16, 16).contiguous()
    scales = torch.arange(256, dtype=torch.uint8).view(256, 1).expand(256, 16).contiguous()
    assert_same_bits(cpu.dequantize(blocks, scales), mxfp4.dequantize(blocks, scales))


@needs_native
def test_values_written_out_by_hand() -> None:
    """Not a comparison with our own reference: the low nibble comes first, and scale byte 128 doubles."""
    blocks = torch.zeros(1, 16, dtype=torch.uint8)
    blocks[0, 0] = 0x2F  # Low nibble 15 is -6, high nibble 2 is 1.
    values = cpu.dequantize(blocks, torch.tensor([128], dtype=torch.uint8))
    assert values.tolist() == [-12.0, 2.0] + [0.0] * 30


@needs_native
@pytest.mark.parametrize("shape", BLOCK_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_leading_dimensions_and_types(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    blocks, scales = packed(*shape)
    assert_same_bits(cpu.dequantize(blocks, scales, dtype), mxfp4.dequantize(blocks, scales, dtype))


@needs_native
def test_operands_with_strides_are_read_in_order() -> None:
    blocks, scales = packed(4, 6)
    blocks, scales = blocks.transpose(0, 1), scales.transpose(0, 1)
    assert_same_bits(cpu.dequantize(blocks, scales), mxfp4.dequantize(blocks.contiguous(), scales.contiguous()))


@needs_native
def test_float64_holds_what_overflows_float32() -> None:
    blocks, scale = torch.full((1, 16), 0x77, dtype=torch.uint8), torch.tensor([254], dtype=torch.uint8)
    assert cpu.dequantize(blocks, scale, torch.float64).tolist() == [6 * 2.0**127] * 32
    assert cpu.dequantize(blocks, scale).tolist() == [float("inf")] * 32


def test_wrong_operands_are_refused() -> None:
    blocks, scales = packed(3)
    with pytest.raises(KernelError, match="must be uint8"):
        cpu.dequantize(blocks, scales.int())
    with pytest.raises(KernelError, match="do not go with scales"):
        cpu.dequantize(blocks, scales[:2])


@needs_native
def test_an_operand_that_is_not_in_memory_is_refused() -> None:
    blocks, scales = packed(3)
    with pytest.raises(KernelError, match="cannot read operands on meta and meta: move them"):
        cpu.dequantize(blocks.to("meta"), scales.to("meta"))


@needs_native
def test_experts_are_what_torch_gives_bit_for_bit() -> None:
    num_tokens, num_experts, hidden, intermediate = 5, 4, 64, 96
    generator = torch.Generator().manual_seed(0)
    gate_up = mxfp4.quantize(torch.randn(num_experts, 2 * intermediate, hidden, generator=generator))
    down = mxfp4.quantize(torch.randn(num_experts, hidden, intermediate, generator=generator))
    operands = (
        torch.randn(num_tokens, hidden, generator=generator),
        *gate_up,
        torch.randn(num_experts, 2 * intermediate, generator=generator),
        *down,
        torch.randn(num_experts, hidden, generator=generator),
        torch.tensor([[0, 1], [1, 3], [3, 0], [1, 0], [0, 3]]),  # Nobody asks for expert 2.
        torch.rand(num_tokens, 2, generator=generator),
        7.0,
    )
    assert torch.equal(cpu.experts_mxfp4(*operands), torch_ops.experts_mxfp4(*operands))


class TestTheDoor:
    """What the native function itself refuses, without the wrapper in front of it."""

    pytestmark = needs_native

    @pytest.mark.parametrize(
        ("operand", "value", "message"),
        [
            ("blocks", torch.zeros(3, 16, dtype=torch.int8), "blocks is not of type uint8"),
            ("blocks", torch.zeros(2, 16, dtype=torch.uint8), r"blocks does not have shape \[3, 16\]"),
            ("blocks", torch.zeros(3, 15, dtype=torch.uint8), r"blocks does not have shape \[3, 16\]"),
            ("blocks", torch.zeros(48, dtype=torch.uint8), r"blocks does not have shape \[3, 16\]"),
            ("blocks", torch.zeros(16, 3, dtype=torch.uint8).t(), "blocks is not contiguous"),
            ("scales", torch.zeros(3), "scales is not of type uint8"),
            ("scales", torch.zeros(3, 1, dtype=torch.uint8), r"scales does not have shape \[any\]"),
            ("scales", torch.zeros(6, dtype=torch.uint8)[::2], "scales is not contiguous"),
            ("out", torch.zeros(3, 32, dtype=torch.float64), "out is not of type float32"),
            ("out", torch.zeros(3, 16), r"out does not have shape \[3, 32\]"),
            ("out", torch.zeros(3, 64)[:, ::2], "out is not contiguous"),
        ],
    )
    def test_refuses(self, operand: str, value: torch.Tensor, message: str) -> None:
        from ossia.kernels import _native

        operands = {
            "blocks": torch.zeros(3, 16, dtype=torch.uint8),
            "scales": torch.zeros(3, dtype=torch.uint8),
            "out": torch.zeros(3, 32),
        }
        _native.mxfp4_dequantize(**operands)
        with pytest.raises(ValueError, match=message):
            _native.mxfp4_dequantize(**(operands | {operand: value}))


def test_without_the_native_module_the_package_says_what_is_missing_and_slower() -> None:
    """In a process of its own, in which the module cannot be found."""
    program = """
import sys
sys.modules["ossia.kernels._native"] = None
import torch
from ossia.errors import KernelError
from ossia.kernels import cpu
assert not cpu.available()
print(cpu.why_not())
try:
    cpu.dequantize(torch.zeros(1, 16, dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8))
except KernelError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    why, refusal = run.stdout.splitlines()
    assert "native CPU kernels were not built" in why
    assert "install" in why
    assert "more slowly" in why
    assert refusal == why


# -------------------------------------------------------------------- settings


@pytest.fixture
def settings() -> Iterator[ModuleType]:
    """The native module, put back as it was."""
    native = pytest.importorskip("ossia.kernels._native")
    threads, isa = native.num_threads(), native.isa()
    yield native
    native.set_num_threads(threads)
    native.set_isa(isa)


def test_threads_and_instructions_are_set(settings: ModuleType) -> None:
    cpu.configure(3, "plain")
    assert (settings.num_threads(), settings.isa()) == (3, "plain")
    cpu.configure()
    assert (settings.num_threads(), settings.isa()) == (cpu.physical_cores(), "plain")
    cpu.configure(1, settings.best_isa())
    assert (settings.num_threads(), settings.isa()) == (1, settings.best_isa())


@pytest.mark.parametrize(
    ("threads", "isa", "message"),
    [
        (0, None, "threads is 0: give 1 to 1024"),
        (10_000, None, "threads is 10000: give 1 to 1024"),
        (2**40, None, r"threads is 1099511627776: give 1 to 1024"),
        (1, "sse9", "unknown isa 'sse9': give avx512, avx2 or plain"),
    ],
)
def test_settings_that_cannot_be_had(settings: ModuleType, threads: int, isa: str | None, message: str) -> None:
    before = settings.num_threads(), settings.isa()
    with pytest.raises(KernelError, match=message):
        cpu.configure(threads, isa)
    assert (settings.num_threads(), settings.isa()) == before


def test_cores_are_counted_once_however_many_threads_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):  # Two packages of two cores of two threads.
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "physical_package_id").write_text(f"{number // 4}\n")
        (folder / "core_id").write_text(f"{number % 2}\n")
    for allowed, cores in ((range(8), 4), ((0, 2), 1), ((0, 1), 2), ((0, 4), 2), ((0, 8, 9), 3)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, allowed=allowed: set(allowed))
        assert cpu.physical_cores(tmp_path) == cores
