"""A run of training as it is watched: a live summary on a terminal, plain lines elsewhere, both on standard error."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ossia.train.charts import heat

BLOCKS = "▁▂▃▄▅▆▇█"
_SPARKS = 24
_MOST_ROWS = 14
"""Lines that the loads of the layers may take; those of the least even layers are shown."""


Report = Callable[[Mapping[str, Any]], None]
"""Takes each line of the log as it comes."""


@contextmanager
def watched(title: str, steps: int, console: Console | None = None) -> Generator[Report]:
    """What to call with each line of the log of a run of so many steps. The console is standard error by default."""
    console = console or Console(stderr=True, markup=False, emoji=False)
    if not console.is_terminal:
        yield partial(_print, console)
        return
    summary = Summary(title, steps, console)
    with Live(get_renderable=summary.render, console=console, refresh_per_second=2):
        yield summary.hear


# -------------------------------------------------------------------- plain lines


def _print(console: Console, metrics: Mapping[str, Any]) -> None:
    if text := line(metrics):
        console.print(text, highlight=False, soft_wrap=True)


def line(metrics: Mapping[str, Any]) -> str:
    """What a line of the log says, in words; "" for one that is not for the terminal."""
    said = [f"{words} {_shown(name, metrics[name])}" for name, words in _WORDS.items() if name in metrics]
    if metrics.get("dead_experts"):
        said.append(f"{metrics['dead_experts']} dead experts")
    return f"step {metrics['step']}  " + "  ".join(said) if said else ""


_WORDS = {
    "loss": "loss",
    "validation_loss": "held-out loss",
    "reward": "reward",
    "length": "length",
    "pass_at_1": "pass@1",
    "pass_at_8": "pass@8",
    "largest_load": "busiest expert",
    "smallest_load": "idlest",
    "tokens_per_second": "tokens/s",
    "mfu": "MFU",
}
"""What is said of a line, and in what words."""


def _shown(name: str, value: float) -> str:
    if name in ("mfu", "pass_at_1", "pass_at_8"):
        return f"{100 * value:.1f} %"
    if name in ("tokens_per_second", "length"):
        return f"{value:,.0f}"
    return f"{value:.4f}" if name.endswith("loss") else f"{value:.2f}"


# -------------------------------------------------------------------- live


class Summary:
    """A panel that stays in its place: how far, the curves so far, the pace, and the load of every expert."""

    def __init__(self, title: str, steps: int, console: Console) -> None:
        self._title, self._console = title, console
        self._last: dict[str, Any] = {}
        self._curves: dict[str, list[float]] = {"loss": [], "reward": [], "length": []}
        columns = (MofNCompleteColumn(), BarColumn(None), TimeElapsedColumn(), TimeRemainingColumn())
        self._progress = Progress(TextColumn("step"), *columns, console=console, speed_estimate_period=900, expand=True)
        self._task = self._progress.add_task("", total=steps)

    def hear(self, metrics: Mapping[str, Any]) -> None:
        """One line of the log."""
        self._last |= metrics
        for name, curve in self._curves.items():
            if name in metrics and math.isfinite(metrics[name]):
                curve.append(metrics[name])
        self._progress.update(self._task, completed=metrics["step"])

    def render(self) -> RenderableType:
        """The panel as it is now; called by the thread that draws, which is not the one that trains."""
        last = dict(self._last)
        table = Table.grid(padding=(0, 2))
        for name, more in _ROWS.items():
            if name in last:
                spark = sparkline(list(self._curves.get(name, ())))
                beside = "   ".join(
                    f"{label} {_told(each, last[each])}" for each, label in more.items() if each in last
                )
                more_text = Text.assemble((spark, "cyan"), "  " if spark and beside else "", (beside, "dim"))
                table.add_row(Text(_LABELS[name], "dim"), Text(_told(name, last[name]), "bold"), more_text)
        strips = load_strips(last, self._console.width - 6)
        dead = last.get("dead_experts", 0)
        warning = [Text(f"{dead} dead experts: no token chose them in the last step", "bold red")] if dead else []
        return Panel(Group(self._progress, table, *strips, *warning), title=Text(self._title), title_align="left")


_ROWS: Mapping[str, Mapping[str, str]] = {
    "loss": {"validation_loss": "held out"},
    "reward": {"pass_at_1": "pass@1", "pass_at_8": "pass@8", "mismatch_kl": "mismatch"},
    "length": {},
    "rate": {"gradient_norm": "gradient", "flips": "flips"},
    "tokens_per_second": {"mfu": "MFU"},
    "router_entropy": {"largest_load": "busiest", "smallest_load": "idlest"},
}
"""What has a row of its own, and what stands beside it."""
_LABELS = {"tokens_per_second": "tokens/s", "router_entropy": "routers", "rate": "learning rate"} | {
    name: name for name in ("loss", "reward", "length")
}


def _told(name: str, value: float) -> str:
    if name in ("rate", "mismatch_kl"):
        return f"{value:.2e}"
    return f"{100 * value:.3f} %" if name == "flips" else _shown(name, value)


def sparkline(values: Sequence[float], width: int = _SPARKS) -> str:
    """All values from lowest to highest as blocks, averaged over neighbours where there are more than `width`."""
    if not values:
        return ""
    width = min(width, len(values))
    cuts = [i * len(values) // width for i in range(width + 1)]
    means = [sum(values[i:j]) / (j - i) for i, j in pairwise(cuts)]
    low, spread = min(means), max(means) - min(means)
    return "".join(BLOCKS[min(7, int(8 * (mean - low) / spread))] if spread else BLOCKS[0] for mean in means)


def load_strips(metrics: Mapping[str, Any], width: int) -> list[Text]:
    """The load of every expert as a block, tall and red where busy, low and blue where idle; a strip for each layer.

    As many strips in a line as `width` holds; of more layers than there is room for, the least even ones.
    """
    layers = {int(name[5:]): loads for name, loads in metrics.items() if name.startswith("load/")}
    if not layers:
        return []
    each = min(max(map(len, layers.values())), max(8, width - 5))
    a_line = max(1, (width + 2) // (each + 6))
    unevenness = {layer: max(abs(load - 1) for load in loads) for layer, loads in layers.items()}
    shown = sorted(sorted(layers, key=lambda layer: -unevenness[layer])[: a_line * _MOST_ROWS])
    hidden = len(layers) - len(shown)
    heading = "load of each expert by layer" + (f", the {len(shown)} least even of {len(layers)}" if hidden else "")
    lines = [Text(heading, "dim")]
    for i in range(0, len(shown), a_line):
        row = Text()
        for layer in shown[i : i + a_line]:
            row.append(f"{layer:>3} ", "dim")
            for load in _pooled(layers[layer], each):
                red, green, blue = heat(load)
                row.append(BLOCKS[max(0, min(7, round(4 * load)))], f"rgb({red},{green},{blue})")
            row.append("  ")
        lines.append(row)
    return lines


def _pooled(loads: Sequence[float], width: int) -> Sequence[float]:
    """At most `width` loads: of neighbours that share a place, the one farthest from an even share."""
    if len(loads) <= width:
        return loads
    cuts = [i * len(loads) // width for i in range(width + 1)]
    return [max(loads[i:j], key=lambda load: abs(load - 1)) for i, j in pairwise(cuts)]
