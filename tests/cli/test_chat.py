"""The command, in process with click's runner, and as a program with pipes and a terminal of its own."""

import errno
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from click import Command, Context
from click.testing import CliRunner, Result

import ossia
from ossia.cli import COMMANDS, cli
from ossia.cli.chat import EFFORTS, Settings
from ossia.cli.conversation import Conversation, describe, save
from ossia.cli.harmless import harmless
from ossia.cli.terminal import Display, Pen
from ossia.errors import StorageError
from ossia.harmony import messages
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import cpu
from ossia.llm import LLM

TOOL = {"type": "function", "function": {"name": "get_weather"}}


def run(*args: str, input: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["chat", *args], input=input)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Tokenizer) -> Callable[..., None]:
    """Put words into the model's mouth, one text a turn: text with special tokens by name, "^C" for an interruption."""

    def script(*turns: str) -> None:
        waiting = iter(turns)

        def generate(*_: object, **__: object) -> Iterator[int]:
            for piece in re.split(r"(<\|\w+\|>|\^C)", next(waiting)):
                if piece == "^C":
                    raise KeyboardInterrupt
                special = tiny_tokenizer.special.get(piece)
                yield from [special] if special is not None else tiny_tokenizer.encode(piece)

        monkeypatch.setattr("ossia.llm.generate", generate)

    return script


THOUGHT = "<|channel|>analysis<|message|>6 sevens<|end|><|start|>assistant"
ANSWER = "<|channel|>final<|message|>42<|return|>"
CALL = '<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city":"Rome"}<|call|>'


# -------------------------------------------------------------------- one question


def test_the_answer_goes_to_stdout_and_the_rest_to_stderr(tiny_model: Path, says: Callable[..., None]) -> None:
    says(THOUGHT + ANSWER)
    result = run("What", "is 6 * 7?", "--model", str(tiny_model))
    assert result.exit_code == 0
    assert result.stdout == "42\n"
    thought, speed = result.stderr.splitlines()
    assert thought == "6 sevens"
    assert re.fullmatch(r"\d+ tokens, \d+\.\d tokens/s \(prompt: \d+ tokens, \d+\.\d\d s\)", speed)


@pytest.mark.parametrize(("view", "shown"), [("on", ["6 sevens"]), ("off", []), ("fold", ["▸ thought for 8 tokens"])])
def test_thinking_is_shown_as_asked(tiny_model: Path, says: Callable[..., None], view: str, shown: list[str]) -> None:
    says(THOUGHT + ANSWER)
    result = run("?", "--model", str(tiny_model), "--reasoning", view)
    assert result.stderr.splitlines()[:-1] == shown


def test_a_prompt_comes_through_a_pipe(tiny_model: Path) -> None:
    result = run("--model", str(tiny_model), input="6 * 7\n")
    assert (result.exit_code, result.stdout) == (0, "42\n")


def test_json_holds_the_fields_of_reply(tiny_model: Path, says: Callable[..., None]) -> None:
    says(THOUGHT + "<|channel|>final<|message|>é \x1b[31m \x9b<|return|>")
    result = run("?", "--model", str(tiny_model), "--json")
    reply = json.loads(result.stdout)
    assert list(reply) == [
        "reasoning", "final", "commentary", "tool_calls", "finish_reason", "usage", "timings", "assumed",
    ]  # fmt: skip
    assert (reply["final"], reply["reasoning"]) == ("é \x1b[31m \x9b", "6 sevens")
    assert "é" in result.stdout
    assert not set("\x1b\x9b") & set(result.stdout)


def test_a_call_is_printed_as_it_is(tiny_model: Path, tmp_path: Path, says: Callable[..., None]) -> None:
    says(CALL)
    (tmp_path / "tools.json").write_text(json.dumps([TOOL]), encoding="utf-8")
    result = run("?", "--model", str(tiny_model), "--tools", str(tmp_path / "tools.json"))
    assert result.stdout == '→ functions.get_weather {"city":"Rome"}\n'


