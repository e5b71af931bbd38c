"""`ossia merge`, and adapters in `ossia chat` and `ossia serve`: what is printed, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import ossia
from ossia.cli import cli
from ossia.model.adapters import Adapter, LowRank, base_digest, write_adapter
from ossia.model.checkpoint import open_checkpoint


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


@pytest.fixture
def adapter(tmp_path: Path, tiny_model: Path) -> Path:
    """Of one expert of the first layer, and of values and output of the last, which change what the model says."""
    checkpoint = open_checkpoint(tiny_model)
    generator = torch.Generator().manual_seed(0)
    b = torch.zeros(4, 64, 2)
    b[1] = torch.randn(64, 2, generator=generator)
    down = LowRank(a=torch.randn(4, 2, 32, generator=generator), b=b, scale=0.5)
    v = LowRank(a=torch.randn(2, 64, generator=generator), b=torch.randn(32, 2, generator=generator), scale=1)
    o = LowRank(a=torch.randn(2, 64, generator=generator), b=torch.randn(64, 2, generator=generator), scale=1)
    changes = {"layers.0.mlp.experts.down": down, "layers.1.attention.v.weight": v, "layers.1.attention.o.weight": o}
    write_adapter(tmp_path / "adapter", Adapter(changes=changes, base=base_digest(checkpoint)), checkpoint.config)
    return tmp_path / "adapter"


def test_into_mxfp4(tmp_path: Path, tiny_model: Path, adapter: Path) -> None:
    out = tmp_path / "out"
    result = run("merge", adapter, out, "--model", tiny_model, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["path"], told["to"], told["weights"], told["repacked_matrices"]) == (str(out), "mxfp4", 3, 1)
    before, after = open_checkpoint(tiny_model), open_checkpoint(out)
    differing = {name for name in before.keys() if not torch.equal(before[name], after[name])}  # noqa: SIM118
    experts = [f"layers.0.mlp.experts.down_{half}" for half in ("blocks", "scales")]
    assert differing == {*experts, "layers.1.attention.v.weight", "layers.1.attention.o.weight"}
    assert [e for e in range(4) if not torch.equal(before[experts[0]][e], after[experts[0]][e])] == [1]
    assert told["codes"] == 64 * 32 and 0 < told["codes_changed"] <= told["codes"] and told["kept"] > 0.8
    assert (out / "tokenizer.json").is_file() and (out / "generation_config.json").is_file()
    ossia.load(out)


def test_into_bf16(tmp_path: Path, tiny_model: Path, adapter: Path) -> None:
    result = run("merge", adapter, tmp_path / "out", "--model", tiny_model, "--to", "bf16")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].startswith(f"{tmp_path / 'out'}: 3 weights changed, ")
    assert "codes" not in result.stdout
    assert not open_checkpoint(tmp_path / "out").packed


def test_what_is_said(tmp_path: Path, tiny_model: Path, adapter: Path) -> None:
    result = run("merge", adapter, tmp_path / "out", "--model", tiny_model)
    assert "experts packed anew: 1 matrices; " in result.stdout
    assert " of 2,048 codes changed (" in result.stdout
    refused = run("merge", adapter, tmp_path / "out", "--model", tiny_model)
    assert refused.exit_code == 2 and "already exists" in refused.stderr
    assert run("merge", adapter, tmp_path / "out", "--model", tiny_model, "--force").exit_code == 0
    refused = run("merge", adapter, tiny_model, "--model", tiny_model, "--force")
    assert refused.exit_code == 2 and "is the model itself" in refused.stderr


def test_another_base_is_refused(tmp_path: Path, tiny_model: Path, adapter: Path) -> None:
    other = tmp_path / "other"
    assert run("merge", adapter, other, "--model", tiny_model).exit_code == 0
    refused = run("merge", adapter, tmp_path / "out", "--model", other)
    assert refused.exit_code == 2
    assert f"{adapter}: the adapter was made for another model than {other}" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert f"{adapter}: the adapter was made" in run("chat", "Hi", "--model", other, "--adapter", adapter).stderr
    assert "do not fit a weight" in run("merge", adapter, tmp_path / "out").stderr


def test_chat_with_an_adapter(tiny_model: Path, adapter: Path, tmp_path: Path) -> None:
    """The model says 42, whatever it is asked; with this adapter something else. Merged, it says the same."""
    options = ("chat", "Hi", "--json", "--max-tokens", "12", "--kernels", "torch")
    plain = json.loads(run(*options, "--model", tiny_model).stdout)
    adapted = json.loads(run(*options, "--model", tiny_model, "--adapter", adapter).stdout)
    assert plain["final"] == "42" != adapted["final"]
    assert run("merge", adapter, tmp_path / "out", "--model", tiny_model).exit_code == 0
    merged = json.loads(run(*options, "--model", tmp_path / "out").stdout)
    assert merged["final"] == adapted["final"] and merged["reasoning"] == adapted["reasoning"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["one"], "'one' is not NAME=FOLDER"),
        (["=x"], "'=x' is not NAME=FOLDER"),
        (["a=x", "a=y"], "there are two adapters 'a'"),
        (["a=/nowhere"], "/nowhere holds no adapter_config.json: name the folder of an adapter"),
    ],
)
def test_serve_refuses(given: list[str], message: str) -> None:
    options = [part for each in given for part in ("--adapter", each)]
    refused = run("serve", "--port", "0", "--no-store", "--kernels", "torch", *options)
    assert refused.exit_code == 2 and message in refused.stderr
