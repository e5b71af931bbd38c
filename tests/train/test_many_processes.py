"""Whole runs of a recipe in several processes: the same losses and weights as in one, and states that change hands."""

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.train import many_runs
from tests.train.processes import run

from ossia.train.loop import read_log

STEPS = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of conversations."""
    path = tmp_path_factory.mktemp("data") / "conversations.jsonl"
    many_runs.conversations(path)
    return str(path)


def train(out: Path, data: str, size: int, steps: int = STEPS, **variables: str) -> Path:
    """The run in `out`, in `size` processes."""
    run(size, "many_runs", "sft", out, DATA=data, STEPS=str(steps), **variables)
    return out


def losses(out: Path) -> list[float]:
    """Of each step."""
    return [line["loss"] for line in read_log(out) if "loss" in line]


def assert_same(out: Path, expected: Path) -> None:
    """Losses of all steps within 1e-5 of each other, weights as far as AdamW lets rounding grow."""
    assert losses(out) == pytest.approx(losses(expected), rel=1e-5)
    found, wanted = load_file(out / "model.safetensors"), load_file(expected / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        difference = (found[name].float() - tensor.float()).norm() / tensor.float().norm().clamp(min=1e-3)
        assert difference < 1e-2, f"{name}: {difference}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """The run in one process."""
    return train(tmp_path_factory.mktemp("alone") / "out", data, 1)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory, data: str) -> Path:
    """The run in two processes, ended after three steps."""
    return train(tmp_path_factory.mktemp("halfway") / "out", data, 2, STEPS // 2)


def test_two_processes_are_one(alone: Path, halfway: Path) -> None:
    assert losses(halfway) == pytest.approx(losses(alone)[: STEPS // 2], rel=1e-5)


def test_two_processes_that_share_experts_are_one(tmp_path: Path, data: str, alone: Path) -> None:
    assert_same(train(tmp_path / "out", data, 2, EXPERT_PARALLEL="2"), alone)


@pytest.mark.parametrize("size", [1, 4])
def test_a_state_of_two_processes_goes_on_in_any_number(
    tmp_path: Path, data: str, alone: Path, halfway: Path, size: int
) -> None:
    out = tmp_path / "out"
    shutil.copytree(halfway, out)
    train(out, data, size, RESUME="1")
    assert_same(out, alone)


def test_muon_moves_cut_matrices_as_whole_ones(tmp_path: Path, data: str) -> None:
    one, two = (train(tmp_path / str(size), data, size, 2, MUON="1") for size in (1, 2))
    # The first loss comes before any move. Muon works in bfloat16, in which a rounding of gradients may grow.
    assert losses(two)[0] == pytest.approx(losses(one)[0], rel=1e-6)
    assert losses(two) == pytest.approx(losses(one), rel=2e-3)