def test_an_interruption_ends_quietly(tiny_model: Path, says: Callable[..., None]) -> None:
    says("<|channel|>final<|message|>4^C")
    result = run("?", "--model", str(tiny_model))
    assert (result.exit_code, result.stdout, result.stderr.strip()) == (130, "4\n", "")


def test_options_reach_the_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Tokenizer) -> None:
    seen: list[tuple[str, ossia.Sampling, int]] = []

    def spy(_: object, prompt: list[int], sampling: ossia.Sampling, *, context: int, cache_type: str) -> Iterator[int]:
        assert cache_type == "bf16"
        seen.append((tiny_tokenizer.decode(prompt), sampling, context))
        return iter(())

    monkeypatch.setattr("ossia.llm.generate", spy)
    options = "--effort high --system Rhyme. --date 2025-06-28 --seed 5 --temperature 0.5 --max-tokens 9".split()
    assert run("Hi", "--model", str(tiny_model), "--context", "500", *options).exit_code == 0
    ((prompt, sampling, context),) = seen
    for part in ("Reasoning: high", "# Instructions\n\nRhyme.", "Current date: 2025-06-28", "user<|message|>Hi<|end|>"):
        assert part in prompt
    assert (sampling.seed, sampling.temperature, sampling.max_tokens, context) == (5, 0.5, 9, 500)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["?", "--model", "/nowhere"], "ossia: /nowhere is no folder: give 'demo', a model folder, or a hub id"),
        (["?", "--temperature", "-1"], "ossia: temperature is -1.0: give a number at least 0"),
        (["?", "--temperature", "warm"], "ossia: Invalid value for '--temperature'"),
        (["?", "--seed", "-3"], "ossia: seed is -3: give a whole number from 0"),
        (["?", "--max-tokens", "0"], "ossia: max_tokens is 0: give a whole number of at least 1"),
        (["?", "--effort", "huge"], "ossia: Invalid value for '--effort'"),
        (["?", "--tools", "/nowhere.json"], "ossia: /nowhere.json: cannot be read (No such file or directory)"),
        (["?", "--nonsense"], "ossia: No such option"),
        (["  "], "ossia: The prompt is empty."),
        ([], "ossia: The prompt is empty."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args: list[str], says: str) -> None:
    result = run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(says)
    assert result.stderr.count("\n") == 1


