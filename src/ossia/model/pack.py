"""From a checkpoint to the tiles of a packed model, a piece at a time and in the order of the file.

Nothing is held but the piece at hand: an expert, or some thousand rows of a dense matrix. What was read of the
checkpoint is let go of matrix by matrix.

Shapes: E experts, R rows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from ossia.errors import CheckpointError, KernelError
from ossia.kernels import cpu, packed
from ossia.kernels.packed import Q8, Bf16, Mxfp4, Split, gate_up_order
from ossia.model.adapt import Form, packed_weights, parts, refuse_nan, tensors_of
from ossia.model.checkpoint import compare_names
from ossia.model.safetensors_header import TensorSpec
from ossia.model.transformer import Transformer

Piece = tuple[str, Tensor]
"""Name of a tensor and the next part of it, along its first dimension."""


class Weights(Protocol):
    """What is packed, such as a Checkpoint: parameters by name, experts as blocks and scales of MXFP4."""

    def __getitem__(self, name: str, /) -> Tensor:
        """The parameter of this name."""
        ...

    def forget(self, name: str) -> None:
        """It is not needed again."""
        ...


EMBEDDING = "embedding.weight"
"""The one parameter of a packed model that stays in the checkpoint."""

_ROWS = 16_384
"""Rows of a dense matrix packed at once: whole tiles, and few beside those of the largest matrix."""


def packed_specs(model: Transformer) -> dict[str, TensorSpec]:
    """Every tensor of a packed model but the embedding: what `pieces` make."""
    return {
        name: TensorSpec(dtype=tensor.dtype, shape=tuple(tensor.shape))
        for name, tensor in tensors_of(model).items()
        if name != EMBEDDING
    }


def pieces(checkpoint: Weights, model: Transformer) -> Iterator[Piece]:
    """Every tensor of `packed_specs(model)`, cut in pieces; those of one tensor come in order.

    The checkpoint's experts are in MXFP4. Raises CheckpointError where a weight is NaN or infinite.
    """
    forms = dict(packed_weights(model))
    for name, form in forms.items():
        if isinstance(form, Mxfp4):
            yield from _experts(checkpoint, name)
        else:
            yield from _dense(checkpoint, name, type(form))
    for name in packed_specs(model):
        if name.rpartition(".")[0] not in forms:
            value = checkpoint[name].float()
            yield name, value[:, gate_up_order(value.shape[1])] if name.endswith(".gate_up_bias") else value


def assembled(specs: Mapping[str, TensorSpec], pieces: Iterable[Piece]) -> dict[str, Tensor]:
    """The whole tensors, in memory. Raises CheckpointError where the pieces are not exactly theirs."""
    out = {name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()}
    count = Count(specs)
    for name, piece in pieces:
        first = count.add(name, piece)
        out[name].view(-1)[first : first + piece.numel()] = piece.flatten()
    count.finish()
    return out


class Count:
    """How much of each tensor has come: its pieces must fit, and in the end be all."""

    def __init__(self, specs: Mapping[str, TensorSpec]) -> None:
        self._specs = specs
        self._done = dict.fromkeys(specs, 0)

    def add(self, name: str, piece: Tensor) -> int:
        """The place of this piece: how many values of its tensor came before."""
        first = self._done[name]
        self._done[name] += piece.numel()
        spec = self._specs[name]
        if piece.dtype != spec.dtype or piece.shape[1:] != spec.shape[1:] or self._done[name] > prod(spec.shape):
            raise CheckpointError(f"packing {name}: {piece.dtype} {list(piece.shape)} is no piece of {spec}")
        return first

    def finish(self) -> None:
        """Raises CheckpointError that names the tensors of which something is missing."""
        whole = [name for name, spec in self._specs.items() if self._done[name] == prod(spec.shape)]
        compare_names("packing did not make every tensor", self._specs, whole)


def _experts(checkpoint: Weights, name: str) -> Iterator[Piece]:
    blocks, scales = checkpoint[f"{name}_blocks"], checkpoint[f"{name}_scales"]
    order_R = gate_up_order(blocks.shape[1]) if name.endswith(".gate_up") else None
    pack = _packer(Mxfp4)
    for blocks_R, scales_R in zip(blocks, scales, strict=True):
        refuse_nan(f"{name}_scales", scales_R)
        yield from ((f"{name}.{part}", value[None]) for part, value in parts(pack(blocks_R, scales_R, order_R)))
    checkpoint.forget(f"{name}_blocks")
    checkpoint.forget(f"{name}_scales")


def _dense(checkpoint: Weights, name: str, kind: type[Form]) -> Iterator[Piece]:
    pack = _packer(kind)
    for index, weight in enumerate(checkpoint[name].split(_ROWS)):
        try:
            form = pack(weight)
        except KernelError as error:
            raise CheckpointError(f"tensor {name} cannot be packed ({error}): the file is damaged") from None
        if isinstance(form, (Q8, Split)) and not bool(torch.isfinite(form.row_scales).all()):
            raise CheckpointError(f"tensor {name} holds NaN or infinity: the file is damaged")
        for part, value in parts(form):
            if part != "dither" or index == 0:  # Of columns, so the same for all rows.
                yield f"{name}.{part}", value
    checkpoint.forget(name)


# -------------------------------------------------------------------- packers


def _packer(form: type[Form]) -> Callable[..., Form]:
    """The native packer of this form; where there are no native kernels the slow one, to the same bytes."""
    if not cpu.available():
        return _SLOW[form]
    from ossia.kernels import cpu_packed, cpu_unembedding  # They import the native module.

    native: dict[type[Form], Callable[..., Form]] = {
        Mxfp4: cpu_packed.pack_mxfp4,
        Q8: cpu_packed.pack_q8,
        Bf16: cpu_packed.pack_bf16,
        Split: cpu_unembedding.pack_split,
    }
    return native[form]


def _slow_mxfp4(blocks: Tensor, scales: Tensor, order: Tensor | None) -> Mxfp4:
    return packed.pack_mxfp4(blocks, scales) if order is None else packed.pack_mxfp4(blocks[order], scales[order])


_SLOW: dict[type[Form], Callable[..., Form]] = {
    Mxfp4: _slow_mxfp4,
    Q8: packed.pack_q8,
    Bf16: packed.pack_bf16,
    Split: packed.pack_split,
}
