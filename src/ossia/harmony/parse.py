"""Tokens → messages, one token at a time: a parser that never raises on what a model wrote and loses none of it.

                 <|start|>                      <|message|>                      <|end|> <|call|> <|return|>
    between ───────────────────▶ header ───────────────────────────▶ body ──────────────────────────────────▶ between

    header   <|start|>{author}[ to={recipient}][<|channel|>{channel}[ to={recipient}]][ <|constrain|>{type}]<|message|>
    author   system, developer, user, assistant, or the name of a tool

Whatever leaves this path is mended and noted in `assumed`:

    header   words in another order or place are sorted out; no <|message|> before the message ends or before
             512 characters: what is no header word is content; text with no header at all is the final answer
    body     <|start|> or <|channel|>: the message ends here, cut, and a header begins; other special tokens and
             ids outside the vocabulary stay in the content as their names and as U+FFFD
    between  anything but <|start|>: an assistant's header begins; a second end of message is left aside

Special tokens are known by their ids alone: text that spells one is text.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ossia.harmony.messages import CHANNELS, ROLES, Message
from ossia.harmony.tokenizer import IncrementalDecoder, Tokenizer

Stop = Literal["end", "call", "return", "cut"]

_STOPS: dict[str, Stop] = {"<|end|>": "end", "<|call|>": "call", "<|return|>": "return", "<|endoftext|>": "cut"}
_TYPES = ("json", "code")
_WORD = re.compile(r"to=\s*\S*|\S+?(?=to=|\s|$)")
_MAX_HEADER = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageStart:
    """A message's header is read; its content follows. Fields as in `Message`."""

    role: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """More of the open message's content: whole characters, never empty."""

    text: str
    channel: str | None
    recipient: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageEnd:
    """A message is complete. stop: what ended it; "cut" where only the next message or the end of the stream did."""

    message: Message
    stop: Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumed:
    """Something had to be mended; the text says what, in one line."""

    text: str