def test_bad_tools_and_long_prompts_are_one_line_too(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "tools.json"
    for content, says in (
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('"x"', "expected a list"),
        ('[{"type": "cat"}]', "tools[0].type"),
    ):
        path.write_text(content, encoding="utf-8")
        result = run("?", "--model", str(tiny_model), "--tools", str(path))
        assert (result.exit_code, says in result.stderr, result.stderr.count("\n")) == (2, True, 1)
    result = run("x" * 2000, "--model", str(tiny_model))
    assert result.exit_code == 2
    assert re.match(r"ossia: the prompt has \d+ tokens and the context 1024, answer included: shorten", result.stderr)


# -------------------------------------------------------------------- the group


def test_every_command_is_listed_with_its_help() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, (_, text) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_where_the_table_says(name: str) -> None:
    command = cli.get_command(Context(cli), name)
    assert isinstance(command, Command)
    assert command.name == name


def test_the_efforts_are_those_of_the_format() -> None:
    """They are spelt again for the sake of a quick --help."""
    assert EFFORTS == messages.EFFORTS


@pytest.mark.parametrize(
    ("options", "held"),
    [
        ({"kernels": "torch"}, "float32, kernels: torch"),
        ({"kernels": "reference"}, "float32, kernels: reference"),
        ({"kernels": "torch", "dtype": torch.bfloat16}, "bfloat16, kernels: torch"),
        ({"kernels": "cpu"}, "q8 dense weights, kernels: cpu"),
        ({"kernels": "cpu", "dense": "bf16"}, "bf16 dense weights, kernels: cpu"),
        ({"kernels": "cpu", "dtype": torch.float32}, "float32, kernels: cpu"),
    ],
)
def test_a_model_is_described_by_what_an_answer_uses(tiny_model: Path, options: dict[str, Any], held: str) -> None:
    if options["kernels"] == "cpu" and not cpu.available():
        pytest.skip("the native kernels were not built")
    described = describe(ossia.load(tiny_model, context=99, **options))
    assert described == f"tiny, 0.1 M parameters, {held}, 99 tokens of context"


def test_verbose_shows_what_is_chosen(tiny_model: Path) -> None:
    args = ["chat", "?", "--model", str(tiny_model), "--kernels", "torch"]
    told, silent = (CliRunner().invoke(cli, [*flags, *args]) for flags in (["-v"], []))
    assert told.stdout == silent.stdout == "42\n"
    assert told.stderr.splitlines()[0].startswith("kernels: rms_norm torch, rope torch, attention torch")
    assert len(silent.stderr.splitlines()) == len(told.stderr.splitlines()) - 1


def test_version_and_unknown_commands() -> None:
    assert CliRunner().invoke(cli, ["--version"]).stdout == f"ossia {ossia.__version__}\n"
    result = CliRunner().invoke(cli, ["sing"])
    assert (result.exit_code, result.stderr) == (2, "ossia: No such command 'sing'. See: ossia --help\n")


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, ossia.cli\n"
        "try: ossia.cli.cli(['chat', '--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert not {'torch', 'tiktoken', 'prompt_toolkit'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


# -------------------------------------------------------------------- writing


def test_control_characters_become_pictures() -> None:
    assert harmless("a\tb\n\x1b]0;title\x07\r\x7f\x9bé🙂") == "a\tb\n␛]0;title␇␍␡\ufffdé🙂"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_shades_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)

    def written(stream: StringIO) -> str:
        Pen(stream).write("hi", "dim")
        return stream.getvalue()

    assert written(Terminal()) == "\x1b[2mhi\x1b[0m"
    assert written(StringIO()) == "hi"
    monkeypatch.setenv("TERM", "dumb")
    assert written(Terminal()) == "hi"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert written(Terminal()) == "hi"


