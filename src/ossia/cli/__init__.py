"""The command `ossia`: one small module per subcommand, imported only when that one is asked for."""

import io
import logging
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from ossia import __version__
from ossia.cli.harmless import harmless
from ossia.errors import OssiaError

COMMANDS: dict[str, tuple[str, str]] = {
    "chat": ("chat:chat", "Talk to a model: one question, or a conversation."),
    "serve": ("serve:serve", "Serve a model over HTTP, with a page to talk to it."),
    "info": ("info:info", "Print a model's architecture, counts and memory plan."),
    "init": ("init:init", "Write a model with random weights."),
    "pull": ("pull:pull", "Fetch a model from the hub."),
    "bench": ("bench:bench", "Measure a model's speed beside the machine's limits."),
    "cache": ("cache:cache", "List, remove or verify the packed models kept on disk."),
    "export": ("export:export", "Write a model for llama.cpp, transformers or vLLM."),
    "merge": ("merge:merge", "Make an adapter part of its model."),
    "train": ("train:train", "Train a model."),
    "eval": ("eval:evaluate", "Measure a model on held-out problems."),
}
"""Name → module under `ossia.cli` and its command, and what to say of it in the list of commands."""

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _Commands(click.Group):
    """A group that knows its subcommands by name and imports one only to run it; errors are one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name][0].split(":")
        return getattr(import_module(f"ossia.cli.{module}"), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run, and exit: 0, 2 for bad input with one line on standard error, or 130 when interrupted.

        A reader of our output that has left is no error to tell of: click then ends quietly by itself.
        """
        try:
            result = super().main(args, prog_name or self.name, complete_var, standalone_mode=False, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(EXIT_BAD_INPUT)
        except click.UsageError as error:
            _fail(error.format_message() + (f" See: {error.ctx.command_path} --help" if error.ctx else ""))
        except click.ClickException as error:
            _fail(error.format_message())
        except OssiaError as error:
            _fail(str(error))
        except (click.Abort, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        sys.exit(result if isinstance(result, int) else 0)


def _fail(message: str) -> NoReturn:
    click.echo(harmless(f"ossia: {' '.join(message.split())}"), err=True)
    sys.exit(EXIT_BAD_INPUT)


class _Lines(logging.Handler):
    """Writes each message as a plain line on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(harmless(record.getMessage()), err=True)


@contextmanager
def _log_shown() -> Generator[None]:
    logger, lines = logging.getLogger("ossia"), _Lines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)


@click.command("ossia", cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ossia", message="%(prog)s %(version)s")
@click.option("--verbose", "-v", is_flag=True, help="Tell on standard error what is chosen, such as kernels.")
@click.pass_context
def cli(context: click.Context, verbose: bool) -> None:
    """Run, train and measure gpt-oss models.

    Begin with: ossia chat "What is 17 + 25?"
    """
    if verbose:
        context.with_resource(_log_shown())


def main() -> None:
    """Entry point of the command."""
    # No stream's encoding is a reason to fail, and a closed one (`ossia chat <&-`) is an empty one.
    for name, mode, errors in (
        ("stdin", "r", "replace"),
        ("stdout", "w", "backslashreplace"),
        ("stderr", "w", "backslashreplace"),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - kept open
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
    cli()
