"""The picture of a run for a model's card."""

import json
from pathlib import Path

import pytest

from ossia.train.curve import draw

pytest.importorskip("matplotlib")


def test_the_curve_is_drawn_from_a_log_whose_last_line_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    lines = [
        {"step": 0, "validation_loss": 3.0, "samples": []},
        *({"step": step, "loss": 1 / step, "largest_load": 1.5, "smallest_load": 0.5} for step in (1, 2, 3)),
    ]
    log = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run" / "log.jsonl").write_text(log + '{"step": 4, "lo')
    path = draw(tmp_path)
    assert path == tmp_path / "curve.png"
    assert path.read_bytes().startswith(b"\x89PNG")
