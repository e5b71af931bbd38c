"""The walk-through runs from beginning to end, on the demo model and on the random one."""

import runpy
import sys
from pathlib import Path

import pytest

from ossia.model.locate import demo_folder

SCRIPT = Path(__file__).parents[1] / "examples" / "one_prompt.py"
HAS_DEMO = any(demo_folder().glob("*.safetensors"))
STAGES = (
    "1. A conversation",
    "2. Rendered",
    "3. Tokens",
    "4. Through the model",
    "5. Logits",
    "6. Generated",
    "7. Parsed",
    "8. The reply",
)


def walk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> str:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *args])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    written = capsys.readouterr().out
    places = [written.index(f"\n{stage}\n") for stage in STAGES]
    assert places == sorted(places)
    return written


def test_it_walks_with_a_random_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("ossia.model.locate.demo_folder", lambda: tmp_path)
    written = walk(monkeypatch, capsys, "Why", "not?")
    assert written.startswith("The demo model's weights are not here: a small random model stands in")
    assert "<|start|>user<|message|>Why not?<|end|><|start|>assistant" in written
    assert "layer  3, sees all tokens" in written
    assert "completion_tokens=24" in written


@pytest.mark.skipif(not HAS_DEMO, reason="the demo model's weights are not here")
def test_it_walks_with_the_demo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written = walk(monkeypatch, capsys)
    assert "random model" not in written
    assert "42" in written.split(STAGES[-1])[1]
