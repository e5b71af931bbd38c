"""One choice of a chat in the making: events become deltas, and their sum is the message.

The message is put together from the very deltas that a stream sends, so both tell the same.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ossia.harmony.messages import function_name
from ossia.harmony.parse import MessageStart
from ossia.server.bridge import Closed, Done, Event, Mended, Opened, Text, TokenLogprob
from ossia.server.memory import Memory
from ossia.server.objects import logprobs_json

Kind = Literal["reasoning", "content", "call", "nothing"]

BETWEEN = "\n\n"
"""Stands between the texts of two messages to the user, or of two thoughts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """What an event adds to the message, as `delta` of a chunk has it, and the logprobs of its content."""

    delta: dict[str, Any]
    logprobs: Sequence[TokenLogprob] = ()


@dataclass(slots=True)
class _Call:
    id: str
    name: str
    arguments: list[str] = field(default_factory=list[str])


class ChatChoice:
    """Takes the events of one generation in."""

    def __init__(self, memory: Memory) -> None:
        self.done: Done | None = None
        self.mended: list[str] = []
        self.logprobs: list[TokenLogprob] = []
        """Of the content."""
        self._memory = memory
        self._reasoning_logprobs: list[dict[str, Any]] = []
        self._said: dict[Kind, list[str]] = {"content": [], "reasoning": []}
        self._calls: list[_Call] = []
        self._kind: Kind = "nothing"
        self._is_new = False
        """Whether the open message is to be set off from an earlier one of its kind."""

    def take(self, event: Event) -> Delta | None:
        """What the event adds, if anything."""
        match event:
            case Opened():
                return self._opened(event.message)
            case Text():
                return self._text(event)
            case Closed():
                self._closed()
            case Mended():
                self.mended.append(event.text)
            case Done():
                self.done = event
                if not self._said["content"] and not self._calls:
                    return self._add_content("")  # Clients expect a text where there is no call.
        return None

    @property
    def message(self) -> dict[str, Any]:
        """The whole message, once all events are in."""
        content, reasoning = self._said["content"], self._said["reasoning"]
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(content) if content else None,
            "refusal": None,
        }
        if reasoning:
            message["reasoning"] = "".join(reasoning)
        if self._reasoning_logprobs:
            message["reasoning_logprobs"] = self._reasoning_logprobs
        if self._calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": "".join(call.arguments)},
                }
                for call in self._calls
            ]
        if self.mended:
            message["mended"] = self.mended
        return message

    @property
    def finish_reason(self) -> str:
        """As chat has it."""
        return self.done.finish if self.done is not None and self.done.finish != "cancelled" else "stop"

    def _opened(self, message: MessageStart) -> Delta | None:
        name = function_name(message.recipient or "") if _is_call(message) else None
        if message.role != "assistant":
            self._kind = "nothing"
            self.mended.append(f"a message as {message.role} is no part of the answer")
        elif name is not None:
            self._kind = "call"
            call = _Call(id=f"call_{secrets.token_hex(12)}", name=name)
            self._calls.append(call)
            function = {"name": name, "arguments": ""}
            index = len(self._calls) - 1
            return Delta(
                delta={"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]}
            )
        elif message.channel == "analysis" and message.recipient is None:
            self._kind = "reasoning"
        else:
            self._kind = "content"
            if _is_call(message):
                self.mended.append(f"a call to {message.recipient!r} names no function: taken as text")
        self._is_new = bool(self._said.get(self._kind))
        return None

    def _text(self, event: Text) -> Delta | None:
        kind = self._kind
        if kind == "nothing":
            return None
        if kind == "call":
            self._calls[-1].arguments.append(event.text)
            arguments = {"arguments": event.text}
            return Delta(delta={"tool_calls": [{"index": len(self._calls) - 1, "function": arguments}]})
        text = event.text
        if text and self._is_new:
            text, self._is_new = BETWEEN + text, False
        if kind == "content":
            return self._add_content(text, event.logprobs)
        delta: dict[str, Any] = {}
        if text:
            self._said["reasoning"].append(text)
            delta["reasoning"] = text
        if event.logprobs:
            known = len(self._reasoning_logprobs)
            numbered = [{"index": known + n, **one} for n, one in enumerate(logprobs_json(event.logprobs))]
            self._reasoning_logprobs += numbered
            delta["reasoning_logprobs"] = numbered
        return Delta(delta=delta)

    def _add_content(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> Delta:
        self._said["content"].append(text)
        self.logprobs += logprobs
        return Delta(delta={"content": text}, logprobs=logprobs)

    def _closed(self) -> None:
        if self._kind == "call":
            call = self._calls[-1]
            self._memory.keep([call.id], "".join(self._said["reasoning"]))
            if not _is_object("".join(call.arguments)):
                self.mended.append(f"the arguments of the call of {call.name} are not a JSON object: given as written")
        self._kind = "nothing"


def _is_call(message: MessageStart) -> bool:
    return message.role == "assistant" and message.recipient not in (None, "all")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
