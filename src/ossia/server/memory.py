"""Reasoning that led to calls, kept for clients that drop it: while a call is open the model needs its own thoughts."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_SPELLINGS = ("reasoning", "reasoning_content", "thinking")
MOST_CHARACTERS = 16_000_000


class Memory:
    """Call id → the reasoning before that call: as much as fits, the least recently used forgotten first."""

    def __init__(self, most_characters: int = MOST_CHARACTERS) -> None:
        self._kept: OrderedDict[str, str] = OrderedDict()
        self._most = most_characters
        self._characters = 0

    def keep(self, call_ids: Iterable[str], reasoning: str) -> None:
        """Remember what led to these calls."""
        if not reasoning:
            return
        for call_id in call_ids:
            self._characters += len(reasoning) - len(self._kept.pop(call_id, ""))
            self._kept[call_id] = reasoning
        while self._characters > self._most:
            self._characters -= len(self._kept.popitem(last=False)[1])

    def recall(self, call_ids: Iterable[str]) -> str | None:
        """What led to the first of these calls that is known."""
        for call_id in call_ids:
            if call_id in self._kept:
                self._kept.move_to_end(call_id)
                return self._kept[call_id]
        return None

    def restored(self, messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Chat messages with the reasoning that the client left out before its calls, where it is known."""
        return [self._restored(message) for message in messages]

    def _restored(self, message: Mapping[str, Any]) -> Mapping[str, Any]:
        calls = message.get("tool_calls")
        if message.get("role") != "assistant" or not isinstance(calls, list):
            return message
        if any(message.get(spelling) for spelling in _SPELLINGS):
            return message
        ids = (call.get("id") for call in calls if isinstance(call, Mapping))
        reasoning = self.recall(call_id for call_id in ids if isinstance(call_id, str))
        return message if reasoning is None else {**message, "reasoning": reasoning}
