"""`ossia init`: a random checkpoint of any gpt-oss shape, for benchmarks and capacity planning."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from ossia.config import PRESETS, Layout, ModelConfig
from ossia.errors import TokenizerError

_OVERRIDES = {
    "layers": ("num_hidden_layers", "Number of layers."),
    "experts": ("num_experts", "Number of experts in each layer."),
    "experts_per_token": ("experts_per_token", "Experts that each token passes through."),
    "hidden": ("hidden_size", "Width of the residual stream; a multiple of 32."),
    "intermediate": ("intermediate_size", "Width inside an expert; a multiple of 32."),
    "heads": ("num_attention_heads", "Query heads."),
    "kv_heads": ("num_key_value_heads", "Key/value heads; must divide the query heads."),
    "head_dim": ("head_dim", "Size of a head; even."),
    "vocab": ("vocab_size", "Number of token ids."),
    "window": ("sliding_window", "Keys that a windowed layer sees, itself included."),
    "context": ("max_position_embeddings", "Tokens that a prompt and its answer may fill together."),
}
"""Option → field of ModelConfig, and its help."""

_MOST_SEED = 2**63 - 1
_TOKENIZER_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What may lie beside a vocabulary and goes with it."""


def _with_overrides(command: click.Command) -> click.Command:
    for option, (_, text) in _OVERRIDES.items():
        command.params.append(click.Option([f"--{option.replace('_', '-')}", option], type=int, help=text))
    return command


def _finite(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number.")
    return value


@_with_overrides
@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--preset", type=click.Choice(list(PRESETS)), default="gpt-oss-20b", show_default=True, help="The shape.")
@click.option("--layout", type=click.Choice(["hf", "original"]), default="hf", show_default=True)
@click.option(
    "--seed", type=click.IntRange(0, _MOST_SEED), default=0, show_default=True, help="The same seed, the same bytes."
)
@click.option("--bf16", is_flag=True, help="Store the experts in BF16 instead of MXFP4.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="A tokenizer's file or folder to copy alongside.")
@click.option(
    "--max-shard-gb",
    type=click.FloatRange(min=0.001),
    callback=_finite,
    default=5.0,
    show_default=True,
    help="hf layout only.",
)
@click.option("--overwrite", is_flag=True, help="Replace a checkpoint that is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def init(
    folder: Path,
    preset: str,
    layout: str,
    seed: int,
    bf16: bool,
    tokenizer: Path | None,
    max_shard_gb: float,
    overwrite: bool,
    as_json: bool,
    **overrides: int | None,
) -> None:
    """Write a random checkpoint in FOLDER.

    Its shape is that of a published model, changed by the options below; logits have a spread of about one.
    """
    from ossia.cli.progress import byte_progress
    from ossia.harmony.tokenizer import Tokenizer
    from ossia.model.random_weights import RandomWeights
    from ossia.model.write import write_checkpoint

    config = configured(preset, overrides)
    if tokenizer:
        Tokenizer.load(tokenizer)  # A foreign vocabulary is refused before anything is written.
    with byte_progress(f"writing {folder}") as report:
        checkpoint = write_checkpoint(
            folder,
            config,
            RandomWeights(config, seed),
            layout=cast(Layout, layout),
            packed=not bf16,
            max_shard_bytes=int(max_shard_gb * 1e9),
            extra_files=tokenizer_files(tokenizer) if tokenizer else {},
            overwrite=overwrite,
            progress=report,
        )
    result: dict[str, Any] = {
        "folder": str(folder),
        "layout": checkpoint.layout,
        "tensors": len(checkpoint.stored),
        "tensor_bytes": checkpoint.num_bytes,
        "parameters": config.num_parameters(),
        "seed": seed,
    }
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(
            f"{folder}: {config.num_parameters():,} random parameters, {len(checkpoint.stored)} tensors, "
            f"{checkpoint.num_bytes:,} bytes, layout {layout}; look closer with `ossia info {folder}`"
        )


def configured(preset: str, overrides: dict[str, int | None]) -> ModelConfig:
    """The preset with the given options changed. Raises ConfigError where they contradict each other."""
    changes: dict[str, Any] = {_OVERRIDES[option][0]: value for option, value in overrides.items() if value is not None}
    if "num_hidden_layers" in changes:
        changes["layer_types"] = ()  # The published alternation, for the new number of layers.
    return replace(PRESETS[preset], **changes)


def tokenizer_files(path: Path) -> dict[str, Path]:
    """The files to copy for the tokenizer at `path`, a file or a folder, by the names under which a model is found.

    Raises TokenizerError if there is none.
    """
    from ossia.model.locate import TOKENIZERS, tokenizer_file

    if path.is_file():
        # The names to which the format is tied; a file of one's own may have another.
        return {"o200k_base.tiktoken" if path.suffix == ".tiktoken" else "tokenizer.json": path}
    if not path.is_dir():
        raise TokenizerError(f"{path} does not exist: give a tokenizer.json, an o200k_base.tiktoken, or their folder")
    vocabulary = tokenizer_file(path)
    if vocabulary is None:
        raise TokenizerError(f"{path} holds no tokenizer: expected {' or '.join(TOKENIZERS)}")
    return {each.name: each for each in (vocabulary, *(path / name for name in _TOKENIZER_EXTRAS)) if each.is_file()}
