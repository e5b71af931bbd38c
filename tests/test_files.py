"""JSON is read with one line for every complaint; files are written whole, and leftovers of killed processes go."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ossia.errors import DataError, OssiaError, StorageError, TokenizerError
from ossia.files import parse_json, read_json, write_whole


@pytest.mark.parametrize("error", [DataError, TokenizerError])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not valid JSON (Expecting value"),
        (b"\xff\xfe{}", "not valid JSON ('utf-8' codec can't decode byte 0xff"),
        (b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"a": ' + b"[" * 100_000, "not valid JSON (maximum recursion depth exceeded"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "not valid JSON (Exceeds the limit"),
        (b'{"a": {"b\\n": 1, "c": 2, "b\\n": 3}}', r"not valid JSON (key 'b\n' stands twice)"),
        (b"[1]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
    ],
)
def test_every_complaint_is_one_line_of_the_class_asked_for(
    tmp_path: Path, content: bytes, says: str, error: type[OssiaError]
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(error) as caught:
        read_json(path, error)
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: cannot be read \(No such file or directory\)$"):
        read_json(tmp_path / "none.json", DataError)
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)$"):
        read_json(tmp_path, DataError)


def test_sound_json_is_its_value(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": [1, {"é": null}]}', encoding="utf-8")
    assert read_json(tmp_path / "x.json", DataError) == {"a": [1, {"é": None}]}
    assert parse_json("[1, 2]", "x", DataError, any_value=True) == [1, 2]
    with pytest.raises(DataError, match=r"^x, line 3: not valid JSON"):
        parse_json("[1, 2", "x, line 3", DataError, any_value=True)


def test_an_old_file_is_replaced_and_leftovers_of_the_dead_go(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    for number in (process.pid, os.getpid(), os.getppid()):
        (tmp_path / f".x.partial-{number}").write_text("half")
    (tmp_path / "x").write_text("old")
    write_whole(tmp_path / "x", "new é")
    assert (tmp_path / "x").read_bytes() == "new é".encode()
    assert sorted(each.name for each in tmp_path.iterdir()) == [f".x.partial-{os.getppid()}", "x"]


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"x: cannot be written \(No space left on device\); free some space"):
        write_whole(tmp_path / "x", "new")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("x", "old")]
