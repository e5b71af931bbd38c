"""Output items in the making, and the smaller objects in them."""

import secrets
from typing import Literal, TypeAlias

from openai.types.responses import (
    ResponseFunctionToolCall,
    ResponseOutputItem,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
    ResponseUsage,
    response_output_text,
    response_reasoning_item,
    response_text_delta_event,
    response_text_done_event,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from ossia.harmony.messages import function_name
from ossia.harmony.parse import MessageStart
from ossia.server.events import Text, TokenLogprob, Usage
from ossia.server.objects import LEAST_LOGPROB
from ossia.server.responses.items import new_id, seal

Kind: TypeAlias = Literal["reasoning", "message", "function_call"]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "incomplete"]


class Draft:
    """An output item in the making."""

    def __init__(self, start: MessageStart, *, index: int) -> None:
        called = start.recipient not in (None, "all")
        name = function_name(start.recipient or "") if called else None
        self.nameless = called and name is None
        """Whether this is a call to what can be no function."""
        self.kind: Kind = "message"
        if name is not None:
            self.kind = "function_call"
        elif start.channel == "analysis":
            self.kind = "reasoning"
        self.id = new_id(self.kind)
        self.index = index
        self.logprobs: list[TokenLogprob] = []
        self._name = name or ""
        self._call_id = f"call_{secrets.token_hex(12)}"
        self._phase: Literal["commentary", "final_answer"] = (
            "final_answer" if start.channel == "final" else "commentary"
        )
        self._said: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._said)

    def add(self, event: Text) -> None:
        self._said.append(event.text)
        self.logprobs += event.logprobs

    def part(self) -> ResponseOutputText:
        """The content of a message."""
        logprobs = [_logprob(logprob) for logprob in self.logprobs]
        return ResponseOutputText(annotations=[], text=self.text, type="output_text", logprobs=logprobs)

    def shown(self, status: ItemStatus, *, sealed: bool) -> ResponseOutputItem:
        """The item as it stands; without its content while it is in progress."""
        begun = status != "in_progress"
        match self.kind:
            case "message":
                return ResponseOutputMessage(
                    id=self.id,
                    content=[self.part()] if begun else [],
                    role="assistant",
                    status=status,
                    type="message",
                    phase=self._phase,
                )
            case "function_call":
                return ResponseFunctionToolCall(
                    arguments=self.text,
                    call_id=self._call_id,
                    name=self._name,
                    type="function_call",
                    id=self.id,
                    status=status,
                )
            case _:
                content = response_reasoning_item.Content(text=self.text, type="reasoning_text")
                item = ResponseReasoningItem(
                    id=self.id, summary=[], type="reasoning", content=[content] if begun else [], status=status
                )
                return item.model_copy(update={"encrypted_content": seal(self.text)}) if sealed else item


def usage_object(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens, cache_write_tokens=0),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.reasoning_tokens),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )


def _logprob(logprob: TokenLogprob) -> response_output_text.Logprob:
    return response_output_text.Logprob(
        token=logprob.token,
        bytes=list(logprob.bytes),
        logprob=max(logprob.logprob, LEAST_LOGPROB),
        top_logprobs=[
            response_output_text.LogprobTopLogprob(
                token=top.token, bytes=list(top.bytes), logprob=max(top.logprob, LEAST_LOGPROB)
            )
            for top in logprob.top
        ],
    )


def delta_logprob(logprob: TokenLogprob) -> response_text_delta_event.Logprob:
    return response_text_delta_event.Logprob(
        token=logprob.token,
        logprob=max(logprob.logprob, LEAST_LOGPROB),
        top_logprobs=[
            response_text_delta_event.LogprobTopLogprob(token=top.token, logprob=max(top.logprob, LEAST_LOGPROB))
            for top in logprob.top
        ],
    )


def done_logprob(logprob: TokenLogprob) -> response_text_done_event.Logprob:
    return response_text_done_event.Logprob.model_validate(delta_logprob(logprob).model_dump())
