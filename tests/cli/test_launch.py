"""`ossia train launch`: two processes of a run, of which one fails; one line says why, and the other stops too."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from tests.train.many_runs import conversations
from tests.train.processes import free_port

from ossia.cli import cli, launch

pytest.importorskip("tensorboardX")

FLAGS = "--model demo --threads 1 --samples 0 --validation-records 0 --log-every 1 --batch-tokens 300 --max-length 120"


def start(out: Path, data: Path, *more: str) -> subprocess.Popen[str]:
    """The recipe `sft` in two processes."""
    command = [sys.executable, "-m", "ossia", "train", "launch", "--processes", "2"]
    command += ["--address", f"127.0.0.1:{free_port()}", "sft", *FLAGS.split(), "--out", str(out), "--data", str(data)]
    return subprocess.Popen([*command, *more], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def children(process: subprocess.Popen[str]) -> list[int]:
    """The processes that `process` started."""
    return [int(each) for each in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_of_two_processes_one_is_killed(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    conversations(data)
    process = start(tmp_path / "out", data, "--steps", "100000", "--save-every", "2")
    states = tmp_path / "out" / "run" / "states"
    try:
        deadline = time.monotonic() + 200
        while not any(states.glob("step-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        pids = [pid for pid in children(process) if b"-u" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        assert len(pids) == 2
        os.kill(pids[1], signal.SIGKILL)
        said = process.communicate(timeout=100)[1].splitlines()
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 2
    assert [line for line in said if not line.startswith("step ")] == [
        "ossia: process 1 was killed (SIGKILL), and the others were stopped: the last saved state is kept; "
        "give the same command with --resume to go on from it"
    ]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert any(states.glob("step-*"))


def test_what_a_process_has_to_tell_is_said_once(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    process = start(tmp_path / "out", data)
    out, said = process.communicate(timeout=200)
    assert (process.returncode, out) == (2, "")
    assert re.fullmatch(rf"ossia: {data}:1: field messages is missing .*\n", said)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("stf",), "unknown recipe 'stf': give one of pretrain, sft, lora, rl"),
        (("sft", "--lerning-rate", "1"), "No such option '--lerning-rate'. Did you mean '--learning-rate'?"),
        (("sft",), "out is missing: give --out"),
        (("sft", "--out", "x"), "give either --model"),
        (("nothing.toml",), "unknown recipe 'nothing.toml'"),
    ],
)
def test_bad_arguments_are_told_before_anything_starts(arguments: tuple[str, ...], says: str) -> None:
    result = CliRunner().invoke(cli, ["train", "launch", "--processes", "2", *arguments])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"ossia: {says}") and len(result.stderr.splitlines()) == 1


def test_the_cause_is_told_apart_from_what_follows(tmp_path: Path) -> None:
    told = tmp_path / "told"
    told.touch()

    def failure(code: int, timestamp: int, message: str = "") -> SimpleNamespace:
        file = str(told) if message else "<N/A>"
        return SimpleNamespace(exitcode=code, timestamp=timestamp, message=message or "see a page", error_file=file)

    stopped, followed = failure(-signal.SIGTERM, 1), failure(2, 2)
    for cause in (failure(-signal.SIGKILL, 3), failure(2, 3, "the loss is nan"), failure(1, 3)):
        assert min([stopped, followed, cause], key=launch._far_from_cause) is cause
        assert launch._told(cause) == ("the loss is nan" if cause.exitcode == 2 else "")
