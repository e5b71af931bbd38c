"""Answers that take their time: server-sent events, and how it is noticed that nobody waits for them any more."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ossia.errors import OssiaError
from ossia.server.bridge import Event, Generation
from ossia.server.errors import ApiError, api_error

log = logging.getLogger(__name__)

T = TypeVar("T")

HEARTBEAT = 15.0
"""Seconds of silence after which a comment tells proxies that the answer is still coming."""
PATIENCE = 30.0
"""Seconds that a client may leave what was sent unread."""

ABORT = "ossia.abort"
"""Key of the scope under which the connection can be cut, where the server offers that."""

_ENCODER = json.JSONEncoder(separators=(",", ":"), check_circular=False, allow_nan=False)

DONE = b"data: [DONE]\n\n"


class Closable(Protocol):
    """Something that goes on only as long as somebody waits for it."""

    def close(self) -> None:
        """End it. Harmless at the end and after."""
        ...


class EventStream(Response):
    """Server-sent events as they come; a client that leaves, or does not read, ends the generator that makes them.

    An OssiaError or ApiError that it raises is told as a last event.
    """

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[bytes, None], generations: Sequence[Closable] = (), *, patience: float = PATIENCE
    ) -> None:
        """generations: what the events are made of, closed when the client has gone, and at the end."""
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._generations = generations
        self._patience = patience
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(disconnected(receive))
        watch.add_done_callback(lambda _: _close(self._generations))
        beat = asyncio.create_task(self._beat(send))
        try:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events):
                async for data in self._told():
                    if watch.done():
                        return
                    await self._send(send, {"type": "http.response.body", "body": data, "more_body": True})
            beat.cancel()  # Nothing may come after the last message.
            await self._send(send, {"type": "http.response.body", "body": b""})
        except TimeoutError:
            log.info("a client left its answer unread for %g seconds: cut off", self._patience)
            scope.get(ABORT, _nothing)()
        finally:
            beat.cancel()
            watch.cancel()
            _close(self._generations)

    async def _told(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._events:
                yield data
        except OssiaError as error:
            yield api_error(error).event()
        except ApiError as error:
            yield error.event()

    async def _send(self, send: Send, message: Message) -> None:
        self._sent += 1
        async with asyncio.timeout(self._patience):
            await send(message)

    async def _beat(self, send: Send) -> None:
        sent = 0
        while True:
            sent = self._sent
            await asyncio.sleep(HEARTBEAT)
            if 0 < sent == self._sent:
                await send({"type": "http.response.body", "body": b": still at it\n\n", "more_body": True})


async def waited_for(work: Awaitable[T], generations: Sequence[Closable], receive: Receive) -> T:
    """The result of `work` on the generations, which are closed at the end, or earlier if the client goes."""
    watch = asyncio.create_task(disconnected(receive))
    watch.add_done_callback(lambda _: _close(generations))
    try:
        return await work
    finally:
        watch.cancel()
        _close(generations)


async def disconnected(receive: Receive) -> None:
    """Returns when the client has gone. The request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def merged(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of several generations as they come, each with the index of its generation."""
    if len(generations) == 1:
        async for event in generations[0]:
            yield 0, event
        return
    queue: asyncio.Queue[tuple[int, Event | OssiaError | None]] = asyncio.Queue(maxsize=len(generations))

    async def pump(index: int, generation: Generation) -> None:
        try:
            async for event in generation:
                await queue.put((index, event))
        except OssiaError as error:
            await queue.put((index, error))
        await queue.put((index, None))

    pumps = [asyncio.create_task(pump(index, generation)) for index, generation in enumerate(generations)]
    try:
        left = len(pumps)
        while left:
            index, event = await queue.get()
            if isinstance(event, OssiaError):
                raise event
            if event is None:
                left -= 1
            else:
                yield index, event
    finally:
        for task in pumps:
            task.cancel()
        for task in pumps:
            with suppress(asyncio.CancelledError):
                await task


def sse(value: Any) -> bytes:
    """One event. Escaped to ASCII, because not all clients split lines at line feeds alone."""
    return b"data: " + _ENCODER.encode(value).encode() + b"\n\n"


def _close(generations: Sequence[Closable]) -> None:
    for generation in generations:
        generation.close()


def _nothing() -> None:
    pass
