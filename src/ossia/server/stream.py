"""Answers that take their time: server-sent events, and how it is noticed that nobody waits for them any more."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
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


class Final(bytes):
    """The last piece of a stream, with which the answer ends."""


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
        self._is_sending = False
        self._since = 0.0
        """When what is being sent, or else what was sent last, was begun with."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(disconnected(receive))
        watch.add_done_callback(lambda _: _close(self._generations))
        minder = asyncio.create_task(self._mind(scope, send))
        try:
            await self._send(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(self._events):
                async for data in self._told():
                    if watch.done():
                        return
                    is_last = isinstance(data, Final)
                    if is_last:
                        minder.cancel()  # Nothing may come after the last message.
                    await self._send(send, {"type": "http.response.body", "body": data, "more_body": not is_last})
                    if is_last:
                        return
            minder.cancel()
            await self._send(send, {"type": "http.response.body", "body": b""})
        finally:
            minder.cancel()
            watch.cancel()
            _close(self._generations)

    async def _told(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._events:
                yield data
        except OssiaError as error:
            yield Final(api_error(error).event())
        except ApiError as error:
            yield Final(error.event())

    async def _send(self, send: Send, message: Message) -> None:
        self._since, self._is_sending = time.monotonic(), True
        await send(message)
        self._is_sending = False

    async def _mind(self, scope: Scope, send: Send) -> None:
        """Cut off a client that does not read, and have proxies know that the answer is still coming."""
        while True:
            await asyncio.sleep(min(1.0, self._patience / 2))
            silent = time.monotonic() - self._since
            if self._is_sending and silent > self._patience:
                log.info("a client left its answer unread for %g seconds: cut off", self._patience)
                _close(self._generations)
                scope.get(ABORT, _nothing)()
                return
            if not self._is_sending and silent > HEARTBEAT:
                await self._send(send, {"type": "http.response.body", "body": b": still at it\n\n", "more_body": True})


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


Batches = AsyncGenerator[tuple[int, list[Event]], None]
"""Events that are there at the same time, each batch with the index of its generation."""


async def merged(generations: Sequence[Generation]) -> Batches:
    """The events of several generations as they come."""
    if len(generations) == 1:
        async for event in generations[0]:
            yield 0, [event, *generations[0].more()]
        return
    queue: asyncio.Queue[tuple[int, list[Event] | OssiaError | None]] = asyncio.Queue(maxsize=len(generations))

    async def pump(index: int, generation: Generation) -> None:
        try:
            async for event in generation:
                await queue.put((index, [event, *generation.more()]))
        except OssiaError as error:
            await queue.put((index, error))
        await queue.put((index, None))

    pumps = [asyncio.create_task(pump(index, generation)) for index, generation in enumerate(generations)]
    try:
        left = len(pumps)
        while left:
            index, batch = await queue.get()
            if isinstance(batch, OssiaError):
                raise batch
            if batch is None:
                left -= 1
            else:
                yield index, batch
    finally:
        for task in pumps:
            task.cancel()
        for task in pumps:
            with suppress(asyncio.CancelledError):
                await task


class Chunks:
    """The events of one answer, all of which begin alike: that part is written once."""

    def __init__(self, head: Mapping[str, Any], *, include_usage: bool) -> None:
        """include_usage: whether the last event is to hold it; then all others say that they do not."""
        self._head = head
        self._begin = sse(head).removesuffix(b"}\n\n") + b',"choices":['
        self._end = b'],"usage":null}\n\n' if include_usage else b"]}\n\n"

    def choice(self, choice: Mapping[str, Any]) -> bytes:
        """An event that brings more of a choice."""
        return self._begin + _ENCODER.encode(choice).encode() + self._end

    def usage(self, usage: Mapping[str, Any]) -> bytes:
        """The last event, with the usage."""
        return sse({**self._head, "choices": [], "usage": usage})


def sse(value: Any) -> bytes:
    """One event. Escaped to ASCII, because not all clients split lines at line feeds alone."""
    return b"data: " + _ENCODER.encode(value).encode() + b"\n\n"


def _close(generations: Sequence[Closable]) -> None:
    for generation in generations:
        generation.close()


def _nothing() -> None:
    pass
