"""/v1/chat/completions: OpenAI's chat, streamed or whole, with the reasoning beside the answer."""

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from openai.types import CompletionUsage

from ossia.errors import HarmonyError
from ossia.harmony.messages import from_openai
from ossia.server.body import JsonRoute
from ossia.server.bridge import Bridge, Event, TokenLogprob, Turn
from ossia.server.choice import ChatChoice
from ossia.server.errors import STREAMED
from ossia.server.objects import FINGERPRINT, ChatCompletion, logprobs_json, usage_object
from ossia.server.protocol import ChatRequest, ToolChoice
from ossia.server.services import Services, services
from ossia.server.stream import DONE, Batches, Chunks, EventStream, Final, merged, waited_for

router = APIRouter(route_class=JsonRoute, tags=["chat"])

ANY_TEXT = r"(.|\n)*"

_ECHOED = ("parsed", "mended", "reasoning_logprobs")
"""Fields that client libraries or this server add to an assistant's message, and that come back with it."""


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=STREAMED,
    summary="Go on with a conversation",
)
async def create(body: ChatRequest, request: Request, of: Annotated[Services, Depends(services)]) -> Response:
    """The next message of the assistant: its reasoning and its answer, or calls of the functions in `tools`.

    With `stream`, the answer comes as server-sent events, `chat.completion.chunk` objects, and ends with `[DONE]`.
    """
    adapter = of.adapter(body.model)
    of.tell_of(request, body.messages)
    messages = of.memory.restored([_without_echoes(message) for message in body.messages])
    is_constrained = bool(body.tools or body.response_format or body.structured_outputs)
    turn = partial(_turn, body, messages, of.bridge, adapter)
    generations = await of.bridge.choices(turn, body.n or 1, constrained=is_constrained)
    answer = _Answer(body, [ChatChoice(of.memory) for _ in generations])
    events = merged(generations)
    if body.stream:
        return EventStream(answer.stream(events), generations, patience=of.settings.patience)
    return JSONResponse(await waited_for(answer.whole(events), generations, request.receive))


def _turn(body: ChatRequest, messages: Sequence[Mapping[str, Any]], bridge: Bridge, adapter: str | None) -> Turn:
    """What the request asks of the model. Raises HarmonyError and RequestError that name the place."""
    tools, choice = body.tools or [], body.tool_choice or ToolChoice(mode="auto")
    regex = body.structured_outputs.regex if body.structured_outputs else None
    has_format = regex is not None or (body.response_format or {"type": "text"}).get("type") != "text"
    if choice.mode == "none" and tools and not has_format:
        regex = ANY_TEXT  # An answer to the user, whatever it says.
    try:
        grammar = bridge.grammar(
            response_format=body.response_format,
            regex=regex,
            tools=[tool for tool in tools if choice.names is None or _name(tool) in choice.names],
            tool_choice=choice.mode,
        )
    except HarmonyError as error:
        # The grammar does not know by which name an expression was given.
        raise HarmonyError(f"structured_outputs.{error}") if str(error).startswith("regex ") else error from None
    conversation = from_openai(
        messages,
        tools=tools,
        effort=body.reasoning_effort or "medium",
        response_format=body.response_format,
    )
    sampling = body.sampling(
        bridge.llm.sampling,
        max_tokens=body.most_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    return Turn(
        conversation=conversation,
        sampling=sampling,
        stop=tuple(body.stop or ()),
        grammar=grammar,
        adapter=adapter,
    )


def _name(tool: Mapping[str, Any]) -> Any:
    return tool.get("function", tool).get("name")


def _without_echoes(message: Mapping[str, Any]) -> Mapping[str, Any]:
    if message.get("role") != "assistant":
        return message
    return {name: value for name, value in message.items() if name not in _ECHOED}


class _Answer:
    """All choices of one request, as the API has them."""

    def __init__(self, body: ChatRequest, choices: Sequence[ChatChoice]) -> None:
        self._body = body
        self._choices = choices
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": body.model}
        head = {**self._head, "object": "chat.completion.chunk", "system_fingerprint": FINGERPRINT}
        self._writer = Chunks(head, include_usage=body.include_usage)

    async def whole(self, events: Batches) -> dict[str, Any]:
        """The object that answers a request without `stream`."""
        async for index, batch in events:
            for event in batch:
                self._choices[index].take(event)
        choices = [
            {
                "index": index,
                "message": choice.message,
                "logprobs": self._logprobs(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self._choices)
        ]
        completion = ChatCompletion.model_validate(
            {
                **self._head,
                "object": "chat.completion",
                "choices": choices,
                "usage": self._usage,
                "service_tier": "default",
                "system_fingerprint": FINGERPRINT,
            }
        )
        return completion.model_dump(mode="json", exclude_unset=True)

    async def stream(self, events: Batches) -> AsyncGenerator[bytes, None]:
        """The server-sent events that answer a request with `stream`, those that come together in one piece."""
        opening = {"role": "assistant", "content": None, "refusal": None}
        pieces = [self._chunk(index, opening, self._logprobs(())) for index in range(len(self._choices))]
        async for index, batch in events:
            for event in batch:
                pieces += self._chunks(index, event)
            if all(choice.done is not None for choice in self._choices):
                yield Final(b"".join([*pieces, *self._closing()]))
            elif pieces:
                yield b"".join(pieces)
            pieces.clear()

    def _chunks(self, index: int, event: Event) -> Iterator[bytes]:
        choice = self._choices[index]
        added = choice.take(event)
        if added is not None:
            yield self._chunk(index, added.delta, self._logprobs(added.logprobs) if added.logprobs else None)
        if choice.done is not None:
            delta = {"mended": choice.mended} if choice.mended else {}
            yield self._chunk(index, delta, finish_reason=choice.finish_reason)

    def _closing(self) -> Iterator[bytes]:
        if self._body.include_usage:
            yield self._writer.usage(self._usage.model_dump(mode="json", exclude_unset=True))
        yield DONE

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        logprobs: Mapping[str, Any] | None = None,
        *,
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._writer.choice(choice)

    @property
    def _usage(self) -> CompletionUsage:
        usages = [choice.done.usage for choice in self._choices if choice.done is not None]
        return usage_object(usages, choices=len(self._choices))

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        return {"content": logprobs_json(logprobs), "refusal": None} if self._body.logprobs else None
