"""The native CPU kernels: thin wrappers around `ossia.kernels._native`, which is built from csrc/ at installation.

The module is optional. Importing this file never fails; `available` says whether the kernels are there, `why_not` says
in one line what is missing and what is slower for it.
"""

from importlib import resources
from types import ModuleType

import torch
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels.mxfp4 import BLOCK, check_packed

_SLOWER = "MXFP4 experts are unpacked by torch instead, to the same values but more slowly"


def available() -> bool:
    """Whether the native kernels can be used in this installation."""
    return why_not() is None


def why_not() -> str | None:
    """What keeps the native kernels from use and what is slower without them, in one line; None where they are there."""
    try:
        _native()
    except KernelError as error:
        return str(error)
    return None


def dequantize(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`ossia.kernels.mxfp4.dequantize` in native code: uint8 [..., B, 16] and [..., B] into values [..., 32 B].

    `dtype` is float32, bfloat16 or float16. Raises KernelError on another type, on operands that are not on the CPU or
    have the wrong shape or type, and where the native kernels were not built.
    """
    check_packed(blocks, scales)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise KernelError(f"the cpu kernels cannot give {dtype}: ask for float32, or use the reference kernels")
    native = _native()
    num_blocks = scales.numel()
    out = torch.empty(num_blocks, BLOCK)
    try:
        native.mxfp4_dequantize(
            blocks.detach().reshape(num_blocks, BLOCK // 2).contiguous(), scales.reshape(num_blocks).contiguous(), out
        )
    except ValueError as error:
        raise KernelError(f"mxfp4_dequantize: {error}") from None
    return out.view(*scales.shape[:-1], -1).to(dtype)


def _native() -> ModuleType:
    """The native module. Raises KernelError that says why it cannot be had."""
    try:
        from ossia.kernels import _native
    except ModuleNotFoundError:
        raise KernelError(f"the native CPU kernels were not built: {_missing()}; {_SLOWER}") from None
    except ImportError as error:
        raise KernelError(f"the native CPU kernels cannot be loaded ({error}): reinstall ossia; {_SLOWER}") from None
    return _native


def _missing() -> str:
    """What the build noted as missing, with what to do about it."""
    note = resources.files("ossia.kernels").joinpath("native_missing.txt")
    try:
        lacks = note.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return "this copy of ossia was not installed, so install it with pip"
    return f"the installation found no {lacks.removeprefix('a ')}; add it and reinstall ossia"
