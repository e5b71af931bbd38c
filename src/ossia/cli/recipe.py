"""A training recipe as a command: its flags are the fields of its settings, under their headings."""

import json
import os
import shlex
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import click

from ossia.cli import EXIT_BAD_INPUT, EXIT_INTERRUPTED
from ossia.cli.extras import need
from ossia.cli.watch import watched
from ossia.errors import OssiaError
from ossia.train.distributed import OthersGoneError
from ossia.train.events import Events
from ossia.train.loop import RUN, read_log
from ossia.train.report import write_report
from ossia.train.settings import Setting, Settings, groups, spec

Train = Callable[[Any, Callable[[dict[str, Any]], None]], Path]
"""Takes settings and what to call with each line of the log; gives the folder of what was trained."""


class RecipeCommand(click.Command):
    """Reads an optional recipe in TOML and the flags, which win over it, and trains."""

    def __init__(self, name: str, settings: type[Settings], train: Train, about: str) -> None:
        self._settings, self._train = settings, train
        super().__init__(
            name,
            params=[click.Argument(["recipe"], required=False, type=click.Path(path_type=Path)), *options(settings)],
            callback=self._run,
            help=f"{about}\n\nRECIPE is a file in TOML whose keys are these flags, with _ for -, such as the "
            "run/settings.toml of another run. Flags win over it.",
        )
        self.params.append(click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object at the end."))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Each group of settings under its heading."""
        shown = {each.name: _record(each, ctx) for each in self.get_params(ctx) if isinstance(each, click.Option)}
        for heading, group in groups(self._settings):
            with formatter.section(heading):
                formatter.write_dl([shown.pop(each.name) for each in group])
        with formatter.section("Output"):
            formatter.write_dl(list(shown.values()))

    def settings(self, recipe: Path | None, flags: Mapping[str, Any]) -> Any:
        """Checked settings, from a file and what the command line gave."""
        need("train", "tensorboardX")
        return self._settings.load(recipe, {name: value for name, value in flags.items() if value != ()})

    def _run(self, recipe: Path | None, as_json: bool, **flags: Any) -> None:
        with _told_to_launch():
            run(self.name or "", self.settings(recipe, flags), self._train, as_json=as_json)


def _record(option: click.Option, ctx: click.Context) -> tuple[str, str]:
    """What the help says of an option; of one with two spellings, both in one."""
    names, text = option.get_help_record(ctx) or ("", "")
    return (names if not option.secondary_opts else names.replace("--", "--[no-]", 1).split(" / ")[0]), text


def options(settings: type[Settings]) -> list[click.Option]:
    """One option for each field, without a default of its own: what is not given is left to the recipe."""
    return [_option(each) for each in spec(settings)]


def _option(setting: Setting) -> click.Option:
    switch = setting.type is bool
    notes = ["may be given again"] if setting.many else []
    if default := _default(setting):
        notes.append(default)
    return click.Option(
        [f"{setting.option}/--no-{setting.option[2:]}" if switch else setting.option],
        type=None if switch else click.Choice(setting.choices) if setting.choices else _TYPES[setting.type],
        metavar="PATH" if setting.type is Path else None,
        multiple=setting.many,
        default=None,
        help=setting.help + (f"  [{'; '.join(notes)}]" if notes else ""),
    )


_TYPES = {int: click.INT, float: click.FLOAT, str: click.STRING, Path: click.STRING}


def _default(setting: Setting) -> str:
    """What the help says of it; "" where what is not given is off, or absent."""
    if setting.default is MISSING:
        return "required"
    if setting.default is None or setting.default is False or setting.default == ():
        return ""
    if setting.many:
        return f"default: {' '.join(setting.default)}"
    return "default: on" if setting.default is True else f"default: {setting.default}"


# -------------------------------------------------------------------- a run


def run(name: str, settings: Any, train: Train, *, as_json: bool) -> None:
    """Train with everything a person watches: the terminal, TensorBoard, the report at the end.

    The settings have `out` and `steps`, those of an adapter `model`. Ctrl-C ends with a line that says how to go on.
    """
    out: Path = settings.out
    last: dict[str, Any] = {"step": 0}
    try:
        with ExitStack() as stack:
            show = stack.enter_context(watched(f"ossia train {name}: {out}", settings.steps))
            events: list[Events] = []

            def report(metrics: dict[str, Any]) -> None:
                if not events:  # The folder of the run is there now, and its log is cut back to where it goes on.
                    events.append(stack.enter_context(Events(out / RUN / "tensorboard", begin=_begin(out))))
                last.update(metrics)
                events[0].write(metrics)
                show(metrics)

            folder = train(settings, report)
    except KeyboardInterrupt:
        if _speaks():
            if not last["step"]:
                raise
            write_report(out)
            again = shlex.join(["ossia", "train", name, str(out / RUN / "settings.toml"), "--resume"])
            click.echo(f"stopped after step {last['step']}; go on with: {again}", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    if _speaks():
        _tell(folder, write_report(out), settings, last, as_json=as_json)


def _begin(out: Path) -> int:
    """The step from which on a run writes its log anew, asked after its first line."""
    before = read_log(out)[:-1]
    return int(before[-1]["step"]) + 1 if before else 0


@contextmanager
def _told_to_launch() -> Generator[None]:
    """One of several processes leaves what went wrong to who launched it, which has one line for all of them."""
    try:
        yield
    except OssiaError as error:
        told = os.environ.get("TORCHELASTIC_ERROR_FILE")
        if told is None:
            raise
        if not isinstance(error, OthersGoneError):  # Which is no cause.
            Path(told).write_text(json.dumps({"message": str(error), "timestamp": int(time.time())}), encoding="utf-8")
        raise click.exceptions.Exit(EXIT_BAD_INPUT) from None


def _speaks() -> bool:
    """Whether this is the process that speaks for all of a run."""
    return os.environ.get("RANK", "0") == "0"


def _tell(folder: Path, report: Path, settings: Any, last: Mapping[str, Any], *, as_json: bool) -> None:
    kind = "adapter" if (folder / "adapter_config.json").exists() else "checkpoint"
    if as_json:
        figures = {name: value for name, value in last.items() if isinstance(value, (int, float))}
        click.echo(json.dumps({kind: str(folder), "report": str(report), **figures}))
        return
    model = ["--model", settings.model, "--adapter", str(folder)] if kind == "adapter" else ["--model", str(folder)]
    click.echo(f"{kind}: {folder}\nreport: {report}\nTalk to it: {shlex.join(['ossia', 'chat', *model])}")
