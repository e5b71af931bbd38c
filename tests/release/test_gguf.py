"""The file format, read by the gguf package; and a disk that refuses or lies."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from ossia.errors import CheckpointError, StorageError
from ossia.release.encodings import GgufType, encode
from ossia.release.gguf import GgufTensor, Value, write_gguf

METADATA: dict[str, Value] = {
    "general.architecture": "gpt-oss",
    "a.number": 2**32 - 1,
    "a.fraction": 0.1,
    "a.truth": True,
    "a.lie": False,
    "some.texts": ["", "é", "three"],
    "some.numbers": [1, -2, 3],
    "no.texts": [],
}
VALUES = {"odd": torch.arange(15.0).view(3, 5), "cube": -torch.arange(24.0).view(2, 3, 4), "one": torch.tensor([7.0])}


def tensors() -> list[GgufTensor]:
    return [
        GgufTensor(
            name=name,
            kind=GgufType.F32,
            shape=tuple(values.shape),
            pieces=lambda values=values: (encode(part, GgufType.F32) for part in values.split(2)),
        )
        for name, values in VALUES.items()
    ]


def test_an_independent_reader_finds_everything(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    size = write_gguf(tmp_path / "m.gguf", METADATA, tensors(), progress=lambda *each: told.append(each))
    assert size == (tmp_path / "m.gguf").stat().st_size
    assert told[-1] == (size, size)
    assert told == sorted(told)
    reader = GGUFReader(tmp_path / "m.gguf")
    for key, value in METADATA.items():
        assert reader.fields[key].contents() == (np.float32(0.1) if key == "a.fraction" else value), key
    assert [field.types[0].name for field in list(reader.fields.values())[3:]] == (
        "STRING UINT32 FLOAT32 BOOL BOOL ARRAY ARRAY ARRAY".split()
    )
    assert [tensor.name for tensor in reader.tensors] == list(VALUES)
    for tensor in reader.tensors:
        assert tensor.data_offset % 32 == 0
        np.testing.assert_array_equal(tensor.data, VALUES[tensor.name].numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_refuses_a_file_a_folder_and_no_parent(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_text("old")
    with pytest.raises(StorageError, match=r"m\.gguf already exists: name another file, or .* --force"):
        write_gguf(path, METADATA, tensors())
    assert path.read_text() == "old"
    with pytest.raises(StorageError, match="is a folder: name a file"):
        write_gguf(tmp_path, METADATA, tensors(), overwrite=True)
    with pytest.raises(StorageError, match="absent does not exist: create it first"):
        write_gguf(tmp_path / "absent" / "m.gguf", METADATA, tensors())
    write_gguf(path, METADATA, tensors(), overwrite=True)
    assert len(GGUFReader(path).tensors) == 3


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    (tmp_path / ".m.gguf.partial-999999999").write_text("half")
    write_gguf(tmp_path / "m.gguf", METADATA, tensors())
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_a_full_disk_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5))
    with pytest.raises(StorageError, match=r"m\.gguf: needs [\d,]+ bytes and 5 are free"):
        write_gguf(tmp_path / "m.gguf", METADATA, tensors())
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_seen_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"the disk refused \(No space left on device\): .* nothing was kept"):
        write_gguf(tmp_path / "m.gguf", METADATA, tensors(), overwrite=True)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("m.gguf", "old")]


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data.__setitem__(30, data[30] ^ 1), "the header reads back differently"),
        (lambda data: data.__setitem__(-33, data[-33] ^ 1), "tensor cube reads back differently"),
        (lambda data: data.__delitem__(slice(-8, None)), "tensor one reads back differently"),
        (lambda data: data.extend(b"more"), "is longer on disk than what was written"),
    ],
)
def test_a_disk_that_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any, says: str) -> None:
    sync = os.fsync

    def lying(descriptor: int) -> None:
        sync(descriptor)
        (path,) = tmp_path.iterdir()
        data = bytearray(path.read_bytes())
        damage(data)
        with path.open("r+b") as file:
            file.write(data)
            file.truncate()

    monkeypatch.setattr(os, "fsync", lying)
    with pytest.raises(StorageError, match=f"{says}.*: the disk is failing"):
        write_gguf(tmp_path / "m.gguf", METADATA, tensors())
    assert not list(tmp_path.iterdir())


def test_a_piece_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> list[torch.Tensor]:
        raise CheckpointError("no values")

    last = GgufTensor(name="bad", kind=GgufType.F32, shape=(4,), pieces=broken)
    with pytest.raises(CheckpointError, match="no values"):
        write_gguf(tmp_path / "m.gguf", METADATA, [*tensors(), last])
    short = GgufTensor(name="bad", kind=GgufType.F32, shape=(4,), pieces=lambda: [torch.zeros(8, dtype=torch.uint8)])
    with pytest.raises(AssertionError, match="bad came as"):
        write_gguf(tmp_path / "m.gguf", METADATA, [*tensors(), short])
    assert not list(tmp_path.iterdir())
