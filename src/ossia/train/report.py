"""What became of a run, as one page of HTML without anything outside it: curves, loads, data, answers, settings.

    run/log.jsonl + run/settings.toml → run/report.html

The page has no network, follows the reader's light or dark theme, and tells values under the pointer.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from ossia.errors import DataError
from ossia.files import write_whole
from ossia.train.charts import Series, heat, heat_map, line_chart, short
from ossia.train.loop import RUN, Metrics, read_log

REPORT = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A chart of the report, and the metrics it draws where the log has them."""

    title: str
    metrics: Mapping[str, str]
    """Name in the log → label."""
    unit: str
    log: bool = False
    zero: bool = False
    smooth: bool = True


FIGURES = (
    Figure(title="Loss", metrics={"loss": "training", "validation_loss": "held out"}, unit="a token", log=True),
    Figure(
        title="Reward",
        metrics={"reward": "mean reward", "solved": "solved", "heldout_reward": "held out"},
        unit="of an answer",
        zero=True,
    ),
    Figure(
        title="Held-out problems",
        metrics={"pass_at_1": "pass@1", "pass_at_8": "pass@8"},
        unit="share that is right",
        zero=True,
    ),
    Figure(
        title="Length", metrics={"length": "mean", "heldout_length": "held out"}, unit="tokens of an answer", zero=True
    ),
    Figure(
        title="Mismatch",
        metrics={"mismatch_kl": "sampler and trainer", "reference_kl": "start and now"},
        unit="KL in nats a token",
        zero=True,
    ),
    Figure(title="Learning rate", metrics={"rate": "learning rate"}, unit="as scheduled", zero=True, smooth=False),
    Figure(title="Gradient", metrics={"gradient_norm": "norm before clipping"}, unit="norm", log=True, zero=True),
    Figure(
        title="Expert loads",
        metrics={"largest_load": "busiest", "smallest_load": "idlest"},
        unit="1 is an even share",
        zero=True,
    ),
    Figure(title="Router entropy", metrics={"router_entropy": "entropy"}, unit="nats a token", zero=True),
    Figure(title="Dead experts", metrics={"dead_experts": "dead experts"}, unit="without a token", zero=True),
    Figure(title="Balance loss", metrics={"balance": "balance"}, unit="1 is even"),
    Figure(title="Z-loss", metrics={"z": "z"}, unit="squared log-partition", zero=True),
    Figure(
        title="Flips", metrics={"flips": "changed codes"}, unit="share of MXFP4 codes since the last line", zero=True
    ),
    Figure(title="Speed", metrics={"tokens_per_second": "tokens/s"}, unit="tokens a second", zero=True),
    Figure(title="MFU", metrics={"mfu": "MFU"}, unit="share of the machine's arithmetic", zero=True),
    Figure(title="Learnt tokens", metrics={"learnt_tokens": "learnt"}, unit="tokens a step", zero=True),
)
"""In the order of the page; numbers of the log that none of these names are drawn after them."""
_LOAD = "load/"


def write_report(out: Path) -> Path:
    """Write the report of the run in `out` and return its place.

    Raises DataError where no run has logged anything there, StorageError where the disk refuses.
    """
    path = out / RUN / REPORT
    lines = read_log(out)
    if not lines:
        raise DataError(f"{out / RUN}: holds no log of a run; give the folder that was --out")
    settings_file = out / RUN / "settings.toml"
    settings = tomllib.loads(settings_file.read_text(encoding="utf-8")) if settings_file.exists() else {}
    write_whole(path, page(lines, settings, title=out.name))
    return path


def page(lines: Sequence[Metrics], settings: Mapping[str, Any], *, title: str) -> str:
    """The HTML of a run with these lines of its log."""
    sections = [
        _section("Summary", _tiles(lines)),
        _section("Curves", "".join(_figures(lines)), kind="grid"),
        _section("Loads of the experts", _loads(lines), kind="grid"),
        _section("Answers before and after", _samples(lines)),
        _section("Data", _table(_accounting(lines))),
        _section("Settings", _table({name: _setting(value) for name, value in settings.items()})),
    ]
    asset = resources.files("ossia.train").joinpath("report_page")
    return (
        asset.joinpath("page.html")
        .read_text(encoding="utf-8")
        .replace("{{style}}", asset.joinpath("style.css").read_text(encoding="utf-8"))
        .replace("{{script}}", asset.joinpath("script.js").read_text(encoding="utf-8"))
        .replace("{{title}}", escape(title))
        .replace("{{body}}", "\n".join(sections))
    )


