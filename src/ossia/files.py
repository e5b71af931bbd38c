"""Files that are there whole or not at all."""

import os
from pathlib import Path

from ossia.errors import StorageError


def write_whole(path: Path, content: str | bytes | memoryview, *, errors: str = "strict") -> None:
    """Write `content` (text as UTF-8) beside `path`, have it on disk, and only then give it that name.

    `errors` is for text that UTF-8 cannot say. An old file of that name is replaced. Raises StorageError where the disk
    refuses; then nothing is left behind and an old file is untouched.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        try:
            with partial.open("wb") as file:
                file.write(content.encode(errors=errors) if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another place"
        ) from None
