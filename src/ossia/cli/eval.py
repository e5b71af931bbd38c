"""`ossia eval`: accuracy on held-out prompts, by family."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ossia.cli.loading import loading_options, tell


@click.command("eval")
@click.option("--model", "-m", default="demo", show_default=True, help="demo, a folder, or a hub id.")
@click.option("--family", "families", multiple=True, help="Only this family; may be given again.  [default: all]")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Prompts of each family.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which held-out prompts.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=768, show_default=True, help="Budget of an answer.")
@click.option("--show-wrong", is_flag=True, help="Print some replies that were not right.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@loading_options
def evaluate(
    model: str,
    families: tuple[str, ...],
    count: int,
    seed: int,
    max_tokens: int,
    show_wrong: bool,
    as_json: bool,
    loading: dict[str, Any],
) -> None:
    """Measure a model on the bundled curriculum's held-out prompts, at temperature 0.

    No training run of this repository draws these prompts, whatever its seed.
    """
    from ossia.cli.extras import need

    need("train", "reasoning_gym")
    import ossia
    from ossia.errors import DataError
    from ossia.evals import heldout

    if unknown := sorted(set(families) - set(heldout.ALL_FAMILIES)):
        raise DataError(f"unknown family {unknown[0]!r}: known are {', '.join(heldout.ALL_FAMILIES)}")
    llm = ossia.load(model, **loading, report=tell)
    chosen = families or heldout.ALL_FAMILIES
    results: list[heldout.Result] = []
    with _progress(len(chosen)) as report:
        for family in chosen:
            results += heldout.evaluate(llm, [family], count=count, seed=seed, max_tokens=max_tokens)
            report(family)
    rows: list[dict[str, Any]] = [
        {
            "family": result.family,
            "count": result.count,
            "accuracy": result.accuracy,
            "interval": heldout.wilson(result.outcomes.get("right", 0), result.count),
            "declined": result.declined / result.count,
            "outcomes": result.outcomes,
            "reasoning_tokens": result.reasoning_tokens,
            "wrong": result.wrong,
        }
        for result in results
    ]
    sums = [result for result in results if result.family in heldout.ARITHMETIC]
    total = sum(result.count for result in sums)
    arithmetic = sum(result.outcomes.get("right", 0) for result in sums) / total if total else None
    if as_json:
        click.echo(json.dumps({"model": model, "seed": seed, "arithmetic": arithmetic, "families": rows}))
        return
    Console().print(_table(rows))
    if arithmetic is not None:
        click.echo(f"arithmetic together: {arithmetic:.1%} of {total}")
    if show_wrong:
        from ossia.cli.harmless import harmless

        for row in rows:
            for wrong in row["wrong"]:
                click.echo(harmless(json.dumps({"family": row["family"], **wrong}, ensure_ascii=False)))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table("family", "prompts", "right", "95 % interval", "declined", "cut", "empty", "reasoning")
    for row in rows:
        low, high = row["interval"]
        lengths = "/".join(f"{row['reasoning_tokens'].get(e, 0):.0f}" for e in ("low", "medium", "high"))
        table.add_row(
            row["family"],
            str(row["count"]),
            f"{row['accuracy']:.1%}",
            f"{low:.1%} - {high:.1%}",
            f"{row['declined']:.0%}",
            *(str(row["outcomes"].get(name, 0)) for name in ("cut", "empty")),
            lengths,
        )
    table.caption = "reasoning: mean tokens at effort low/medium/high"
    return table


@contextmanager
def _progress(total: int) -> Generator[Callable[[str], None]]:
    """A function to call as each family is done: a bar on a terminal, plain lines elsewhere, both on standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda family: console.print(f"asked {family}", highlight=False)
        return
    with Progress(console=console) as progress:
        task = progress.add_task("asking", total=total)
        yield lambda _family: progress.advance(task)
