"""Packed models kept on disk, so that only the first start packs: later ones map the file.

`$XDG_CACHE_HOME/ossia/packed/` (or ~/.cache) holds one safetensors file for each checkpoint and choice of dense form,
named after a hash of what it was made of. A file is written beside its place, whole, and renamed; it is checked when it
is opened; whatever is wrong with it or with the disk, the model is packed anew and a line says why.

Tensors begin at multiples of 64 bytes; as the format allows no holes, fillers lie between them.
"""

import hashlib
import json
import logging
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from ossia.errors import CheckpointError, StorageError
from ossia.files import hidden, leftovers
from ossia.kernels import Kernels
from ossia.model.adapt import build_packed, fill
from ossia.model.checkpoint import Checkpoint
from ossia.model.mapping import MappedFile
from ossia.model.pack import EMBEDDING, Count, Piece, assembled, packed_specs, pieces
from ossia.model.safetensors_header import Header, TensorSpec, encode_header, read_header
from ossia.model.transformer import Transformer

VERSION = "1"
"""Of the packed forms and of this file: one more whenever either changes."""
SMALL_BYTES = 100_000_000
"""Packed models below this are made faster than a file of them is worth."""
BACKGROUND_BYTES = 1_000_000_000
"""Larger files go to the disk while the model already answers. Their names come last: nothing half-written is found."""
ALIGNMENT = 64

Report = Callable[[str], None]
"""Takes one line for people."""

_SAMPLES = 64
_SAMPLE_BYTES = 65_536
_PIECE_BYTES = 16 * 2**20
_SUFFIX = ".safetensors"
_FILLER = ".filler"
_SEAL = "sha256"
"""Key in the metadata of the hash over the rest of the header."""

log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where packed models are kept; it may not exist. Raises StorageError where this user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "ossia" / "packed"  # noqa: PTH117
    except RuntimeError:
        raise StorageError("there is no home folder to keep packed models in: set XDG_CACHE_HOME") from None


