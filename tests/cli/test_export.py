"""`ossia export`: what it prints, and what it refuses."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gguf import GGUFReader

from ossia.cli.export import export
from ossia.errors import CheckpointError, StorageError
from ossia.model.checkpoint import open_checkpoint


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(export, [str(argument) for argument in arguments])


def test_the_bundled_model_for_llama_cpp(tmp_path: Path) -> None:
    result = run(tmp_path / "m.gguf", "--to", "gguf", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    size = (tmp_path / "m.gguf").stat().st_size
    assert (told["path"], told["to"], told["bytes"]) == (str(tmp_path / "m.gguf"), "gguf", size)
    reader = GGUFReader(tmp_path / "m.gguf")
    assert told["tensors"] == len(reader.tensors)
    assert reader.fields["general.name"].contents() == "demo"
    assert len(told["notes"]) == 1


def test_says_what_was_written(tmp_path: Path, tiny_model: Path) -> None:
    result = run(tmp_path / "m.gguf", "--model", tiny_model, "--to", "gguf", "--dense", "bf16")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert (
        lines[0] == f"{tmp_path / 'm.gguf'}: 41 tensors, {(tmp_path / 'm.gguf').stat().st_size:,} bytes, for llama.cpp"
    )
    assert lines[1].startswith("note: llama.cpp knows no splitting rule")
    assert f"exporting {tmp_path / 'm.gguf'}: 100 %" in result.stderr
    assert {t.tensor_type.name for t in GGUFReader(tmp_path / "m.gguf").tensors} == {"BF16", "F32", "MXFP4"}


@pytest.mark.parametrize("to", ["hf", "original"])
def test_a_layout(tmp_path: Path, tiny_model: Path, to: str) -> None:
    result = run(tmp_path / "out", "--model", tiny_model, "--to", to)
    assert result.exit_code == 0, result.output
    assert open_checkpoint(tmp_path / "out").layout == to
    assert (tmp_path / "out" / "tokenizer.json").is_file()


@pytest.mark.parametrize("to", ["gguf", "hf", "original"])
def test_a_target_in_use_needs_force(tmp_path: Path, tiny_model: Path, to: str) -> None:
    assert run(tmp_path / "out", "--model", tiny_model, "--to", to).exit_code == 0
    refused = run(tmp_path / "out", "--model", tiny_model, "--to", to)
    assert isinstance(refused.exception, StorageError)
    assert "already exists" in str(refused.exception)
    assert run(tmp_path / "out", "--model", tiny_model, "--to", to, "--force").exit_code == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--to", "onnx"], "'onnx' is not one of 'gguf', 'hf', 'original'"),
        ([], "Missing option '--to'"),
        (["--to", "hf", "--dense", "f16"], "--dense goes with --to gguf"),
        (["--to", "gguf", "--dense", "q4_0"], "'q4_0' is not one of"),
    ],
)
def test_wrong_usage(tmp_path: Path, options: list[str], says: str) -> None:
    result = run(tmp_path / "out", *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "--to", "gguf", "--model", tmp_path / "absent")
    assert isinstance(result.exception, CheckpointError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("to", ["gguf", "hf", "original"])
def test_a_full_disk(tmp_path: Path, tiny_model: Path, to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5))
    result = run(tmp_path / "out", "--model", tiny_model, "--to", to)
    assert isinstance(result.exception, StorageError)
    assert "and 5 are free" in str(result.exception)
    assert not list(tmp_path.iterdir())
