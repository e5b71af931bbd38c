"""/v1/completions: the continuation of raw prompts, text or token ids, without a chat format around them."""

import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from openai.types import CompletionUsage

from ossia.server.body import JsonRoute
from ossia.server.bridge import Bridge, Done, Event, Generation, Text, TokenLogprob, Turn
from ossia.server.errors import STREAMED
from ossia.server.objects import FINGERPRINT, LEAST_LOGPROB, Completion, usage_object
from ossia.server.protocol import CompletionRequest, Prompt
from ossia.server.services import Services, services
from ossia.server.stream import DONE, Batches, Chunks, EventStream, Final, merged, waited_for

router = APIRouter(route_class=JsonRoute, tags=["completions"])

DEFAULT_TOKENS = 16
"""As in OpenAI's API: a raw prompt has no end of its own to wait for."""


@router.post(
    "/v1/completions", response_model=Completion, responses=STREAMED, summary="Go on with a text or with tokens"
)
async def create(body: CompletionRequest, request: Request, of: Annotated[Services, Depends(services)]) -> Response:
    """What follows each prompt. Special tokens of the model's come by name, but for the one that ends the answer."""
    adapter = of.adapter(body.model)
    of.tell_of(request, body.prompt)
    generations = await _begin(body, of.bridge, adapter)
    texts = [_text(prompt, of.bridge) if body.echo else "" for prompt in body.prompt for _ in range(body.n or 1)]
    answer = _Answer(body, [_Choice(text) for text in texts])
    events = merged(generations)
    if body.stream:
        return EventStream(answer.stream(events), generations, patience=of.settings.patience)
    return JSONResponse(await waited_for(answer.whole(events), generations, request.receive))


async def _begin(body: CompletionRequest, bridge: Bridge, adapter: str | None) -> list[Generation]:
    """Generations of all choices of the first prompt, then of the next."""
    started: list[Generation] = []
    try:
        for prompt in body.prompt:
            sampling = body.sampling(
                bridge.llm.sampling, max_tokens=body.max_tokens or DEFAULT_TOKENS, logprobs=body.logprobs
            )
            turn = Turn(prompt=prompt, sampling=sampling, stop=tuple(body.stop or ()), adapter=adapter)
            started += await bridge.choices(turn, body.n or 1)
    except BaseException:
        for generation in started:
            generation.close()
        raise
    return started


def _text(prompt: Prompt, bridge: Bridge) -> str:
    return prompt if isinstance(prompt, str) else bridge.tokenizer.decode(prompt)


@dataclass(slots=True)
class _Choice:
    """One continuation in the making."""

    echo: str
    text: list[str] = field(default_factory=list[str])
    length: int = 0
    logprobs: list[tuple[int, TokenLogprob]] = field(default_factory=list[tuple[int, TokenLogprob]])
    """Each with the place in the text where its token begins."""
    done: Done | None = None

    @property
    def finish_reason(self) -> str:
        return "length" if self.done is not None and self.done.finish == "length" else "stop"

    def add(self, event: Text) -> list[tuple[int, TokenLogprob]]:
        """Take more text; returns its logprobs with their places."""
        placed: list[tuple[int, TokenLogprob]] = []
        at = self.length
        for one in event.logprobs:
            placed.append((at, one))
            at += len(one.token)
        self.text.append(event.text)
        self.length += len(event.text)
        self.logprobs += placed
        return placed


class _Answer:
    def __init__(self, body: CompletionRequest, choices: Sequence[_Choice]) -> None:
        self._body = body
        self._choices = choices
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": FINGERPRINT,
        }
        self._writer = Chunks(self._head, include_usage=body.include_usage)

    async def whole(self, events: Batches) -> dict[str, Any]:
        async for index, batch in events:
            for event in batch:
                if isinstance(event, Text):
                    self._choices[index].add(event)
                elif isinstance(event, Done):
                    self._choices[index].done = event
        choices = [
            self._choice(index, choice.echo + "".join(choice.text), choice.logprobs, choice.finish_reason)
            for index, choice in enumerate(self._choices)
        ]
        completion = Completion.model_validate({**self._head, "choices": choices, "usage": self._usage})
        return completion.model_dump(mode="json", exclude_unset=True)

    async def stream(self, events: Batches) -> AsyncGenerator[bytes, None]:
        echoed = ((index, choice.echo) for index, choice in enumerate(self._choices) if choice.echo)
        pieces = [self._writer.choice(self._choice(index, echo, (), None)) for index, echo in echoed]
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
        if isinstance(event, Text):
            yield self._writer.choice(self._choice(index, event.text, choice.add(event), None))
        elif isinstance(event, Done):
            choice.done = event
            yield self._writer.choice(self._choice(index, "", (), choice.finish_reason))

    def _closing(self) -> Iterator[bytes]:
        if self._body.include_usage:
            yield self._writer.usage(self._usage.model_dump(mode="json", exclude_unset=True))
        yield DONE

    def _choice(
        self, index: int, text: str, logprobs: Sequence[tuple[int, TokenLogprob]], finish_reason: str | None
    ) -> dict[str, Any]:
        wanted = self._body.logprobs is not None
        return {
            "index": index,
            "text": text,
            "logprobs": _logprobs_json(logprobs) if wanted and (logprobs or finish_reason is not None) else None,
            "finish_reason": finish_reason,
        }

    @property
    def _usage(self) -> CompletionUsage:
        usages = [choice.done.usage for choice in self._choices if choice.done is not None]
        return usage_object(usages, choices=self._body.n or 1)


def _logprobs_json(placed: Sequence[tuple[int, TokenLogprob]]) -> dict[str, Any]:
    return {
        "text_offset": [at for at, _ in placed],
        "tokens": [one.token for _, one in placed],
        "token_logprobs": [max(one.logprob, LEAST_LOGPROB) for _, one in placed],
        "top_logprobs": [{other.token: max(other.logprob, LEAST_LOGPROB) for other in one.top} for _, one in placed],
    }
