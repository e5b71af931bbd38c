"""`ossia pull` against a stand-in for the hub on this machine: one layout, resumed, and errors in a line."""

import json
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from huggingface_hub import constants

from ossia.cli.info import info
from ossia.cli.init import init
from ossia.cli.pull import pull
from ossia.errors import CheckpointError, StorageError
from ossia.model.checkpoint import open_checkpoint
from ossia.model.locate import resolve_model

NAME = "small/model"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(pull, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Any) -> None:
    """What HF_ENDPOINT and HF_HOME would set in a fresh process."""
    use_endpoint(monkeypatch, hub.endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(tmp_path / "xet"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def repository(tmp_path: Path, small: list[str], hub: Any) -> Path:
    """A repository as published: the root in shards, `original/`, `metal/`, papers."""
    root = tmp_path / "repository"
    CliRunner().invoke(init, [str(root), *small, "--vocab", "9000", "--max-shard-gb", "0.001"])
    CliRunner().invoke(init, [str(root / "original"), *small, "--vocab", "9000", "--layout", "original"])
    (root / "metal").mkdir()
    (root / "metal" / "model.bin").write_bytes(b"metal" * 100)
    (root / "tokenizer.json").write_text("{}")
    (root / "README.md").write_text("a card")
    hub.repositories[NAME] = root
    return root


def fetched(hub: Any) -> set[str]:
    return {name for name in hub.fetched() if name.endswith((".safetensors", ".bin", ".json"))}


def test_one_layout_into_the_cache(repository: Path, hub: Any) -> None:
    result = run(NAME, "--json")
    assert result.exception is None, result.output
    told = json.loads(result.stdout)
    assert (told["layout"], told["tensors"]) == ("hf", 60)
    assert fetched(hub) == {path.name for path in repository.glob("*.*")} - {"README.md"}
    checkpoint, source = open_checkpoint(resolve_model(NAME)), open_checkpoint(repository)
    assert dict(checkpoint.stored) == dict(source.stored)
    assert json.loads(CliRunner().invoke(info, [NAME, "--json"]).stdout)["tensors"] == 60


def test_the_other_layout_alone(repository: Path, hub: Any) -> None:
    assert run(NAME, "--layout", "original").exception is None
    assert fetched(hub) == {"original/model.safetensors", "original/config.json", "tokenizer.json"}
    assert open_checkpoint(resolve_model(NAME)).layout == "original"


def test_a_folder_of_ones_own(tmp_path: Path, repository: Path) -> None:
    result = run(NAME, "--to", tmp_path / "mine")
    assert f"--model {tmp_path / 'mine'}`" in result.stdout
    for path in repository.glob("*.safetensors"):
        assert (tmp_path / "mine" / path.name).read_bytes() == path.read_bytes()
    assert not (tmp_path / "mine" / "original").exists()


def test_nothing_is_fetched_twice(repository: Path, hub: Any) -> None:
    run(NAME)
    hub.requests.clear()
    assert run(NAME).exception is None
    assert not hub.fetched()


@pytest.mark.parametrize("own_folder", [False, True])
def test_an_interrupted_download_goes_on(
    tmp_path: Path, repository: Path, hub: Any, monkeypatch: pytest.MonkeyPatch, own_folder: bool
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    file = "original/model.safetensors"
    options = ["--layout", "original", *(["--to", str(tmp_path / "mine")] if own_folder else [])]
    hub.dies_after[file] = 500_000
    result = run(NAME, *options)
    assert isinstance(result.exception, CheckpointError)
    assert "run this again to go on" in str(result.exception)
    with pytest.raises(CheckpointError):
        open_checkpoint(resolve_model(tmp_path / "mine" if own_folder else NAME))

    hub.dies_after.clear()
    hub.requests.clear()
    assert run(NAME, *options).exception is None
    ranges = [asked for method, path, asked in hub.requests if method == "GET" and path.endswith(file)]
    assert ranges == ["bytes=500000-"]
    folder = tmp_path / "mine" if own_folder else resolve_model(NAME)
    assert (folder / file).read_bytes() == (repository / file).read_bytes()
    assert not list(tmp_path.rglob("*.part"))


def test_a_file_that_is_not_what_its_checksum_says(repository: Path, hub: Any) -> None:
    hub.damages.add("model-00002-of-00003.safetensors")
    result = run(NAME)
    assert isinstance(result.exception, CheckpointError)
    assert "model-00002-of-00003.safetensors arrived damaged and was removed: run this again" in str(result.exception)
    hub.damages.clear()
    assert run(NAME).exception is None
    assert open_checkpoint(resolve_model(NAME)).num_bytes == open_checkpoint(repository).num_bytes


def test_a_damaged_file_is_found_after_the_download(repository: Path) -> None:
    path = repository / "model-00001-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    result = run(NAME)
    assert isinstance(result.exception, CheckpointError)
    assert "model-00001-of-00003.safetensors: tensor" in str(result.exception)
    assert "truncated" in str(result.exception)


def test_a_layout_that_is_not_there(repository: Path) -> None:
    for path in (repository / "original").iterdir():
        path.unlink()
    result = run(NAME, "--layout", "original")
    assert "small/model cannot be pulled: it holds no weights in the original layout: try --layout hf" in str(
        result.exception
    )


def test_errors_are_one_line(repository: Path, hub: Any) -> None:
    hub.gated = True
    cases = {
        "its owner asks for consent": run(NAME),
        "no such repository": run("small/absent"),
        "no repository id: write owner/name": run("a b"),
    }
    hub.gated = False
    cases["it has no revision v9"] = run(NAME, "--revision", "v9")
    for says, result in cases.items():
        assert isinstance(result.exception, CheckpointError), says
        assert says in str(result.exception)
        assert "\n" not in str(result.exception)


@pytest.mark.usefixtures("repository")
def test_as_a_user_runs_it(tmp_path: Path, hub: Any) -> None:
    """A process of its own, told by its environment where the hub is."""
    command = [sys.executable, "-c", "from ossia.cli import main; main()", "pull"]
    environment = os.environ | {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([*command, NAME], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
    assert "layout hf; talk to it with `ossia chat --model small/model`" in done.stdout
    assert "pulling small/model: 100 % of 2.56 MB" in done.stderr
    done = subprocess.run([*command, "small/absent"], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ossia: small/absent cannot be pulled: no such repository")
    assert done.stderr.count("\n") == 1


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        use_endpoint(monkeypatch, f"http://127.0.0.1:{taken.getsockname()[1]}")
        result = run(NAME)
    assert isinstance(result.exception, CheckpointError)
    assert "the hub cannot be reached: check the network and HF_ENDPOINT" in str(result.exception)


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    result = run(NAME)
    assert isinstance(result.exception, CheckpointError)
    assert "the hub cannot be reached" in str(result.exception)


def test_a_full_disk(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        result = run(NAME)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(result.exception, StorageError), result.exception
    assert "the hub's cache: the disk refused (File too large): make room, then run this again" in str(result.exception)
