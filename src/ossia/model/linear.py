"""The leaves of a packed model that are no experts: dense layers in tiles, and an embedding left in its file.

Their weights are plain attributes, each one of the forms of `kernels.packed`: they do not train, and `model.adapt` sees
to it that they are filled. Those in the values of the checkpoint pass gradients on to x. Activations are float32.

Shapes: T tokens, C columns, R rows, V vocabulary, D hidden.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossia.errors import KernelError
from ossia.kernels import Kernels
from ossia.kernels.mixture import differentiated
from ossia.kernels.packed import BLOCK, Q8, TILE, Bf16, Split
from ossia.model import products

NO_GRADIENT = "activations rounded to 8 bits have no gradient: load the model with dense='bf16' to train on it"


class QuantLinear(nn.Module):
    """A dense layer in 8-bit blocks, for inference alone."""

    def __init__(self, columns: int, rows: int, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.rows = rows
        tiles, blocks = _whole(rows, TILE), _whole(columns, BLOCK)
        self.weight = Q8(
            codes=_bytes(tiles, blocks, TILE * BLOCK),
            multipliers=_bytes(tiles, blocks, TILE),
            row_scales=torch.empty(tiles * TILE),
        )
        self.bias = nn.Parameter(torch.empty(rows))

    def forward(self, x: Tensor) -> Tensor:
        """[T, C] → [T, R]. Raises KernelError where a gradient is asked for."""
        if differentiated(x):
            raise KernelError(NO_GRADIENT)
        return self.kernels.linear_q8(x, self.weight, self.bias, self.rows)


class Bf16Linear(nn.Module):
    """A dense layer in the values of the checkpoint."""

    def __init__(self, columns: int, rows: int, kernels: Kernels, *, bias: bool = True) -> None:
        super().__init__()
        self.kernels = kernels
        self.rows = rows
        self.weight = Bf16(weight=torch.empty(_whole(rows, TILE), columns, TILE, dtype=torch.bfloat16))
        self.bias = nn.Parameter(torch.empty(rows)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[T, C] → [T, R]; differentiable with respect to x and the bias."""
        if differentiated(x, self.bias):
            return products.linear_bf16(self.kernels, x, self.weight, self.bias, self.rows)
        return self.kernels.linear_bf16(x, self.weight, self.bias, self.rows)


class MappedEmbedding(nn.Module):
    """A table that stays in the checkpoint's file: only the rows of tokens that occur are ever read."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=torch.bfloat16))

    def forward(self, token_ids: Tensor) -> Tensor:
        """int64 [T] → float32 [T, D]."""
        return F.embedding(token_ids, self.weight).float()


# -------------------------------------------------------------------- unembeddings


class Unembedding(nn.Linear):
    """From the residual stream to logits, in a floating type."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows, bias=False)

    def best(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The first token of the largest logit, and that logit: [T, D] → int64 [T] and [T]. NaN is the largest."""
        values_T, ids_T = self(x).max(dim=-1)
        return ids_T, values_T


class Bf16Unembedding(Bf16Linear):
    """From the residual stream to logits, in the values of the checkpoint."""

    def __init__(self, columns: int, rows: int, kernels: Kernels) -> None:
        super().__init__(columns, rows, kernels, bias=False)

    def best(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Unembedding.best`."""
        values_T, ids_T = self(x).max(dim=-1)
        return ids_T, values_T


class SplitUnembedding(nn.Module):
    """From the residual stream to logits, in two planes, of which the best token often needs but one."""

    def __init__(self, columns: int, rows: int, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.rows = rows
        tiles, blocks = _whole(rows, TILE), _whole(columns, BLOCK)
        self.weight = Split(
            high=_bytes(tiles, blocks, TILE * BLOCK // 2),
            low=_bytes(tiles, blocks, TILE * BLOCK // 2),
            multipliers=_bytes(tiles, blocks, TILE),
            row_scales=torch.empty(tiles * TILE),
            dither=torch.empty(blocks * BLOCK, dtype=torch.int8),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] → [T, V]. Raises KernelError where a gradient is asked for."""
        if differentiated(x):
            raise KernelError(NO_GRADIENT)
        return self.kernels.logits_split(x, self.weight, self.rows)

    def best(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """See `Unembedding.best`."""
        ids_T1, values_T1 = self.kernels.best_split(x, self.weight, self.rows, 1)
        return ids_T1[:, 0], values_T1[:, 0]


def _whole(count: int, size: int) -> int:
    return -(-count // size)


def _bytes(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.uint8)
