import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ossia.errors import StorageError, TrainingError
from ossia.train.distributed import World
from ossia.train.states import States, clear_partial

TENSORS = {
    "weights.a": torch.arange(3000.0).view(30, 100),
    "exp_avg.a": torch.randn(30, 100),
    "weights.b": torch.ones(3),
}


def states_in(folder, keep=2):
    return States(folder, keep, World.single())


def empty():
    return {name: torch.zeros_like(tensor) for name, tensor in TENSORS.items()}


def test_what_was_saved_comes_back_and_the_newest_stay(tmp_path):
    states = states_in(tmp_path)
    for step in (1, 5, 12):
        states.save(step, {name: tensor + step for name, tensor in TENSORS.items()}, {"feed": {"position": step}})
    states.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000005", "step-00000012"]
    state = states_in(tmp_path).newest()
    assert (state.step, state.facts["feed"]) == (12, {"position": 12})
    found = empty()
    state.read_into(found)
    assert all(torch.equal(found[name], tensor + 12) for name, tensor in TENSORS.items())


def test_a_save_is_of_the_moment_it_was_asked_for(tmp_path):
    states, tensors = states_in(tmp_path), {name: tensor.clone() for name, tensor in TENSORS.items()}
    states.save(1, tensors, {})
    for tensor in tensors.values():
        tensor.zero_()
    states.wait()
    found = empty()
    states.newest().read_into(found)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def two_states(folder):
    states = states_in(folder)
    for step in (1, 2):
        states.save(step, TENSORS, {})
    states.wait()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["__0_0.distcp", ".metadata", "state.json"])
def test_a_damaged_state_is_passed_over_and_named(name, tmp_path, caplog):
    two_states(tmp_path)
    flip(tmp_path / "step-00000002" / name)
    assert states_in(tmp_path).newest().step == 1
    assert f"step-00000002/{name} is damaged: this state is passed over" in caplog.text
    (tmp_path / "step-00000001" / name).unlink()
    with pytest.raises(TrainingError, match=r"step-00000002.*is damaged, and no state before it is whole"):
        states_in(tmp_path).newest()


def test_a_manifest_that_is_cut_off_is_damage_too(tmp_path):
    two_states(tmp_path)
    manifest = tmp_path / "step-00000002" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-20])
    assert states_in(tmp_path).newest().step == 1


def test_a_state_of_another_model_is_refused(tmp_path):
    two_states(tmp_path)
    state = states_in(tmp_path).newest()
    with pytest.raises(TrainingError, match="holds the weights of another model or optimiser"):
        state.read_into({"weights.a": torch.zeros(30, 100)})
    with pytest.raises(TrainingError, match="cannot be read"):
        state.read_into(empty() | {"weights.a": torch.zeros(31, 100)})


def test_no_state_yet(tmp_path):
    assert states_in(tmp_path).newest() is None


def test_a_full_disk_keeps_the_state_before_and_says_so(tmp_path, monkeypatch):
    states = states_in(tmp_path)
    states.save(3, TENSORS, {})
    states.wait()

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ossia.train.states.os.fsync", full)
    states.save(4, TENSORS, {})
    with pytest.raises(StorageError, match=r"No space left on device\); the state of step 3 is kept: free some space"):
        states.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000003"]
    monkeypatch.undo()
    assert states_in(tmp_path).newest().step == 3


def test_a_disk_that_fills_up_while_tensors_are_written_is_told_in_its_own_words(tmp_path, monkeypatch):
    """Torch's writer would speak of positions."""
    file = io.FileIO
    monkeypatch.setattr("ossia.train.states.io.FileIO", lambda _path, mode: file("/dev/full", mode))
    states = states_in(tmp_path)
    states.save(1, {"x": torch.zeros(10**6)}, {})
    with pytest.raises(StorageError, match=r"\(No space left on device\); no state was saved before: free some space"):
        states.wait()
    assert not list(tmp_path.iterdir())


def test_what_reads_back_otherwise_does_not_count(tmp_path, monkeypatch):
    two_states(tmp_path)
    states = states_in(tmp_path)
    monkeypatch.setattr("ossia.train.states._digest", lambda _path: "0" * 64)
    states.save(3, TENSORS, {})
    with pytest.raises(
        StorageError, match=r"right after it was written: the disk is failing\); the state of step 2 is"
    ):
        states.wait()


def test_a_state_that_diverged_is_set_aside_unless_it_is_the_only_one(tmp_path):
    two_states(tmp_path)
    states = states_in(tmp_path)
    assert states.set_aside(2)
    assert states.newest().step == 1
    assert not states.set_aside(1) and not states.set_aside(7)
    assert (tmp_path / "diverged-step-00000002").is_dir()


def test_a_state_gets_its_name_all_at_once(tmp_path, monkeypatch):
    """A kill just before leaves nothing under the name; what takes it is whole."""
    rename, seen = Path.rename, []

    def watched(path, target):
        if Path(target).name.startswith("step-"):
            seen.append((Path(target).exists(), sorted(each.name for each in path.iterdir())))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", watched)
    states = states_in(tmp_path)
    states.save(1, TENSORS, {})
    states.wait()
    assert seen == [(False, [".metadata", "__0_0.distcp", "manifest.json", "state.json"])]


SAVER = """
import sys, torch
from pathlib import Path
from ossia.train.distributed import World
from ossia.train.states import States, clear_partial
folder = Path(sys.argv[1])
clear_partial(folder)
states = States(folder, 2, World.single())
state = states.newest()
step = state.step if state else 0
while True:
    step += 1
    states.save(step, {"a": torch.full((300_000,), float(step))}, {"said": step})
    print(step, flush=True)
"""


def test_a_kill_at_any_moment_leaves_a_whole_state(tmp_path):
    """Three kills at moments that chance chooses, each while states are being written all the time."""
    for delay in (0.01, 0.035, 0.06):
        process = subprocess.Popen([sys.executable, "-c", SAVER, tmp_path], stdout=subprocess.PIPE, text=True)
        with process:
            for _ in range(3):
                process.stdout.readline()
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            told = process.stdout.read().split()
        assert process.returncode == -signal.SIGKILL
        state = states_in(tmp_path).newest()
        assert state.step == state.facts["said"] >= (int(told[-1]) - 2 if told else 1)
        found = {"a": torch.zeros(300_000)}
        state.read_into(found)
        assert bool((found["a"] == state.step).all())
        assert [path.name for path in sorted(tmp_path.glob("step-*"))][-1] == f"step-{state.step:08d}"
    clear_partial(tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_manifest_covers_every_file(tmp_path):
    two_states(tmp_path)
    folder = tmp_path / "step-00000002"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["sha256"]) | {"manifest.json"} == {Path(path).name for path in folder.iterdir()}
