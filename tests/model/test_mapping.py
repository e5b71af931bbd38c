"""Files as memory."""

import gc
import sys
from pathlib import Path

import pytest
import torch

from ossia.model.mapping import MappedFile
from ossia.model.safetensors_header import TensorSpec

F32 = TensorSpec(dtype=torch.float32, shape=(3, 1000))
BYTES = 4096 * 4


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(torch.arange(BYTES // 4, dtype=torch.float32).numpy().tobytes())
    return path


def test_a_tensor_is_what_lies_at_its_place(path: Path) -> None:
    tensor = MappedFile(path).tensor(F32, 40)
    assert torch.equal(tensor, torch.arange(10.0, 3010.0).view(3, 1000))


def test_a_tensor_keeps_its_file_though_everyone_else_is_gone(path: Path) -> None:
    tensor = MappedFile(path).tensor(F32, 0)
    path.unlink()
    gc.collect()
    assert tensor[2, 999] == 2999


def test_writing_stays_in_this_process(path: Path) -> None:
    before = path.read_bytes()
    MappedFile(path).tensor(F32, 0).fill_(1)
    assert path.read_bytes() == before


def test_only_whole_pages_of_the_range_are_let_go_of(path: Path) -> None:
    mapped = MappedFile(path)
    spec = TensorSpec(dtype=torch.uint8, shape=(BYTES,))
    bytes_ = mapped.tensor(spec, 0)
    kept = bytes_.clone()
    bytes_.fill_(7)  # What is let go of comes back as it is in the file.
    mapped.forget(100, 4096 * 2)
    assert torch.equal(bytes_[4096:8192], kept[4096:8192])
    assert bool((bytes_[:4096] == 7).all())
    assert bool((bytes_[8192:] == 7).all())
    mapped.forget(100, 50)
    mapped.forget(4000, 4100)
    assert bool((bytes_[:4096] == 7).all())
    assert bool((bytes_[8192:] == 7).all())


def test_nothing_may_be_empty_but_a_tensor(path: Path, tmp_path: Path) -> None:
    empty = TensorSpec(dtype=torch.float32, shape=(0, 5))
    assert MappedFile(path).tensor(empty, BYTES).shape == (0, 5)
    (tmp_path / "nothing").touch()
    with pytest.raises(ValueError, match="empty file"):
        MappedFile(tmp_path / "nothing")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")
def test_a_prepared_file_is_in_memory_whole(tmp_path: Path) -> None:
    path, size = tmp_path / "file", 2**24
    path.write_bytes(bytes(size))
    mapped = MappedFile(path)
    assert resident(path) == 0
    mapped.prepare()
    assert resident(path) == size


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process can use without a page fault."""
    _, _, entry = Path("/proc/self/smaps").read_text().partition(f"{path}\n")
    return 1024 * int(entry.split("Rss:")[1].split()[0])
