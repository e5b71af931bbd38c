"""Progress of long work: a bar on a terminal, a plain line every tenth elsewhere. Always on standard error."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_SECONDS_BETWEEN_LINES = 1.0

Report = Callable[[int, int], None]
"""Takes how much is done and how much there is."""


@contextmanager
def byte_progress(title: str) -> Generator[Report]:
    """A function to call with bytes done and bytes in all, as often as one likes."""
    console = Console(stderr=True, markup=False, emoji=False)  # A title may name a folder: it is no markup.
    if not console.is_terminal:
        yield _plain_lines(title, console)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _plain_lines(title: str, console: Console) -> Report:
    next_tenth, next_time = 1, 0.0

    def report(done: int, total: int) -> None:
        nonlocal next_tenth, next_time
        now = time.monotonic()
        if total and done * 10 >= next_tenth * total and (now >= next_time or done >= total):
            next_tenth, next_time = done * 10 // total + 1, now + _SECONDS_BETWEEN_LINES
            console.print(f"{title}: {100 * done // total} % of {format_bytes(total)}", highlight=False, soft_wrap=True)

    return report


def format_bytes(num_bytes: int) -> str:
    """In decimal units, as disks and the published figures have them: "13.76 GB"."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.2f} {unit}"
    return f"{num_bytes} B"
