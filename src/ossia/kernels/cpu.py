"""The native CPU kernels: thin wrappers around `ossia.kernels._native`, which is built from csrc/ at installation.

The module is optional. Importing this file never fails; `available` says whether the kernels are there, `why_not` says
in one line what is missing and what is slower for it.
"""

import os
import sys
from importlib import resources
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import mxfp4, torch_packed
from ossia.kernels.mixture import differentiated
from ossia.kernels.torch_ops import experts_by_group

_SLOWER = "torch unpacks MXFP4 experts instead, to the same values but more slowly"


MOST_THREADS = 1024


def available() -> bool:
    """Whether the native kernels can be used in this installation."""
    return why_not() is None


def why_not() -> str | None:
    """What keeps the native kernels from use and what is slower without them, in one line; None if they are there."""
    try:
        _native()
    except KernelError as error:
        return str(error)
    return None


def configure(threads: int | None = None, isa: str | None = None) -> None:
    """Choose how many threads the native kernels use (default: one a physical core that this process may use) and
    which instructions ("avx512", "avx2" or "plain"; default: as they are, the best of this processor at first).

    Results do not depend on either. Raises KernelError for a number or a name that cannot be had.
    """
    native = _native()
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise KernelError(f"threads is {threads}: give 1 to {MOST_THREADS}")
    try:
        if isa is not None:
            native.set_isa(isa)
    except ValueError as error:
        raise KernelError(str(error)) from None
    native.set_num_threads(threads or physical_cores())


def num_threads() -> int:
    """How many threads the native kernels use."""
    return _native().num_threads()


def isa() -> str:
    """The instructions that the native kernels use: "avx512", "avx2" or "plain"."""
    return _native().isa()


def best_isa() -> str:
    """The best that this processor has."""
    return _native().best_isa()


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores that this process may use, each counted once however many threads it runs at a time.

    topology: where the system describes them; where it does not, every logical one counts.
    """
    if sys.platform != "linux":
        return os.cpu_count() or 1
    return len({_core(topology / f"cpu{cpu}" / "topology", cpu) for cpu in os.sched_getaffinity(0)})


def _core(described: Path, cpu: int) -> tuple[str, ...]:
    try:
        return tuple((described / name).read_text() for name in ("physical_package_id", "core_id"))
    except OSError:
        return (str(cpu),)


def experts_mxfp4(
    x: Tensor,
    gate_up_blocks: Tensor,
    gate_up_scales: Tensor,
    gate_up_bias: Tensor,
    down_blocks: Tensor,
    down_scales: Tensor,
    down_bias: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    limit: float,
) -> Tensor:
    """See `ops.ExpertsMxfp4`. One expert is de-quantised at a time, in native code; the products are torch's."""
    if differentiated(x, gate_up_bias, down_bias, expert_weights):
        return torch_packed.experts_mxfp4(
            x,
            gate_up_blocks,
            gate_up_scales,
            gate_up_bias,
            down_blocks,
            down_scales,
            down_bias,
            expert_ids,
            expert_weights,
            limit,
            dequantize=dequantize,
        )

    def unpacked(e: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gate_up = dequantize(gate_up_blocks[e], gate_up_scales[e], x.dtype)
        return gate_up, gate_up_bias[e], dequantize(down_blocks[e], down_scales[e], x.dtype), down_bias[e]

    return experts_by_group(x, unpacked, expert_ids, expert_weights, limit)


def dequantize(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`mxfp4.dequantize` in native code, bit for bit: uint8 [..., B, 16] and [..., B] into values [..., 32 B].

    Raises KernelError on operands that are not on the CPU or have the wrong shape or type, and where the native
    kernels were not built.
    """
    mxfp4.check_packed(blocks, scales)
    if blocks.device.type != "cpu" or scales.device.type != "cpu":
        raise KernelError(f"the cpu kernels cannot read operands on {blocks.device} and {scales.device}: move them")
    if dtype == torch.float64:
        return mxfp4.dequantize(blocks, scales, dtype)  # The native code writes float32, which overflows at 2^128.
    native = _native()
    num_blocks = scales.numel()
    blocks_N16 = blocks.reshape(num_blocks, mxfp4.BLOCK // 2).contiguous()
    out_N32 = torch.empty(num_blocks, mxfp4.BLOCK)
    try:
        native.mxfp4_dequantize(blocks_N16, scales.reshape(num_blocks).contiguous(), out_N32)
    except ValueError as error:
        raise KernelError(f"mxfp4_dequantize: {error}") from None
    return out_N32.view(*scales.shape[:-1], scales.shape[-1] * mxfp4.BLOCK).to(dtype)


def machine_limits(threads: int, num_bytes: int) -> tuple[float, float]:
    """Bytes a second read from memory (a buffer of num_bytes) and 8-bit multiply-adds a second, on so many threads.

    Takes about a second. Raises KernelError where the native kernels were not built, or threads is less than 1.
    """
    try:
        return _native().measure_limits(threads, num_bytes)
    except ValueError as error:
        raise KernelError(f"machine_limits: {error}") from None


def _native() -> ModuleType:
    """The native module. Raises KernelError that says why it cannot be had."""
    try:
        import ossia.kernels._native as native
    except ModuleNotFoundError:
        raise KernelError(f"the native CPU kernels were not built: {_missing()}; {_SLOWER}") from None
    except ImportError as error:
        raise KernelError(f"the native CPU kernels cannot be loaded ({error}): reinstall ossia; {_SLOWER}") from None
    return native


def _missing() -> str:
    """What the build noted as missing, with what to do about it."""
    note = resources.files("ossia.kernels").joinpath("native_missing.txt")
    try:
        lacks = note.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "this copy of ossia runs from its source folder, so install it with pip"
    return f"the installation did not find {lacks}, so add that and reinstall ossia"
