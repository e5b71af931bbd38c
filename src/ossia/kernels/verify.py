"""Checking mode: an op wrapped so that each call is compared with the reference. Slow; never the default path."""

from collections.abc import Callable

import torch
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels.pages import Pages

Op = Callable[..., Tensor]

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Largest difference allowed, as a part of the largest magnitude of the reference's result."""


def verified(op: str, implementation: Op) -> Op:
    """`implementation`, which raises KernelError where it strays from the reference on the same operands."""
    from ossia.kernels.ops import load

    reference = load(op, "reference")

    def checked(*operands: object) -> Tensor:
        expected = reference(
            *(o.clone() if isinstance(o, Pages) else o for o in operands)
        )  # Before they are written to.
        result = implementation(*operands)
        if (result.shape, result.dtype) != (expected.shape, expected.dtype):
            raise KernelError(
                f"{op} returns {result.dtype} {list(result.shape)}, "
                f"the reference {expected.dtype} {list(expected.shape)}"
            )
        scale = max(float(expected.abs().max()), 1e-6) if expected.numel() else 1.0
        difference = float((result.double() - expected.double()).abs().max()) if expected.numel() else 0.0
        if not difference <= TOLERANCES[expected.dtype] * scale:
            raise KernelError(
                f"{op} strays from the reference by {difference:.3g} where values reach {scale:.3g} "
                f"(shapes {[list(o.shape) for o in operands if isinstance(o, Tensor)]})"
            )
        return result

    return checked
