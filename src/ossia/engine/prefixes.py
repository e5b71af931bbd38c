"""Beginnings of prompts kept on disk: a system prompt that was read once need not be read again after a restart.

A folder holds one file for each block of PAGE tokens, named after the block's key: the pages of all layers, full and
windowed. The folder's name is a digest of the model and of how it holds keys and values, so that nothing foreign is
found; whatever is wrong with a file, it is as if it were not there, and a line in the log says why. Files are written
whole, by a thread of their own, and those not used for the longest time go first where there are too many.

What lies there was computed from what users wrote: the folder is for its owner alone.
"""

import hashlib
import json
import logging
import os
import queue
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from ossia.engine.blocks import PAGE, Pool, Table, first_block
from ossia.engine.runner import Runner
from ossia.errors import StorageError
from ossia.files import write_whole
from ossia.model.adapt import tensors_of
from ossia.model.transformer import Transformer

log = logging.getLogger(__name__)

VERSION = 1
"""Of the files, and of the arithmetic whose results they hold: one more whenever either changes."""
DEFAULT_BYTES = 10_000_000_000
_SUFFIX = ".pages"
_MOST_HEADER = 4096
_QUEUE = 64
"""Blocks that wait to be written; what comes beyond them is not kept."""
_SAMPLES, _SAMPLE_BYTES = 256, 256
"""Of each tensor of the model, evenly spread, for the digest."""


