"""Files that are read with every complaint in one line, and written whole or not at all."""

import glob
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ossia.errors import OssiaError, StorageError


def read_json(path: Path, error: type[OssiaError], *, any_value: bool = False) -> Any:
    """What the JSON file `path` (UTF-8) holds: an object, or whatever there is with `any_value`.

    Raises `error`, one line that begins with the path, where the file cannot be read and as `parse_json` does.
    """
    try:
        content = path.read_bytes()
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from None
    return parse_json(content, str(path), error, any_value=any_value)


def parse_json(content: str | bytes, where: str, error: type[OssiaError], *, any_value: bool = False) -> Any:
    """The value of a JSON text: an object, or whatever there is with `any_value`. No key of an object stands twice.

    Raises `error`, one line that begins with `where`, for anything else: bytes that are not UTF-8, brackets nested too
    deep, numbers of thousands of digits.
    """
    try:
        text = content if isinstance(content, str) else content.decode()
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as reason:
        raise error(f"{where}: not valid JSON ({reason}): mend the file, or fetch it again") from None
    if not any_value and not isinstance(value, dict):
        raise error(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which no key stands twice, of which JSON would keep the last in silence."""
    read = dict(pairs)
    if len(read) < len(pairs):
        raise ValueError(f"key {Counter(name for name, _ in pairs).most_common(1)[0][0]!r} stands twice")
    return read


def write_whole(
    path: Path, content: str | bytes | memoryview | Sequence[bytes | memoryview], *, errors: str = "strict"
) -> None:
    """Write `content` beside `path`, have it on disk, and only then give it that name.

    Text is written as UTF-8, several pieces one after another; `errors` is for text that UTF-8 cannot say. An old file
    of that name is replaced. Raises StorageError where the disk refuses; then nothing is left behind and an old file is
    untouched. What a killed process left half-written of the same file is removed.
    """
    whole = content.encode(errors=errors) if isinstance(content, str) else content
    pieces = (whole,) if isinstance(whole, bytes | memoryview) else whole
    partial = hidden(path, "partial")
    try:
        for leftover in leftovers(path, "partial"):
            leftover.unlink(missing_ok=True)
        try:
            with partial.open("wb") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another place"
        ) from None


def hidden(path: Path, what: str) -> Path:
    """The name beside `path` under which this process keeps it while it is `what`, such as "partial"."""
    return path.with_name(f".{path.name}.{what}-{os.getpid()}")


def leftovers(path: Path, what: str) -> list[Path]:
    """What lies under a `hidden` name of a process that is gone, or of this one, which has yet to begin."""
    mark = f".{path.name}.{what}-"
    found = [(each, each.name.removeprefix(mark)) for each in path.parent.glob(f"{glob.escape(mark)}*")]
    return [each for each, process in found if process.isdecimal() and not _is_anothers(int(process))]


def _is_anothers(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)  # Nothing is sent: it only asks.
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # Another user's.
        pass
    return True
