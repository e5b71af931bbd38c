"""The native products with packed weights that training needs, sorted by expert or transposed.

As in `cpu_packed`, operands go over as numpy views and are checked there.
"""

import numpy as np
import torch
from torch import Tensor

from ossia.kernels import _native
from ossia.kernels.cpu_packed import refusals
from ossia.kernels.packed import BLOCK, TILE, Bf16, Mxfp4


def linear_bf16_transposed(grad: Tensor, weight: Bf16) -> Tensor:
    """See `ops.LinearBf16Transposed`."""
    out_TC = np.empty((grad.shape[0], weight.weight.shape[1]), np.float32)
    with refusals("linear_bf16_transposed"):
        _native.linear_bf16_transposed(grad.numpy(), weight.weight.view(torch.uint16).numpy(), out_TC)
    return torch.from_numpy(out_TC)


def grouped_mxfp4(x: Tensor, weight: Mxfp4, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """See `ops.GroupedMxfp4`."""
    out_SR = np.empty((x.shape[0], TILE * weight.codes.shape[1]), np.float32)
    with refusals("grouped_mxfp4"):
        _native.grouped_mxfp4(
            x.numpy(),
            weight.codes.numpy(),
            weight.scales.numpy(),
            None if bias is None else bias.numpy(),
            offsets.numpy(),
            out_SR,
        )
    return torch.from_numpy(out_SR)


def grouped_mxfp4_transposed(grad: Tensor, weight: Mxfp4, offsets: Tensor) -> Tensor:
    """See `ops.GroupedMxfp4Transposed`."""
    out_SC = np.empty((grad.shape[0], BLOCK * weight.codes.shape[2]), np.float32)
    with refusals("grouped_mxfp4_transposed"):
        _native.grouped_mxfp4_transposed(
            grad.numpy(), weight.codes.numpy(), weight.scales.numpy(), offsets.numpy(), out_SC
        )
    return torch.from_numpy(out_SC)
