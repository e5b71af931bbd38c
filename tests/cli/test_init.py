"""`ossia init` from the outside: what it writes, what it says, what it refuses."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from ossia.cli.init import configured, init
from ossia.config import GPT_OSS_20B, GPT_OSS_120B, Layout
from ossia.errors import ConfigError, StorageError, TokenizerError
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.checkpoint import open_checkpoint
from ossia.model.layouts import stored_tensors
from ossia.model.locate import tokenizer_file


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(init, [str(argument) for argument in arguments])


def bytes_of(folder: Path) -> str:
    """One digest of all tensors, whatever the files."""
    checkpoint = open_checkpoint(folder)
    digest = hashlib.sha256()
    for name, tensor in checkpoint.tensors():
        digest.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize(
    ("preset", "layout", "tensors", "size"),
    [
        ("gpt-oss-20b", "hf", 459, 13_761_264_768),
        ("gpt-oss-20b", "original", 363, 13_761_264_768),
        ("gpt-oss-120b", "hf", 687, 65_248_815_744),
        ("gpt-oss-120b", "original", 543, 65_248_815_744),
    ],
)
def test_the_published_shape_is_exact(preset: str, layout: Layout, tensors: int, size: int) -> None:
    """Counted from the list of what would be written; writing it takes minutes and 14 GB."""
    config = configured(preset, {})
    assert config == {"gpt-oss-20b": GPT_OSS_20B, "gpt-oss-120b": GPT_OSS_120B}[preset]
    stored = stored_tensors(config, layout, packed=True)
    assert len(stored) == len({tensor.name for tensor in stored}) == tensors
    assert sum(tensor.dtypes[0].itemsize * math.prod(tensor.shape) for tensor in stored) == size


def test_writes_and_says_what(tmp_path: Path, small: list[str]) -> None:
    result = run(tmp_path / "m", *small)
    assert result.exit_code == 0, result.output
    checkpoint = open_checkpoint(tmp_path / "m")
    assert (checkpoint.layout, checkpoint.packed, checkpoint.config.num_experts) == ("hf", True, 4)
    assert checkpoint.config.layer_types == ("sliding_attention", "full_attention", "sliding_attention")
    assert f"{checkpoint.config.num_parameters():,} random parameters, 60 tensors, 301,768 bytes" in result.stdout


def test_json_is_one_object_on_standard_output(tmp_path: Path, small: list[str]) -> None:
    result = run(tmp_path / "m", *small, "--layout", "original", "--json", "--seed", 3)
    told = json.loads(result.stdout)
    assert told == {
        "folder": str(tmp_path / "m"),
        "layout": "original",
        "tensors": 48,
        "tensor_bytes": 301_768,
        "parameters": open_checkpoint(tmp_path / "m").config.num_parameters(),
        "seed": 3,
    }


def test_the_seed_fixes_the_tensors_and_nothing_else_changes_them(tmp_path: Path, small: list[str]) -> None:
    for name, options in {
        "a": ["--seed", "1"],
        "shards": ["--seed", "1", "--max-shard-gb", "0.001"],
        "original": ["--seed", "1", "--layout", "original"],
        "other": ["--seed", "2"],
    }.items():
        assert run(tmp_path / name, *small, "--vocab", "9000", *options).exit_code == 0
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "shards") == bytes_of(tmp_path / "original")
    assert bytes_of(tmp_path / "a") != bytes_of(tmp_path / "other")


def test_bf16_experts(tmp_path: Path, small: list[str]) -> None:
    assert run(tmp_path / "m", *small, "--bf16").exit_code == 0
    assert not open_checkpoint(tmp_path / "m").packed


def test_a_tokenizer_goes_along(tmp_path: Path, small: list[str], o200k_path: Path) -> None:
    assert run(tmp_path / "m", *small, "--tokenizer", o200k_path).exit_code == 0
    assert (tmp_path / "m" / "o200k_base.tiktoken").read_bytes() == o200k_path.read_bytes()
    assert run(tmp_path / "n", *small, "--tokenizer", o200k_path.parent).exit_code == 0
    assert (tmp_path / "n" / "o200k_base.tiktoken").exists()


@pytest.mark.parametrize("given", ["tiny_tokenizer_file", "o200k_path"])
def test_a_vocabulary_of_another_name_gets_the_one_it_is_found_by(
    tmp_path: Path, small: list[str], given: str, request: pytest.FixtureRequest
) -> None:
    file: Path = request.getfixturevalue(given)
    mine = Path(shutil.copy(file, tmp_path / f"mine{file.suffix}"))
    assert run(tmp_path / "m", *small, "--tokenizer", mine).exit_code == 0
    assert tokenizer_file(tmp_path / "m") == tmp_path / "m" / file.name
    assert Tokenizer.load(tmp_path / "m").special == Tokenizer.load(file).special


def test_a_folder_may_have_any_name(tmp_path: Path, small: list[str]) -> None:
    target = tmp_path / "[red]:smile:[" / "]"
    target.parent.mkdir()
    result = run(target, *small)
    assert result.exit_code == 0, result.output
    assert f"writing {target}: 100 %" in result.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seed", "99999999999999999999"], "99999999999999999999 is not in the range 0<=x<=9223372036854775807."),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--max-shard-gb", "nan"], "nan is not a finite number."),
        (["--max-shard-gb", "inf"], "inf is not a finite number."),
        (["--max-shard-gb", "0"], "0.0 is not in the range x>=0.001."),
    ],
)
def test_numbers_out_of_range_are_wrong_usage(tmp_path: Path, small: list[str], options: list[str], says: str) -> None:
    result = run(tmp_path / "m", *small, *options)
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        (["--hidden", "100"], ConfigError, "hidden_size is 100: MXFP4 packs blocks of 32"),
        (["--intermediate", "33"], ConfigError, "intermediate_size is 33"),
        (["--experts", "2", "--experts-per-token", "3"], ConfigError, "experts_per_token 3 is more than num_experts 2"),
        (["--kv-heads", "3"], ConfigError, "num_attention_heads 8 is not a multiple of num_key_value_heads 3"),
        (["--layers", "1000000000"], ConfigError, "num_hidden_layers is 1000000000: give a whole number from 1 to"),
        (["--layers", "0"], ConfigError, "num_hidden_layers is 0"),
        (["--context", "1024", "--layout", "original"], ConfigError, "the original layout cannot say otherwise"),
        (["--tokenizer", "absent"], TokenizerError, "absent"),
    ],
)
def test_refuses_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: list[str],
    options: list[str],
    error: type[Exception],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("m", *small, *options)
    assert isinstance(result.exception, error)
    assert says in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_foreign_tokenizer_is_refused(tmp_path: Path, small: list[str]) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "WordPiece"}}')
    assert isinstance(run(tmp_path / "m", *small, "--tokenizer", tmp_path).exception, TokenizerError)
    assert not (tmp_path / "m").exists()


def test_a_target_in_use(tmp_path: Path, small: list[str]) -> None:
    run(tmp_path / "m", *small)
    result = run(tmp_path / "m", *small)
    assert isinstance(result.exception, StorageError)
    assert run(tmp_path / "m", *small, "--overwrite", "--layout", "original").exit_code == 0
    assert open_checkpoint(tmp_path / "m").layout == "original"


def test_a_full_disk(tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5))
    result = run(tmp_path / "m", *small)
    assert isinstance(result.exception, StorageError)
    assert "and 5 are free" in str(result.exception)
    assert not list(tmp_path.iterdir())
