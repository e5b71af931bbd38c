"""The definition of the unembedding from two planes: what `packed.Split` stands for, times activations of 16 bits.

Shapes: T tokens, D columns, B blocks of 32, R rows, K of them the largest.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from ossia.kernels.packed import BLOCK, Split, unpack_split

MOST = 32512
"""The largest code of an activation: 256 times 127, for an upper byte of at most 127."""
_LEAST = 2.0**-100


def logits_split(x: Tensor, weight: Split, rows: int) -> Tensor:
    """See `ops.LogitsSplit`; the sums in the type of x. NaN for a token with an activation that is not finite."""
    return round_activations(x).to(x.dtype) @ unpack_split(weight)[:rows].to(x.dtype).T


def best_split(x: Tensor, weight: Split, rows: int, count: int) -> tuple[Tensor, Tensor]:
    """See `ops.BestSplit`."""
    values_TR, ids_TR = logits_split(x, weight, rows).sort(dim=-1, descending=True, stable=True)
    return ids_TR[:, :count], values_TR[:, :count]


def round_activations(x: Tensor) -> Tensor:
    """x [T, D] in 16 bits a block of 32, as the float64 values [T, 32 B] that its codes stand for.

    A block whose largest magnitude is below 2^-100 counts as zeros.
    """
    x_TBC = pad(x.to(torch.float32), (0, -x.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    largest_TB1 = x_TBC.abs().amax(dim=-1, keepdim=True)
    used_TB1 = largest_TB1 >= _LEAST
    codes_TBC = (x_TBC * torch.where(used_TB1, MOST / largest_TB1, 0)).round()
    steps_TB1 = torch.where(used_TB1, largest_TB1 * torch.tensor(1 / MOST), 0).to(torch.float64)
    finite_T11 = x_TBC.isfinite().all(dim=(1, 2), keepdim=True) if x_TBC.numel() else used_TB1[:, :1]
    return torch.where(finite_T11, codes_TBC.to(torch.float64) * steps_TB1, torch.nan).flatten(-2)
