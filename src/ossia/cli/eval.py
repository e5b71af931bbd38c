"""`ossia eval`: accuracy on held-out prompts, by family."""

import json
from typing import Any

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table


@click.command("eval")
@click.option("--model", default="demo", show_default=True, help="demo, a folder, or a hub id already downloaded.")
@click.option("--family", "families", multiple=True, help="Only this family; may be given again.  [default: all]")
@click.option("--count", type=click.IntRange(min=1), default=100, show_default=True, help="Prompts of each family.")
@click.option("--seed", type=int, default=1, show_default=True, help="Which held-out prompts.")
@click.option("--max-tokens", type=click.IntRange(min=1), default=768, show_default=True, help="Budget of an answer.")
@click.option("--show-wrong", is_flag=True, help="Print some replies that were not right.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(
    model: str, families: tuple[str, ...], count: int, seed: int, max_tokens: int, show_wrong: bool, as_json: bool
) -> None:
    """Measure a model on the bundled curriculum's held-out prompts, at temperature 0.

    No training run of this repository draws these prompts, whatever its seed.
    """
    import ossia
    from ossia.errors import DataError
    from ossia.evals.heldout import ALL_FAMILIES, ARITHMETIC, evaluate, wilson

    if unknown := sorted(set(families) - set(ALL_FAMILIES)):
        raise DataError(f"unknown family {unknown[0]!r}: known are {', '.join(ALL_FAMILIES)}")
    llm = ossia.load(model)
    chosen = families or ALL_FAMILIES
    console = Console(stderr=True)
    steps = iter(track(range(len(chosen)), "asking", console=console, disable=not console.is_terminal))
    results = []
    for family in chosen:
        next(steps)
        results += evaluate(llm, [family], count=count, seed=seed, max_tokens=max_tokens)
    rows: list[dict[str, Any]] = [
        {
            "family": result.family,
            "count": result.count,
            "accuracy": result.accuracy,
            "interval": wilson(result.outcomes.get("right", 0), result.count),
            "outcomes": result.outcomes,
            "reasoning_tokens": result.reasoning_tokens,
            "wrong": result.wrong,
        }
        for result in results
    ]
    sums = [result for result in results if result.family in ARITHMETIC]
    total = sum(result.count for result in sums)
    arithmetic = sum(result.outcomes.get("right", 0) for result in sums) / total if total else None
    if as_json:
        click.echo(json.dumps({"model": model, "seed": seed, "arithmetic": arithmetic, "families": rows}))
        return
    table = Table("family", "prompts", "right", "95 % interval", "cut", "empty", "reasoning low/medium/high")
    for row in rows:
        low, high = row["interval"]
        lengths = "/".join(f"{row['reasoning_tokens'].get(e, 0):.0f}" for e in ("low", "medium", "high"))
        told = (str(row["outcomes"].get(name, 0)) for name in ("cut", "empty"))
        table.add_row(
            row["family"], str(row["count"]), f"{row['accuracy']:.1%}", f"{low:.1%} - {high:.1%}", *told, lengths
        )
    Console().print(table)
    if arithmetic is not None:
        click.echo(f"arithmetic together: {arithmetic:.1%} of {total}")
    if show_wrong:
        for row in rows:
            for wrong in row["wrong"]:
                click.echo(json.dumps({"family": row["family"], **wrong}, ensure_ascii=False))
