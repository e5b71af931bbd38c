"""The file of a packed model: made once, mapped afterwards, and never in the way when it or the disk is bad."""

import errno
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.oracles import small
from tests.model.packed_ops import packed_kernels
from torch import Tensor

from ossia.errors import CheckpointError, StorageError
from ossia.model import adapt, pack, packed_cache
from ossia.model.checkpoint import Checkpoint, open_checkpoint
from ossia.model.pack import Piece
from ossia.model.packed_cache import cache_folder, cache_key, clear, kept, packed_tensors, verify
from ossia.model.random_weights import RandomWeights
from ossia.model.safetensors_header import read_header
from ossia.model.write import write_checkpoint

CONFIG = small(num_hidden_layers=2, mxfp4_experts=True)
GONE = 2**22 - 1
"""A process that there is not."""


@dataclass
class Start:
    """One start of the program: loads what is in `folder`, and remembers what was said."""

    folder: Path
    dense: str = "q8"
    lines: list[str] = field(default_factory=list)
    made: int = 0
    """Pieces that had to be packed."""

    def __call__(self) -> dict[str, Tensor]:
        checkpoint = open_checkpoint(self.folder)
        model = adapt.build_packed(checkpoint.config, packed_kernels(), dense=self.dense)

        def pieces() -> Iterator[Piece]:
            for piece in pack.pieces(checkpoint, model):
                self.made += 1
                yield piece

        specs = pack.packed_specs(model)
        return packed_tensors(checkpoint, specs, pieces, dense=self.dense, report=self.lines.append)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no model too small for it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_cache, "SMALL_BYTES", 0)
    return tmp_path / "cache" / "ossia" / "packed"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("model") / "m"
    return write_checkpoint(folder, CONFIG, RandomWeights(CONFIG, 3), max_shard_bytes=60_000)


@pytest.fixture
def folder(original: Checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original.folder, tmp_path / "m"))


@pytest.fixture(scope="module")
def expected(original: Checkpoint) -> dict[str, Tensor]:
    model = adapt.build_packed(CONFIG, packed_kernels())
    return pack.assembled(pack.packed_specs(model), pack.pieces(original, model))