def test_a_file_is_saved_whole_and_never_over_another(tmp_path: Path) -> None:
    save(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
    with pytest.raises(StorageError, match="a exists: give another name"):
        save(tmp_path / "a", "other")
    with pytest.raises(StorageError, match="cannot be written"):
        save(tmp_path / "no" / "folder", "text")
    for name in ("~nobody-of-that-name/a", "NUL\0", "long" * 99, "surrogate\ud800"):
        with pytest.raises(StorageError, match="cannot be the name of a file"):
            save(Path(name), "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


# -------------------------------------------------------------------- a conversation


@dataclass
class Talk:
    """A conversation whose lines come from a list, and what it wrote."""

    llm: LLM
    settings: Settings
    written: StringIO

    def __call__(self, *lines: str | type[BaseException]) -> Conversation:
        pen = Pen(self.written)
        conversation = Conversation(self.llm, self.settings, Display(out=pen, about=pen))
        waiting = iter(lines)

        def read(prompt: str) -> str:
            self.written.write(prompt)
            line = next(waiting, EOFError)
            if isinstance(line, str):
                self.written.write(f"{line}\n")
                return line
            raise line

        conversation.run(read)
        return conversation


@pytest.fixture
def talk(tiny_model: Path) -> Talk:
    return Talk(ossia.load(tiny_model), Settings(tools=(TOOL,)), StringIO())


def contents(conversation: Conversation) -> list[Any]:
    return [message["content"] for message in conversation.messages]


def test_turns_follow_each_other(talk: Talk, says: Callable[..., None]) -> None:
    says(THOUGHT + ANSWER, ANSWER)
    conversation = talk("6 * 7?", "  ", KeyboardInterrupt, " /etc is what?")
    assert contents(conversation) == ["6 * 7?", "42", "/etc is what?", "42"]
    assert conversation.messages[1]["reasoning"] == "6 sevens"


def test_ctrl_c_stops_the_answer_and_not_the_conversation(talk: Talk, says: Callable[..., None]) -> None:
    says("<|channel|>analysis<|message|>hm^C", "<|channel|>final<|message|>40 and^C", ANSWER)
    conversation = talk("first", "second", "third")
    # What was never answered is taken back; half an answer stays.
    assert contents(conversation) == ["second", "40 and", "third", "42"]
    assert talk.written.getvalue().count("stopped\n") == 2


def test_the_user_plays_the_tool(talk: Talk, says: Callable[..., None]) -> None:
    says(THOUGHT + CALL, ANSWER)
    conversation = talk("Weather?", "/result rain")
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[2]["content"] == "rain"
    assert '→ functions.get_weather {"city":"Rome"}\n' in talk.written.getvalue()
    assert "result of get_weather> " in talk.written.getvalue()


@pytest.mark.parametrize("leave", [EOFError, KeyboardInterrupt])
def test_a_call_may_be_left_without_a_result(talk: Talk, says: Callable[..., None], leave: type[BaseException]) -> None:
    says(CALL, ANSWER)
    assert contents(talk("Weather?", leave, "6 * 7?")) == ["6 * 7?", "42"]


@pytest.mark.parametrize("recipient", ["functions.", "functions.functions.", "functions.a/b", "wétter", "\x1b[2J"])
def test_a_call_to_what_is_no_name_does_not_spoil_the_conversation(
    talk: Talk, says: Callable[..., None], recipient: str
) -> None:
    says(CALL.replace("functions.get_weather", recipient), ANSWER)
    conversation = talk("Weather?", "6 * 7?")
    assert contents(conversation) == ["Weather?", '{"city":"Rome"}', "6 * 7?", "42"]
    assert "names no function: taken as text" in talk.written.getvalue()
    assert "\x1b" not in talk.written.getvalue()


def test_commands_change_what_comes_next(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Tokenizer
) -> None:
    prompts: list[str] = []

    def spy(_: object, prompt: list[int], *__: object, **___: object) -> Iterator[int]:
        prompts.append(tiny_tokenizer.decode(prompt))
        return iter([tiny_tokenizer.special["<|channel|>"], *b"final", tiny_tokenizer.special["<|message|>"], *b"ok"])

    monkeypatch.setattr("ossia.llm.generate", spy)
    talk("/effort low", "/system Rhyme.", "one", "/new", "/effort", "/system", "two", "/effort huge", "/sing", "/help")
    assert "Reasoning: low" in prompts[0] and "# Instructions\n\nRhyme." in prompts[0]
    assert "Reasoning: low" in prompts[1] and "Rhyme" not in prompts[1] and "one" not in prompts[1]
    written = talk.written.getvalue()
    for part in ("effort huge is unknown: give low, medium, high", "/sing is unknown: see /help", "/save FILE"):
        assert part in written


def test_the_thinking_can_be_folded(talk: Talk, says: Callable[..., None]) -> None:
    says(THOUGHT + ANSWER, THOUGHT + ANSWER, THOUGHT + ANSWER)
    conversation = talk("/reasoning fold", "a", "/reasoning off", "b", "/reasoning on", "c", "/reasoning loud")
    written = talk.written.getvalue()
    assert (written.count("thought for 8 tokens"), written.count("6 sevens")) == (1, 1)
    assert "reasoning loud is unknown: give on, fold, off" in written
    assert conversation.last_reasoning == "6 sevens"


def test_what_was_said_can_be_saved(talk: Talk, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk("/save", "/system Rhyme.", "6 * 7?", "/save ~nobody-of-that-name/a", f"/save {path}", f"/save {path}")
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert saved["tools"] == [TOOL]
    assert saved["effort"] == "medium"
    assert [message["role"] for message in saved["messages"]] == ["system", "user", "assistant"]
    assert "give the name of a file" in talk.written.getvalue()
    assert "cannot be the name of a file" in talk.written.getvalue()
    assert "exists: give another name" in talk.written.getvalue()


def test_an_error_ends_the_turn_and_not_the_conversation(talk: Talk) -> None:
    conversation = talk("x" * 2000, "6 * 7?")
    assert contents(conversation) == ["6 * 7?", "42"]
    assert "shorten the prompt" in talk.written.getvalue()


# -------------------------------------------------------------------- as a program

PROGRAM = [sys.executable, "-c", "from ossia.cli import main; main()", "chat"]


def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path), "PYTHONUTF8": "1"}


def test_no_escape_sequence_outside_a_terminal(tiny_model: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "--model", str(tiny_model)], input=b"6 * 7", capture_output=True, env=environment(tmp_path)
    )
    assert (done.returncode, done.stdout) == (0, b"42\n")
    assert b"\x1b" not in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_bytes_that_are_no_text_are_read_and_escapes_in_errors_disarmed(tiny_model: Path, tmp_path: Path) -> None:
    for model, code in ((str(tiny_model), 0), ("/no\x1b]0;title\x07", 2)):
        done = subprocess.run(
            [*PROGRAM, "--model", model], input=b"\xff", capture_output=True, env=environment(tmp_path)
        )
        assert (done.returncode, done.stderr.count(b"\n")) == (code, 1)
        assert b"\x1b" not in done.stderr


