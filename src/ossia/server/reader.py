"""Tokens of one generation → events: the parser, stop strings, logprobs and the count of tokens. No I/O, no waiting.

Any way of splitting the tokens between calls of `feed` tells the same story: only the size of the texts differs.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ossia.engine.request import Drawn, Finish
from ossia.harmony.messages import Message, function_name
from ossia.harmony.parse import Assumed, Delta, MessageEnd, MessageStart, Parser
from ossia.harmony.parse import Event as Parsed
from ossia.harmony.tokenizer import IncrementalDecoder, Tokenizer
from ossia.server.events import Closed, Event, Mended, Opened, Text, TokenLogprob


class Reader(Protocol):
    """Reads the tokens of one generation."""

    completion_tokens: int
    reasoning_tokens: int
    stop_string: str | None
    """The stop string that ended the answer; what is fed after it is left aside."""
    called: bool
    """Whether a function was called."""

    def feed(self, drawn: Sequence[Drawn]) -> list[Event]:
        """What these tokens bring about."""
        ...

    def finish(self, finish: Finish) -> list[Event]:
        """What is still open when the engine has ended with `finish`; without the final `Done`."""
        ...


class TurnReader:
    """Reads an assistant's turn in harmony. Stop strings count in the text of the channel `final`."""

    def __init__(self, tokenizer: Tokenizer, *, stop: Sequence[str] = ()) -> None:
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.stop_string: str | None = None
        self.called = False
        self._tokenizer = tokenizer
        self._parser = Parser(tokenizer)
        self._stop = tuple(stop)
        self._outlet = _Outlet(())
        self._open: MessageStart | None = None
        self._said: list[str] = []

    def feed(self, drawn: Sequence[Drawn]) -> list[Event]:
        events: list[Event] = []
        for one in drawn:
            if self.stop_string is not None:
                break
            self.completion_tokens += 1
            before, offset = self._open, self._outlet.length
            parsed = self._parser.feed(one.token)
            if one.logprob is not None and before is not None and not any(_ends(event) for event in parsed):
                self._outlet.note(offset, logprob_of(one, self._tokenizer))
            self._take(parsed, events)
            if before is not None and before is self._open:
                self.reasoning_tokens += before.channel == "analysis" and before.recipient is None
                if self._outlet.stops:
                    self._release(events, whole=False)
        self._release(events, whole=False)
        return events

    def finish(self, finish: Finish) -> list[Event]:
        events: list[Event] = []
        if self.stop_string is None:
            parsed = self._parser.finish()
            # That the last message is cut needs no remark where a limit cut it.
            self._take([event for event in parsed if finish == "stop" or not isinstance(event, Assumed)], events)
        return events

    def _take(self, parsed: Sequence[Parsed], events: list[Event]) -> None:
        for event in parsed:
            match event:
                case Delta():
                    self._outlet.add(event.text)
                case MessageStart():
                    self._open = event
                    self._outlet = _Outlet(self._stop if event.channel == "final" else ())
                    self._said.clear()
                    events.append(Opened(message=event))
                case MessageEnd():
                    self._release(events, whole=True)
                    if self.stop_string is not None:
                        return
                    self._open = None
                    self.called |= event.message.is_call and function_name(event.message.recipient or "") is not None
                    events.append(Closed(message=event.message, stop=event.stop))
                case Assumed():
                    events.append(Mended(text=event.text))

    def _release(self, events: list[Event], *, whole: bool) -> None:
        """Let go what cannot be the beginning of a stop string any more; end the message where one is complete."""
        start = self._open
        if start is None or self.stop_string is not None:
            return
        text, logprobs = self._outlet.take(whole=whole)
        if text or logprobs:
            _say(events, Text(text=text, channel=start.channel, recipient=start.recipient, logprobs=logprobs))
        if not self._outlet.stops:
            return
        self._said.append(text)
        if self._outlet.found is not None:
            self.stop_string, self._open = self._outlet.found, None
            message = Message(
                role=start.role,
                content="".join(self._said),
                channel=start.channel,
                recipient=start.recipient,
                content_type=start.content_type,
                name=start.name,
            )
            events.append(Closed(message=message, stop="cut"))


