"""The two published checkpoint layouts: which file tensor holds which parameter.

`parameter_shapes` lists the parameters under the names the model uses; `stored_tensors` lists what a file of either
layout holds, in reading order, and how each stored tensor relates to parameters. Nothing else in ossia spells a name of
a checkpoint.

D hidden, I intermediate, E experts, V vocabulary, NH query heads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from ossia.config import MXFP4_BLOCK, Layout, ModelConfig

Kind = Literal["plain", "rows", "blocks", "scales", "dense", "dense_transposed"]
"""How a stored tensor holds its parameters: as it is; several stacked along the rows; the two halves of MXFP4; expert
weights in BF16 as the model holds them, or with their last two axes exchanged."""

BF16_ONLY = (torch.bfloat16,)
BF16_OR_F32 = (torch.bfloat16, torch.float32)
"""Norm scales and sinks: published sources disagree, so either is read; the first is what a new checkpoint gets."""
UINT8_ONLY = (torch.uint8,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor of a checkpoint file."""

    name: str
    """Its name in the file."""
    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    """What it may be; the first is what is written."""
    kind: Kind
    parameters: tuple[str, ...]
    """The parameters it holds: one, or for rows several from top to bottom."""


def parameter_shapes(config: ModelConfig, *, packed: bool) -> dict[str, tuple[int, ...]]:
    """Every parameter of the model, in reading order, with its shape. `packed`: experts in MXFP4, not in BF16."""
    hidden, inter, experts = config.hidden_size, config.intermediate_size, config.num_experts
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, hidden)}
    for n in range(config.num_hidden_layers):
        layer = f"layers.{n}"
        shapes[f"{layer}.attention_norm.scale"] = (hidden,)
        for which, rows in (("q", config.q_dim), ("k", config.kv_dim), ("v", config.kv_dim)):
            shapes[f"{layer}.attention.{which}.weight"] = (rows, hidden)
            shapes[f"{layer}.attention.{which}.bias"] = (rows,)
        shapes[f"{layer}.attention.o.weight"] = (hidden, config.q_dim)
        shapes[f"{layer}.attention.o.bias"] = (hidden,)
        shapes[f"{layer}.attention.sinks"] = (config.num_attention_heads,)
        shapes[f"{layer}.mlp_norm.scale"] = (hidden,)
        shapes[f"{layer}.mlp.router.weight"] = (experts, hidden)
        shapes[f"{layer}.mlp.router.bias"] = (experts,)
        for which, rows, columns in (("gate_up", 2 * inter, hidden), ("down", hidden, inter)):
            weight = f"{layer}.mlp.experts.{which}"
            if packed:
                shapes[f"{weight}_blocks"] = (experts, rows, columns // MXFP4_BLOCK, MXFP4_BLOCK // 2)
                shapes[f"{weight}_scales"] = (experts, rows, columns // MXFP4_BLOCK)
            else:
                shapes[weight] = (experts, rows, columns)
            shapes[f"{weight}_bias"] = (experts, rows)
    shapes["norm.scale"] = (hidden,)
    shapes["unembedding.weight"] = (config.vocab_size, hidden)
    return shapes


def stored_tensors(config: ModelConfig, layout: Layout, *, packed: bool) -> tuple[Stored, ...]:
    """Every tensor that a checkpoint of this layout holds, in reading order. `packed`: experts in MXFP4, else BF16."""
    shapes = parameter_shapes(config, packed=packed)
    names = _hf_names if layout == "hf" else _original_names
    return tuple(
        _stored(name, kind, parameters, shapes) for name, kind, parameters in names(config.num_hidden_layers, packed)
    )


def guess_layout(names: set[str]) -> Layout:
    """The layout that tensor names come from. A name of neither is left for the strict comparison to report."""
    return "original" if any(name.startswith(("block.", "embedding.")) for name in names) else "hf"


def guess_packed(names: set[str]) -> bool:
    """Whether any tensor is one half of an MXFP4 pair, in either layout."""
    return any(name.endswith(("_blocks", ".blocks", "_scales", ".scales")) for name in names)


def _stored(name: str, kind: Kind, parameters: tuple[str, ...], shapes: dict[str, tuple[int, ...]]) -> Stored:
    shape = shapes[parameters[0]]
    if kind == "rows":
        shape = (sum(shapes[parameter][0] for parameter in parameters), *shape[1:])
    if kind == "dense_transposed":
        shape = (shape[0], shape[2], shape[1])
    if kind in ("blocks", "scales"):
        dtypes = UINT8_ONLY
    elif parameters[0].endswith(("norm.scale", ".sinks")):
        dtypes = BF16_OR_F32
    else:
        dtypes = BF16_ONLY
    return Stored(name=name, shape=shape, dtypes=dtypes, kind=kind, parameters=parameters)


_Names = Iterator[tuple[str, Kind, tuple[str, ...]]]


def _hf_names(num_layers: int, packed: bool) -> _Names:
    yield "model.embed_tokens.weight", "plain", ("embedding.weight",)
    for n in range(num_layers):
        ours, theirs = f"layers.{n}", f"model.layers.{n}"
        yield f"{theirs}.input_layernorm.weight", "plain", (f"{ours}.attention_norm.scale",)
        for which in "qkvo":
            for leaf in ("weight", "bias"):
                yield f"{theirs}.self_attn.{which}_proj.{leaf}", "plain", (f"{ours}.attention.{which}.{leaf}",)
        yield f"{theirs}.self_attn.sinks", "plain", (f"{ours}.attention.sinks",)
        yield f"{theirs}.post_attention_layernorm.weight", "plain", (f"{ours}.mlp_norm.scale",)
        for leaf in ("weight", "bias"):
            yield f"{theirs}.mlp.router.{leaf}", "plain", (f"{ours}.mlp.router.{leaf}",)
        for which in ("gate_up", "down"):
            weight, stored = f"{ours}.mlp.experts.{which}", f"{theirs}.mlp.experts.{which}_proj"
            if packed:
                yield f"{stored}_blocks", "blocks", (f"{weight}_blocks",)
                yield f"{stored}_scales", "scales", (f"{weight}_scales",)
            else:
                yield stored, "dense_transposed", (weight,)
            yield f"{stored}_bias", "plain", (f"{weight}_bias",)
    yield "model.norm.weight", "plain", ("norm.scale",)
    yield "lm_head.weight", "plain", ("unembedding.weight",)


def _original_names(num_layers: int, packed: bool) -> _Names:
    yield "embedding.weight", "plain", ("embedding.weight",)
    for n in range(num_layers):
        ours, theirs = f"layers.{n}", f"block.{n}"
        yield f"{theirs}.attn.norm.scale", "plain", (f"{ours}.attention_norm.scale",)
        for leaf in ("weight", "bias"):
            qkv = tuple(f"{ours}.attention.{which}.{leaf}" for which in "qkv")
            yield f"{theirs}.attn.qkv.{leaf}", "rows", qkv
        yield f"{theirs}.attn.sinks", "plain", (f"{ours}.attention.sinks",)
        for leaf in ("weight", "bias"):
            yield f"{theirs}.attn.out.{leaf}", "plain", (f"{ours}.attention.o.{leaf}",)
        yield f"{theirs}.mlp.norm.scale", "plain", (f"{ours}.mlp_norm.scale",)
        for leaf in ("weight", "bias"):
            yield f"{theirs}.mlp.gate.{leaf}", "plain", (f"{ours}.mlp.router.{leaf}",)
        for which, number in (("gate_up", 1), ("down", 2)):
            weight, stored = f"{ours}.mlp.experts.{which}", f"{theirs}.mlp.mlp{number}"
            if packed:
                yield f"{stored}_weight.blocks", "blocks", (f"{weight}_blocks",)
                yield f"{stored}_weight.scales", "scales", (f"{weight}_scales",)
            else:
                yield f"{stored}_weight", "dense", (weight,)
            yield f"{stored}_bias", "plain", (f"{weight}_bias",)
    yield "norm.scale", "plain", ("norm.scale",)
    yield "unembedding.weight", "plain", ("unembedding.weight",)
