"""Charts and the page of a run: what is drawn lies where it should, nothing is left out, nothing comes from outside."""

import json
import math
import re
import struct
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.errors import DataError
from ossia.train.charts import MOST_POINTS, Scale, Series, heat, heat_map, line_chart, short
from ossia.train.report import FIGURES, page, write_report

LINES: list[dict[str, Any]] = [
    {"step": 0, "validation_loss": 8.3, "samples": [{"prompt": "2 < 3 & <b>", "answer": "<script>no</script>"}]},
    {"step": 10, "loss": 4.0, "rate": 0.1, "load/0": [1.0, 1.0], "load/1": [0.0, 2.0], "dead_experts": 1},
    {"step": 20, "loss": 2.0, "rate": 0.2, "load/0": [0.5, 1.5], "load/1": [1.0, 1.0], "mine": 3, "mfu": 0.25},
    {"step": 20, "validation_loss": 2.5, "accounting": {"kept": 12345, "cut_documents": 0}},
    {"step": 20, "samples": [{"prompt": "2 < 3 & <b>", "answer": "yes"}]},
]


class Page(HTMLParser):
    """The tags, attributes and visible words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def points(svg: str, kind: str = "s0") -> list[tuple[float, float]]:
    (line,) = [e for e in ElementTree.fromstring(svg).iter("polyline") if e.get("class") == kind]
    pairs = (pair.split(",") for pair in (line.get("points") or "").split())
    return [(float(x), float(y)) for x, y in pairs]


# -------------------------------------------------------------------- charts


def test_a_line_goes_where_its_values_go() -> None:
    svg = line_chart([Series(label="a", steps=[0, 50, 100], values=[1.0, 3.0, 2.0])], zero=True)
    (x0, y0), (x1, y1), (x2, y2) = points(svg)
    assert x1 - x0 == x2 - x1 > 0
    assert (y0 - y1) == pytest.approx(2 * (y0 - y2), abs=0.2)  # Upwards is less.


def test_a_wide_spread_is_drawn_logarithmic_where_that_is_allowed() -> None:
    series = [Series(label="a", steps=[0, 1, 2], values=[1.0, 10.0, 100.0])]
    (_, a), (_, b), (_, c) = points(line_chart(series, log=True))
    assert a - b == pytest.approx(b - c, abs=0.2)
    (_, a), (_, b), (_, c) = points(line_chart(series))
    assert a - b < 0.2 * (b - c)


def test_what_is_not_a_number_is_a_gap() -> None:
    values = [1.0, math.nan, math.inf, 2.0]
    assert len(points(line_chart([Series(label="a", steps=[0, 1, 2, 3], values=values)]))) == 2
    assert line_chart([Series(label="a", steps=[0], values=[math.nan])]) == ""
    assert line_chart([]) == ""


def test_a_long_line_is_thinned_and_keeps_its_mean() -> None:
    values = [float(i % 7) for i in range(10_000)]
    svg = line_chart([Series(label="a", steps=list(range(10_000)), values=values)], smooth=False)
    (line,) = ElementTree.fromstring(svg).iter("polyline")
    told = [float(pair.split(":")[1]) for pair in (line.get("data-told") or "").split()]
    assert MOST_POINTS / 2 < len(told) <= MOST_POINTS
    assert sum(told) / len(told) == pytest.approx(3.0, abs=0.01)


def test_a_noisy_line_has_its_mean_drawn_over_it() -> None:
    values = [2.0 + (-1) ** i for i in range(200)]
    svg = line_chart([Series(label="a", steps=list(range(200)), values=values)])
    raw, mean = points(svg, "s0 faint"), points(svg)
    spread = max(y for _, y in raw) - min(y for _, y in raw)
    assert max(y for _, y in mean) - min(y for _, y in mean) < 0.2 * spread


@given(
    low=st.floats(-1e9, 1e9),
    spread=st.floats(1e-3, 1e9),
)
def test_ticks_are_few_and_inside(low: float, spread: float) -> None:
    scale = Scale(low=low, high=low + spread, begin=0, end=100)
    ticks = scale.ticks()
    slack = 1e-6 * (spread + abs(low))
    assert 1 <= len(ticks) <= 7
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in ticks)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (12500, "12.5k"),
        (2000, "2000"),
        (1234, "1234"),
        (3e-6, "3.0e-06"),
        (0.00031, "0.00031"),
        (2.5e6, "2.5M"),
        (1000, "1k"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert short(value) == shown


def test_a_heat_map_has_a_pixel_for_each_value() -> None:
    html = heat_map([[0.0, 1.0, 3.0], [1.0, 1.0, 0.0]], colour=heat)
    png = b64decode(re.findall(r'base64,([^"]+)"', html)[0])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", png[16:24]) == (2, 3)
    (length,) = struct.unpack_from(">I", png, 33)
    assert struct.unpack_from(">I", png, 41 + length) == (zlib.crc32(png[37 : 41 + length]),)
    rows = zlib.decompress(png[41 : 41 + length])
    idle, even, busy = (bytes(heat(load)) for load in (0.0, 1.0, 3.0))
    assert rows == b"\0" + idle + even + b"\0" + even + even + b"\0" + busy + idle
    assert len({idle, even, busy}) == 3


def test_loads_go_from_blue_over_grey_to_red() -> None:
    assert heat(1.0)[0] == heat(1.0)[1] == heat(1.0)[2]
    assert heat(0.2)[2] > heat(0.2)[0]
    assert heat(2.0)[0] > heat(2.0)[2]
    assert heat(50.0) == heat(3.0)


# -------------------------------------------------------------------- the page


def test_everything_in_the_log_is_on_the_page() -> None:
    text = page(LINES, {"learning_rate": 0.003, "data": ["a.jsonl", "demo*0.5"], "qat": True}, title="a <run>")
    words = "\n".join(Page(text).words)
    said = ["a <run>", "Loss", "Learning rate", "Dead experts", "MFU", "mine", "layer 0", "layer 1", "25.0 %"]
    said += ["kept", "12,345", "cut documents", "a.jsonl, demo*0.5", "true"]
    said += ["2 < 3 & <b>", "<script>no</script>", "yes", "step 0", "step 20"]
    for expected in said:
        assert expected in words
    assert "Reward" not in words  # No line has one.
    images = [attributes["src"] or "" for tag, attributes in Page(text).tags if tag == "img"]
    assert len(images) == 2


def test_the_page_takes_nothing_from_outside() -> None:
    tags = Page(page(LINES, {}, title="run")).tags
    links = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert links
    assert all((link or "").startswith("data:") for link in links)
    assert [tag for tag, _ in tags].count("script") == 1
    policies = [attributes["content"] or "" for tag, attributes in tags if "http-equiv" in attributes]
    assert policies[0].startswith("default-src 'none'")


def test_no_metric_stands_in_two_figures() -> None:
    names = [name for figure in FIGURES for name in figure.metrics]
    assert len(names) == len(set(names))


def test_a_run_is_read_from_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no log of a run; give the folder that was --out"):
        write_report(tmp_path)
    (tmp_path / "run").mkdir()
    log = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "run" / "log.jsonl").write_text(log + '{"step": 30, "lo')  # Cut off when the run was killed.
    (tmp_path / "run" / "settings.toml").write_text("# Run\nsteps = 30\n")
    path = write_report(tmp_path)
    assert path == tmp_path / "run" / "report.html"
    assert "steps" in Page(path.read_text(encoding="utf-8")).words
