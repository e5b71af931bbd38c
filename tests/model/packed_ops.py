"""The packed ops as slowly as they can be said: unpack, then multiply in float32, without rounding activations."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ossia.kernels import Kernels, select, torch_ops
from ossia.kernels.packed import (
    Q8,
    Bf16,
    Mxfp4,
    Split,
    gate_up_order,
    unpack_bf16,
    unpack_mxfp4,
    unpack_q8,
    unpack_split,
)


def linear_q8(x: Tensor, weight: Q8, bias: Tensor | None, rows: int) -> Tensor:
    return F.linear(x, unpack_q8(weight)[:rows, : x.shape[1]], bias)


def linear_bf16(x: Tensor, weight: Bf16, bias: Tensor | None, rows: int) -> Tensor:
    return F.linear(x, unpack_bf16(weight)[:rows].float(), bias)


def logits_split(x: Tensor, weight: Split, rows: int) -> Tensor:
    return x @ unpack_split(weight)[:rows, : x.shape[1]].T


def best_split(x: Tensor, weight: Split, rows: int, count: int) -> tuple[Tensor, Tensor]:
    values, ids = logits_split(x, weight, rows).topk(count)
    return ids, values


def experts_packed(
    x: Tensor, gate_up: Mxfp4, gate_up_bias: Tensor, down: Mxfp4, down_bias: Tensor, *chosen: Any
) -> Tensor:
    published = gate_up_order(gate_up_bias.shape[1]).argsort()
    blocks, scales = (half[:, published] for half in unpack_mxfp4(gate_up))
    return torch_ops.experts_mxfp4(
        x, blocks, scales, gate_up_bias[:, published], *unpack_mxfp4(down), down_bias, *chosen
    )


def packed_kernels() -> Kernels:
    """torch's kernels and these, which stand for the native ones."""
    base = select("torch")
    ops: dict[str, Any] = {each.name: getattr(base, each.name) for each in fields(base)}
    packed = (linear_q8, linear_bf16, logits_split, best_split, experts_packed)
    ops |= {op.__name__: op for op in packed} | {"experts_exact": experts_packed}
    ops["native"] = True
    return SimpleNamespace(**ops)  # type: ignore[return-value]


def random_ids(vocab_size: int, count: int) -> list[int]:
    return torch.randint(0, vocab_size, (count,), generator=torch.Generator().manual_seed(5)).tolist()
