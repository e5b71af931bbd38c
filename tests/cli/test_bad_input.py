"""Whatever is wrong with what a command is given: one line that names it, exit code 2, and nothing left behind."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import ossia.demo
from ossia.cli import cli

SHARD, INDEX = "model.safetensors", "model.safetensors.index.json"
NORM = "model.norm.weight"

Damage = Callable[[Path], object]
"""Breaks a model folder, the copy `model` of the tiny model, or what lies beside it."""


def untouched(_: Path) -> None:
    pass


def cut(model: Path) -> None:
    os.truncate(model / SHARD, (model / SHARD).stat().st_size - 10)


def header_too_long(model: Path) -> None:
    data = (model / SHARD).read_bytes()
    (model / SHARD).write_bytes((2**40).to_bytes(8, "little") + data[8:])


def header_past_the_end(model: Path) -> None:
    """The last tensor claims twice its rows, as its offsets do."""
    data = (model / SHARD).read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    last = max((each for name, each in header.items() if name != "__metadata__"), key=lambda t: t["data_offsets"][1])
    first, end = last["data_offsets"]
    last["shape"][0] *= 2
    last["data_offsets"] = [first, 2 * end - first]
    text = json.dumps(header).encode()
    (model / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + data[begin:])


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def damage(model: Path) -> None:
        held = load_file(model / SHARD)
        change(held)
        save_file(held, model / SHARD)

    return damage


def index_that_leaves(model: Path) -> None:
    (model / SHARD).rename(model.parent / "outside.safetensors")
    (model / INDEX).write_text(json.dumps({"weight_map": {NORM: "../outside.safetensors"}}), encoding="utf-8")


def config(**changes: object) -> Damage:
    return lambda model: edit(model / "config.json", lambda raw: raw.update(changes))


def one_id_too_many(model: Path) -> None:
    extra = {"id": 272, "content": "<|one_too_many|>", "special": True}
    edit(model / "tokenizer.json", lambda raw: raw["added_tokens"].append(extra))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")


def records(*roles: str) -> Damage:
    line = json.dumps({"messages": [{"role": role, "content": "?"} for role in roles]})
    return lambda model: (model.parent / "data.jsonl").write_text(line, encoding="utf-8")


INFO, CHAT = "info {model}", "chat ? --model {model}"
INIT = "init {new} --layers 1 --experts 2 --experts-per-token 1 --hidden 64 --intermediate 32 --vocab 64"
TRAIN = "train sft --out {new} --preset ossia-demo --data {data} --tokenizer {vocabulary}"

MODELS: list[tuple[Damage, str]] = [
    (cut, "model.safetensors: tensor "),
    (header_too_long, "model.safetensors: the header claims 1,099,511,627,776 bytes"),
    (header_past_the_end, "ends past the file"),
    (tensors(lambda held: held.pop(NORM)), NORM),
    (tensors(lambda held: held.update({"model.extra": torch.zeros(1)})), "model.extra"),
    (tensors(lambda held: held.update({NORM: torch.ones(32, dtype=torch.bfloat16)})), f"{NORM} [32] instead of [64]"),
    (tensors(lambda held: held.update({NORM: torch.ones(64, dtype=torch.uint8)})), f"{NORM} U8 instead of"),
    (index_that_leaves, f"{INDEX}: tensor {NORM} points to '../outside.safetensors'"),
    (lambda model: (model / SHARD).unlink(), "model holds no model: expected model.safetensors"),
    (lambda model: shutil.copy(model / SHARD, model / "other.safetensors"), "other.safetensors beside model.safe"),
    (config(num_wheels=4), "config.json: unknown key num_wheels"),
    (config(hidden_size=65), "config.json: hidden_size"),
]
"""Damage to a model folder, and what both `info` and `chat` say of it."""

OTHERS: list[tuple[str, Damage, str]] = [
    (CHAT, lambda model: (model / "tokenizer.json").unlink(), "model has no tokenizer.json"),
    (CHAT, one_id_too_many, "tokenizer.json has ids up to 272 and the model a vocabulary of 272"),
    (CHAT.replace("?", "x" * 2000), untouched, "the prompt has "),
    (f"{CHAT} --effort huge", untouched, "Invalid value for '--effort'"),
    (f"{INFO}\x1b]0;title\x07\x9b", untouched, "/model␛]0;title␇\ufffd is no folder"),
    (f"{INIT} --hidden 65", untouched, "hidden_size"),
    (f"{INIT} --tokenizer {{model}}/config.json", untouched, "config.json: "),
    (INIT.replace("{new}", "{model}"), untouched, "model already exists and is not empty"),
    (TRAIN, records("user", "narrator"), "data.jsonl:1: messages[1].role is 'narrator'"),
]


@pytest.mark.parametrize(
    ("command", "damage", "says"), [(command, *model) for model in MODELS for command in (INFO, CHAT)] + OTHERS
)
def test_it_is_said_in_one_line(tiny_model: Path, tmp_path: Path, command: str, damage: Damage, says: str) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    damage(model)
    (line,) = refused(tmp_path, command)
    assert says in line


def test_a_disk_that_fills_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    *progress, line = refused(tmp_path, INIT)
    assert f"{tmp_path / 'new'}: the disk refused (No space left on device)" in line
    assert all(each.startswith("writing ") for each in progress)


def refused(folder: Path, command: str) -> list[str]:
    """What a command in which the names stand for files in `folder` said on standard error, before it gave up."""
    places = {"model": folder / "model", "new": folder / "new", "data": folder / "data.jsonl"}
    vocabulary = Path(ossia.demo.__file__).with_name("tokenizer.json")
    before = weights(folder)
    result = CliRunner().invoke(cli, [part.format(**places, vocabulary=vocabulary) for part in command.split(" ")])
    assert (result.exit_code, result.stdout) == (2, "")
    assert weights(folder) == before
    lines = result.stderr.splitlines()
    assert lines[-1].startswith("ossia: ")
    return lines


def weights(folder: Path) -> dict[Path, bytes]:
    """Everything but what a run of training keeps for another try."""
    kept = {folder / "new" / "run" / name for name in ("lock", "settings.toml", "tokenizer.json")}
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path not in kept}
