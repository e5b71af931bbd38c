"""`ossia info`: the figures of a checkpoint, read from headers alone."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ossia.cli.info import info
from ossia.cli.init import init
from ossia.config import GPT_OSS_20B
from ossia.errors import CheckpointError
from ossia.model.layouts import stored_tensors
from ossia.model.safetensors_header import TensorSpec, encode_header


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(info, [str(argument) for argument in arguments])


@pytest.fixture
def sparse_20b(tmp_path: Path) -> Path:
    """The 20b in its original layout, its 13.76 GB of tensors a hole in the file: reading it would show."""
    plan = [
        (tensor.name, TensorSpec(dtype=tensor.dtypes[0], shape=tensor.shape))
        for tensor in stored_tensors(GPT_OSS_20B, "original", packed=True)
    ]
    folder = tmp_path / "original"
    folder.mkdir()
    header = encode_header(plan)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(spec.num_bytes for _, spec in plan))
    (folder / "config.json").write_text(json.dumps(GPT_OSS_20B.to_json("original")))
    return folder


def test_the_published_model(sparse_20b: Path) -> None:
    told = json.loads(run(sparse_20b, "--json").stdout)
    assert told["parameters"] == 20_914_757_184
    assert 3.605e9 < told["active_parameters"] < 3.615e9
    assert told["tensor_bytes"] == 13_761_264_768
    assert (told["tensors"], told["files"], told["layout"], told["tokenizer"]) == (363, 1, "original", None)
    assert told["tensor_bytes_by_type"]["MXFP4"] == 32 * 24 * 13_219_200
    assert sum(told["tensor_bytes_by_type"].values()) == told["tensor_bytes"]
    assert [plan["context"] for plan in told["plan"]] == [4_096, 32_768, 131_072]
    for plan in told["plan"]:
        assert plan["kv_bf16"] == 24_576 * plan["context"] + 24_576 * 128
        assert plan["total_8bit"] == plan["weights"] + plan["kv_bf16"] // 2
        assert plan["fits_bf16"] == (plan["total_bf16"] <= told["memory"])


def test_for_people(sparse_20b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossia.model.memory.machine_memory", lambda: 15 * 10**9)
    text = run(sparse_20b).stdout
    assert "20,914,757,184, of which 3,608,307,264 active" in text
    assert "363, 13,761,264,768 bytes: " in text
    assert "24: 12 with a window of 128, 12 full" in text
    assert [line.split() for line in text.splitlines()[-3:]] == [
        "4,096 13.76 GB 103.81 MB 13.87 GB yes 51.90 MB 13.81 GB yes".split(),
        "32,768 13.76 GB 808.45 MB 14.57 GB yes 404.23 MB 14.17 GB yes".split(),
        "131,072 13.76 GB 3.22 GB 16.99 GB no 1.61 GB 15.37 GB no".split(),
    ]


def test_what_init_wrote(tmp_path: Path, small: list[str], o200k_path: Path) -> None:
    CliRunner().invoke(init, [str(tmp_path / "m"), *small, "--max-shard-gb", "0.001", "--tokenizer", str(o200k_path)])
    told = json.loads(run(tmp_path / "m", "--json").stdout)
    assert (told["layout"], told["tensors"], told["tensor_bytes"]) == ("hf", 60, 301_768)
    assert told["architecture"]["experts"] == 4
    assert told["tokenizer"] == str(tmp_path / "m" / "o200k_base.tiktoken")


def test_bad_input_is_an_error_of_ours(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert isinstance(result.exception, CheckpointError)
    assert str(tmp_path) in str(result.exception)
    assert isinstance(run("no/such/model").exception, CheckpointError)
