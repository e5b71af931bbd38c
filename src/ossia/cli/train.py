"""`ossia train RECIPE`: each recipe's flags are the fields of its settings."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, get_args

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ossia.cli.extras import need
from ossia.train.sft import SftConfig


def _option(field: "Field[Any]") -> click.Option:
    required = field.default is MISSING
    types = get_args(field.type) or (field.type,)
    kind: Any = click.Path(path_type=Path) if Path in types else types[0]
    default: dict[str, Any] = {} if required else {"default": field.default, "show_default": field.default is not None}
    return click.Option(
        [f"--{field.name.replace('_', '-')}"],
        type=None if kind is bool else kind,
        is_flag=kind is bool,
        required=required,
        help=field.metadata["help"],
        **default,
    )


def options_of(settings: type) -> Callable[[click.Command], click.Command]:
    """Gives a command one option for each field of a recipe's settings."""

    def add(command: click.Command) -> click.Command:
        command.params.extend(_option(field) for field in fields(settings))
        return command

    return add


@click.group("train")
def train() -> None:
    """Train a model."""


@options_of(SftConfig)
@train.command("sft")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def sft(as_json: bool, **flags: Any) -> None:
    """Train a new model on conversations.

    With --out alone this trains the bundled model: its vocabulary, its curriculum, its checkpoint.
    """
    if flags["data"] == "demo":
        need("train", "reasoning_gym")
    if flags["tokenizer"] is None:
        need("train", "reasoning_gym", "tokenizers")
    from ossia.train.curve import draw
    from ossia.train.sft import train as run

    config = SftConfig(**flags)
    bar, report = _reporter(config.steps)
    with bar:
        folder = run(config, report)
    curve = draw(config.out)
    if as_json:
        click.echo(json.dumps({"checkpoint": str(folder), "curve": str(curve) if curve else None}))
        return
    click.echo(f"checkpoint: {folder}\nTalk to it: ossia chat --model {folder}")
    click.echo(f"curve: {curve}" if curve else "no curve was drawn: that needs pip install 'ossia[train]'")


def _reporter(steps: int) -> tuple[AbstractContextManager[Any], Callable[[dict[str, Any]], None]]:
    """A bar on a terminal, plain lines elsewhere, both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return nullcontext(), lambda metrics: console.print(_line(metrics), highlight=False, soft_wrap=True)
    columns = (MofNCompleteColumn(), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    progress = Progress(TextColumn("training"), *columns, TextColumn("{task.fields[text]}"), console=console)
    task = progress.add_task("training", total=steps, text="")
    return progress, lambda metrics: progress.update(task, completed=metrics["step"], text=_line(metrics))


def _line(metrics: dict[str, Any]) -> str:
    if "validation_loss" in metrics:
        return f"step {metrics['step']}  held-out loss {metrics['validation_loss']:.4f}"
    if "loss" not in metrics:
        return f"step {metrics['step']}  saved"
    return (
        f"step {metrics['step']}  loss {metrics['loss']:.4f}  load {metrics['smallest_load']:.2f}"
        f"-{metrics['largest_load']:.2f}  {metrics['tokens_per_second']:.0f} tokens/s"
    )