def _section(title: str, body: str, *, kind: str = "") -> str:
    return f'<section><h2>{title}</h2><div class="{kind}">{body}</div></section>' if body else ""


# -------------------------------------------------------------------- what there is to see


def _tiles(lines: Sequence[Metrics]) -> str:
    """The last value of what matters most."""
    wanted = {
        "step": "steps",
        "loss": "loss",
        "validation_loss": "held-out loss",
        "reward": "reward",
        "pass_at_1": "pass@1",
        "tokens_per_second": "tokens/s",
        "mfu": "MFU",
        "dead_experts": "dead experts",
    }
    last = {name: value for line in lines for name, value in line.items()}
    return "".join(
        f'<div class="tile"><b>{_percent(last[name]) if name in ("mfu", "pass_at_1") else short(last[name])}</b>'
        f"<span>{label}</span></div>"
        for name, label in wanted.items()
        if name in last
    )


def _figures(lines: Sequence[Metrics]) -> list[str]:
    known = {name for figure in FIGURES for name in figure.metrics}
    others = {
        name: None
        for line in lines
        for name, value in line.items()
        if name not in known and name != "step" and _is_number(value)
    }
    more = [Figure(title=name, metrics={name: name}, unit="") for name in others]
    drawn = ((figure, _series(lines, figure)) for figure in (*FIGURES, *more))
    charts = (
        (figure, series, line_chart(series, log=figure.log, zero=figure.zero, smooth=figure.smooth))
        for figure, series in drawn
    )
    return [_figure(figure, series, chart) for figure, series, chart in charts if chart]


def _series(lines: Sequence[Metrics], figure: Figure) -> list[Series]:
    found: list[Series] = []
    for name, label in figure.metrics.items():
        having = [line for line in lines if _is_number(line.get(name))]
        if having:
            steps, values = [line["step"] for line in having], [float(line[name]) for line in having]
            found.append(Series(label=label, steps=steps, values=values))
    return found


def _figure(figure: Figure, series: Sequence[Series], chart: str) -> str:
    legend = "".join(
        f'<span class="key s{i % 4}">{escape(each.label)} <b>{short(each.values[-1])}</b></span>'
        for i, each in enumerate(series)
    )
    return (
        f"<figure><figcaption><b>{escape(figure.title)}</b> <small>{escape(figure.unit)}</small></figcaption>"
        f'{chart}<div class="legend">{legend}<output></output></div></figure>'
    )


def _loads(lines: Sequence[Metrics]) -> str:
    """A heat map for each layer: steps to the right, experts downwards."""
    having = [line for line in lines if any(name.startswith(_LOAD) for name in line)]
    if not having:
        return ""
    names = sorted((name for name in having[-1] if name.startswith(_LOAD)), key=lambda name: int(name[len(_LOAD) :]))
    maps: list[str] = []
    for name in names:
        told = [line for line in having if name in line]
        picture = heat_map([line[name] for line in told], colour=heat)
        last = told[-1][name]
        maps.append(
            f"<figure><figcaption><b>layer {name[len(_LOAD) :]}</b> <small>{len(last)} experts, at the end "
            f"{min(last):.2f} to {max(last):.2f} of an even share</small></figcaption>{picture}</figure>"
        )
    scale = "".join(f'<i style="background:rgb{heat(step / 10)}"></i>' for step in range(0, 31, 2))
    return f'<p class="scale">idle {scale} three times an even share; even is grey</p>' + "".join(maps)


def _samples(lines: Sequence[Metrics]) -> str:
    """For each prompt its first and its last answer."""
    answers: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        for sample in line.get("samples", ()):
            answers.setdefault(str(sample["prompt"]), []).append((line["step"], str(sample["answer"])))
    return "".join(
        f'<article><p class="prompt">{escape(prompt)}</p>'
        + "".join(f"<div><small>step {step}</small><pre>{escape(answer)}</pre></div>" for step, answer in _ends(given))
        + "</article>"
        for prompt, given in answers.items()
    )


def _ends(given: Sequence[tuple[int, str]]) -> Sequence[tuple[int, str]]:
    return given if len(given) == 1 else (given[0], given[-1])


def _accounting(lines: Sequence[Metrics]) -> dict[str, str]:
    last: Mapping[str, Any] = next((line["accounting"] for line in reversed(lines) if "accounting" in line), {})
    return {name.replace("_", " "): f"{count:,}" for name, count in last.items()}


def _table(rows: Mapping[str, str]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    return f"<table>{cells}</table>" if cells else ""


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
