"""What a run shows: plain lines, and the panel of a terminal."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from ossia.cli.watch import BLOCKS, Summary, line, load_strips, sparkline, watched

LOSS = {
    "step": 10,
    "loss": 1.23456,
    "largest_load": 1.5,
    "smallest_load": 0.25,
    "tokens_per_second": 12345.6,
    "mfu": 0.314,
    "dead_experts": 2,
    "rate": 3e-3,
    "flips": 0.0012,
    "load/0": [0.0, 1.0, 2.0],
    "load/1": [1.0, 1.0, 1.0],
}


def panel(*lines: dict[str, Any], width: int = 80, steps: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, height=60, force_terminal=True, color_system=None)
    summary = Summary("ossia train [b]toy[/b]", steps, console)
    for each in lines:
        summary.hear(each)
    with console.capture() as capture:
        console.print(summary.render())
    return capture.get()


def test_a_line_says_what_there_is() -> None:
    assert line(LOSS) == (
        "step 10  loss 1.2346  busiest expert 1.50  idlest 0.25  tokens/s 12,346  MFU 31.4 %  2 dead experts"
    )
    assert line({"step": 20, "validation_loss": 1.0}) == "step 20  held-out loss 1.0000"
    assert line({"step": 20, "pass_at_1": 0.45, "pass_at_8": 0.8}) == "step 20  pass@1 45.0 %  pass@8 80.0 %"
    assert line({"step": 20, "samples": []}) == ""


def test_elsewhere_than_on_a_terminal_there_are_plain_lines() -> None:
    file = io.StringIO()
    with watched("run", 10, Console(file=file, width=20)) as report:
        report({"step": 1, "loss": 2.0, "reward": 0.5})
        report({"step": 1, "samples": []})
    assert file.getvalue() == "step 1  loss 2.0000  reward 0.50\n"


def test_on_a_terminal_there_is_a_panel_to_the_end() -> None:
    file = io.StringIO()
    with watched("run", 10, Console(file=file, width=80, height=30, force_terminal=True)) as report:
        report({"step": 10, "loss": 2.0})
    assert "10/10" in file.getvalue()


def test_the_panel_holds_the_last_of_everything() -> None:
    text = panel(LOSS, LOSS | {"step": 20, "loss": 1.0}, {"step": 20, "validation_loss": 1.5})
    for expected in ("ossia train [b]toy[/b]", "20/100", "1.0000", "held out 1.5000", "3.00e-03", "flips 0.120 %"):
        assert expected in text
    for expected in ("12,346", "MFU 31.4 %", "█▁", "▁▅█", "▅▅▅", "2 dead experts"):
        assert expected in text
    assert "reward" not in text
    assert "reward" in panel(LOSS | {"reward": 0.5, "length": 90.0, "mismatch_kl": 1e-4})


def test_the_panel_of_a_run_that_has_said_nothing() -> None:
    assert "0/100" in panel()


def test_a_loss_that_is_not_a_number_does_not_end_the_view() -> None:
    assert "nan" in panel(LOSS, LOSS | {"loss": float("nan")})


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_a_sparkline_spans_from_lowest_to_highest(values: list[float]) -> None:
    spark = sparkline(values, 16)
    assert len(spark) == min(16, len(values))
    assert set(spark) <= set(BLOCKS)
    if len(values) <= 16 and max(values) - min(values) > 1e-3:
        assert spark[values.index(max(values))] == BLOCKS[-1]
        assert spark[values.index(min(values))] == BLOCKS[0]
    assert sparkline([]) == ""


@pytest.mark.parametrize(("layers", "experts"), [(6, 8), (24, 32), (36, 128), (200, 16)])
def test_the_loads_fit_and_the_least_even_layers_are_shown(layers: int, experts: int) -> None:
    loads = {f"load/{layer}": [1.0] * experts for layer in range(layers)}
    loads["load/3"] = [1.0] * (experts - 1) + [9.0]
    heading, *strips = load_strips(loads, 74)
    assert len(strips) <= 14
    assert all(strip.cell_len <= 76 for strip in strips)
    text = "\n".join(strip.plain for strip in strips)
    assert text.count("█") == 1
    assert "  3 " in text
    shown = sum(len(strip.plain.split()) for strip in strips) // 2
    assert ("least even" in heading.plain) == (shown < layers)
    assert shown <= layers
