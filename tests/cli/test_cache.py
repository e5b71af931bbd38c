"""`ossia cache`: what is kept, whether it is sound, and its removal."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ossia.cli.cache import cache
from ossia.errors import StorageError
from ossia.model import packed_cache
from ossia.model.safetensors_header import TensorSpec


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cache, arguments)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ossia" / "packed"


@pytest.fixture
def one(home: Path) -> Path:
    """A file of the cache, of a model of one tensor."""
    home.mkdir(parents=True)
    path = home / "0123.safetensors"
    spec = TensorSpec(dtype=torch.float32, shape=(250,))
    model = {"model": "/models/m\x1b[1m", "dense": "q8", "key": "0123"}
    packed_cache._write(path, {"x": spec}, [("x", torch.arange(250.0))], model).replace(path)
    return path


def test_an_empty_cache(home: Path) -> None:
    assert run().stdout == f"{home}: no packed models\n"
    assert json.loads(run("list", "--json").stdout) == {"folder": str(home), "models": []}
    assert run("verify").exit_code == 0
    assert run("clear").stdout == f"{home}: removed 0 files, 0 B\n"


def test_listing(one: Path) -> None:
    (listed,) = json.loads(run("--json").stdout)["models"]
    size = one.stat().st_size
    modified = listed.pop("modified")
    assert len(modified) == len("2025-06-28T12:00:00+00:00")
    assert listed == {"path": str(one), "model": "/models/m\x1b[1m", "dense": "q8", "bytes": size, "usable": True}
    first, second = run().stdout.splitlines()
    assert first == f"/models/m␛[1m (q8), {size / 1e3:.2f} kB, {modified}"
    assert second.strip() == str(one)


def test_verifying(one: Path) -> None:
    told = run("verify")
    assert told.exit_code == 0
    assert told.stdout.splitlines()[0].endswith(", as it was written")
    content = bytearray(one.read_bytes())
    content[-30] ^= 1
    one.write_bytes(content)
    told = run("verify", "--json")
    (listed,) = json.loads(told.stdout)["models"]
    assert listed["damage"] == f"{one} is damaged: tensor x is not as it was written"
    assert isinstance(told.exception, StorageError)
    assert str(told.exception) == f"1 damaged: {one}: `ossia cache clear` removes what is kept"


def test_a_foreign_file_is_listed_and_not_believed(one: Path) -> None:
    one.write_bytes(b"?")
    assert run().stdout.startswith("of no known model (?), 1 B, ")
    assert "not usable: it is made anew when needed" in run().stdout
    assert "is truncated or no packed model" in run("verify").stdout


def test_clearing(one: Path) -> None:
    size = one.stat().st_size
    assert json.loads(run("clear", "--json").stdout) == {"folder": str(one.parent), "removed": 1, "bytes": size}
    assert not one.exists()


def test_an_unknown_action(home: Path) -> None:
    told = run("empty")
    assert told.exit_code == 2
    assert "'empty' is not one of 'list', 'clear', 'verify'" in told.stderr