Event = MessageStart | Delta | MessageEnd | Assumed


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A stretch of the stream as text, special tokens by name: see `Parser.transcript`."""

    kind: Literal["header", "content", "between"]
    text: str


class Parser:
    """Reads harmony token by token; any way of splitting a stream between calls of `feed` gives the same events.

    The stream may be a completion, whose prompt ended with `<|start|>assistant`, or begin with `<|start|>` itself
    and hold a whole conversation. Feed the stop token too: without it the last message counts as cut.

    messages: what is complete so far.
    assumed: what had to be mended, a line each, at most once a message.
    transcript: the whole stream in order, complete after `finish`: the pieces' texts join to what
        `IncrementalDecoder(show_special=True)` gives, and the pieces of content are those of `messages`, one each.
    tokens_seen: how many ids were fed.
    """

    def __init__(self, tokenizer: Tokenizer, *, role: str = "assistant") -> None:
        """Start before the first token. role: whose header the prompt left open, and who writes where none is named."""
        self.messages: list[Message] = []
        self.assumed: list[str] = []
        self.transcript: list[Piece] = []
        self.tokens_seen = 0
        self._tokenizer = tokenizer
        self._role = role
        self._decoder = IncrementalDecoder(tokenizer)
        self._header: _RawHeader | None = _RawHeader(opening="")
        self._body: MessageStart | None = None
        self._content: list[str] = []
        self._noted: set[str] = set()
        self._events: list[Event] = []

    def feed(self, tokens: int | Iterable[int]) -> list[Event]:
        """Read one id or several, and tell what they brought about; any ids at all are accepted."""
        for token in (tokens,) if isinstance(tokens, int) else tokens:
            self.tokens_seen += 1
            name = self._tokenizer.special_names.get(token)
            if name is None:
                self._ordinary(token)
            else:
                self._flush()
                self._special(name)
        return self._take_events()

    def finish(self) -> list[Event]:
        """End the stream: what is still open is closed, cut. Calling again changes nothing."""
        self._flush()
        self._close("cut", "the stream ended")
        return self._take_events()

    # ---------------------------------------------------------------- tokens

    def _ordinary(self, token: int) -> None:
        if token not in self._tokenizer:
            self._note(f"id {token} is outside the vocabulary: kept as U+FFFD")
        if self._header is None and self._body is None:
            self._open_header("", "text after the end of a message: taken as a header without <|start|>")
        self._text(self._decoder.feed(token))

    def _special(self, name: str) -> None:
        stop = _STOPS.get(name)
        if name == "<|start|>":
            self._close("cut", "<|start|> came")
            self._open_header(name)
        elif stop is not None:
            self._stop(name, stop)
        elif name in ("<|channel|>", "<|constrain|>", "<|message|>"):
            self._mark(name)
        elif self._header is not None:
            self._note(f"{name} in a header: left aside")
            self._header.mark(name)
        elif self._body is not None:
            self._note(f"{name} in the content: kept as text")
            self._text(name)
        else:
            self._note(f"{name} between messages: left aside")
            self._record("between", name)

    def _mark(self, name: str) -> None:
        """`<|channel|>`, `<|constrain|>` or `<|message|>`, which belong in a header."""
        if self._body is not None:
            if name != "<|channel|>":
                self._note(f"{name} in the content: kept as text")
                self._text(name)
                return
            # Most likely the model forgot <|end|><|start|>assistant: its next message must not drown in this one.
            self._close("cut", "<|channel|> came")
            self._open_header("")
        if self._header is None:
            self._open_header("", f"{name} without <|start|>: the message is taken as {self._role}'s")
        assert self._header is not None
        self._header.mark(name)
        if name == "<|message|>":
            self._enter_body(self._header, finished=True)

    def _stop(self, name: str, stop: Stop) -> None:
        if self._header is None and self._body is None:
            self._note(f"{name} between messages: left aside")
        else:
            self._close(stop, f"{name} came")
        self._record("between", name)

    def _text(self, text: str) -> None:
        if self._body is not None:
            if text:
                self._content.append(text)
                self._emit(Delta(text=text, channel=self._body.channel, recipient=self._body.recipient))
        elif self._header is not None:
            self._header.add(text)
            if self._header.length > _MAX_HEADER:
                self._note(f"no <|message|> within {_MAX_HEADER} characters: what is no header is taken as content")
                self._enter_body(self._header, finished=False)

    def _flush(self) -> None:
        """Give out the bytes of a character that will not be finished, as U+FFFD."""
        self._text(self._decoder.finish())

    # ---------------------------------------------------------------- messages

    def _open_header(self, opening: str, assumed: str | None = None) -> None:
        self._noted.clear()
        self._header = _RawHeader(opening=opening)
        if assumed is not None:
            self._note(assumed)

    def _enter_body(self, raw: "_RawHeader", *, finished: bool) -> None:
        """End the header, at `<|message|>` or where it must end without."""
        start, rest, notes = raw.read(self._role, finished=finished)
        self._header, self._body = None, start
        whole = raw.text
        self._record("header", whole[: len(whole) - len(rest)])
        for note in notes:
            self._note(note)
        self._emit(start)
        self._text(rest)

    def _close(self, stop: Stop, why: str) -> None:
        """Close whatever is open."""
        if self._header is not None:
            raw = self._header
            start, rest, _ = raw.read(self._role, finished=False)
            # What broke off inside one word after <|channel|> was still a header.
            broke_off = stop == "cut" and raw.has_channel and not re.search(r"\s", rest)
            if (rest and not broke_off) or (stop != "cut" and (raw.has_channel or start.recipient)):
                self._note(f"{why} before <|message|>: what is no header is taken as content")
                self._enter_body(raw, finished=False)
            else:
                self._header = None
                if raw.text:
                    self._note(f"{why} before <|message|>: the header {raw.text!r} is left aside")
                    self._record("header", raw.text)
        elif self._body is not None and stop == "cut":
            self._note(f"{why} before <|end|>: the message is taken as complete")
        if self._body is not None:
            body = self._body
            if stop == "call" and body.recipient is None:
                self._note("<|call|> without a recipient: kept as a message to nobody")
            content = "".join(self._content)
            message = Message(
                role=body.role,
                content=content,
                channel=body.channel,
                recipient=body.recipient,
                content_type=body.content_type,
                name=body.name,
            )
            self._body = None
            self._content.clear()
            self.messages.append(message)
            self._record("content", content)
            self._emit(MessageEnd(message=message, stop=stop))

    # ---------------------------------------------------------------- records

    def _note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self.assumed.append(text)
            self._emit(Assumed(text=text))

    def _record(self, kind: Literal["header", "content", "between"], text: str) -> None:
        self.transcript.append(Piece(kind=kind, text=text))

    def _emit(self, event: Event) -> None:
        self._events.append(event)

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return events


class _RawHeader:
    """A header as it comes: segments of text, each after the special token that opened it."""

    def __init__(self, *, opening: str) -> None:
        """opening: "<|start|>", or "" where the header was open already or was opened by assumption."""
        self._segments: list[tuple[str, list[str]]] = [(opening, [])]
        self.length = 0

    def mark(self, name: str) -> None:
        self._segments.append((name, []))

    def add(self, text: str) -> None:
        self._segments[-1][1].append(text)
        self.length += len(text)

    @property
    def text(self) -> str:
        return "".join(name + "".join(parts) for name, parts in self._segments)

    @property
    def has_channel(self) -> bool:
        return any(name == "<|channel|>" for name, _ in self._segments)

    def read(self, default_role: str, *, finished: bool) -> tuple[MessageStart, str, list[str]]:
        """Sort out the words.

        finished: `<|message|>` was reached, so every word belongs to the header; else the first that is no known header
            word begins the content.
        Returns the fields, the text that is content, and what had to be assumed.
        """
        segments = [(name, "".join(parts)) for name, parts in self._segments]
        author = channel = recipient = None
        types: list[str] = []
        notes: list[str] = []
        field = "<|start|>"
        for index, (name, text) in enumerate(segments):
            if name in ("<|channel|>", "<|constrain|>"):  # A reserved token begins no field.
                field = name
            for match in _WORD.finditer(text):
                word = match[0]
                is_type = word in _TYPES and (finished or recipient is not None or field == "<|constrain|>")
                if word.startswith("to="):
                    if recipient is not None:
                        notes.append(f"a second recipient: {word!r} replaces {recipient!r}")
                    recipient = word.removeprefix("to=").strip() or recipient
                elif word in CHANNELS and field != "<|constrain|>":
                    if channel is not None:
                        notes.append(f"a second channel: {word!r} replaces {channel!r}")
                    elif field == "<|start|>":
                        notes.append(f"the channel {word!r} stands where the author does")
                    channel = word
                elif field == "<|start|>" and author is None and (_is_role(word) or (finished and segments[0][0])):
                    author = word
                    if not segments[0][0]:
                        notes.append(f"the author {word!r} stands in a header that has one already")
                elif finished and field == "<|channel|>" and channel is None and not is_type:
                    notes.append(f"unknown channel {word!r}: kept")
                    channel = word
                elif is_type or (finished and field != "<|start|>"):
                    if types:
                        notes.append(f"a second content type: {word!r} joins {types[-1]!r}")
                    types.append(word)
                elif finished:
                    notes.append(f"{word!r} in the header: left aside")
                else:
                    rest = text[match.start() :] + "".join(name + text for name, text in segments[index + 1 :])
                    return self._start(author or default_role, channel, recipient, types, notes), rest, notes
        if author is None and segments[0][0]:
            notes.append(f"no author after <|start|>: taken as {default_role}")
        return self._start(author or default_role, channel, recipient, types, notes), "", notes

    @staticmethod
    def _start(
        author: str, channel: str | None, recipient: str | None, types: list[str], notes: list[str]
    ) -> MessageStart:
        # An author that is no role is a tool: functions.get_weather, python.
        role, _, name = author.partition(":") if _is_role(author) else ("tool", "", author)
        if role == "assistant" and channel is None:
            channel = "final" if recipient is None else "commentary"
            notes.append(f"no channel: taken as {channel}")
        return MessageStart(
            role=role,
            channel=channel,
            recipient=recipient,
            content_type=" ".join(types) or None,
            name=name or None,
        )


def _is_role(word: str) -> bool:
    return word.partition(":")[0] in ROLES