def test_a_closed_input_is_an_empty_one(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&-', "sh", *PROGRAM]
    done = subprocess.run(command, capture_output=True, env=environment(tmp_path))
    assert (done.returncode, done.stderr) == (2, b"ossia: The prompt is empty. See: ossia chat --help\n")


def test_a_reader_that_leaves_is_no_error(tiny_model: Path, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*PROGRAM, "?", "--model", str(tiny_model)], stdout=write_end, stderr=subprocess.PIPE, env=environment(tmp_path)
    )
    os.close(write_end)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


READY = "\x1b[?2004h"
"""Bracketed paste is switched on when a line may be typed."""


class Screen:
    """A program on a terminal of its own."""

    def __init__(self, args: list[str], env: dict[str, str]) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.execve(args[0], args, env)
        self._seen = ""

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Everything since the last call, once it holds `text`."""
        deadline = time.monotonic() + seconds
        while text not in self._seen:
            if not select.select([self._fd], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"{text!r} never came: {self._seen!r}")
            try:
                data = os.read(self._fd, 4096)
            except OSError as error:
                assert error.errno == errno.EIO
                raise AssertionError(f"ended before {text!r}: {self._seen!r}") from None
            # Ask a terminal where its cursor is, and it answers.
            if b"\x1b[6n" in data:
                os.write(self._fd, b"\x1b[1;1R")
            self._seen += data.decode(errors="replace")
        seen, _, self._seen = self._seen.partition(text)
        return seen + text

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def close(self) -> int:
        """The exit code, once the program has ended."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if select.select([self._fd], [], [], 0.05)[0]:
                    os.read(self._fd, 4096)
            except OSError:
                pass
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                os.close(self._fd)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGKILL)
        raise AssertionError("the program did not end")


def test_a_conversation_on_a_terminal(tiny_model: Path, tmp_path: Path) -> None:
    screen = Screen([*PROGRAM, "--model", str(tiny_model)], environment(tmp_path))
    begun = screen.wait_for("/help for commands, Ctrl-D leaves.")
    held = "q8 dense weights, kernels: cpu" if cpu.available() else "float32, kernels: torch"
    assert f"tiny, 0.1 M parameters, {held}, 1,024 tokens of context. " in begun
    screen.wait_for(READY)
    screen.type("6 * 7?\r")
    answer = screen.wait_for("tokens/s")
    assert "\x1b[1m4\x1b[0m\x1b[1m2\x1b[0m" in answer
    screen.wait_for(READY)
    screen.type("\x14")
    screen.wait_for("no thinking yet")
    screen.type("/effort low\r")
    screen.wait_for("effort: low")
    screen.wait_for(READY)
    screen.type("\x04")
    assert screen.close() == 0
    assert "6 * 7?" in (tmp_path / "ossia" / "history").read_text(encoding="utf-8")
