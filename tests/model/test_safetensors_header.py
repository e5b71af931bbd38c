"""Headers: what the safetensors library writes is read alike, and no bytes at all get past the checks."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ossia.errors import CheckpointError
from ossia.model.safetensors_header import TensorSpec, encode_header, read_header

TENSORS = {
    "wide": torch.arange(12, dtype=torch.bfloat16).reshape(3, 4),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "float": torch.ones(2, 1, 2),
    "empty": torch.empty(0, 7),
    "scalar": torch.tensor(2.5),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


def rewrite(path: Path, entries: Any) -> None:
    """Replace the header and keep the bytes behind it."""
    data = path.read_bytes()
    rest = data[8 + int.from_bytes(data[:8], "little") :]
    text = json.dumps(entries).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + rest)


def entries_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_reads_what_the_library_writes(file: Path) -> None:
    header = read_header(file)
    assert header.specs == {
        name: TensorSpec(dtype=tensor.dtype, shape=tuple(tensor.shape)) for name, tensor in TENSORS.items()
    }
    for name, offset in header.offsets.items():
        raw = file.read_bytes()[offset : offset + header.specs[name].num_bytes]
        assert raw == TENSORS[name].flatten().view(torch.uint8).numpy().tobytes()


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    specs = [(name, TensorSpec(dtype=tensor.dtype, shape=tuple(tensor.shape))) for name, tensor in TENSORS.items()]
    values = b"".join(tensor.flatten().view(torch.uint8).numpy().tobytes() for tensor in TENSORS.values())
    header = encode_header(specs)
    assert len(header) % 8 == 0
    (tmp_path / "b.safetensors").write_bytes(header + values)
    loaded = load_file(tmp_path / "b.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 5)


def nearly_empty(path: Path) -> None:
    path.write_bytes(b"\0" * 7)


def long_header(path: Path) -> None:
    path.write_bytes((10**6).to_bytes(8, "little") + path.read_bytes()[8:])


def endless_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def no_json(path: Path) -> None:
    path.write_bytes((4).to_bytes(8, "little") + b"abcd")


def no_object(path: Path) -> None:
    rewrite(path, [1, 2])


def twice(path: Path) -> None:
    entry = json.dumps(entries_of(path)["wide"])
    text = f'{{"wide": {entry}, "wide": {entry}}}'.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def edited(name: str, **changes: Any) -> Any:
    def damage(path: Path) -> None:
        entries = entries_of(path)
        entries[name] |= changes
        rewrite(path, entries)

    return damage


def moved(name: str, by: int) -> Any:
    def damage(path: Path) -> None:
        entries = entries_of(path)
        entries[name]["data_offsets"] = [offset + by for offset in entries[name]["data_offsets"]]
        rewrite(path, entries)

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, r"tensor bytes ends past the file.*truncated"),
        (extend, r"5 bytes belong to no tensor"),
        (nearly_empty, r"7 bytes are too few"),
        (long_header, r"claims 1,000,000 bytes in a file of"),
        (endless_header, r"claims 18,446,744,073,709,551,615 bytes"),
        (no_json, r"the header: not valid JSON"),
        (no_object, r"the header: expected a JSON object, found list"),
        (twice, r"the header: not valid JSON \(key 'wide' stands twice\)"),
        (moved("bytes", 1000), r"tensor bytes leaves a hole of 1,000 bytes"),
        (moved("bytes", -4), r"tensor bytes overlaps the tensor before it"),
        (edited("wide", shape=[3, 5]), r"tensor wide is BF16 \[3, 5\], so 30 bytes, but its offsets span 24"),
        (edited("wide", shape=[3, -4]), r"tensor wide has no sound dtype, shape and data_offsets"),
        (edited("wide", shape=[True, 12]), r"tensor wide has no sound"),
        (edited("wide", shape="3x4"), r"tensor wide has no sound"),
        (edited("wide", data_offsets=[24, 0]), r"tensor wide .* span -24"),
        (edited("wide", data_offsets=[0]), r"tensor wide has no sound"),
        (edited("wide", dtype="F4"), r"tensor wide has type 'F4'"),
        (edited("wide", dtype=["BF16"]), r"tensor wide has type \['BF16'\]"),
    ],
)
def test_damage_is_named(file: Path, damage: Any, says: str) -> None:
    damage(file)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors: cannot be read \(No such file"):
        read_header(tmp_path / "none.safetensors")


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "x.safetensors"


@given(content=st.binary(max_size=200))
def test_any_bytes_are_survived(scratch: Path, content: bytes) -> None:
    scratch.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        assert read_header(scratch).specs == {}


@given(position=st.integers(0, 400), value=st.integers(0, 255))
def test_one_wrong_byte_gives_an_error_or_a_sound_header(scratch: Path, position: int, value: int) -> None:
    save_file(TENSORS, scratch)
    data = bytearray(scratch.read_bytes())
    data[position % len(data)] = value
    scratch.write_bytes(data)
    try:
        header = read_header(scratch)
    except CheckpointError:
        return
    assert all(
        offset >= 0 and offset + header.specs[name].num_bytes <= len(data) for name, offset in header.offsets.items()
    )


def test_words_and_alignment(tmp_path: Path) -> None:
    spec = TensorSpec(dtype=torch.uint8, shape=(3,))
    for count in range(70):
        words = {"model": "x" * count, "ü": "\udc80"}
        header = encode_header([("a", spec)], metadata=words, alignment=64)
        assert len(header) % 64 == 0
        (tmp_path / "file").write_bytes(header + b"abc")
        read = read_header(tmp_path / "file")
        assert (read.metadata, read.offsets) == (words, {"a": len(header)})


@pytest.mark.parametrize("metadata", ['"text"', "[1]", "null", '{"a": 1, "b": "c"}'])
def test_metadata_that_is_no_text_is_left_out(tmp_path: Path, metadata: str) -> None:
    text = f'{{"__metadata__": {metadata}}}'.encode()
    (tmp_path / "file").write_bytes(len(text).to_bytes(8, "little") + text)
    assert read_header(tmp_path / "file").metadata == ({"b": "c"} if "b" in metadata else {})
