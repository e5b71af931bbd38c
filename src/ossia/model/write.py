"""Writing a checkpoint of either published layout: streamed, whole or not at all, and read back before it counts.

Tensors are asked for one at a time and in file order, so that memory stays at the largest of them; experts are
converted one by one. Everything goes into a hidden folder beside the target, which is renamed at the very end. Only a
process that is killed outright leaves that folder; the next one to write the same target removes it.
"""

import json
import os
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from ossia.config import Layout, ModelConfig
from ossia.errors import CheckpointError, StorageError
from ossia.files import hidden, leftovers
from ossia.kernels import mxfp4
from ossia.model.checkpoint import Checkpoint, compare_names, open_checkpoint
from ossia.model.layouts import BF16_OR_F32, Stored, parameter_shapes, stored_tensors
from ossia.model.locate import CONFIG, INDEX, SINGLE
from ossia.model.safetensors_header import TensorSpec, encode_header, read_header

GENERATION_CONFIG = "generation_config.json"
_PUBLISHED_GENERATION: dict[str, Any] = {
    "bos_token_id": 199998,
    "do_sample": True,
    "eos_token_id": [200002, 199999, 200012],
    "pad_token_id": 199999,
}
_PUBLISHED_VOCABULARY = 201_088
_PIECE_BYTES = 16 * 2**20
_SPARE_BYTES = 2**20
"""Room for headers and configuration in the check of free space."""


class TensorSource(Protocol):
    """Where parameters come from: a dictionary, an open Checkpoint, or anything that makes a tensor when asked."""

    def keys(self) -> Iterable[str]:
        """The names of all parameters."""
        ...

    def __getitem__(self, name: str, /) -> torch.Tensor:
        """The parameter `name`."""
        ...


