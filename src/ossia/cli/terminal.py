"""Writing for people: dim and bright on a terminal, plain elsewhere, and nothing that could command the terminal."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TextIO

from ossia.cli.harmless import harmless
from ossia.harmony.parse import Assumed, Delta, MessageEnd, MessageStart
from ossia.reply import Reply, Stream

Shade = Literal["plain", "dim", "bright"]
ReasoningView = Literal["on", "fold", "off"]

_SGR: Mapping[Shade, str] = {"plain": "", "dim": "\x1b[2m", "bright": "\x1b[1m"}
_RESET = "\x1b[0m"
_CLEAR_LINE = "\r\x1b[K"


class Pen:
    """Writes to one stream, in shades where it is a terminal that may have them."""

    def __init__(self, stream: TextIO) -> None:
        self.shades = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._stream = stream
        self._at_line_start = True

    def write(self, text: str, shade: Shade = "plain") -> None:
        """Write at once what may come from anywhere; made harmless here."""
        if not text:
            return
        text = harmless(text)
        on = _SGR[shade] if self.shades else ""
        self._stream.write(f"{on}{text}{_RESET if on else ''}")
        self._stream.flush()
        self._at_line_start = text.endswith("\n")

    def line(self, text: str = "", shade: Shade = "plain") -> None:
        """Write a whole line, on a line of its own."""
        self.end_line()
        self.write(f"{text}\n", shade)

    def end_line(self) -> None:
        """Go to the start of a line, unless there already."""
        if not self._at_line_start:
            self.write("\n")

    def replace_line(self, text: str) -> None:
        """Put a dim text in place of the line just being written; nothing where that cannot be done."""
        if self.shades:
            self._stream.write(f"{_CLEAR_LINE}{_SGR['dim']}{harmless(text)}{_RESET}")
            self._stream.flush()
            self._at_line_start = not text


@dataclass(slots=True, kw_only=True)
class Display:
    """Shows an answer while it comes: what is for the user on `out`, what is about it on `about`."""

    out: Pen
    about: Pen
    reasoning: ReasoningView = "on"

    def show(self, stream: Stream) -> Reply:
        """Show the whole stream. A KeyboardInterrupt passes through, with both pens at the start of a line."""
        begun = thought = 0
        try:
            for event in stream:
                match event:
                    case MessageStart():
                        begun = stream.num_tokens
                    case Delta(channel="analysis", recipient=None) if self.reasoning == "on":
                        self.about.write(event.text, "dim")
                    case Delta(channel="analysis", recipient=None):
                        thought = stream.num_tokens - begun
                        if self.reasoning == "fold":
                            self.about.replace_line(f"▸ thinking, {thought} tokens")
                    case Delta(channel="final", recipient=None):
                        self.out.write(event.text, "bright")
                    case Delta(recipient=None | "all"):
                        self.out.write(event.text)
                    case MessageEnd(message=message) if message.is_call:
                        self.out.line(f"→ {message.recipient} {message.content}", "bright")
                    case MessageEnd(message=message):
                        if message.channel == "analysis" and self.reasoning == "fold":
                            self.about.replace_line("")
                            self.about.line(f"▸ thought for {thought} tokens", "dim")
                        self._end_lines()
                    case Delta() | Assumed():
                        pass
        finally:
            self._end_lines()
        return stream.reply()

    def _end_lines(self) -> None:
        self.about.end_line()
        self.out.end_line()

    def epilogue(self, reply: Reply) -> None:
        """What there is to say about an answer, its speed last."""
        for mended in reply.assumed:
            self.about.line(f"mended: {mended}", "dim")
        if reply.finish_reason == "length":
            self.about.line("cut: the limit of tokens was reached", "dim")
        usage, timings = reply.usage, reply.timings
        self.about.line(
            f"{usage.completion_tokens} tokens, {timings.tokens_per_second:.1f} tokens/s "
            f"(prompt: {usage.prompt_tokens} tokens, {timings.prompt_seconds:.2f} s)",
            "dim",
        )
