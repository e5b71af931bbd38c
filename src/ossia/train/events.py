"""A run's figures as TensorBoard reads them: one scalar for each number of each line of the log.

Each start of a run writes a file of its own, which tells TensorBoard to forget what an earlier one says of the steps
from there on; nothing on disk is cut. Events are written as they come and by this thread: a full disk is an error here,
not a thread that waits for ever.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ossia.errors import StorageError

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "loss": ("loss", "balance", "z", "validation_loss"),
    "speed": ("tokens_per_second", "mfu", "learnt_tokens"),
    "optimiser": ("gradient_norm", "rate", "flips"),
    "routers": ("largest_load", "smallest_load", "dead_experts", "router_entropy"),
}
"""Headings under which TensorBoard shows the metrics; any other stands under "run"."""
_TAGS = {name: f"{group}/{name}" for group, names in _GROUPS.items() for name in names}


class Events:
    """Writes the lines of one run's log into `folder`. Imports tensorboardX when the first is made."""

    def __init__(self, folder: Path, *, begin: int = 0) -> None:
        """`begin` is the first step that is written here. Raises StorageError where the disk refuses."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  # generated code

        self._folder, self._event = folder, Event
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # The second in its name is not enough for two starts to have two files.
            self._writer = EventsWriter(str(folder / "events"), f".{os.getpid()}.{time.time_ns()}")
            log = SessionLog(status=SessionLog.START)
            self._writer.write_event(Event(wall_time=time.time(), step=begin, session_log=log))
        except OSError as error:
            raise self._refusal(error) from None

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Write one line of the log: its numbers, and those in its lists and objects. Raises StorageError."""
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  # generated code

        summary = Summary()
        for name, value in metrics.items():
            if name != "step":
                for tag, number in _numbers(_TAGS.get(name, name if "/" in name else f"run/{name}"), value):
                    summary.value.add(tag=tag, simple_value=number)
        if not summary.value:
            return
        try:
            self._writer.write_event(self._event(wall_time=time.time(), step=int(metrics["step"]), summary=summary))
            self._writer.flush()
        except OSError as error:
            raise self._refusal(error) from None

    def close(self) -> None:
        """Close the file; all that was written lies in it."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refusal(self, error: OSError) -> StorageError:
        return StorageError(f"{self._folder}: cannot be written ({error.strerror}); free some space and --resume")


def _numbers(tag: str, value: Any) -> list[tuple[str, float]]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [(tag, float(value))]
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [each for name, entry in inside for each in _numbers(f"{tag}/{name}", entry)]