class RawReader:
    """Reads the continuation of a raw prompt: text alone, special tokens by name, the final stop token left out."""

    def __init__(
        self, tokenizer: Tokenizer, *, stop: Sequence[str] = (), stop_ids: frozenset[int] = frozenset()
    ) -> None:
        self.completion_tokens = 0
        self.reasoning_tokens = 0
        self.stop_string: str | None = None
        self.called = False
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer, show_special=True)
        self._stop_ids = stop_ids
        self._outlet = _Outlet(tuple(stop))

    def feed(self, drawn: Sequence[Drawn]) -> list[Event]:
        events: list[Event] = []
        for one in drawn:
            if self.stop_string is not None:
                break
            self.completion_tokens += 1
            if one.token in self._stop_ids:
                continue
            if one.logprob is not None:
                self._outlet.note(self._outlet.length, logprob_of(one, self._tokenizer))
            self._outlet.add(self._decoder.feed(one.token))
            if self._outlet.stops:
                self._release(events, whole=False)
        self._release(events, whole=False)
        return events

    def finish(self, finish: Finish) -> list[Event]:
        events: list[Event] = []
        self._outlet.add(self._decoder.finish())
        self._release(events, whole=True)
        return events

    def _release(self, events: list[Event], *, whole: bool) -> None:
        if self.stop_string is not None:
            return
        text, logprobs = self._outlet.take(whole=whole)
        self.stop_string = self._outlet.found
        if text or logprobs:
            _say(events, Text(text=text, logprobs=logprobs))


class _Outlet:
    """Text on its way out, held back where it may be the beginning of a stop string, and its tokens' logprobs."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self.stops = stops
        self.found: str | None = None
        self._held: list[str] = []
        self.length = 0
        """Of the text that is held."""
        self._tokens: list[tuple[int, TokenLogprob]] = []
        """Where in the held text each token begins."""

    def note(self, offset: int, logprob: TokenLogprob) -> None:
        self._tokens.append((offset, logprob))

    def add(self, text: str) -> None:
        if text:
            self._held.append(text)
            self.length += len(text)

    def take(self, *, whole: bool) -> tuple[str, tuple[TokenLogprob, ...]]:
        """The text that may go: all that is `whole`, but nothing of a stop string nor what comes after it."""
        held = "".join(self._held)
        size = len(held)
        hits = [(at, stop) for stop in self.stops if (at := held.find(stop)) >= 0]
        if hits:
            size, self.found = min(hits)
        elif not whole:
            size -= max((_overlap(held, stop) for stop in self.stops), default=0)
        if not self._tokens:
            ready: tuple[TokenLogprob, ...] = ()
        else:
            # A token whose character is still incomplete waits for it.
            last = len(held) if whole and self.found is None else size - 1
            ready = tuple(logprob for at, logprob in self._tokens if at <= last)
            self._tokens = [(at - size, logprob) for at, logprob in self._tokens if at > last]
        self._held = [held[size:]] if size < len(held) else []
        self.length -= size
        return held[:size], ready


def _say(events: list[Event], more: Text) -> None:
    """Add a text: to the last event where that is one too, which is of the same message then."""
    last = events[-1] if events else None
    if isinstance(last, Text):
        events[-1] = replace(more, text=last.text + more.text, logprobs=last.logprobs + more.logprobs)
    else:
        events.append(more)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, short of all of it."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _ends(event: Parsed) -> bool:
    return isinstance(event, MessageEnd)


def logprob_of(drawn: Drawn, tokenizer: Tokenizer) -> TokenLogprob:
    """What was drawn, as text. An id outside the vocabulary, of which models have a few, reads U+FFFD."""
    return replace(
        _named(drawn.token, drawn.logprob or 0.0, tokenizer),
        top=tuple(_named(token, logprob, tokenizer) for token, logprob in drawn.top),
    )


def _named(token: int, logprob: float, tokenizer: Tokenizer) -> TokenLogprob:
    data = tokenizer.token_bytes(token) if token in tokenizer else "\ufffd".encode()
    return TokenLogprob(token=data.decode(errors="replace"), bytes=tuple(data), logprob=logprob)