class PrefixStore:
    """The blocks that are kept of one model. The engine's thread uses it."""

    def __init__(
        self, folder: Path, model: Transformer, *, cache_type: str = "bf16", max_bytes: int = DEFAULT_BYTES
    ) -> None:
        """folder: made if missing. max_bytes: of all files for this model together.

        Raises StorageError where the folder cannot be made or read.
        """
        self._digest = fingerprint(model, cache_type)
        self._folder = folder / self._digest
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[bytes, int] = OrderedDict()
        """Key → bytes of its file; the one not used for the longest time first."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = [(path, path.stat()) for path in self._folder.glob(f"*{_SUFFIX}")]
        except OSError as error:
            raise StorageError(f"{self._folder}: cannot be used ({error.strerror}): choose another place") from None
        for path, status in sorted(found, key=lambda each: each[1].st_mtime_ns):
            try:
                self._sizes[bytes.fromhex(path.stem)] = status.st_size
            except ValueError:
                log.warning("%s is no page of a prefix: it is ignored", path)
        self._queue: queue.Queue[tuple[bytes, Sequence[bytes]] | None] = queue.Queue(_QUEUE)
        self._writer = threading.Thread(target=self._write_all, name="ossia-prefixes", daemon=True)
        self._writer.start()

    def __contains__(self, key: bytes) -> bool:
        """Whether there seems to be such a block."""
        return key in self._sizes

    def load(self, key: bytes, sizes: Sequence[int]) -> list[memoryview] | None:
        """The parts of a block as they were saved, of `sizes` bytes each or, where one was left out, of none.

        None where the file is not what it should be; it is then forgotten.
        """
        path = self._path(key)
        try:
            content = path.read_bytes()
            parts = self._parsed(key, content, sizes)
        except (OSError, ValueError) as error:
            log.warning("%s is not used (%s)", path, error)
            with self._lock:
                self._sizes.pop(key, None)
            return None
        self.touch(key)
        return parts

    def touch(self, key: bytes) -> None:
        """It was of use: it stays longest."""
        with self._lock:
            if key in self._sizes:
                self._sizes.move_to_end(key)
        with suppress(OSError):  # Gone, or not ours: only its place in the order is lost.
            os.utime(self._path(key))

    def save(self, key: bytes, parts: Sequence[bytes]) -> None:
        """Keep a block, later; a part may be empty. Where too much waits to be written, this is not."""
        try:
            self._queue.put_nowait((key, parts))
        except queue.Full:
            log.info("prefixes come faster than the disk takes them: a block is not kept")

    def close(self) -> None:
        """Write what waits, and end the thread."""
        if self._writer.is_alive():
            self._queue.put(None)
            self._writer.join()

    # ---------------------------------------------------------------- files

    def _path(self, key: bytes) -> Path:
        return self._folder / f"{key.hex()}{_SUFFIX}"

    def _header(self, key: bytes, parts: Sequence[bytes | memoryview]) -> bytes:
        header = {
            "version": VERSION,
            "model": self._digest,
            "key": key.hex(),
            "sizes": [len(part) for part in parts],
            "crc32": [zlib.crc32(part) for part in parts],
        }
        return json.dumps(header).encode() + b"\n"

    def _parsed(self, key: bytes, content: bytes, sizes: Sequence[int]) -> list[memoryview]:
        """The parts in a file. Raises ValueError for anything but what `_header` would say of them."""
        end = content.find(b"\n", 0, _MOST_HEADER) + 1
        if not end:
            raise ValueError("it has no header")
        body, parts = memoryview(content)[end:], list[memoryview]()
        said = json.loads(content[:end])
        lengths = said.get("sizes") if isinstance(said, dict) else None
        if not isinstance(lengths, list) or len(lengths) != len(sizes):
            raise ValueError("its header does not say how long its parts are")
        for length, size in zip(lengths, sizes, strict=True):
            if length not in (0, size):
                raise ValueError(f"a part has {length} bytes, not {size}")
            parts.append(body[:length])
            body = body[length:]
        if body or self._header(key, parts) != content[:end]:
            raise ValueError("it is damaged, or of another model")
        return parts

    def _write_all(self) -> None:
        while (waiting := self._queue.get()) is not None:
            key, parts = waiting
            content = b"".join((self._header(key, parts), *parts))
            if key in self._sizes or len(content) > self._max_bytes:
                continue
            try:
                write_whole(self._path(key), content)
            except StorageError as error:
                log.warning("%s", error)
                continue
            with self._lock:
                self._sizes[key] = len(content)
                while sum(self._sizes.values()) > self._max_bytes:
                    oldest, _ = self._sizes.popitem(last=False)
                    self._path(oldest).unlink(missing_ok=True)


def keep(store: PrefixStore, runner: Runner, tables: Sequence[Table], keys: Sequence[bytes]) -> None:
    """Save the blocks with these keys, as far as they are in the pages still."""
    for key in keys:
        if key in store:
            store.touch(key)
            continue
        pages = [(table.window, table.pool.find(key)) for table in tables]
        parts = [b"" if page is None else runner.read_page(window, page) for window, page in pages]
        if any(parts):
            store.save(key, parts)


def recall(store: PrefixStore, runner: Runner, tables: Sequence[Table], keys: Sequence[bytes]) -> None:
    """Bring what is kept of a beginning with these keys into the pages, where it is then remembered.

    Only what it takes to go on after its last block that is known, and only as far as there is room.
    """
    full = [table.pool for table in tables if table.window is None]
    known = (key in store or (full and all(pool.find(key) is not None for pool in full)) for key in keys)
    blocks = next((block for block, there in enumerate(known) if not there), len(keys))
    sizes = [runner.page_bytes(table.window) for table in tables]
    held: list[tuple[Pool, int]] = []
    for block, key in enumerate(keys[:blocks]):
        seen = [block >= first_block(blocks * PAGE, table.window) for table in tables]
        pages = [table.pool.find(key) if needed else None for table, needed in zip(tables, seen, strict=True)]
        for table, page in zip(tables, pages, strict=True):
            if page is not None:  # Else room for the rest might be made of it.
                table.pool.share(page)
                held.append((table.pool, page))
        missing = [needed and page is None for needed, page in zip(seen, pages, strict=True)]
        parts = store.load(key, sizes) if any(missing) else []
        if parts is None:
            break
        for table, wanted, part in zip(tables, missing, parts, strict=False):
            page = table.pool.allocate() if wanted and part else None
            if page is not None:
                runner.write_page(table.window, page, part)
                table.pool.name(page, key)
                held.append((table.pool, page))
    for pool, page in reversed(held):
        pool.release(page)


def fingerprint(model: Transformer, cache_type: str) -> str:
    """A digest of what keys and values depend on: configuration, kernels, types, and samples of every weight."""
    digest = hashlib.sha256()
    about = {
        "version": VERSION,
        "page": PAGE,
        "cache_type": cache_type,
        "config": asdict(model.config),
        "activations": str(model.norm.scale.dtype),
        "kernels": {op: source.removesuffix(" (verified)") for op, source in model.kernels.sources.items()},
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    for name, tensor in sorted(tensors_of(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_sampled(tensor))
    return digest.hexdigest()[:32]


def _sampled(tensor: Tensor) -> bytes:
    flat = tensor.detach().flatten().view(torch.uint8)
    if len(flat) <= _SAMPLES * _SAMPLE_BYTES:
        return flat.cpu().numpy().tobytes()
    starts = [index * (len(flat) - _SAMPLE_BYTES) // (_SAMPLES - 1) for index in range(_SAMPLES)]
    return b"".join(flat[start : start + _SAMPLE_BYTES].cpu().numpy().tobytes() for start in starts)
