"""The command that makes the bundled model: which stage it runs next, and the card it writes."""

import json
from pathlib import Path

import pytest

from ossia.demo import make
from ossia.demo.card import write_card
from ossia.demo.curriculum.mixture import EVALUATION_ONLY, FAMILIES
from ossia.errors import TrainingError


def log(folder: Path, lines: list[dict]) -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def row(family: str, right: int, count: int) -> dict:
    return {
        "family": family,
        "count": count,
        "accuracy": right / count,
        "interval": [0.5, 0.9],
        "declined": 0.25 if family == "misuse" else 0.0,
        "outcomes": {"right": right, "cut": 1, "empty": 2},
        "reasoning_tokens": {"low": 10.4, "medium": 20.0, "high": 30.0},
    }


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    loads = {"largest_load": 1.5, "smallest_load": 0.5}
    supervised = [
        {"step": 0, "validation_loss": 8.0},
        {"step": 10, "loss": 2.0, "tokens_per_second": 1000.0, **loads},
        {"step": 20, "loss": 1.0, "tokens_per_second": 500.0, **loads},
        {"step": 20, "validation_loss": 1.5, "accounting": {"kept": 3_600_000, "learnt": 1_800_000}},
    ]
    reinforced = [{"step": 5, "loss": 0.1, "reward": 0.5, "tokens_per_second": 100.0, **loads}]
    return {
        "pretrain": log(tmp_path / "pretrain" / "run", supervised),
        "sft": log(tmp_path / "sft" / "run", supervised),
        "anneal": log(tmp_path / "anneal" / "run", supervised),
        "rl": log(tmp_path / "rl" / "run", reinforced),
    }


def test_the_card_has_what_was_measured(tmp_path: Path, runs: dict[str, Path]):
    families = [row(family, 90, 100) for family in (*FAMILIES, *EVALUATION_ONLY)]
    families[0] = row(families[0]["family"], 60, 100)
    measured = {
        "all": {"arithmetic": 0.93, "families": families},
        "calls": {"arithmetic": None, "families": [row("tool_call", 912, 1000)]},
    }
    write_card(tmp_path, runs, measured)
    card = (tmp_path / "README.md").read_text()
    assert "$" not in card
    assert "| pretrain | 20 | 3.6 | 1.8 | 1.50 | 1.500 |" in card
    assert "| addition | 100 | 60.0% | 50%–90% | 0% | 3 | 10/20/30 |" in card
    assert "| tool_call | 1000 | 91.2% |" in card and "| tool_call | 100 |" not in card
    assert "(fewer than three right in four): `addition` 60.0%." in card
    assert "93.0%. Calls: 91.2% of 1,000." in card
    assert "Misuse declined: 25%" in card
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_stage_starts_from_the_one_before_and_goes_on_where_it_was_broken_off(tmp_path: Path):
    pretrain, sft, anneal, _ = make.STAGES
    assert "--model" not in pretrain.command(tmp_path)
    words = sft.command(tmp_path)
    assert words[:2] == ["train", "sft"]
    assert words[words.index("--model") + 1] == str(tmp_path / "pretrain")
    assert "--resume" not in words
    assert anneal.command(tmp_path)[:2] == ["train", "sft"]
    assert all((make.RECIPES / f"{stage.name}.toml").is_file() for stage in make.STAGES)
    (tmp_path / "sft" / "run" / "states" / "step-00000100").mkdir(parents=True)
    assert sft.command(tmp_path)[-1] == "--resume"


def test_what_is_done_is_not_done_again(tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    ran: list[list[str]] = []
    families = [row(family, 90, 100) for family in (*FAMILIES, *EVALUATION_ONLY)]

    def ossia(arguments: list[str], *, captured: bool = False) -> str:
        ran.append(arguments)
        if captured:
            return json.dumps({"arithmetic": 0.9, "families": families})
        for name in make.FILES:
            out = Path(arguments[arguments.index("--out") + 1])
            (out / name).write_text(out.name)
        return ""

    for name in make.FILES:
        (tmp_path / "pretrain" / name).write_text("done before")
    monkeypatch.setattr(make, "ossia", ossia)
    folder = make.make(tmp_path)
    assert [words[:2] for words in ran[:3]] == [["train", "sft"], ["train", "sft"], ["train", "rl"]]
    assert [words[0] for words in ran[3:]] == ["eval", "eval"]
    assert {path.name for path in folder.iterdir()} == {*make.FILES, "README.md", "curve.png"}
    assert (folder / "config.json").read_text() == "rl"
    ran.clear()
    make.make(tmp_path)
    assert ran == []


def test_a_stage_that_fails_ends_the_making_with_its_command():
    with pytest.raises(TrainingError, match=r"ossia nothing ended with 2: see above; then run this again"):
        make.ossia(["nothing"])