def cache_key(checkpoint: Checkpoint, dense: str) -> str:
    """What a packed file is named after, in hexadecimal digits.

    A hash over this version, `dense`, and for each file of the checkpoint its header, size, time of change and what it
    holds at 64 places of 64 KiB, evenly spread. To read all of a large checkpoint at every start would take about as
    long as to pack it; a change of values that keeps size and time and misses every sample goes unnoticed.
    """
    digest = hashlib.sha256(f"{VERSION} {dense}".encode())
    for path in sorted(set(checkpoint.files.values())):
        header = read_header(path)
        tensors = [(name, str(spec), header.offsets[name]) for name, spec in header.specs.items()]
        try:
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                digest.update(json.dumps([path.name, status.st_size, status.st_mtime_ns, tensors]).encode())
                for index in range(_SAMPLES):
                    file.seek(index * max(status.st_size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def packed_model(checkpoint: Checkpoint, kernels: Kernels, *, dense: str, keep: bool, report: Report) -> Transformer:
    """The model in the form that the native kernels read; its embedding stays in the checkpoint.

    dense: as in `adapt.build_packed`; keep: whether to use the file of packed weights; report: see `packed_tensors`.
    """
    model = build_packed(checkpoint.config, kernels, dense=dense)
    specs, make = packed_specs(model), partial(pieces, checkpoint, model)
    if keep:
        tensors = packed_tensors(checkpoint, specs, make, dense=dense, report=report)
    else:
        tensors = assembled(specs, make())
    return fill(model, {**tensors, EMBEDDING: checkpoint[EMBEDDING]}.items())


def packed_tensors(
    checkpoint: Checkpoint,
    specs: Mapping[str, TensorSpec],
    make: Callable[[], Iterable[Piece]],
    *,
    dense: str,
    report: Report,
) -> dict[str, Tensor]:
    """The tensors of `specs`: mapped from the file of this checkpoint, or made by `make`, and kept for the next time.

    `report` is told where the file is and how large, and what was wrong where it had to be made anew or cannot be kept.
    """
    num_bytes = sum(spec.num_bytes for spec in specs.values())
    if num_bytes < SMALL_BYTES:
        return assembled(specs, make())
    try:
        folder, key = cache_folder(), cache_key(checkpoint, dense)
        path = folder / f"{key[:32]}{_SUFFIX}"
        if path.exists():
            try:
                tensors = _opened(path, key, specs)
            except CheckpointError as error:
                report(f"{error}: {checkpoint.folder} is packed again")
                path.unlink()
            else:
                report(f"packed weights: {path} ({num_bytes:,} bytes)")
                return tensors
        folder.mkdir(parents=True, exist_ok=True)
        for stale in _made_of(checkpoint, dense):
            reason = "has changed since it was packed" if stale.usable else "was packed by another version of ossia"
            report(f"{checkpoint.folder} {reason}: it is packed again")
            stale.path.unlink(missing_ok=True)
        for leftover in _left_behind(folder):
            leftover.unlink(missing_ok=True)
        report(f"packing {checkpoint.folder}, this once, into {path} ({num_bytes:,} bytes)")
        model = {"model": str(checkpoint.folder.absolute()), "dense": dense, "key": key}
        partial = _write(path, specs, make(), model)
        keep = Thread(target=_keep, args=(partial, path, num_bytes, report), name="ossia-packed-cache")
        tensors = _opened(partial, key, specs)
        keep.start()
        if num_bytes < BACKGROUND_BYTES:
            keep.join()
        return tensors
    except StorageError as error:
        report(f"packed weights are not kept: {error}")
    except OSError as error:
        report(_not_kept(error, num_bytes))
    return assembled(specs, make())


# -------------------------------------------------------------------- what is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A file of the cache."""

    path: Path
    model: str
    """The folder it was made from, or "" where the file does not say."""
    dense: str
    num_bytes: int
    modified: float
    """Seconds since 1970."""
    usable: bool
    """Whether its header is sound and of this version."""


def kept() -> list[Kept]:
    """Every packed model there is, by name of file."""
    return [each for path in _files() if (each := _described(path)) is not None]


def clear() -> tuple[int, int]:
    """Remove every packed model, and what killed processes left of one: how many files and bytes.

    Models in use stay usable: the system keeps their files until they are let go of.
    """
    removed = num_bytes = 0
    for path in [*_files(), *_left_behind(cache_folder())]:
        try:
            num_bytes += path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"{path}: cannot be removed ({error.strerror})") from None
        removed += 1
    return removed, num_bytes


def verify(path: Path) -> None:
    """Read a packed file whole. Raises CheckpointError where a single bit is not as it was written."""
    header = _checked(path)
    sums = header.metadata.get("crc32", "")
    names = [name for name in header.specs if not name.endswith(_FILLER)]
    if len(sums) != 8 * len(names):
        raise CheckpointError(f"{path} is damaged")
    try:
        with path.open("rb", buffering=0) as file:
            for index, name in enumerate(names):
                file.seek(header.offsets[name])
                checksum, left = 0, header.specs[name].num_bytes
                while left and (piece := file.read(min(left, _PIECE_BYTES))):
                    checksum, left = zlib.crc32(piece, checksum), left - len(piece)
                if f"{checksum:08x}" != sums[8 * index : 8 * index + 8]:
                    raise CheckpointError(f"{path} is damaged: tensor {name} is not as it was written")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None


def _files() -> list[Path]:
    folder = cache_folder()
    return sorted(path for path in folder.glob(f"*{_SUFFIX}") if not path.name.startswith("."))


def _described(path: Path) -> Kept | None:
    """None where it has just been removed."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    metadata: Mapping[str, str] = {}
    usable = False
    try:
        metadata = read_header(path).metadata
        usable = bool(_checked(path))
    except CheckpointError:
        pass
    return Kept(
        path=path,
        model=metadata.get("model", ""),
        dense=metadata.get("dense", ""),
        num_bytes=status.st_size,
        modified=status.st_mtime,
        usable=usable,
    )


def _made_of(checkpoint: Checkpoint, dense: str) -> list[Kept]:
    """What was made of the files that lie, or lay, in this folder."""
    return [each for each in kept() if (each.model, each.dense) == (str(checkpoint.folder.absolute()), dense)]


def _left_behind(folder: Path) -> list[Path]:
    """What killed processes left of files they were writing."""
    names = {path.name[1:].rpartition(".partial-")[0] for path in folder.glob(f".*{_SUFFIX}.partial-*")}
    return [path for name in sorted(names) for path in leftovers(folder / name, "partial")]


# -------------------------------------------------------------------- the file


def _layout(specs: Mapping[str, TensorSpec]) -> list[tuple[str, TensorSpec]]:
    """The tensors and the fillers after them, in the order of the file."""
    out: list[tuple[str, TensorSpec]] = []
    for name, spec in specs.items():
        out.append((name, spec))
        if spec.num_bytes % ALIGNMENT:
            filler = TensorSpec(dtype=torch.uint8, shape=(-spec.num_bytes % ALIGNMENT,))
            out.append((f"{name}{_FILLER}", filler))
    return out


def _sealed(layout: list[tuple[str, TensorSpec]], metadata: Mapping[str, str]) -> bytes:
    """The header with a hash of itself. Its length does not depend on what the hashes in it are."""
    seal = hashlib.sha256(encode_header(layout, metadata=metadata)).hexdigest()
    return encode_header(layout, metadata={**metadata, _SEAL: seal}, alignment=ALIGNMENT)


def _write(path: Path, specs: Mapping[str, TensorSpec], pieces: Iterable[Piece], model: Mapping[str, str]) -> Path:
    """Write the content of `path` under a name beside it, which is returned; or raise OSError and leave nothing."""
    layout = _layout(specs)
    metadata = {"version": VERSION, **model, "crc32": "0" * 8 * len(specs)}
    start = len(_sealed(layout, metadata))
    offsets: dict[str, int] = {}
    end = start
    for name, spec in layout:
        offsets[name], end = end, end + spec.num_bytes
    count, checksums = Count(specs), dict.fromkeys(specs, 0)
    partial = hidden(path, "partial")
    try:
        with partial.open("xb", buffering=0) as file:
            _reserve(file.fileno(), end)
            for name, piece in pieces:
                first = count.add(name, piece)
                content = piece.contiguous().flatten().view(torch.uint8).numpy().data
                checksums[name] = zlib.crc32(content, checksums[name])
                _write_at(file.fileno(), content, offsets[name] + first * piece.itemsize)
            count.finish()
            metadata["crc32"] = "".join(f"{checksums[name]:08x}" for name in specs)
            _write_at(file.fileno(), memoryview(_sealed(layout, metadata)), 0)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def _keep(partial: Path, path: Path, num_bytes: int, report: Report) -> None:
    """Wait for the disk, then give the file its name; models that have it mapped do not notice."""
    try:
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        partial.unlink(missing_ok=True)
        report(_not_kept(error, num_bytes))


def _not_kept(error: OSError, num_bytes: int) -> str:
    return (
        f"packed weights are not kept: {error.filename or cache_folder()} refused ({error.strerror}); "
        f"make room for {num_bytes:,} bytes, or set XDG_CACHE_HOME to another place"
    )


def _reserve(descriptor: int, num_bytes: int) -> None:
    """Have the room at once or not at all; what is never written reads as zeros."""
    if sys.platform == "linux":
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:
        os.truncate(descriptor, num_bytes)


def _write_at(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _checked(path: Path) -> Header:
    """The header of a packed file. Raises CheckpointError, half a line, where it is not sound or of another version."""
    try:
        header = read_header(path)
    except CheckpointError as error:
        log.info("%s", error)
        raise CheckpointError(f"{path} is truncated or no packed model") from None
    metadata = dict(header.metadata)
    if metadata.get("version") != VERSION:
        raise CheckpointError(f"{path} is from another version of ossia, or no packed model")
    seal = metadata.pop(_SEAL, None)
    if seal != hashlib.sha256(encode_header(list(header.specs.items()), metadata=metadata)).hexdigest():
        raise CheckpointError(f"{path} is damaged")
    return header


def _opened(path: Path, key: str, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """Every tensor as a view of the file. Raises CheckpointError, half a line, where this is not the file wanted."""
    header = _checked(path)
    if header.metadata.get("key") != key or list(header.specs.items()) != _layout(specs):
        raise CheckpointError(f"{path} belongs to another model")
    mapped = MappedFile(path)
    mapped.prepare()
    return {name: mapped.tensor(spec, header.offsets[name]) for name, spec in specs.items()}
