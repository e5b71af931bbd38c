"""`ossia bench`: speed, memory and start-up of a model, beside what the machine allows."""

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress, TextColumn
from rich.table import Table

from ossia.cli.harmless import harmless
from ossia.cli.loading import loading_options
from ossia.cli.progress import format_bytes
from ossia.config import PRESETS

if TYPE_CHECKING:
    from ossia.llm import LLM


def _depths(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers between commas, each once, in the order given."""
    words = [word.strip() for word in value.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise click.BadParameter(f"{value!r} is not a list of whole numbers such as 0,4096.")
    return tuple(dict.fromkeys(map(int, words)))


@click.command("bench")
@click.option("--model", "-m", help="demo, a folder, or a hub id.  [default: demo]")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="Random weights of this shape instead of a model.")
@click.option("--prompt", type=click.IntRange(min=0), default=512, show_default=True, help="Tokens to read.")
@click.option("--generate", type=click.IntRange(min=0), default=48, show_default=True, help="Tokens to decode.")
@click.option(
    "--depth", "depths", default="0", callback=_depths, show_default=True, help="Tokens before, as in 0,4096."
)
@click.option("--repeat", type=click.IntRange(min=1), default=3, show_default=True, help="Runs of each.")
@loading_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(
    model: str | None,
    preset: str | None,
    prompt: int,
    generate: int,
    depths: tuple[int, ...],
    repeat: int,
    as_json: bool,
    loading: dict[str, Any],
) -> None:
    """Measure how fast a model reads a prompt and decodes an answer, what it takes, and what the machine could do.

    A depth is filled with random keys and values, so that long contexts can be measured without reading them first.
    Without --context the cache has room for as many tokens as are needed.
    With --preset nothing is written to the disk but the embedding, in a temporary file; loading then includes making
    the weights.
    """
    began = time.perf_counter()
    from ossia import bench as measuring

    began = measuring.process_start() or began
    if model and preset:
        raise click.UsageError("--model and --preset exclude each other.")
    if prompt == generate == 0:
        raise click.UsageError("--prompt 0 and --generate 0 leave nothing to measure.")
    if loading["context"] is None:
        loading["context"] = measuring.needed_context(depths, prompt=prompt, generate=generate)
    measuring.check_depths(depths, prompt=prompt, generate=generate, context=loading["context"])
    name = model or (f"random {preset}" if preset else "demo")
    with progress_line() as report:
        report(f"loading {name}")
        begin = time.perf_counter()
        llm = _load(model, preset, report=report, **loading)
        load_s = time.perf_counter() - begin
        measuring.first_token(llm)
        first_token_s = time.perf_counter() - began
        result = measuring.measure(
            llm,
            name=name,
            load_s=load_s,
            first_token_s=first_token_s,
            prompt=prompt,
            generate=generate,
            depths=depths,
            repeat=repeat,
            threads=loading["threads"],
            progress=report,
        ).to_json()
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print(result)


def _load(model: str | None, preset: str | None, **loading: Any) -> "LLM":
    import ossia

    if preset is None:
        return ossia.load(model or "demo", **loading)
    from ossia.bench import random_checkpoint
    from ossia.llm import from_checkpoint

    loading["packed_cache"] = False
    return from_checkpoint(random_checkpoint(preset, PRESETS[preset]), **loading)


def _print(result: dict[str, Any]) -> None:
    read, macs = result["read_limit_bytes_per_s"], result["int8_limit_macs_per_s"]
    facts = {
        "model": result["model"],
        "kernels": ", ".join(f"{op} {source}" for op, source in result["kernels"].items()),
        "threads": str(result["threads"]),
        "context": f"{result['context']:,} tokens in {result['cache_type']}",
        "loading": f"{result['load_s']:.2f} s",
        "first token": f"{result['first_token_s']:.2f} s after the command began",
        "peak memory": f"{format_bytes(result['peak_rss_bytes'])} resident",
        "reads": f"{format_bytes(round(read))}/s at most" if read else "not measured",
        "8-bit": f"{macs / 1e9:.1f} G multiply-adds/s at most" if macs else "not measured",
    }
    for name, text in facts.items():
        click.echo(harmless(f"{name:<12}{text}"))
    depths = {"0": result, **result["depths"]} if result["bytes_per_token"] else result["depths"]
    rows = [
        (f"{int(depth):,}", what, *_speed(speeds, what), per_token)
        for depth, speeds in depths.items()
        for what, per_token in (
            ("prefill", f"{speeds['macs_per_token'] / 1e6:,.1f} M multiply-adds"),
            ("decode", f"{format_bytes(speeds['bytes_per_token'])} read"),
        )
        if speeds[f"{what}_tps"] is not None
    ]
    console = Console()
    if not console.is_terminal:
        for depth, what, tps, runs, share, per_token in rows:
            click.echo(f"{what} at depth {depth}: {tps} tokens/s ({runs}), {share}, {per_token} a token")
        return
    table = Table("depth", "", "tokens/s", "runs", "reached", "per token")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _speed(speeds: dict[str, Any], what: str) -> tuple[str, str, str]:
    share = speeds[f"{what}_fraction"]
    return (
        f"{speeds[f'{what}_tps']:.1f}",
        ", ".join(f"{each:.1f}" for each in speeds[f"{what}_all"]),
        "limit not measured" if share is None else f"{share:.0%} of the limit",
    )


@contextmanager
def progress_line() -> Generator[Callable[[str], None]]:
    """A function to call with what is done next: one line that changes on a terminal, plain lines elsewhere."""
    console = Console(stderr=True, markup=False, emoji=False)
    if not console.is_terminal:
        yield lambda text: console.print(harmless(text), highlight=False, soft_wrap=True)
        return
    # Drawn when it changes and never in between: a clock that ticks would take time from what is measured.
    with Progress(TextColumn("{task.description}", markup=False), console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=None)
        yield lambda text: progress.update(task, description=harmless(text), refresh=True)
