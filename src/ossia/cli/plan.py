"""`ossia train plan`: what a run would take, for each way to cut it among GPUs."""

import json
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console
from rich.table import Table


@click.command("plan")
@click.option("--preset", default="gpt-oss-20b", show_default=True, help="Shape of the model.")
@click.option("--model", default=None, help="Shape of this checkpoint instead: a folder or a hub id.")
@click.option("--gpus", type=click.IntRange(min=1), required=True, help="In all.")
@click.option("--gpu-memory", type=float, default=80.0, show_default=True, help="GB of each.")
@click.option("--gpus-per-node", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--recipe",
    type=click.Choice(["full", "lora"]),
    default="full",
    show_default=True,
    help="All weights, or adapters on packed experts.",
)
@click.option("--optimizer", type=click.Choice(["adamw", "muon"]), default="adamw", show_default=True)
@click.option("--sequence", type=click.IntRange(min=1), default=4096, show_default=True, help="Tokens of a document.")
@click.option(
    "--micro-batch", type=click.IntRange(min=1), default=None, help="Tokens of a GPU at a time.  [default: a document]"
)
@click.option("--batch", type=click.IntRange(min=1), default=1 << 20, show_default=True, help="Tokens of a step.")
@click.option("--rank", type=click.IntRange(min=1), default=8, show_default=True, help="Of adapters.")
@click.option("--recompute/--no-recompute", default=True, show_default=True, help="Compute layers again backwards.")
@click.option("--peak", type=float, default=989.0, show_default=True, help="Teraflops of a GPU in bfloat16.")
@click.option(
    "--efficiency",
    type=click.FloatRange(0.01, 1),
    default=0.4,
    show_default=True,
    help="Share of the peak that is reached.",
)
@click.option("--within-node", type=float, default=450.0, show_default=True, help="GB/s between GPUs of a node.")
@click.option("--between-nodes", type=float, default=50.0, show_default=True, help="GB/s between nodes, for each GPU.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(preset: str, model: str | None, as_json: bool, **numbers: Any) -> None:
    """Say which ways to cut a run fit the GPUs, and what memory, traffic and time each takes.

    Nothing is run: these are formulas. The times assume the stated peak, efficiency and bandwidths.
    """
    from ossia.config import PRESETS
    from ossia.errors import ConfigError
    from ossia.train.plan import Machines, Work, plans

    if model is not None:
        from ossia.model.checkpoint import open_checkpoint
        from ossia.model.locate import resolve_model

        config = open_checkpoint(resolve_model(model)).config
    elif preset in PRESETS:
        config = PRESETS[preset]
    else:
        raise ConfigError(f"preset is {preset!r}: give one of {', '.join(PRESETS)}")
    machines = Machines(
        gpus=numbers["gpus"],
        gpu_memory=numbers["gpu_memory"],
        gpus_per_node=numbers["gpus_per_node"],
        peak=numbers["peak"] * 1e12,
        efficiency=numbers["efficiency"],
        within_node=numbers["within_node"] * 1e9,
        between_nodes=numbers["between_nodes"] * 1e9,
    )
    work = Work(
        recipe=numbers["recipe"],
        optimizer=numbers["optimizer"],
        sequence=numbers["sequence"],
        micro_batch=numbers["micro_batch"] or numbers["sequence"],
        batch=numbers["batch"],
        rank=numbers["rank"],
        recompute=numbers["recompute"],
    )
    found = plans(config, machines, work)
    if as_json:
        rows = [
            {**asdict(one), "bytes": one.total, "seconds": one.seconds, "tokens_per_second": one.tokens_per_second}
            for one in found
        ]
        click.echo(json.dumps({"model": model or preset, "plans": rows}))
        return
    table = Table("layout", "fits", "GB a GPU", "traffic, GB", "s a step", "tokens/s")
    for one in found:
        table.add_row(
            one.layout,
            "yes" if one.fits else "no",
            f"{one.total / 1e9:.1f}",
            f"{sum(one.traffic.values()) / 1e9:.0f}",
            f"{one.seconds:.1f}",
            f"{one.tokens_per_second:,.0f}",
        )
    Console().print(table)
    best = found[0]
    held = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in best.memory.items() if value)
    click.echo(f"A step is {best.step_tokens:,} tokens, {best.micro_batches} micro-batches a GPU.")
    click.echo(f"GB of a GPU with {best.layout}: {held}")
    if best.fits:
        click.echo(
            f"take {best.layout}: --expert-parallel {best.expert_parallel}"
            if best.expert_parallel > 1
            else f"take {best.layout}"
        )
    else:
        short = best.total / 1e9 - machines.gpu_memory * (1 - machines.reserve)
        click.echo(
            f"nothing fits: {best.layout} is {short:.1f} GB a GPU short; "
            "give more GPUs, or a smaller --micro-batch, or --recipe lora"
        )
