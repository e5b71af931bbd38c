"""One answer in the making: what the engine's thread brings, as events on the loop."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Literal

from ossia.engine.request import Output, Request
from ossia.engine.worker import Worker
from ossia.errors import OssiaError
from ossia.server.events import Done, Event, FinishReason, Mended, Usage
from ossia.server.reader import Reader

End = FinishReason | Literal["error", "timeout"]

OnEnd = Callable[[Usage, End], None]
"""Is told how a generation ended, and what it took until then."""

PACE, MOST_PACE = 0.02, 0.1
"""Seconds between two wake-ups of the loop while tokens come faster: what no reader can tell from at once."""
PACED = 2
"""Generations that run at that pace; more of them slow it down, so that the loop's share of the time is bounded."""

CLOSING = "the server closes before this answer is complete: ask again when it is back"


class GenerationError(OssiaError):
    """The engine could not go on with a request."""


class GenerationTimeoutError(GenerationError):
    """A request took longer than it may."""


class ClosingError(GenerationError):
    """The server is closing."""


class Generation:
    """One answer in the making: iterate over its events, once. Whoever leaves early must call `close`, or `cancel`."""

    def __init__(self, request: Request, reader: Reader, mailbox: "Mailbox") -> None:
        self.prompt_tokens = len(request.prompt)
        self._request = request
        self._reader = reader
        self._mailbox = mailbox
        self._on_end: Callable[[Generation, Usage, End], None] | None = None
        self._cancel: Callable[[], None] | None = None
        """None before the engine has the request, and once it has nothing more to do for it."""
        self._timer: asyncio.TimerHandle | None = None
        self._letters: deque[Output] = deque()
        """Outputs that the engine's thread has brought and the loop has not seen."""
        self._outputs: list[Output] = []
        self._events: deque[Event] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._failure: OssiaError | None = None
        self._ended = False
        self._is_unwanted = False
        self._cached_tokens = 0
        self._begun = self._first = self._latest = time.perf_counter()
        self._has_first = False

    def begin(self, worker: Worker) -> None:
        """Hand the request to the engine, on any thread."""
        request_id = worker.submit(self._request, self.put)
        self._cancel = partial(worker.cancel, request_id)

    def on_loop(self, on_end: Callable[["Generation", Usage, End], None], time_limit: float | None) -> None:
        """From now on the loop has it: say whom to tell of its end, and let it take no longer than `time_limit`."""
        self._on_end = on_end
        if time_limit is not None:
            self._timer = self._mailbox.loop.call_later(time_limit, self._expire, time_limit)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        """The next event. Raises GenerationError where the engine failed, GenerationTimeoutError where time ran out."""
        while not self._events:
            if self._failure is not None:
                failure, self._failure = self._failure, None
                raise failure
            if self._ended:
                raise StopAsyncIteration
            if not self._outputs:
                self._waiter = self._mailbox.loop.create_future()
                await self._waiter
            self._read()
        return self._events.popleft()

    def more(self) -> list[Event]:
        """The next events as far as they are there already."""
        events = list(self._events)
        self._events.clear()
        return events

    def cancel(self) -> None:
        """Have the engine stop; the events then end with `Done(finish="cancelled")`. Harmless at the end and after."""
        self._is_unwanted = True
        self._settle(cancel=True)

    def close(self) -> None:
        """As `cancel`, and there are no more events."""
        self._settle(cancel=True)
        if not self._ended:
            self._end("cancelled")
        self._events.clear()
        self._outputs.clear()
        self._wake()

    async def aclose(self) -> None:
        """`close`, for those who hold it as an asynchronous iterator."""
        self.close()

    def fail(self, end: End, failure: OssiaError) -> None:
        """End it, on the loop, with an error that whoever iterates gets next."""
        self._settle(cancel=True)
        if not self._ended:
            self._failure = failure
            self._end(end)
            self._wake()

    # ---------------------------------------------------------------- from the engine

    def put(self, output: Output) -> None:
        """Take an output, on the engine's thread; neither waits nor raises."""
        self._latest = time.perf_counter()
        is_first = bool(output.drawn) and not self._has_first
        if is_first:
            self._first, self._has_first = self._latest, True
        self._letters.append(output)
        if is_first or output.finish is not None:
            self._mailbox.deliver_now(self)  # Nobody should have to wait for these.
        else:
            self._mailbox.deliver_soon(self)

    def collect(self) -> None:
        """Take what has come, on the loop."""
        wanted = not self._ended
        while self._letters:
            output = self._letters.popleft()
            if output.finish is not None:
                self._settle()
            if wanted:
                self._outputs.append(output)
        if self._outputs:
            self._wake()

    def _read(self) -> None:
        """Turn the outputs that have come into events: those of several steps together make few and long ones."""
        if not self._outputs:
            return
        outputs, self._outputs = self._outputs, []
        last = outputs[-1]
        self._cached_tokens = last.cached_tokens or self._cached_tokens
        self._events.extend(self._reader.feed([one for output in outputs for one in output.drawn]))
        if self._reader.stop_string is not None:
            self.cancel()
            self._done("stop")
        elif last.finish == "error":
            self.fail("error", GenerationError(last.error or "the engine failed: ask again"))
        elif last.finish == "cancelled" and not self._is_unwanted:
            self.fail("cancelled", ClosingError(CLOSING))
        elif last.finish is not None:
            self._events.extend(self._reader.finish(last.finish))
            self._done("tool_calls" if last.finish == "stop" and self._reader.called else last.finish)

    def _done(self, finish: FinishReason) -> None:
        if self._request.constraint is not None:
            self._events.extend(Mended(text=note) for note in self._request.constraint.notes)
        self._events.append(Done(finish=finish, usage=self._end(finish), stop_string=self._reader.stop_string))

    def _end(self, end: End) -> Usage:
        self._ended = True
        usage = Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._reader.completion_tokens,
            reasoning_tokens=self._reader.reasoning_tokens,
            first_token_seconds=self._first - self._begun,
            total_seconds=self._latest - self._begun,
        )
        if self._on_end is not None:
            self._on_end(self, usage, end)
        return usage

    def _settle(self, *, cancel: bool = False) -> None:
        """The engine is through with this request, or shall be."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._cancel is not None:
            if cancel:
                self._cancel()
            self._cancel = None

    def _expire(self, time_limit: float) -> None:
        self._read()  # What has come in time counts.
        why = f"the answer was not complete after {time_limit:g} seconds: ask for fewer tokens, or try again later"
        self.fail("timeout", GenerationTimeoutError(why))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Mailbox:
    """Tells the loop that outputs have come: at once where it is quiet, else for all generations at a pace."""

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Collection[Generation]) -> None:
        self.loop = loop
        self._running = running
        self._waiting: deque[Generation] = deque()
        """Those that have outputs; one may stand here more than once."""
        self._is_watched = False
        """Whether the loop will look here by itself. Cleared before it looks, so that nothing is overlooked."""

    def deliver_now(self, generation: Generation) -> None:
        """On the engine's thread: have the loop collect what this one has, and nothing else."""
        self._call(generation.collect)

    def deliver_soon(self, generation: Generation) -> None:
        """On the engine's thread: have the loop collect it when it next looks."""
        self._waiting.append(generation)
        if not self._is_watched:
            self._is_watched = True
            self._call(self._look)

    def _call(self, what: Callable[[], object]) -> None:
        # A closed loop raises: nobody is left to read.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(what)

    def _look(self) -> None:
        if self._collect():
            pace = min(PACE * max(1.0, len(self._running) / PACED), MOST_PACE)
            self.loop.call_later(pace, self._look)
        else:
            self._is_watched = False
            self._collect()

    def _collect(self) -> bool:
        """Collect from all; returns whether there were any."""
        some = bool(self._waiting)
        while self._waiting:
            self._waiting.popleft().collect()
        return some
