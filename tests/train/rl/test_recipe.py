"""The recipe from a checkpoint to a checkpoint, and gone on with after a stop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ossia
from ossia.errors import ConfigError, TrainingError
from ossia.model.checkpoint import open_checkpoint
from ossia.model.random_weights import RandomWeights
from ossia.model.write import write_checkpoint
from ossia.train.loop import read_log
from ossia.train.rl.recipe import RlSettings, train

from .conftest import CONFIG

ODD = """
from ossia.train.rl.environment import Outcome, Prompt

class Odd:
    def __init__(self, split, seed):
        self.split = split

    def reset(self, index):
        self.prompt = Prompt(messages=[{"role": "user", "content": f"{self.split} {index}"}])
        return self

    def step(self, reply):
        return Outcome(reward=float(len(reply.final + reply.reasoning + reply.commentary) % 2))
"""


@pytest.fixture
def settings(tmp_path: Path, vocabulary: Path) -> Callable[..., RlSettings]:
    config = replace(CONFIG, mxfp4_experts=True)
    write_checkpoint(tmp_path / "base", config, RandomWeights(config, 3), extra_files={"tokenizer.json": vocabulary})
    (tmp_path / "odd.py").write_text(ODD)

    def make(out: str, **changes: Any) -> RlSettings:
        given: dict[str, Any] = {
            "model": str(tmp_path / "base"),
            "environment": (f"{tmp_path / 'odd.py'}:Odd",),
            "out": tmp_path / out,
            "steps": 4,
            "save_every": 2,
            "decay_steps": 0,
            "groups": 2,
            "group_size": 4,
            "max_tokens": 8,
            "max_length": 128,
            "heldout_problems": 2,
            "heldout_attempts": 4,
            "samples": 1,
            "learning_rate": 1e-3,
            "mismatch_limit": 1.0,  # Logits of random weights are large.
        }
        return RlSettings(**(given | changes))

    return make


def weights(folder: Path) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in open_checkpoint(folder).tensors()}


@pytest.mark.parametrize(
    "changes", [{}, {"algorithm": "grpo", "updates": 2, "kl_coefficient": 0.1}], ids=["on-policy", "grpo"]
)
def test_a_run_that_was_broken_off_ends_in_the_same_weights(
    settings: Callable[..., RlSettings], tmp_path: Path, changes: dict[str, Any]
) -> None:
    train(settings("whole", **changes), lambda line: None)

    def stop(line: dict[str, Any]) -> None:
        if line["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings("broken", **changes), stop)
    train(settings("broken", resume=True, **changes), lambda line: None)
    found = weights(tmp_path / "broken")
    assert found == weights(tmp_path / "whole")
    assert found != weights(tmp_path / "base")
    names = ("step", "loss", "reward", "mismatch_kl", "pass_at_1")
    logs = [[{n: line.get(n) for n in names} for line in read_log(tmp_path / out)] for out in ("whole", "broken")]
    assert logs[0] == logs[1]


def test_the_log_tells_of_rewards_and_of_held_out_problems(settings: Callable[..., RlSettings], tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    folder = train(settings("out", steps=2), told.append)
    assert told == read_log(tmp_path / "out")
    measured = [line for line in told if "pass_at_1" in line]
    assert [line["step"] for line in measured] == [0, 2]
    assert all(0 <= line["pass_at_1"] <= line["pass_at_4"] <= 1 for line in measured)
    assert measured[0]["samples"][0]["prompt"].endswith("heldout 0<|end|><|start|>assistant")
    steps = [line for line in told if "reward" in line]
    assert all(0 <= line["mismatch_kl"] < 1e-3 and line["length"] == 8 for line in steps)
    assert ossia.load(folder).config == replace(CONFIG, mxfp4_experts=True)


def test_policies_too_far_apart_stop_the_run(settings: Callable[..., RlSettings]) -> None:
    with pytest.raises(TrainingError, match="nats a token from the one that learns"):
        train(settings("out", mismatch_limit=1e-12, heldout_problems=0), lambda line: None)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"updates": 2}, "updates is 2: on-policy learns once from a round, so choose grpo"),
        ({"updates": 3, "algorithm": "grpo"}, "steps is 4: give a multiple of updates, 3"),
        ({"environment": ("gdc",)}, "environment 'gdc' is no family"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_written(
    settings: Callable[..., RlSettings], tmp_path: Path, changes: dict[str, Any], line: str
) -> None:
    with pytest.raises(ConfigError, match=line):
        train(settings("out", **changes), lambda line: None)
    assert not (tmp_path / "out").exists()
