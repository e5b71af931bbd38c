"""Files as memory: tensors that are read when they are used, and let go of when they no longer are."""

import math
import mmap
import sys
from contextlib import suppress
from pathlib import Path

import torch

from ossia.model.safetensors_header import TensorSpec

_MADV_HUGEPAGE, _MADV_POPULATE_READ = 14, 22
"""Of Linux; the standard library names the first only there, and the second nowhere."""
_PREPARED_AT_ONCE = 2**26


class MappedFile:
    """A file mapped for one process: its tensors may be written to, the file never changes.

    Pages are shared with the system's own copy of the file until then, so they cost no memory of their own.
    Raises OSError, or ValueError for an empty file.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def tensor(self, spec: TensorSpec, offset: int) -> torch.Tensor:
        """The tensor that begins at this byte, as a view: it keeps the file mapped, and no byte is read before use."""
        if not spec.num_bytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        values = torch.frombuffer(self._bytes, dtype=spec.dtype, count=math.prod(spec.shape), offset=offset)
        return values.view(spec.shape)

    def prepare(self) -> None:
        """Read the whole file into memory and map every page, so that no first use waits for one.

        Where the system cannot be asked to, pages come when they are used.
        """
        if sys.platform != "linux":
            return
        # In pages of 2 MB where the file system has them: decoding follows thousands of small ones less fast.
        with suppress(OSError):
            self._bytes.madvise(_MADV_HUGEPAGE)
        for first in range(0, len(self._bytes), _PREPARED_AT_ONCE):
            try:
                self._bytes.madvise(_MADV_POPULATE_READ, first, min(_PREPARED_AT_ONCE, len(self._bytes) - first))
            except OSError:  # Linux before 5.14.
                return

    def forget(self, offset: int, num_bytes: int) -> None:
        """Give back the memory of the whole pages in this range; used again, they are read again.

        What was written to a tensor in there is lost.
        """
        first = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (offset + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first and sys.platform != "win32":
            self._bytes.madvise(mmap.MADV_DONTNEED, first, last - first)
