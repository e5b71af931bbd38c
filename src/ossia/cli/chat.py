"""`ossia chat`: one question answered, or a conversation."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from ossia.cli.loading import loading_options, tell
from ossia.errors import DataError
from ossia.files import read_json

if TYPE_CHECKING:
    from ossia.cli.terminal import ReasoningView
    from ossia.llm import LLM
    from ossia.reply import Stream

ADAPTER = "adapter"
"""The name here of the one that is given."""
EFFORTS = ("low", "medium", "high")  # As harmony has them, whose import would slow down every --help.


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is to be asked; None leaves a choice to the checkpoint."""

    effort: str = "medium"
    system: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    date: str | None = None
    seed: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    adapter: str | None = None

    def ask(self, llm: "LLM", messages: list[dict[str, Any]]) -> "Stream":
        """Begin the next turn of a conversation."""
        instructions = [{"role": "system", "content": self.system}] if self.system else []
        return llm.stream(
            [*instructions, *messages],
            effort=self.effort,
            tools=self.tools or None,
            date=self.date,
            seed=self.seed,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            adapter=self.adapter,
        )


@click.command("chat")
@click.argument("prompt", nargs=-1)
@click.option("--model", "-m", default="demo", show_default=True, help='"demo", a model folder, or a hub id.')
@click.option("--adapter", type=click.Path(path_type=Path), help="The folder of a LoRA adapter of the model.")
@click.option("--effort", "-e", type=click.Choice(EFFORTS), default="medium", help="How much to think.")
@click.option("--system", "-s", help="Instructions for the model.")
@click.option("--tools", type=click.Path(path_type=Path), help="A JSON file with OpenAI function tools; none is run.")
@click.option("--json", "as_json", is_flag=True, help="Print the reply as one JSON object.")
@click.option("--reasoning", type=click.Choice(["on", "fold", "off"]), default="on", help="How to show the thinking.")
@click.option("--seed", type=int, help="The same seed gives the same answer.")
@click.option("--temperature", type=float, help="0 takes the likeliest token, always. Default: the model's own.")
@click.option("--max-tokens", type=int, help="Longest answer, thinking included.")
@click.option("--date", help='What the model is told today is: "2025-06-28".')
@loading_options
def chat(
    prompt: tuple[str, ...],
    model: str,
    adapter: Path | None,
    effort: str,
    system: str | None,
    tools: Path | None,
    as_json: bool,
    reasoning: str,
    seed: int | None,
    temperature: float | None,
    max_tokens: int | None,
    date: str | None,
    loading: dict[str, Any],
) -> None:
    """Ask a model.

    With PROMPT, or one on standard input, answer and exit: the answer goes to standard output, thinking and speed to
    standard error. Without one, hold a conversation.
    """
    from ossia.engine.request import Sampling

    settings = Settings(
        effort=effort,
        system=system,
        tools=_read_tools(tools) if tools else (),
        date=date,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        adapter=None if adapter is None else ADAPTER,
    )
    # Refused before the model is loaded, which may take a while.
    replace(Sampling(seed=seed, max_tokens=max_tokens), temperature=1.0 if temperature is None else temperature)
    question = " ".join(prompt) if prompt else None
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is not None and not question.strip():
        raise click.UsageError("The prompt is empty.")
    if question is None and as_json:
        raise click.UsageError("--json needs a prompt, as an argument or on standard input.")
    if question is None and not sys.stdout.isatty():
        raise click.UsageError("A conversation needs a terminal; give a prompt to write the answer elsewhere.")

    import ossia

    llm = ossia.load(model, **loading, adapters={ADAPTER: adapter} if adapter else None, report=tell)
    view = cast("ReasoningView", reasoning)
    if question is None:
        from ossia.cli.conversation import converse

        converse(llm, settings, view)
    elif as_json:
        stream = settings.ask(llm, [{"role": "user", "content": question}])
        for _ in stream:
            pass
        click.echo(_harmless_json(stream.reply().to_json()))
    else:
        from ossia.cli.terminal import Display, Pen

        display = Display(out=Pen(sys.stdout), about=Pen(sys.stderr), reasoning=view)
        display.epilogue(display.show(settings.ask(llm, [{"role": "user", "content": question}])))


def _read_tools(path: Path) -> tuple[Mapping[str, Any], ...]:
    """A list of OpenAI function tools, or an object that holds one as `tools`."""
    raw = read_json(path, DataError, any_value=True)
    tools = cast("dict[str, Any]", raw).get("tools") if isinstance(raw, dict) else raw
    if not isinstance(tools, list):
        raise DataError(f"{path}: expected a list of function tools, or an object that holds one as tools")
    return tuple(cast("list[Mapping[str, Any]]", tools))


def _harmless_json(value: Any) -> str:
    """JSON in which text stays readable and control characters are escaped, those above ASCII too."""
    escaped = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}
    return json.dumps(value, ensure_ascii=False).translate(escaped)
