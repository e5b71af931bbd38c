"""The bundled model's card and curve, from the logs of its training and what was measured."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from ossia.files import write_whole

TEMPLATE = Path(__file__).with_name("card.md")
EFFORTS = ("low", "medium", "high")
WEAK = 0.75
"""Below this part of right answers a family is listed as weak."""

Lines = list[dict[str, Any]]


def write_card(folder: Path, runs: Mapping[str, Path], measured: Mapping[str, Any]) -> None:
    """Write README.md and curve.png into `folder`.

    `runs` has the folder `run` of each stage in order, `measured` what `ossia eval --json` printed: for "all" families,
    and for "calls" more of the one family tool_call, which takes the place of the shorter measurement.
    """
    logs = {stage: _read(run / "log.jsonl") for stage, run in runs.items()}
    rows = {row["family"]: row for name in ("all", "calls") for row in measured[name]["families"]}
    share = {family: f"{row['accuracy']:.1%}" for family, row in rows.items()}
    weak = [f"`{family}` {share[family]}" for family, row in rows.items() if row["accuracy"] < WEAK]
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        stages="\n".join(_stage(stage, lines) for stage, lines in logs.items()),
        families="\n".join(map(_family, rows.values())),
        arithmetic=f"{measured['all']['arithmetic']:.1%}",
        calls=f"{share['tool_call']} of {rows['tool_call']['count']:,}",
        misuse=f"{rows['misuse']['declined']:.0%}",
        twins=f"{rows['benign_twin']['declined']:.0%}",
        weak=", ".join(weak) or "none",
    )
    write_whole(folder / "README.md", card)
    write_whole(folder / "curve.png", _curve(logs))


def _read(path: Path) -> Lines:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _stage(name: str, lines: Lines) -> str:
    steps = [line for line in lines if "loss" in line]
    counts = next((line["accounting"] for line in reversed(lines) if "accounting" in line), {})
    tokens, learnt = counts.get("kept", 0), counts.get("learnt", 0)
    speeds = [line["tokens_per_second"] for line in steps]
    hours = tokens * sum(1 / speed for speed in speeds) / len(speeds) / 3600  # Lines stand for equally many steps.
    last = [line["loss"] for line in steps[-10:]]
    return (
        f"| {name} | {steps[-1]['step']:,} | {tokens / 1e6:.1f} | {learnt / 1e6:.1f} | {hours:.2f} "
        f"| {sum(last) / len(last):.3f} |"
    )


def _family(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]
    lost = sum(row["outcomes"].get(name, 0) for name in ("cut", "empty"))
    lengths = "/".join(f"{row['reasoning_tokens'].get(effort, 0):.0f}" for effort in EFFORTS)
    return (
        f"| {row['family']} | {row['count']} | {row['accuracy']:.1%} | {low:.0%}–{high:.0%} | {row['declined']:.0%} "
        f"| {lost} | {lengths} |"
    )


def _curve(logs: Mapping[str, Lines]) -> memoryview:
    """Losses, rewards and loads over the steps of all stages, one after another."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 8), layout="constrained")
    losses, rewards, loads = figure.subplots(3, 1)
    start = 0
    for stage, lines in logs.items():
        _plot(
            losses if stage != "rl" else rewards, lines, start, {"loss": stage} if stage != "rl" else {"reward": "rl"}
        )
        if stage != "rl":
            _plot(losses, lines, start, {"validation_loss": f"{stage}, held out"})
        _plot(loads, lines, start, {"largest_load": f"{stage}, busiest", "smallest_load": f"{stage}, idlest"})
        start += max(line["step"] for line in lines)
    losses.set(ylabel="loss, nats a token", yscale="log")
    rewards.set(ylabel="mean reward")
    loads.set(xlabel="step", ylabel="load of an expert, 1 = even", ylim=(0, None))
    for axes in (losses, rewards, loads):
        axes.legend(fontsize="small")
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getbuffer()


def _plot(axes: Any, lines: Iterable[Mapping[str, Any]], start: int, names: Mapping[str, str]) -> None:
    for name, label in names.items():
        points = [(start + line["step"], line[name]) for line in lines if name in line]
        axes.plot([step for step, _ in points], [value for _, value in points], label=label, linewidth=0.8)
