"""`ossia chat` without a prompt: a conversation in the terminal."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

from ossia.cli.chat import Settings
from ossia.cli.terminal import Display, Pen, ReasoningView
from ossia.engine.paged import PagedCache
from ossia.errors import OssiaError, StorageError
from ossia.files import write_whole
from ossia.harmony.messages import EFFORTS
from ossia.kernels.packed import Split
from ossia.llm import LLM
from ossia.model.adapt import packed_weights
from ossia.reply import Reply

if TYPE_CHECKING:
    from prompt_toolkit.history import History

HELP = """\
/effort low|medium|high    how long to think
/system TEXT               instructions for the model; without TEXT, none
/reasoning on|fold|off     how to show the thinking; Ctrl-T shows the last in full
/new                       begin again
/save FILE                 write the conversation as JSON
/help                      this list
Ctrl-C stops the answer, Ctrl-D leaves. To send text that begins with /, put a space first."""

Read = Callable[[str], str]
"""Shows a prompt and returns a line; raises EOFError for Ctrl-D and KeyboardInterrupt for Ctrl-C."""


class Conversation:
    """What was said so far, and what may be done about it."""

    def __init__(self, llm: LLM, settings: Settings, display: Display) -> None:
        self.messages: list[dict[str, Any]] = []
        self.last_reasoning = ""
        self._llm = llm
        self._settings = settings
        self._display = display
        self._commands: dict[str, Callable[[str], None]] = {
            "effort": self._effort,
            "system": self._system,
            "reasoning": self._reasoning,
            "new": self._new,
            "save": self._save,
            "help": self._help,
        }

    def run(self, read: Read) -> None:
        """Read and answer until Ctrl-D."""
        while True:
            try:
                line = read("> ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            try:
                self.handle(line, read)
            except OssiaError as error:
                self._say(str(error))
            except KeyboardInterrupt:
                self._say("stopped")

    def handle(self, line: str, read: Read) -> None:
        """Act on one line: a command, or something to be answered, with tool results asked for through `read`."""
        if line.startswith("/"):
            name, _, argument = line[1:].partition(" ")
            if name not in self._commands:
                self._say(f"/{name} is unknown: see /help, or put a space before the / to send it")
                return
            self._commands[name](argument.strip())
        elif line.strip():
            self._turn(line.strip(), read)

    # ---------------------------------------------------------------- asking

    def _turn(self, text: str, read: Read) -> None:
        """One question, and all answers up to one that calls no tool. What was not answered is taken back."""
        self.messages.append({"role": "user", "content": text})
        kept = len(self.messages) - 1
        try:
            while True:
                reply = self._answer()
                calls = reply.tool_calls if reply.finish_reason == "tool_calls" else ()
                if not (calls or reply.final or reply.commentary):
                    return
                results = self._results(calls, read)
                self.messages.extend([_message(reply, calls), *results])
                kept = len(self.messages)
                if not calls:
                    return
        except EOFError:
            self._say("no result: the call is taken back")
        finally:
            del self.messages[kept:]

    def _answer(self) -> Reply:
        stream = self._settings.ask(self._llm, self.messages)
        try:
            reply = self._display.show(stream)
        except KeyboardInterrupt:
            reply = stream.reply()
            self._say("stopped")
        self.last_reasoning = reply.reasoning
        self._display.epilogue(reply)
        return reply

    def _results(self, calls: tuple[Mapping[str, Any], ...], read: Read) -> list[dict[str, Any]]:
        """Nothing is run: the user says what each tool answers."""
        return [
            {
                "role": "tool",
                "tool_call_id": call["id"],
                "content": read(f"result of {call['function']['name']}> ").removeprefix("/result "),
            }
            for call in calls
        ]

    # ---------------------------------------------------------------- commands

    def _effort(self, argument: str) -> None:
        if argument and argument not in EFFORTS:
            self._say(f"effort {argument} is unknown: give {', '.join(EFFORTS)}")
            return
        self._settings = replace(self._settings, effort=argument or self._settings.effort)
        self._say(f"effort: {self._settings.effort}")

    def _system(self, argument: str) -> None:
        self._settings = replace(self._settings, system=argument or None)
        self._say(f"system: {argument or 'none'}")

    def _reasoning(self, argument: str) -> None:
        if argument and argument not in get_args(ReasoningView):
            self._say(f"reasoning {argument} is unknown: give {', '.join(get_args(ReasoningView))}")
            return
        self._display.reasoning = cast("ReasoningView", argument) if argument else self._display.reasoning
        self._say(f"reasoning: {self._display.reasoning}")

    def _new(self, _: str) -> None:
        self.messages.clear()
        self._say("a new conversation")

    def _save(self, argument: str) -> None:
        if not argument:
            self._say("give the name of a file: /save FILE")
            return
        system = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
        saved = {
            "messages": [*system, *self.messages],
            "tools": list(self._settings.tools),
            "effort": self._settings.effort,
        }
        save(Path(argument), json.dumps(saved, ensure_ascii=False, indent=2) + "\n")
        self._say(f"saved {len(self.messages)} messages to {argument}")

    def _help(self, _: str) -> None:
        self._say(HELP)

    def _say(self, text: str) -> None:
        self._display.about.line(text, "dim")


def _message(reply: Reply, calls: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    """The message of a reply, without calls that it did not finish."""
    message = {**reply.message, "tool_calls": list(calls)}
    if not calls:
        del message["tool_calls"]
    return message


def save(path: Path, text: str) -> None:
    """Write a new file, whole or not at all. Raises StorageError if it exists, cannot exist or the disk refuses."""
    try:
        path = path.expanduser()
        if path.exists():
            raise StorageError(f"{path} exists: give another name")
        write_whole(path, text, errors="backslashreplace")
    except (OSError, RuntimeError, ValueError) as error:  # Too long a name, the home of nobody, a NUL.
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageError(f"{path} cannot be the name of a file ({reason}): give another") from None


# -------------------------------------------------------------------- the terminal


def converse(llm: LLM, settings: Settings, reasoning: ReasoningView) -> None:
    """Hold a conversation on this terminal until Ctrl-D. Raises TokenizerError at once if the model cannot chat."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import run_in_terminal
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    _ = llm.tokenizer
    display = Display(out=Pen(sys.stdout), about=Pen(sys.stderr), reasoning=reasoning)
    conversation = Conversation(llm, settings, display)
    keys = KeyBindings()

    @keys.add("c-t")
    def _show_reasoning(_: KeyPressEvent) -> None:  # pyright: ignore[reportUnusedFunction]
        run_in_terminal(lambda: display.about.line(conversation.last_reasoning or "no thinking yet", "dim"))

    session: PromptSession[str] = PromptSession(history=_history(), key_bindings=keys)
    display.about.line(f"{describe(llm)}. /help for commands, Ctrl-D leaves.", "dim")
    conversation.run(session.prompt)


