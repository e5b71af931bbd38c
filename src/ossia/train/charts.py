"""Line charts as SVG and heat maps as images, both text for a page of HTML that brings its own colours.

Classes: `s0` to `s3` for lines, `faint` for one behind its own mean, `axis`, `grid`, `heat`. All text is escaped.
"""

import math
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 10, 24
MOST_POINTS = 400
"""Points of a line; a longer one is averaged over neighbours."""
_NOISY = 60
"""Points from which on a line that is to be smoothed is drawn faint, with a running mean over it."""
_MEAN_OVER = 25
"""Most points of that mean."""
_SPREAD_FOR_LOG = 8
"""Ratio of largest to smallest value from which on a scale is logarithmic, where that was allowed."""

Rgb = tuple[int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One line: values over steps, in order of the steps. Values that are not finite are gaps."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Numbers → pixels, straight or logarithmic."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Where `value` lies."""
        low, high, value = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return self.begin + (value - low) / ((high - low) or 1.0) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Round numbers inside the scale, about five of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
            inside = [tick for tick in found if self.low <= tick <= self.high]
            return inside if len(inside) <= 6 else [tick for tick in inside if f"{tick:e}".startswith("1")]
        spread = (self.high - self.low) or 1.0
        power = 10.0 ** math.floor(math.log10(spread / 4))
        step = next(power * digit for digit in (1, 2, 5, 10) if spread / (power * digit) <= 5)
        return [step * i for i in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def line_chart(series: Sequence[Series], *, log: bool = False, zero: bool = False, smooth: bool = True) -> str:
    """An SVG of these lines over a common axis of steps; "" where none has a point.

    log: a logarithmic axis is allowed, and taken where the values spread wide. zero: the axis of values holds 0.
    smooth: a line of many points gets a running mean.
    """
    lines = [thinned for each in series if (thinned := _thinned(each)).steps]
    values = [value for each in lines for value in each.values]
    if not values:
        return ""
    low, high = min(values), max(values)
    log = log and low > 0 and high / low >= _SPREAD_FOR_LOG
    if not log:
        low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = (low if zero and low == 0 else low - margin), high + margin
    steps = [step for each in lines for step in each.steps]
    x = Scale(low=min(steps), high=max(steps), begin=LEFT, end=WIDTH - RIGHT)
    y = Scale(low=low, high=high, begin=HEIGHT - BOTTOM, end=TOP, log=log)
    body = [_axes(x, y)]
    for i, each in enumerate(lines):
        noisy = smooth and len(each.steps) >= _NOISY
        body.append(_path(each, x, y, f"s{i % 4}{' faint' if noisy else ''}", told=True))
        if noisy:
            body.append(_path(_smooth(each, log=log), x, y, f"s{i % 4}"))
    return _svg(body)


def heat_map(columns: Sequence[Sequence[float]], *, colour: Callable[[float], Rgb]) -> str:
    """An image, as wide as a chart, with a column of cells for each of `columns`, each value in its colour."""
    while len(columns) > MOST_POINTS:
        columns = [_mean_of(columns[i : i + 2]) for i in range(0, len(columns), 2)]
    rows = [bytes(part for value in row for part in colour(value)) for row in zip(*columns, strict=True)]
    picture = b64encode(_png(len(columns), rows)).decode()
    height = max(3, min(12, 96 // len(rows))) * len(rows)
    return f'<img class="heat" alt="" style="height:{height}px" src="data:image/png;base64,{picture}">'


def heat(load: float) -> Rgb:
    """The colour of a load: blue below an even share, grey at it, red above."""
    away = max(-1.0, min(1.0, (load - 1) / (2 if load > 1 else 1)))
    red, green, blue = (214, 69, 60) if away > 0 else (42, 110, 187)
    away = abs(away)
    return round(150 + away * (red - 150)), round(150 + away * (green - 150)), round(150 + away * (blue - 150))


def _png(width: int, rows: Sequence[bytes]) -> bytes:
    """A PNG file of rows of RGB bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, len(rows), 8, 2, 0, 0, 0)  # 8 bits, RGB, nothing special.
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _svg(body: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(body)}</svg>'


def _axes(x: Scale, y: Scale) -> str:
    parts: list[str] = []
    for tick in y.ticks():
        at = f"{y(tick):.1f}"
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="axis" x="{LEFT - 6}" y="{at}" dy="0.35em" text-anchor="end">{short(tick)}</text>')
    for tick in x.ticks():
        at = f"{x(tick):.1f}"
        parts.append(f'<text class="axis" x="{at}" y="{HEIGHT - 6}" text-anchor="middle">{short(tick)}</text>')
    return "".join(parts)


def _path(series: Series, x: Scale, y: Scale, kind: str, *, told: bool = False) -> str:
    points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in zip(series.steps, series.values, strict=True))
    if len(series.steps) == 1:
        at = points.split(",")
        return f'<circle class="{kind}" cx="{at[0]}" cy="{at[1]}" r="3">{_title(series, 0)}</circle>'
    # What a page may show under the pointer.
    about = (
        f' data-label="{escape(series.label)}" data-told="'
        + " ".join(f"{s:g}:{short(v)}" for s, v in zip(series.steps, series.values, strict=True))
        + '"'
        if told
        else ""
    )
    return f'<polyline class="{kind}" points="{points}"{about}/>'


def _title(series: Series, i: int) -> str:
    return f"<title>{escape(series.label)}: {short(series.values[i])} at step {series.steps[i]:g}</title>"


def _thinned(series: Series) -> Series:
    points: Sequence[Sequence[float]] = [
        (s, v) for s, v in zip(series.steps, series.values, strict=True) if math.isfinite(v)
    ]
    while len(points) > MOST_POINTS:
        points = [_mean_of(points[i : i + 2]) for i in range(0, len(points), 2)]
    return Series(label=series.label, steps=[s for s, _ in points], values=[v for _, v in points])


def _mean_of(columns: Sequence[Sequence[float]]) -> list[float]:
    return [sum(entries) / len(entries) for entries in zip(*columns, strict=True)]


def _smooth(series: Series, *, log: bool) -> Series:
    """A running mean over neighbours on both sides, geometric on a logarithmic axis."""
    reach = max(1, min(_MEAN_OVER, len(series.values) // 10) // 2)
    values = [math.log(value) for value in series.values] if log else series.values
    means = [
        sum(window) / len(window) for i in range(len(values)) if (window := values[max(0, i - reach) : i + reach + 1])
    ]
    return Series(label=series.label, steps=series.steps, values=[math.exp(m) for m in means] if log else means)


def short(value: float) -> str:
    """A number in at most about six characters: 12.5k, 0.00031, 3.0e-06."""
    size = abs(value)
    for unit, scale, least in (("G", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e3, 1e4)):
        if size >= least or size == scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}" if size >= 1e-4 or size == 0 else f"{value:.1e}"
