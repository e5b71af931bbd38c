"""`ossia info`: what a model is and what it needs, from its headers alone."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import click

from ossia.cli.harmless import harmless
from ossia.cli.progress import format_bytes

_WIDTHS = (9, 12, 12, 12, 6, 13, 12, 6)
"""Columns of the memory plan, in characters."""


@click.command("info")
@click.argument("model", default="demo")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(model: str, as_json: bool) -> None:
    """Print architecture, counts and a memory plan of MODEL, without loading its weights.

    MODEL is "demo", a model folder of either layout, or a hub id that was already downloaded.
    """
    described = describe(model)
    if as_json:
        click.echo(json.dumps(described))
    else:
        _print(described)


def describe(model: str) -> dict[str, Any]:
    """What `ossia info --json` prints; all sizes in bytes."""
    from ossia.model.checkpoint import open_checkpoint
    from ossia.model.locate import resolve_model, tokenizer_file
    from ossia.model.memory import machine_memory, memory_plans
    from ossia.model.safetensors_header import DTYPE_NAMES

    checkpoint = open_checkpoint(resolve_model(model))
    config = checkpoint.config
    by_dtype: Counter[str] = Counter()
    for name, spec in checkpoint.stored.items():
        mxfp4 = name.endswith(("blocks", "scales"))
        by_dtype["MXFP4" if mxfp4 else DTYPE_NAMES[spec.dtype]] += spec.num_bytes
    memory = machine_memory()
    tokenizer = tokenizer_file(checkpoint.folder)
    return {
        "folder": str(checkpoint.folder),
        "layout": checkpoint.layout,
        "architecture": {
            "layers": config.num_hidden_layers,
            "experts": config.num_experts,
            "experts_per_token": config.experts_per_token,
            "hidden": config.hidden_size,
            "intermediate": config.intermediate_size,
            "heads": config.num_attention_heads,
            "kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "window": config.sliding_window,
            "windowed_layers": config.layer_types.count("sliding_attention"),
            "context": config.max_position_embeddings,
            "vocab": config.vocab_size,
        },
        "parameters": config.num_parameters(),
        "active_parameters": config.num_active_parameters(),
        "tensors": len(checkpoint.stored),
        "files": len(set(checkpoint.files.values())),
        "tensor_bytes": checkpoint.num_bytes,
        "tensor_bytes_by_type": dict(by_dtype),
        "tokenizer": str(tokenizer) if tokenizer else None,
        "memory": memory,
        "plan": [
            {
                "context": plan.context,
                "weights": plan.weights,
                "kv_bf16": plan.kv_bf16,
                "kv_8bit": plan.kv_8bit,
                "total_bf16": plan.total_bf16,
                "total_8bit": plan.total_8bit,
                "fits_bf16": plan.fits_bf16,
                "fits_8bit": plan.fits_8bit,
            }
            for plan in memory_plans(config, checkpoint.num_bytes, memory)
        ],
    }


def _print(described: dict[str, Any]) -> None:
    shape = described["architecture"]
    full = shape["layers"] - shape["windowed_layers"]
    mix = ", ".join(f"{name} {format_bytes(size)}" for name, size in described["tensor_bytes_by_type"].items())
    rows = {
        "model": f"{described['folder']} ({described['layout']} layout, {_count(described['files'], 'file')})",
        "layers": f"{shape['layers']}: {shape['windowed_layers']} with a window of {shape['window']}, {full} full",
        "experts": f"{shape['experts']} in each layer, {shape['experts_per_token']} for each token",
        "width": f"hidden {shape['hidden']}, intermediate {shape['intermediate']}",
        "heads": f"{shape['heads']} for queries, {shape['kv_heads']} for keys and values, of size {shape['head_dim']}",
        "context": f"{shape['context']:,} tokens",
        "vocabulary": f"{shape['vocab']:,} ids",
        "parameters": f"{described['parameters']:,}, of which {described['active_parameters']:,} active for a token",
        "tensors": f"{described['tensors']}, {described['tensor_bytes']:,} bytes: {mix}",
        "tokenizer": Path(described["tokenizer"]).name if described["tokenizer"] else "none in the folder",
        "memory": f"{format_bytes(described['memory'])} on this machine",
    }
    for name, text in rows.items():
        click.echo(harmless(f"{name:<12}{text}"))
    click.echo()
    _row("context", "weights", "cache BF16", "total", "fits", "cache 8-bit", "total", "fits")
    for plan in described["plan"]:
        _row(
            f"{plan['context']:,}",
            format_bytes(plan["weights"]),
            *(format_bytes(plan["kv_bf16"]), format_bytes(plan["total_bf16"]), _yes(plan["fits_bf16"])),
            *(format_bytes(plan["kv_8bit"]), format_bytes(plan["total_8bit"]), _yes(plan["fits_8bit"])),
        )


def _row(*cells: str) -> None:
    click.echo("".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True)))


def _yes(fits: bool) -> str:
    return "yes" if fits else "no"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
