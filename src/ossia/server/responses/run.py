"""Responses under way: each has a task of its own that takes its answer from the engine, whoever listens, or nobody.

stored as in progress ── events to listeners ──▶ end stored ──▶ last event, or the whole answer
                               │
             cancelled, failed, or the server stops: an end as well
"""

import asyncio
import logging
import zlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from openai.types.responses import Response, ResponseStreamEvent

from ossia.errors import OssiaError, StorageError
from ossia.server.bridge import Generation
from ossia.server.memory import Memory
from ossia.server.responses.events import Answer, to_json, to_sse
from ossia.server.store import LOST, ResponseStore

log = logging.getLogger(__name__)

UNFORESEEN = "an error in the server, which its log describes"


class Run:
    """One response under way. Made by `Runs.start`."""

    def __init__(
        self, answer: Answer, generation: Generation, *, store: ResponseStore | None, memory: Memory, streamed: bool
    ) -> None:
        self.failure: OssiaError | None = None
        """Why it failed, once it has."""
        self.streamed = streamed
        """Whether the events are kept, to be followed."""
        self._answer = answer
        self._generation = generation
        self._store = store
        self._memory = memory
        self._told: list[bytes] = []
        self._listeners: set[Listener] = set()
        self._ended = asyncio.Event()
        self._stopped: str | None = None
        self._tell(answer.begin())
        self._pull = asyncio.create_task(self._take_answer())
        self.task = asyncio.create_task(self._live())

    @property
    def stored(self) -> bool:
        """Whether it is kept."""
        return self._store is not None

    @property
    def response(self) -> Response:
        """As far as it has come."""
        return self._answer.response

    def close(self) -> None:
        """Have it end as cancelled. Harmless once it has ended."""
        self._pull.cancel()

    async def cancelled(self) -> Response:
        """The response, ended as cancelled unless it has ended already."""
        self.close()
        await self._ended.wait()
        return self.response

    def stop(self) -> None:
        """Have it end as failed, because the server stops. Harmless once it has ended."""
        self._stopped = LOST["message"]
        self._pull.cancel()

    async def ended(self) -> Response:
        """The response, once it has ended and the end is stored. Raises what made it fail."""
        await self._ended.wait()
        if self.failure is not None:
            raise self.failure
        return self.response

    async def follow(self, listener: "Listener") -> AsyncGenerator[bytes, None]:
        """Its events as pieces of an event stream, from the first that the listener has not heard to the last."""
        self._listeners.add(listener)
        try:
            while not listener.left:
                if listener.heard < len(self._told):
                    news, listener.heard = self._told[listener.heard :], len(self._told)
                    yield b"".join(news)
                elif self._ended.is_set():
                    return
                else:
                    listener.bell.clear()
                    await listener.bell.wait()
        finally:
            self._listeners.discard(listener)

    def _tell(self, events: Sequence[ResponseStreamEvent]) -> None:
        if self.streamed:
            self._told.extend(to_sse(event) for event in events)
            self._ring()

    def _ring(self) -> None:
        for listener in self._listeners:
            listener.bell.set()

    async def _take_answer(self) -> None:
        async for event in self._generation:
            self._tell(self._answer.feed(event))

    async def _live(self) -> None:
        answer = self._answer
        try:
            await self._pull
        except asyncio.CancelledError:
            self._tell(answer.cancel() if self._stopped is None else answer.fail(self._stopped))
        except OssiaError as error:
            self._fail(error, str(error))
        except Exception:  # Whoever waits must be told.
            log.exception("response %s", answer.response.id)
            self._fail(OssiaError(UNFORESEEN), UNFORESEEN)
        self._generation.close()
        for call_id, reasoning in answer.calls:
            self._memory.keep([call_id], reasoning)
        await self._keep()
        self._tell([answer.conclusion()])
        self._ended.set()
        self._ring()

    async def _keep(self) -> None:
        if self._store is None:
            return
        recorded: bytes | None = None
        if self.streamed and self.response.background:
            recorded = zlib.compress(b"".join((*self._told, to_sse(self._answer.conclusion()))))
        try:
            await self._store.finish(to_json(self.response), events=recorded)
        except StorageError as error:
            log.error("response %s could not be stored: %s", self.response.id, error)
            self._fail(error, f"the answer could not be stored: {error}")

    def _fail(self, error: OssiaError, message: str) -> None:
        self.failure = error
        self._tell(self._answer.fail(message))


class Listener:
    """Who follows a run: from which event on, and whether still."""

    def __init__(self, *, starting_after: int = -1) -> None:
        self.heard = starting_after + 1
        """How many events have been told."""
        self.left = False
        self.bell = asyncio.Event()
        """Rings when there is something to hear."""

    def close(self) -> None:
        """Listen no more: `Run.follow` comes to its end."""
        self.left = True
        self.bell.set()


class Runs:
    """All responses under way, and where they are kept. store: None keeps nothing."""

    def __init__(self, store: ResponseStore | None, memory: Memory) -> None:
        self.store = store
        self.memory = memory
        self._live: dict[str, Run] = {}

    def get(self, response_id: str) -> Run | None:
        """The run of this response, None where it has ended, is not to be kept, or never was."""
        run = self._live.get(response_id)
        return run if run is not None and run.stored else None

    async def start(
        self,
        answer: Answer,
        generation: Generation,
        given: Sequence[dict[str, Any]],
        *,
        streamed: bool,
        stored: bool,
    ) -> Run:
        """Let a response begin, stored first with its input items if it is to be. Raises StorageError."""
        store = self.store if stored else None
        try:
            if store is not None:
                await store.begin(to_json(answer.response), given)
        except BaseException:
            generation.close()
            raise
        run = Run(answer, generation, store=store, memory=self.memory, streamed=streamed)
        response_id = answer.response.id
        self._live[response_id] = run
        run.task.add_done_callback(lambda _: self._live.pop(response_id, None))
        return run

    async def close(self) -> None:
        """End what is under way, as failed. Returns when all is stored."""
        runs = list(self._live.values())
        for run in runs:
            run.stop()
        await asyncio.gather(*(run.task for run in runs), return_exceptions=True)


async def replayed(events: bytes, listener: Listener) -> AsyncGenerator[bytes, None]:
    """Of a recorded stream what the listener has not heard."""
    pieces = zlib.decompress(events).split(b"\n\n")[:-1]
    yield b"".join(piece + b"\n\n" for piece in pieces[listener.heard :])
