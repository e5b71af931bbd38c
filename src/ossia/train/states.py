"""Saved states of a run: written while it goes on, whole or not at all, read back before they count, the newest kept.

    states/step-00000100/   .metadata, __<process>_0.distcp   the tensors (torch.distributed.checkpoint)
                            state.json                        all else, for any number of processes
                            manifest.json                     SHA-256 of each of these files

A state is written under a hidden name and renamed at the very end, so that a process killed at any moment leaves the
states that were there. Tensors are cut among files as they are among processes, and any other number reads them.
"""

import hashlib
import io
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from ossia.errors import StorageError, TrainingError
from ossia.files import read_json
from ossia.train.distributed import World, joined, local

log = logging.getLogger(__name__)

STATE, MANIFEST = "state.json", "manifest.json"
_PIECE_BYTES = 2**22


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One saved state, whose files were compared with its manifest."""

    folder: Path
    step: int
    facts: dict[str, Any]
    """What was saved beside the tensors."""

    def read_into(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill `tensors` in place. Raises TrainingError where the state holds others, or of another shape."""
        held = cast("list[str]", self.facts["tensors"])
        if set(held) != set(tensors):
            raise TrainingError(
                f"{self.folder}: holds the weights of another model or optimiser: start in another --out"
            )
        try:
            with _alone_is_fine():
                load(dict(tensors), checkpoint_id=self.folder, no_dist=not dist.is_initialized())
        except (CheckpointException, ValueError, RuntimeError, OSError) as error:
            reason = str(error).strip().split("\n")[-1]
            raise TrainingError(f"{self.folder}: cannot be read ({reason}): start in another --out") from None


