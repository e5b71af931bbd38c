"""The options of every command that runs a model: on what it runs, and how it is held in memory."""

import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

# As the library has them, whose import would slow down every --help.
CACHE_TYPES = ("bf16", "q8")
DENSE = ("q8", "bf16")
ISAS = ("avx512", "avx2", "plain")


def _not(_context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    return not value


_OPTIONS = (
    click.option("--kernels", default="auto", show_default=True, help="auto, reference, torch or cpu."),
    click.option("--device", default="cpu", show_default=True, help="cpu, cuda or mps."),
    click.option("--threads", type=int, help="Threads of the computation.  [default: one a core]"),
    click.option("--isa", type=click.Choice(ISAS), help="Instructions of the cpu kernels.  [default: the best]"),
    click.option("--context", type=int, help="Tokens of prompt and answer.  [default: what model and memory allow]"),
    click.option(
        "--cache-type",
        type=click.Choice(CACHE_TYPES),
        default="bf16",
        show_default=True,
        help="How keys and values are held; q8 takes half the memory.",
    ),
    click.option(
        "--dense",
        type=click.Choice(DENSE),
        default="q8",
        show_default=True,
        help="How the weights outside the experts are held; with bf16 all arithmetic is exact.",
    ),
    click.option(
        "--no-cache",
        "packed_cache",
        is_flag=True,
        callback=_not,
        help="Neither use nor write the file of packed weights.",
    ),
)
_NAMES = ("kernels", "device", "threads", "isa", "context", "cache_type", "dense", "packed_cache")


def loading_options(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command these options, which come as its argument `loading`: keywords of `ossia.load`."""

    @wraps(function)
    def command(**given: Any) -> None:
        loading = {name: given.pop(name) for name in _NAMES}
        function(loading=loading, **given)

    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def named_adapters(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, Path]:
    """NAME=FOLDER of each adapter, as a callback of an option."""
    adapters: dict[str, Path] = {}
    for each in given:
        name, mark, folder = each.partition("=")
        if not (name and mark and folder):
            raise click.BadParameter(f"{each!r} is not NAME=FOLDER.", context, parameter)
        if name in adapters:
            raise click.BadParameter(f"there are two adapters {name!r}.", context, parameter)
        adapters[name] = Path(folder)
    return adapters


def tell(text: str) -> None:
    """What loading has to say, on standard error: dim on a terminal."""
    from ossia.cli.terminal import Pen

    Pen(sys.stderr).line(text, "dim")
