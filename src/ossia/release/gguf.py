"""A GGUF file, version 3: streamed, whole or not at all, and read back before it counts.

The file is a header (counts, metadata, then name, shape, type and offset of each tensor) and the tensors' bytes, each
begun at a multiple of 32. Everything is little-endian; the innermost dimension comes first. Format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import os
import shutil
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ossia.errors import StorageError
from ossia.files import hidden, leftovers
from ossia.release.encodings import GgufType

Value = bool | int | float | str | Sequence[int] | Sequence[str]
"""Metadata: stored as BOOL, UINT32, FLOAT32, STRING, and arrays of INT32 and STRING."""

_MAGIC = b"GGUF"
_VERSION = 3
_ALIGNMENT = 32
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_READ_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor to be written."""

    name: str
    kind: GgufType
    shape: tuple[int, ...]
    """Outermost dimension first, as in torch."""
    pieces: Callable[[], Iterable[Tensor]]
    """Makes its bytes when their turn comes, as uint8 tensors one after another."""

    @property
    def num_bytes(self) -> int:
        """Bytes of its values."""
        values, size = self.kind.block
        return math.prod(self.shape) // values * size


def write_gguf(
    path: Path,
    metadata: Mapping[str, Value],
    tensors: Sequence[GgufTensor],
    *,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a GGUF file at `path` and return its size in bytes; memory holds one piece of one tensor at a time.

    `progress(done, total)` counts bytes, half a byte when it is written and half when it is read back. Raises
    StorageError if the target exists (unless `overwrite`), if the disk is full or refuses, or if what is read back
    differs; then, as where a piece cannot be made, nothing is left behind and an old target is untouched.
    """
    header = _header(metadata, tensors)
    total = len(header) + sum(tensor.num_bytes + _padding(tensor.num_bytes) for tensor in tensors)
    partial = hidden(path, "partial")
    done = 0

    def step(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if progress:
            progress(done // 2, total)

    try:
        check_target(path, overwrite=overwrite)
        if total > _free(path):
            raise StorageError(
                f"{path}: needs {total:,} bytes and {_free(path):,} are free: make room, or name another disk"
            )
        for leftover in leftovers(path, "partial"):
            leftover.unlink(missing_ok=True)
        with partial.open("xb") as file:
            file.write(header)
            step(len(header))
            checksums = [_write(file.write, tensor, step) for tensor in tensors]
            file.flush()
            os.fsync(file.fileno())
        _read_back(partial, path, header, tensors, checksums, step)
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path}: the disk refused ({error.strerror}): {total:,} bytes were to be written and "
            f"{_free(path):,} are free; nothing was kept, so make room or name another disk"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return total


# -------------------------------------------------------------------- the header


def _header(metadata: Mapping[str, Value], tensors: Sequence[GgufTensor]) -> bytes:
    out = bytearray(_MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _string(key) + _value(value)
    offset = 0
    for tensor in tensors:
        out += _string(tensor.name)
        out += struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        out += struct.pack("<IQ", tensor.kind, offset)
        offset += tensor.num_bytes + _padding(tensor.num_bytes)
    return bytes(out) + bytes(_padding(len(out)))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _UINT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case _:
            texts = [item for item in value if isinstance(item, str)]
            numbers = [item for item in value if isinstance(item, int)]
            head = struct.pack("<IIQ", _ARRAY, _INT32 if numbers else _STRING, len(value))
            return head + b"".join(map(_string, texts)) + struct.pack(f"<{len(numbers)}i", *numbers)


def _padding(num_bytes: int) -> int:
    return -num_bytes % _ALIGNMENT


# -------------------------------------------------------------------- the disk


def _free(path: Path) -> int:
    return shutil.disk_usage(path.parent).free


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raises StorageError where no file can be written at `path`, or one is there (unless `overwrite`)."""
    if not path.parent.is_dir():
        raise StorageError(f"{path.parent} does not exist: create it first")
    if path.is_dir():
        raise StorageError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise StorageError(f"{path} already exists: name another file, or ask to overwrite it with --force")


def _write(write: Callable[[memoryview | bytes], int], tensor: GgufTensor, step: Callable[[int], None]) -> int:
    """Write one tensor and its padding; returns the CRC-32 of both."""
    checksum = written = 0
    for piece in _padded(tensor):
        write(piece)
        checksum = zlib.crc32(piece, checksum)
        written += len(piece)
        step(len(piece))
    if written != tensor.num_bytes + _padding(tensor.num_bytes):
        raise AssertionError(f"{tensor.name} came as {written:,} bytes, padding included, of {tensor.num_bytes:,}")
    return checksum


def _padded(tensor: GgufTensor) -> Iterator[memoryview | bytes]:
    for piece in tensor.pieces():
        yield piece.contiguous().flatten().numpy().data
    yield bytes(_padding(tensor.num_bytes))


def _read_back(
    partial: Path,
    path: Path,
    header: bytes,
    tensors: Sequence[GgufTensor],
    checksums: Sequence[int],
    step: Callable[[int], None],
) -> None:
    """Compare header, checksums and length on disk with what was meant."""
    buffer = memoryview(bytearray(_READ_BYTES))
    with partial.open("rb", buffering=0) as file:
        if sys.platform == "linux":  # Ask the disk, not the kernel's copy of what was just written.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        spans = [("the header", len(header), zlib.crc32(header))]
        spans += [
            (f"tensor {tensor.name}", tensor.num_bytes + _padding(tensor.num_bytes), checksum)
            for tensor, checksum in zip(tensors, checksums, strict=True)
        ]
        for what, left, expected in spans:
            checksum = 0
            while left and (count := file.readinto(buffer[: min(left, _READ_BYTES)])):
                checksum = zlib.crc32(buffer[:count], checksum)
                left -= count
                step(count)
            if left or checksum != expected:
                raise StorageError(f"{path}: {what} reads back differently: the disk is failing")
        if file.read(1):
            raise StorageError(f"{path}: is longer on disk than what was written: the disk is failing")
