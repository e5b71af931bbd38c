"""TensorBoard's files, read back record by record: framing, checksums, tags, steps, and where a resumed run begins."""

import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from ossia.errors import StorageError
from ossia.train.events import Events

pytest.importorskip("tensorboardX")


def crc32c(data: bytes) -> int:
    """Castagnoli's, bit by bit, masked as the format masks it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read(path: Path) -> list[Any]:
    """The events of one file: length, its checksum, content, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, events, at = path.read_bytes(), [], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        assert struct.unpack_from("<I", data, at + 8) == (crc32c(data[at : at + 8]),)
        content = data[at + 12 : at + 12 + length]
        assert struct.unpack_from("<I", data, at + 12 + length) == (crc32c(content),)
        events.append(Event.FromString(content))
        at += 16 + length
    return events


def scalars(events: list[Any]) -> dict[tuple[str, int], float]:
    return {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}


def test_every_number_of_a_line_is_a_scalar(tmp_path: Path) -> None:
    with Events(tmp_path / "tb") as events:
        events.write(
            {"step": 10, "loss": 1.5, "mfu": 0.25, "reward": 1, "load/0": [0.5, 1.5], "accounting": {"kept": 7}}
        )
        events.write({"step": 10, "samples": [{"prompt": "a", "answer": "b"}], "note": "text", "flag": True})
    (path,) = (tmp_path / "tb").iterdir()
    first, *rest = read(path)
    assert first.file_version == "brain.Event:2"
    assert scalars(rest) == {
        ("loss/loss", 10): 1.5,
        ("speed/mfu", 10): 0.25,
        ("run/reward", 10): 1.0,
        ("load/0/0", 10): 0.5,
        ("load/0/1", 10): 1.5,
        ("run/accounting/kept", 10): 7.0,
    }


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    events = Events(tmp_path)
    events.write({"step": 1, "loss": 2.0})
    (path,) = tmp_path.iterdir()
    assert scalars(read(path)) == {("loss/loss", 1): 2.0}
    events.close()


def test_each_start_has_its_own_file_and_says_from_where_it_writes(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import SessionLog

    for begin in (0, 11):
        with Events(tmp_path, begin=begin) as events:
            events.write({"step": 11, "loss": 2.0})
    files = [read(path) for path in sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)]
    starts = [[event for event in events if event.HasField("session_log")] for events in files]
    assert [[(event.session_log.status, event.step) for event in start] for start in starts] == [
        [(SessionLog.START, 0)],
        [(SessionLog.START, 11)],
    ]
    assert scalars(files[0]) == scalars(files[1]) == {("loss/loss", 11): 2.0}


def test_a_disk_that_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"file: cannot be written \(File exists\); free some space and --resume"):
        Events(tmp_path / "file")
    from tensorboardX.event_file_writer import EventsWriter

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Events(tmp_path / "tb") as events:
        monkeypatch.setattr(EventsWriter, "write_event", full)
        with pytest.raises(StorageError, match=r"tb: cannot be written \(No space left on device\)"):
            events.write({"step": 1, "loss": 1.0})
