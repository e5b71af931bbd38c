"""A title is text, whatever it looks like."""

import pytest

from ossia.cli.progress import byte_progress

TITLE = "writing [/red] [bold]:smile: {task}"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_title_is_no_markup(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    else:
        monkeypatch.delenv("FORCE_COLOR", raising=False)
    with byte_progress(TITLE) as report:
        report(5, 10)
        report(10, 10)
    out, err = capsys.readouterr()
    assert out == ""
    assert TITLE in err
    assert ("10/10 bytes" if terminal else "100 % of 10 B") in err
