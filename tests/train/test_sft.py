"""The recipe as a user runs it: killed, resumed, finished, and what it ships."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ossia.cli import cli
from ossia.cli.train import _reporter
from ossia.errors import ConfigError, DataError, StorageError, TrainingError
from ossia.kernels.mxfp4 import dequantize, fake_quantize
from ossia.model.checkpoint import open_checkpoint
from ossia.train.curve import draw
from ossia.train.loop import read_log
from ossia.train.sft import SftConfig, train

FLAGS = {
    "steps": 5,
    "batch_tokens": 400,
    "warmup_steps": 2,
    "decay_steps": 2,
    "save_every": 2,
    "log_every": 1,
    "validation_records": 3,
    "threads": 1,
}


def quiet(_metrics):
    pass


def flags_as_arguments(**more):
    return [word for name, value in (FLAGS | more).items() for word in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def finished(vocabulary, tmp_path_factory) -> Path:
    """A run from start to end without a break."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    arguments = ["train", "sft", "--json", *flags_as_arguments(out=out, tokenizer=vocabulary)]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["checkpoint"] == str(out / "checkpoint")
    return out


def test_the_log_holds_losses_loads_and_held_out_losses(finished):
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5]
    assert training[-1]["loss"] < training[0]["loss"]
    assert all(0 <= line["smallest_load"] <= 1 <= line["largest_load"] for line in training)
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4, 5]


def test_what_is_shipped_is_what_was_trained(finished):
    masters = torch.load(finished / "state.pt", weights_only=True)["masters"]["weights"]
    checkpoint = open_checkpoint(finished / "checkpoint")
    assert checkpoint.packed and checkpoint.layout == "hf"
    for name, master in masters.items():
        if master.ndim == 3:
            shipped = dequantize(checkpoint.tensor(f"{name}_blocks"), checkpoint.tensor(f"{name}_scales"))
            assert torch.equal(shipped, fake_quantize(master)), name
        else:
            assert torch.equal(checkpoint.tensor(name), master.bfloat16()), name


def test_a_run_killed_at_any_moment_resumes_to_the_same_bytes(finished, vocabulary, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "ossia", "train", "sft", *flags_as_arguments(out=out, tokenizer=vocabulary)]
    log = out / "log.jsonl"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not (log.exists() and '"step": 3' in log.read_text()):
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, process.stderr
    assert not (out / "checkpoint").exists()
    subprocess.run([*command, "--resume"], check=True, capture_output=True)
    for name in ("model.safetensors", "config.json"):
        assert (out / "checkpoint" / name).read_bytes() == (finished / "checkpoint" / name).read_bytes(), name
    steps, expected = (
        [(line["step"], line.get("loss")) for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())]
        for run in (out, finished)
    )
    assert steps == expected


def test_the_curve_is_drawn_from_a_log_whose_last_line_was_cut_off(finished, tmp_path):
    assert (finished / "curve.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "log.jsonl").write_text((finished / "log.jsonl").read_text() + '{"step": 6, "lo')
    assert draw(tmp_path) == tmp_path / "curve.png"
    assert [line["step"] for line in read_log(tmp_path) if "loss" in line] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"step": 3, "validation_loss": 0.25}, "step 3  held-out loss 0.2500"),
        ({"step": 3}, "step 3  saved"),
        (
            {"step": 4, "loss": 1.5, "smallest_load": 0.5, "largest_load": 2.0, "tokens_per_second": 99.6},
            "step 4  loss 1.5000  load 0.50-2.00  100 tokens/s",
        ),
    ],
)
def test_each_line_of_the_log_is_told_plainly_where_there_is_no_terminal(metrics, line, capsys):
    bar, report = _reporter(10)
    with bar:
        report(metrics)
    assert capsys.readouterr().err == line + "\n"


def test_a_finished_run_is_not_overwritten(finished, vocabulary):
    with pytest.raises(StorageError, match="holds a run already"):
        train(SftConfig(out=finished, tokenizer=vocabulary, **FLAGS), quiet)


def test_a_damaged_or_foreign_state_is_not_resumed(finished, vocabulary, tmp_path):
    config = SftConfig(out=tmp_path, tokenizer=vocabulary, resume=True, **FLAGS)
    with pytest.raises(TrainingError, match="no saved state"):
        train(config, quiet)
    whole = (finished / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match="cannot be read"):
        train(config, quiet)
    (tmp_path / "state.pt").write_bytes(whole)
    with pytest.raises(TrainingError, match="seed was '0' and is now '7'"):
        train(SftConfig(out=tmp_path, tokenizer=vocabulary, resume=True, seed=7, **FLAGS), quiet)
    with pytest.raises(TrainingError, match="optimizer was 'muon' and is now 'adamw'"):
        train(SftConfig(out=tmp_path, tokenizer=vocabulary, resume=True, optimizer="adamw", **FLAGS), quiet)
    torch.save([1, 2], tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="is no state of a run"):
        train(config, quiet)


def test_a_folder_that_cannot_be_made_is_named(vocabulary, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made a folder"):
        train(SftConfig(out=tmp_path / "file" / "run", tokenizer=vocabulary, **FLAGS), quiet)


def test_a_missing_extra_is_named_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr("ossia.cli.extras.find_spec", lambda _name: None)
    result = CliRunner().invoke(cli, ["train", "sft", "--out", str(tmp_path / "run")])
    assert result.exit_code == 2
    assert "pip install 'ossia[train]'" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(vocabulary, tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d"):
        train(SftConfig(out=tmp_path, tokenizer=vocabulary, learning_rate=1e18, **FLAGS), quiet)


def test_a_disk_that_refuses_leaves_the_old_state(finished, vocabulary, tmp_path, monkeypatch):
    (tmp_path / "state.pt").write_bytes((finished / "state.pt").read_bytes())
    old = (tmp_path / "state.pt").read_bytes()

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ossia.files.os.fsync", full)
    with pytest.raises(StorageError, match="No space left on device"):
        train(SftConfig(out=tmp_path, tokenizer=vocabulary, resume=True, **(FLAGS | {"steps": 6})), quiet)
    assert (tmp_path / "state.pt").read_bytes() == old
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"preset": "gpt-oss-20b"}, ConfigError, "has 4096 ids, gpt-oss-20b needs 201088"),
        ({"preset": "gpt-6"}, ConfigError, "preset is 'gpt-6'"),
        ({"dtype": "int8"}, ConfigError, "dtype is 'int8'"),
        ({"optimizer": "sgd"}, ConfigError, "optimizer is 'sgd'"),
        ({"steps": 0}, ConfigError, "steps is 0: give a number above 0"),
        ({"learning_rate": float("nan")}, ConfigError, "learning_rate is nan"),
        ({"validation_records": -1}, ConfigError, "validation_records is -1"),
        ({"threads": -1}, ConfigError, "threads is -1"),
        ({"seed": 2**63}, ConfigError, "seed is 9223372036854775808"),
        ({"data": "nowhere.jsonl"}, DataError, "nowhere.jsonl: cannot be read"),
    ],
)
def test_bad_flags_are_named(vocabulary, tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        train(SftConfig(out=tmp_path / "run", tokenizer=vocabulary, **(FLAGS | flags)), quiet)