def describe(llm: LLM) -> str:
    """Name, size, form, kernels and context of a model, in a line."""
    forms = dict(packed_weights(llm.model))
    if forms:
        held = f"{'q8' if isinstance(forms['unembedding.weight'], Split) else 'bf16'} dense weights"
    else:
        held = str(llm.model.embedding.weight.dtype).removeprefix("torch.")
    sources = dict.fromkeys(llm.model.kernels.sources[op] for op in _ops_of(llm, packed=bool(forms)))
    return (
        f"{llm.folder.name}, {llm.config.num_parameters() / 1e6:,.1f} M parameters, {held}, "
        f"kernels: {', '.join(sources)}, {llm.context:,} tokens of context"
    )


def _ops_of(llm: LLM, *, packed: bool) -> tuple[str, ...]:
    """The ops that an answer calls."""
    if packed:
        return (
            "rms_norm",
            "rope",
            "attention_paged",
            "linear_bf16",
            "linear_q8",
            "experts_packed",
            "experts_exact",
            "best_split",
        )
    blocks = any(name.endswith("_blocks") for name in llm.model.state_dict())
    paged = isinstance(llm.new_cache(), PagedCache)
    return (
        "rms_norm",
        "rope",
        "attention_paged" if paged else "attention",
        "experts_mxfp4" if blocks else "experts",
    )


def _history() -> "History":
    """The lines typed in earlier conversations; only those of this one where the file cannot be had."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    folder = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "ossia"
    path = folder / "history"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        if not os.access(path, os.W_OK):
            return InMemoryHistory()
    except (OSError, RuntimeError):  # RuntimeError: there is no home.
        return InMemoryHistory()
    return FileHistory(str(path))