@dataclass(slots=True)
class States:
    """The saved states of one run. Every process of its world calls each method at the same point."""

    folder: Path
    keep: int
    """How many of the newest stay."""
    world: World
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "states"), init=False)
    _writing: "Future[None] | None" = field(default=None, init=False)
    _group: Any = field(default=None, init=False)
    """Of the background threads, whose collectives must not mix with those of the steps."""

    def __post_init__(self) -> None:
        if self.world.size > 1:
            self._group = dist.new_group(backend="gloo")

    # ---------------------------------------------------------------- writing

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Copy everything and write it in the background; `facts` is JSON.

        Raises StorageError where the disk refused the save before this one.
        """
        self.wait()
        copies = {name: joined(_copy(local(tensor)), tensor) for name, tensor in tensors.items()}
        held = json.dumps({**facts, "step": step, "tensors": sorted(tensors)}, indent=1) + "\n"
        self._writing = self._writer.submit(self._write, step, copies, held)

    def wait(self) -> None:
        """Wait until the last save is on disk. Raises StorageError where the disk refused, on every process."""
        said: str | None = None
        if self._writing is not None:
            try:
                self._writing.result()
            except (OSError, RuntimeError, CheckpointException, StorageError) as error:
                said = self._refused(error)
            self._writing = None
        if (said := self.world.agree(said)) is not None:
            raise StorageError(said)

    def _refused(self, error: BaseException) -> str:
        """One line; what DCP wraps is looked for inside."""
        causes = [error]
        if isinstance(error, CheckpointException):
            causes = [wrapped[0] for wrapped in error.failures.values()]
        reason = next((str(cause.strerror) for cause in causes if isinstance(cause, OSError)), str(causes[0]))
        newest = next(iter(self._steps()), None)
        kept = "no state was saved before" if newest is None else f"the state of step {newest} is kept"
        return f"{self.folder}: a state cannot be written ({reason}); {kept}: free some space and --resume"

    def _write(self, step: int, tensors: dict[str, Tensor], held: str) -> None:
        target = self.folder / _name(step)
        partial = self.folder / f".{_name(step)}.partial"
        try:
            files = _HashedFiles()
            writer = FileSystemWriter(partial)
            writer.fs = files
            single = self._group is None
            with _alone_is_fine():
                save(tensors, storage_writer=writer, process_group=self._group, no_dist=single)
            digests = files.digests
            if not single:
                gathered: list[dict[str, str]] = [{} for _ in range(self.world.size)]
                dist.all_gather_object(gathered, digests, group=self._group)
                digests = {name: digest for each in gathered for name, digest in each.items()}
            if self.world.is_main:
                self._finish(partial, target, digests, held)
        finally:
            if self.world.is_main:
                shutil.rmtree(partial, ignore_errors=True)

    def _finish(self, partial: Path, target: Path, digests: dict[str, str], held: str) -> None:
        """Everything on disk and equal to what was meant, and only then under its name; then the oldest goes."""
        digests[STATE] = hashlib.sha256(held.encode()).hexdigest()
        (partial / STATE).write_text(held, encoding="utf-8")
        (partial / MANIFEST).write_text(json.dumps({"sha256": digests}, indent=1) + "\n", encoding="utf-8")
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        if (damage := _damage(partial)) is not None:
            raise StorageError(f"{damage} right after it was written: the disk is failing")
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        _sync(self.folder)
        for step in self._steps()[self.keep :]:
            shutil.rmtree(self.folder / _name(step), ignore_errors=True)

    # ---------------------------------------------------------------- reading

    def newest(self) -> State | None:
        """The newest state whose files are whole; None where none was ever saved.

        A damaged one is passed over with a warning. Raises TrainingError where all of them are damaged.
        """
        damages: list[str] = []
        for step in self._steps():
            folder = self.folder / _name(step)
            damage = self.world.agree(_damage(folder) if self.world.is_main else None)
            if damage is None:
                facts = read_json(folder / STATE, TrainingError)
                return State(folder=folder, step=step, facts=facts)
            if self.world.is_main:
                log.warning("%s: this state is passed over for the one before", damage)
            damages.append(damage)
        if damages:
            raise TrainingError(f"{damages[0]}, and no state before it is whole: start again in another --out")
        return None

    def set_aside(self, step: int) -> bool:
        """Take the state of this step out of those that are resumed from, unless it is the only one."""
        self.wait()
        steps = self._steps()
        if step not in steps or len(steps) < 2:
            return False
        self.world.barrier()
        if self.world.is_main:
            aside = self.folder / f"diverged-{_name(step)}"
            shutil.rmtree(aside, ignore_errors=True)
            (self.folder / _name(step)).rename(aside)
        self.world.barrier()
        return True

    def _steps(self) -> list[int]:
        """Of the states that are there, the newest first."""
        names = [path.name.removeprefix("step-") for path in self.folder.glob("step-*")]
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def clear_partial(folder: Path) -> None:
    """Remove what a killed process left half-written."""
    for left in folder.glob(".step-*.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damage(folder: Path) -> str | None:
    """What is wrong with the files of a state; None where they are those of its manifest."""
    try:
        digests = cast("dict[str, str]", read_json(folder / MANIFEST, TrainingError)["sha256"])
        for name, digest in digests.items():
            if _digest(folder / name) != digest:
                return f"{folder / name} is damaged"
    except TrainingError as error:
        return str(error)
    except (OSError, KeyError) as error:
        return f"{folder}: cannot be read ({error})"
    return None


def _digest(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        if sys.platform == "linux":  # Ask the disk, not the kernel's copy of what was just written.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(_PIECE_BYTES):
            sha256.update(piece)
    return sha256.hexdigest()


@contextmanager
def _alone_is_fine() -> Generator[None]:
    """DCP warns each time that it is used by one process, even where it was told so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


class _HashedFile(io.BufferedWriter):
    """A file that knows the SHA-256 of what was meant to be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "wb"))
        self.sha256 = hashlib.sha256()
        self.refused: OSError | None = None
        """What the disk said, which torch's writer turns into words about positions."""

    def write(self, buffer: Any, /) -> int:
        self.sha256.update(buffer)
        try:
            return super().write(buffer)
        except OSError as error:
            self.refused = error
            raise


class _HashedFiles(FileSystem):
    """DCP's way to the disk, with the digest of each file it wrote."""

    def __init__(self) -> None:
        self.digests: dict[str, str] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase]:
        if mode != "wb":
            with super().create_stream(path, mode) as stream:
                yield stream
            return
        file = _HashedFile(Path(path))
        try:
            with file:
                yield file
        except RuntimeError:
            if file.refused is None:
                raise
            raise file.refused from None
        self.digests[Path(path).name] = file.sha256.hexdigest()

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        super().rename(path, new_path)
        self.digests[Path(new_path).name] = self.digests.pop(Path(path).name)