def write_checkpoint(
    folder: str | Path,
    config: ModelConfig,
    tensors: TensorSource,
    *,
    layout: Layout = "hf",
    packed: bool | None = None,
    max_shard_bytes: int = 5_000_000_000,
    extra_files: Sequence[Path] | Mapping[str, Path] = (),
    generation_config: Mapping[str, Any] | None = None,
    scale_rule: mxfp4.ScaleRule = "ceil",
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Checkpoint:
    """Write `tensors` as a checkpoint of `layout` in `folder`, and return it, opened.

    `tensors` holds exactly the parameters of `config`, experts packed or dense; `packed` says how to store the experts
    (default: as the configuration says), and each is converted where the two differ. Floating-point tensors are stored
    in BF16; norm scales and sinks that come in float32 stay so. The original layout is one file; the other is cut into
    shards of at most `max_shard_bytes` (a larger tensor has a shard of its own). `extra_files` are copied beside them,
    under their own names or those that a mapping gives.
    `generation_config` goes with the hf layout (default: the published one, where the vocabulary holds its ids).
    `progress(done, total)` counts bytes, half a byte when it is written and half when it is read back.

    Raises StorageError if the target exists and is not empty (unless `overwrite`, and then only if a checkpoint is all
    it holds), if the disk is full or refuses, or if what is read back differs; CheckpointError if `tensors` does not
    fit `config`. In every case nothing is left behind and an old target is untouched.

    Overwriting takes two renames: the old target moves aside to `.NAME.replaced-PID`, the new one takes its place. A
    process killed just between leaves none under the name; the next write of the same target puts the old one back.
    """
    target = Path(folder).absolute()
    extras = extra_files if isinstance(extra_files, Mapping) else {path.name: path for path in extra_files}
    packed = config.mxfp4_experts if packed is None else packed
    config = replace(config, mxfp4_experts=packed)
    config_json = config.to_json(layout)
    conversion = _Conversion(config=config, tensors=tensors, scale_rule=scale_rule)
    plan = [(stored, conversion.spec(stored)) for stored in stored_tensors(config, layout, packed=packed)]
    total = sum(spec.num_bytes for _, spec in plan)
    shards = _shards(plan, max_shard_bytes) if layout == "hf" else {SINGLE: plan}
    step = _Counter(total=total, report=progress)
    partial = hidden(target, "partial")
    try:
        _clear_leftovers(target)
        _check_target(target, overwrite)
        for path in extras.values():
            if not path.is_file():
                raise StorageError(f"{path}: is no file to copy beside the checkpoint")
        _check_space(target, total + sum(path.stat().st_size for path in extras.values()) + _SPARE_BYTES)
        partial.mkdir()
        checksums: dict[str, int] = {}
        for name, shard in shards.items():
            checksums |= _write_shard(partial / name, shard, conversion, step)
        _write_json(partial / CONFIG, config_json)
        if layout == "hf":
            if generation_config is None and config.vocab_size == _PUBLISHED_VOCABULARY:
                generation_config = _PUBLISHED_GENERATION
            if generation_config is not None:
                _write_json(partial / GENERATION_CONFIG, generation_config)
        if len(shards) > 1:
            weight_map = {stored.name: name for name, shard in shards.items() for stored, _ in shard}
            _write_json(partial / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        for name, path in extras.items():
            _copy(path, partial / name)
        _read_back(partial, {stored.name: spec for stored, spec in plan}, checksums, step)
        _sync_folder(partial)
        _move_into_place(partial, target)
    except OSError as error:
        raise _storage_error(error, target, total) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_checkpoint(target)


# -------------------------------------------------------------------- what goes into the files


@dataclass(frozen=True, slots=True, kw_only=True)
class _Conversion:
    """Makes the bytes of each stored tensor out of the parameters it holds."""

    config: ModelConfig
    tensors: TensorSource
    scale_rule: mxfp4.ScaleRule
    source_packed: bool = field(init=False)
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    scales: dict[str, list[torch.Tensor]] = field(init=False, default_factory=dict[str, list[torch.Tensor]])
    """Scales made along with the blocks that were just written, until their own turn comes."""

    def __post_init__(self) -> None:
        names = set(self.tensors.keys())
        object.__setattr__(self, "source_packed", any(name.endswith("_blocks") for name in names))
        object.__setattr__(self, "shapes", parameter_shapes(self.config, packed=self.source_packed))
        compare_names("the tensors to write are not those of the configuration", self.shapes, names)

    def spec(self, stored: Stored) -> TensorSpec:
        """Type and shape that `stored` will have in the file."""
        dtype = stored.dtypes[0]
        if stored.dtypes == BF16_OR_F32 and self.tensors[stored.parameters[0]].dtype == torch.float32:
            dtype = torch.float32
        return TensorSpec(dtype=dtype, shape=stored.shape)

    def pieces(self, stored: Stored, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        """Tensors whose bytes, one after another, are those of `stored`."""
        if stored.kind in ("plain", "rows") or (stored.kind in ("blocks", "scales") and self.source_packed):
            for name in stored.parameters:
                yield self._cast(name, self._parameter(name), dtype)
        elif stored.kind == "blocks":
            weight = stored.parameters[0].removesuffix("_blocks")
            self.scales[weight] = []
            for index, expert in enumerate(self._parameter(weight)):
                name = f"{weight} (expert {index})"
                blocks, scales = mxfp4.quantize(expert.contiguous(), scale_rule=self.scale_rule, name=name)
                self.scales[weight].append(scales)
                yield blocks
        elif stored.kind == "scales":
            yield from self.scales.pop(stored.parameters[0].removesuffix("_scales"))
        else:
            for expert in self._experts(stored.parameters[0], dtype):
                yield expert.transpose(-1, -2) if stored.kind == "dense_transposed" else expert

    def _experts(self, weight: str, dtype: torch.dtype) -> Iterator[torch.Tensor]:
        if not self.source_packed:
            yield from (self._cast(weight, expert, dtype) for expert in self._parameter(weight))
            return
        blocks_E, scales_E = self._parameter(f"{weight}_blocks"), self._parameter(f"{weight}_scales")
        for index, (blocks, scales) in enumerate(zip(blocks_E, scales_E, strict=True)):
            values = mxfp4.dequantize(blocks, scales, dtype)
            if not bool(torch.isfinite(values).all()):
                raise CheckpointError(f"{weight} (expert {index}) has values that BF16 cannot hold: keep it in MXFP4")
            yield values

    def _parameter(self, name: str) -> torch.Tensor:
        tensor = self.tensors[name].detach()
        if tensor.shape != self.shapes[name]:
            raise CheckpointError(
                f"{name} to write is {list(tensor.shape)}: the configuration says {list(self.shapes[name])}"
            )
        return tensor

    def _cast(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if tensor.dtype != dtype and not (tensor.is_floating_point() and dtype.is_floating_point):
            raise CheckpointError(f"{name} to write is {tensor.dtype}: expected {dtype}")
        return tensor.to(dtype)


def _shards(plan: Sequence[tuple[Stored, TensorSpec]], max_bytes: int) -> dict[str, list[tuple[Stored, TensorSpec]]]:
    cut: list[list[tuple[Stored, TensorSpec]]] = [[]]
    room = max_bytes
    for stored, spec in plan:
        # The scales of a pair are made with its blocks, so wherever a shard ends they still follow in order.
        if spec.num_bytes > room and cut[-1]:
            cut.append([])
            room = max_bytes
        cut[-1].append((stored, spec))
        room -= spec.num_bytes
    if len(cut) == 1:
        return {SINGLE: cut[0]}
    return {f"model-{number:05d}-of-{len(cut):05d}.safetensors": shard for number, shard in enumerate(cut, start=1)}


# -------------------------------------------------------------------- the disk


@dataclass(slots=True, kw_only=True)
class _Counter:
    total: int
    report: Callable[[int, int], None] | None
    done: int = 0
    """Twice the total at the end."""

    def __call__(self, num_bytes: int) -> None:
        self.done += num_bytes
        if self.report:
            self.report(self.done // 2, self.total)


def _clear_leftovers(target: Path) -> None:
    """What killed processes left: a checkpoint moved aside comes back unless its successor is there; the rest goes."""
    for moved in leftovers(target, "replaced"):
        if not target.exists():
            moved.rename(target)
    for left in [*leftovers(target, "replaced"), *leftovers(target, "partial")]:
        shutil.rmtree(left, ignore_errors=True)


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.parent.is_dir():
        raise StorageError(f"{target.parent} does not exist: create it first")
    if not target.exists():
        return
    if not target.is_dir():
        raise StorageError(f"{target} is a file: name a folder")
    held = list(target.iterdir())
    if held and not overwrite:
        raise StorageError(f"{target} already exists and is not empty: name another folder, or ask to overwrite it")
    if held and (not (target / CONFIG).is_file() or any(path.is_dir() for path in held)):
        raise StorageError(f"{target} holds more than a checkpoint: it is not overwritten, so name another folder")


def _check_space(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if needed > free:
        raise StorageError(f"{target}: needs {needed:,} bytes and {free:,} are free: make room, or name another disk")


def _storage_error(error: OSError, target: Path, total: int) -> StorageError:
    free = shutil.disk_usage(target.parent).free
    return StorageError(
        f"{target}: the disk refused ({error.strerror}): {total:,} bytes were to be written and {free:,} are free; "
        "nothing was kept, so make room or name another disk"
    )


def _write_shard(
    path: Path, shard: Sequence[tuple[Stored, TensorSpec]], conversion: _Conversion, step: _Counter
) -> dict[str, int]:
    """Write one file; returns the CRC-32 of each tensor."""
    checksums: dict[str, int] = {}
    with path.open("xb") as file:
        file.write(encode_header([(stored.name, spec) for stored, spec in shard]))
        for stored, spec in shard:
            checksum = 0
            for tensor in conversion.pieces(stored, spec.dtype):
                for piece in _bytes(tensor):
                    file.write(piece)
                    checksum = zlib.crc32(piece, checksum)
                    step(len(piece))
            checksums[stored.name] = checksum
        os.fsync(file.fileno())
    return checksums


def _bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, uncopied where it is contiguous and in main memory, a piece at a time."""
    whole = tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data
    for begin in range(0, len(whole), _PIECE_BYTES):
        yield whole[begin : begin + _PIECE_BYTES]


def _read_back(folder: Path, specs: Mapping[str, TensorSpec], checksums: Mapping[str, int], step: _Counter) -> None:
    """Compare types, shapes and checksums on disk with what was meant. Plain reads: a mapping would count as memory."""
    written = open_checkpoint(folder)
    if dict(written.stored) != dict(specs):
        raise StorageError(f"{folder}: the headers on disk are not those that were written: the disk is failing")
    buffer = memoryview(bytearray(_PIECE_BYTES))
    for path in sorted(set(written.files.values())):
        header = read_header(path)
        with path.open("rb", buffering=0) as file:
            if sys.platform == "linux":  # Ask the disk, not the kernel's copy of what was just written.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            for name, offset in header.offsets.items():
                file.seek(offset)
                left, checksum = header.specs[name].num_bytes, 0
                while left:
                    count = file.readinto(buffer[: min(left, _PIECE_BYTES)])
                    if not count:
                        break
                    checksum = zlib.crc32(buffer[:count], checksum)
                    left -= count
                    step(count)
                if checksum != checksums[name]:
                    raise StorageError(f"{path}: tensor {name} reads back differently: the disk is failing")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        os.fsync(file.fileno())


def _copy(source: Path, target: Path) -> None:
    if target.exists():
        raise StorageError(f"{source}: a checkpoint has a {target.name} of its own, so this one is not copied")
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(partial: Path, target: Path) -> None:
    old = hidden(target, "replaced")
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _sync_folder(target.parent)
    if old.exists():
        old.rename(partial)  # The caller deletes that; half deleted, it must not look like one to put back.