def same(got: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return got.keys() == expected.keys() and all(torch.equal(tensor, expected[name]) for name, tensor in got.items())


def only(home: Path) -> Path:
    (path,) = home.iterdir()
    return path


# -------------------------------------------------------------------- made once


def test_the_first_start_packs_and_the_second_maps(folder: Path, home: Path, expected: dict[str, Tensor]) -> None:
    first, second = Start(folder), Start(folder)
    assert same(first(), expected)
    path = only(home)
    assert first.made > 0
    assert first.lines == [f"packing {folder}, this once, into {path} ({total(expected):,} bytes)"]
    inode = path.stat().st_ino
    tensors = second()
    assert same(tensors, expected)
    assert second.made == 0
    assert second.lines == [f"packed weights: {path} ({total(expected):,} bytes)"]
    assert path.stat().st_ino == inode


def total(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def test_a_tensor_that_comes_in_pieces_is_whole(
    folder: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack, "_ROWS", 32)
    assert same(Start(folder)(), expected)


def test_a_start_from_the_file_reads_no_weight_of_the_checkpoint(
    folder: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    Start(folder)()

    def never(_: Checkpoint, name: str) -> Tensor:
        raise AssertionError(name)

    monkeypatch.setattr(Checkpoint, "tensor", never)
    assert same(Start(folder)(), expected)


def test_tensors_are_aligned_views_that_numpy_takes(folder: Path, home: Path) -> None:
    Start(folder)()
    header = read_header(only(home))
    assert any(name.endswith(".filler") for name in header.specs)
    for name, tensor in Start(folder)().items():
        assert tensor.data_ptr() % 64 == 0, name
        assert (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy().flags.writeable


def test_others_can_read_the_file(folder: Path, home: Path, expected: dict[str, Tensor]) -> None:
    Start(folder)()
    theirs = {name: tensor for name, tensor in load_file(only(home)).items() if not name.endswith(".filler")}
    assert same(theirs, expected)


def test_writing_to_a_tensor_does_not_reach_the_file(folder: Path, home: Path, expected: dict[str, Tensor]) -> None:
    Start(folder)()
    for tensor in Start(folder)().values():
        tensor.zero_()
    assert same(Start(folder)(), expected)
    verify(only(home))


def test_each_form_of_the_dense_layers_has_its_file(folder: Path, home: Path) -> None:
    Start(folder)()
    Start(folder, dense="bf16")()
    assert len(list(home.iterdir())) == 2
    again = [Start(folder), Start(folder, dense="bf16")]
    for start in again:
        start()
        assert start.made == 0
    assert sorted(each.dense for each in kept()) == ["bf16", "q8"]


def test_small_models_are_packed_every_time(
    folder: Path, home: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache, "SMALL_BYTES", total(expected) + 1)
    start = Start(folder)
    assert same(start(), expected)
    assert start.lines == []
    assert not home.exists()
    monkeypatch.setattr(packed_cache, "SMALL_BYTES", total(expected))
    Start(folder)()
    assert only(home)


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / ".cache" / "ossia" / "packed"


# -------------------------------------------------------------------- bad files


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def of_another_version(path: Path) -> None:
    tensors = load_file(path)
    save_file(tensors, path, metadata={"version": "0"})


def with_another_name_inside(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content.replace(b"layers.0.attention.q.weight.codes", b"layers.0.attention.x.weight.codes"))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "is truncated or no packed model"),
    "empty": (lambda path: path.write_bytes(b""), "is truncated or no packed model"),
    "noise": (lambda path: path.write_bytes(bytes(range(256)) * 50), "is truncated or no packed model"),
    "too long": (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "is truncated or no packed model"),
    "foreign": (lambda path: save_file({"x": torch.ones(3)}, path), "is from another version of ossia, or no packed"),
    "another version": (of_another_version, "is from another version of ossia, or no packed model"),
    "header changed": (with_another_name_inside, "is damaged"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_made_anew(folder: Path, home: Path, expected: dict[str, Tensor], kind: str) -> None:
    damage, message = BAD[kind]
    Start(folder)()
    path = only(home)
    damage(path)
    start = Start(folder)
    assert same(start(), expected)
    assert start.lines[0].startswith(f"{path} {message}")
    assert start.lines[0].endswith(f": {folder} is packed again")
    assert len(start.lines) == 2
    assert start.made > 0
    verify(only(home))
    again = Start(folder)
    again()
    assert again.made == 0


def test_the_file_of_another_model_under_this_name(
    folder: Path, home: Path, tmp_path: Path, expected: dict[str, Tensor]
) -> None:
    Start(folder)()
    path = only(home)
    write_checkpoint(tmp_path / "other", CONFIG, RandomWeights(CONFIG, 4))
    Start(tmp_path / "other")()
    (other,) = (each for each in home.iterdir() if each != path)
    shutil.copyfile(other, path)
    start = Start(folder)
    assert same(start(), expected)
    assert start.lines[0] == f"{path} belongs to another model: {folder} is packed again"


def test_packed_by_another_version(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(packed_cache, "VERSION", "0")
        Start(folder)()
    old = only(home)
    start = Start(folder)
    start()
    assert start.lines[0] == f"{folder} was packed by another version of ossia: it is packed again"
    assert only(home) != old


# -------------------------------------------------------------------- checkpoints that change


def rewritten(folder: Path) -> None:
    write_checkpoint(folder, CONFIG, RandomWeights(CONFIG, 9), max_shard_bytes=60_000, overwrite=True)


def touched(folder: Path) -> None:
    path = next(folder.glob("*.safetensors"))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def changed_in_silence(folder: Path) -> None:
    """A value changes, and neither size nor time does."""
    path = next(folder.glob("*.safetensors"))
    status = path.stat()
    flip(path, status.st_size - 1)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [rewritten, touched, changed_in_silence])
def test_a_checkpoint_that_changed_is_packed_again(folder: Path, home: Path, change: Callable[[Path], None]) -> None:
    Start(folder)()
    old = only(home)
    change(folder)
    start = Start(folder)
    got = start()
    assert start.lines[0] == f"{folder} has changed since it was packed: it is packed again"
    assert only(home) != old
    model = adapt.build_packed(CONFIG, packed_kernels())
    assert same(got, pack.assembled(pack.packed_specs(model), pack.pieces(open_checkpoint(folder), model)))


def test_the_key_is_that_of_the_content(folder: Path, tmp_path: Path) -> None:
    keys = {cache_key(open_checkpoint(folder), dense) for dense in ("q8", "q8", "bf16")}
    assert len(keys) == 2
    moved = folder.rename(tmp_path / "moved")
    assert cache_key(open_checkpoint(moved), "q8") in keys


# -------------------------------------------------------------------- bad disks


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_full_disk_is_no_reason_not_to_load(
    folder: Path, home: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    start = Start(folder)
    assert same(start(), expected)
    assert start.lines[-1].startswith("packed weights are not kept: ")
    assert "refused (No space left on device); make room for" in start.lines[-1]
    assert list(home.iterdir()) == []


def test_a_disk_that_the_kernel_says_is_full(folder: Path, home: Path, expected: dict[str, Tensor]) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        start = Start(folder)
        assert same(start(), expected)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "not kept" in start.lines[-1]
    assert "refused (File too large)" in start.lines[-1]
    assert list(home.iterdir()) == []


def test_no_room_is_seen_before_anything_is_packed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = adapt.build_packed(CONFIG, packed_kernels())
    start = Start(folder)
    monkeypatch.setattr(os, "posix_fallocate", full)
    start()
    assert start.made == len(list(pack.pieces(open_checkpoint(folder), model))), "each once, into memory"


def test_a_cache_that_cannot_be_a_folder(
    folder: Path, tmp_path: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    start = Start(folder)
    assert same(start(), expected)
    assert len(start.lines) == 1
    assert str(tmp_path / "file") in start.lines[0]
    assert "refused (Not a directory)" in start.lines[0]


def test_nobody_without_a_home_is_turned_away(
    folder: Path, expected: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    start = Start(folder)
    assert same(start(), expected)
    assert start.lines == [
        "packed weights are not kept: there is no home folder to keep packed models in: set XDG_CACHE_HOME"
    ]


# -------------------------------------------------------------------- whole or not at all


@pytest.mark.parametrize("reason", [KeyboardInterrupt(), CheckpointError("tensor x holds NaN")])
def test_an_end_in_the_middle_leaves_nothing(folder: Path, home: Path, reason: BaseException) -> None:
    checkpoint = open_checkpoint(folder)
    model = adapt.build_packed(CONFIG, packed_kernels())
    seen: list[list[str]] = []

    def pieces() -> Iterator[Piece]:
        for index, piece in enumerate(pack.pieces(checkpoint, model)):
            seen.append([path.name for path in home.iterdir()])
            if index == 20:
                raise reason
            yield piece

    with pytest.raises(type(reason)):
        packed_tensors(checkpoint, pack.packed_specs(model), pieces, dense="q8", report=print)
    assert list(home.iterdir()) == []
    assert len(seen) == 21
    assert all(len(names) == 1 and names[0].startswith(".") for names in seen)


def test_what_a_killed_process_left_is_removed(folder: Path, home: Path) -> None:
    home.mkdir(parents=True)
    (home / f".abc.safetensors.partial-{GONE}").write_bytes(b"x" * 100)
    others = home / f".abc.safetensors.partial-{os.getppid()}"
    others.write_bytes(b"x")
    Start(folder)()
    assert sorted(path.name.startswith(".") for path in home.iterdir()) == [False, True]
    assert others.exists(), "its process lives"


def test_pieces_that_are_not_all_make_no_file(folder: Path, home: Path) -> None:
    checkpoint = open_checkpoint(folder)
    model = adapt.build_packed(CONFIG, packed_kernels())
    made = [piece for piece in pack.pieces(checkpoint, model) if piece[0] != "norm.scale"]
    with pytest.raises(CheckpointError, match=r"1 missing \(norm\.scale\)"):
        packed_tensors(checkpoint, pack.packed_specs(model), lambda: made, dense="q8", report=print)
    assert list(home.iterdir()) == []


# -------------------------------------------------------------------- what is kept


def test_kept_models_are_described(folder: Path, home: Path) -> None:
    assert kept() == []
    Start(folder)()
    (home / "foreign.safetensors").write_bytes(b"?")
    one, foreign = sorted(kept(), key=lambda each: not each.usable)
    assert (one.model, one.dense, one.usable, one.num_bytes) == (str(folder), "q8", True, one.path.stat().st_size)
    assert (foreign.model, foreign.dense, foreign.usable, foreign.num_bytes) == ("", "", False, 1)


def test_every_bit_is_verified(folder: Path, home: Path, expected: dict[str, Tensor]) -> None:
    Start(folder)()
    path = only(home)
    verify(path)
    header = read_header(path)
    for name in ("layers.1.mlp.experts.down.codes", "unembedding.weight.low", "norm.scale"):
        offset = header.offsets[name] + header.specs[name].num_bytes - 1
        flip(path, offset)
        with pytest.raises(CheckpointError, match=f"{path.name} is damaged: tensor {name} is not as it was written"):
            verify(path)
        flip(path, offset)
    verify(path)


def test_clearing_removes_what_there_is(folder: Path, home: Path) -> None:
    assert clear() == (0, 0)
    tensors = Start(folder)()
    (home / f".abc.safetensors.partial-{GONE}").write_bytes(b"x" * 100)
    (home / "note.txt").write_text("mine")
    size = sum(path.stat().st_size for path in home.glob("*.safetensors"))
    assert clear() == (2, size + 100)
    assert only(home).name == "note.txt"
    assert int(sum(tensor.sum(dtype=torch.float64) for tensor in tensors.values())), "still mapped"


def test_what_cannot_be_removed_is_named(folder: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    Start(folder)()
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(StorageError, match=rf"{only(home)}: cannot be removed \(Read-only file system\)"):
        clear()
