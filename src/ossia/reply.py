"""An answer as the caller gets it: streamed as the parser's events, then whole as a `Reply`."""

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ossia.harmony.messages import Message, function_name
from ossia.harmony.parse import Event, MessageEnd, MessageStart, Parser
from ossia.harmony.tokenizer import Tokenizer

FinishReason = Literal["stop", "tool_calls", "length", "interrupted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int
    """All that was generated: headers, reasoning, answer, stop token."""
    reasoning_tokens: int
    """Those among them that are content of the analysis channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of one request went."""

    prompt_seconds: float
    """Up to the first token."""
    answer_seconds: float
    """From the first token to the last."""
    tokens_per_second: float
    """Of the answer; 0 where it has a single token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model answered."""

    reasoning: str
    """Content of the analysis channel."""
    final: str
    """The answer."""
    commentary: str
    """What the model said to the user beside its calls, and anything on a channel that is none of the three."""
    tool_calls: tuple[Mapping[str, Any], ...]
    """Calls as OpenAI objects: id, type "function", function {name, arguments as the model wrote them}."""
    finish_reason: FinishReason
    """"stop", "tool_calls", "length" (of max_tokens or the context), or "interrupted" by the caller."""
    usage: Usage
    timings: Timings
    assumed: tuple[str, ...]
    """What in the model's output had to be mended, a line each."""

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message in OpenAI form, to be appended to the conversation."""
        message: dict[str, Any] = {"role": "assistant", "content": self.final or self.commentary or None}
        if self.reasoning:
            message["reasoning"] = self.reasoning
        if self.tool_calls:
            message["tool_calls"] = [dict(call) for call in self.tool_calls]
        return message

    def to_json(self) -> dict[str, Any]:
        """All fields as one JSON object."""
        return asdict(self)


class Stream:
    """An answer in the making: iterate over the events, and ask for the whole with `reply`, at the end or earlier."""

    def __init__(self, tokens: Iterator[int], tokenizer: Tokenizer, *, num_prompt_tokens: int) -> None:
        self.num_tokens = 0
        """Generated so far."""
        self._tokens = tokens
        self._tokenizer = tokenizer
        self._parser = Parser(tokenizer)
        self._num_prompt_tokens = num_prompt_tokens
        self._num_reasoning = 0
        self._reasoning = False
        self._ended = False
        self._last_token: int | None = None
        self._begin = time.perf_counter()
        self._first = self._latest = self._begin

    def __iter__(self) -> Iterator[Event]:
        for token in self._tokens:
            self._latest = time.perf_counter()
            if self.num_tokens == 0:
                self._first = self._latest
            self.num_tokens += 1
            self._last_token = token
            events = self._parser.feed(token)
            self._count(events)
            yield from events
        self._ended = True
        yield from self._parser.finish()

    def reply(self) -> Reply:
        """The answer as far as it has come. Iterating afterwards brings nothing more."""
        self._tokens = iter(())
        self._parser.finish()
        said = _sort(self._parser.messages)
        seconds = self._latest - self._first
        return Reply(
            reasoning=said.reasoning,
            final=said.final,
            commentary=said.commentary,
            tool_calls=said.tool_calls,
            finish_reason=self._finish_reason(bool(said.tool_calls)),
            usage=Usage(
                prompt_tokens=self._num_prompt_tokens,
                completion_tokens=self.num_tokens,
                reasoning_tokens=self._num_reasoning,
            ),
            timings=Timings(
                prompt_seconds=self._first - self._begin,
                answer_seconds=seconds,
                tokens_per_second=(self.num_tokens - 1) / seconds if seconds else 0.0,
            ),
            assumed=(*self._parser.assumed, *said.mended),
        )

    def _count(self, events: Sequence[Event]) -> None:
        """Keep count of the tokens that are content of the analysis; `events` are those of one token."""
        was_reasoning = self._reasoning
        for event in events:
            if isinstance(event, MessageStart):
                self._reasoning = event.channel == "analysis" and event.recipient is None
            elif isinstance(event, MessageEnd):
                self._reasoning = False
        self._num_reasoning += was_reasoning and self._reasoning

    def _finish_reason(self, has_calls: bool) -> FinishReason:
        if self._last_token in self._tokenizer.stop_ids:
            return "tool_calls" if has_calls else "stop"
        return "length" if self._ended else "interrupted"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """Messages sorted by whom they are for."""

    reasoning: str
    final: str
    commentary: str
    tool_calls: tuple[Mapping[str, Any], ...]
    mended: tuple[str, ...]


def _sort(messages: Sequence[Message]) -> _Said:
    own = [message for message in messages if message.role == "assistant"]
    spoken = [message for message in own if not _names_function(message)]
    nameless = [message.recipient for message in spoken if message.is_call]
    return _Said(
        reasoning="\n\n".join(message.content for message in spoken if message.channel == "analysis"),
        final="\n\n".join(message.content for message in spoken if message.channel == "final"),
        commentary="\n\n".join(message.content for message in spoken if message.channel not in ("analysis", "final")),
        tool_calls=tuple(_call(message) for message in own if _names_function(message)),
        mended=(
            *(f"a message as {m.role} is no part of the reply" for m in messages if m.role != "assistant"),
            *(f"a call to {recipient!r} names no function: taken as text" for recipient in nameless),
        ),
    )


def _names_function(message: Message) -> bool:
    return message.is_call and function_name(message.recipient or "") is not None


def _call(message: Message) -> dict[str, Any]:
    return {
        "id": f"call_{secrets.token_hex(8)}",
        "type": "function",
        "function": {"name": function_name(message.recipient or ""), "arguments": message.content},
    }
