"""The soak, for some seconds; `python -m tests.server.soak` has the long one."""

from pathlib import Path

from tests.server.soak import soak


def test_a_short_soak(tmp_path: Path) -> None:
    report = soak(tmp_path, seconds=16)
    assert report.wrong == []
    assert report.stored > 0
