"""The one place where text meets the engine: a `Turn` goes in, the events of `server.events` come out.

    event loop                                   engine's thread
    generate(turn) ── render, grammar ──▶ worker.submit
                                                 step: deliver(output) for each request
    Generation ◀── events ◀── reader ◀── mailbox ◀── one wake-up of the loop a step, or fewer

The loop never waits for the model, and the engine never waits for the loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from ossia.engine.grammar import GrammarConstraint, GuardConstraint, ReasoningMarks, Vocabulary
from ossia.engine.request import MAX_SEED, Constraint, Mask, Output, Request, Sampling, answer_limit
from ossia.engine.worker import Worker
from ossia.errors import OssiaError, RequestError
from ossia.harmony.grammar import TurnGrammar, turn_grammar
from ossia.harmony.messages import Conversation
from ossia.harmony.render import render_completion
from ossia.harmony.tokenizer import Tokenizer
from ossia.llm import LLM
from ossia.server.events import Closed, Done, Event, FinishReason, Mended, Opened, Text, TokenLogprob, Usage
from ossia.server.reader import RawReader, Reader, TurnReader

__all__ = [
    "Bridge",
    "Closed",
    "ClosingError",
    "Done",
    "Event",
    "Generation",
    "GenerationError",
    "GenerationTimeoutError",
    "Mended",
    "Opened",
    "PromptTooLongError",
    "Text",
    "TokenLogprob",
    "Turn",
    "Usage",
]

T = TypeVar("T")

End = FinishReason | Literal["error", "timeout"]

OnEnd = Callable[[Usage, End], None]
"""Is told how a generation ended, and what it took until then."""

PACE, MOST_PACE = 0.02, 0.1
"""Seconds between two wake-ups of the loop while tokens come faster: what no reader can tell from at once."""
PACED = 4
"""Generations that run at that pace; more of them slow it down, so that the loop's share of the time is bounded."""

CLOSING = "the server closes before this answer is complete: ask again when it is back"

UNLIMITED = 2**31 - 1
"""More tokens than any context holds."""

TEXT_THREADS = 2
"""Prompts that are rendered at a time, and grammars that are built: those may take long, and nobody else waits."""


class GenerationError(OssiaError):
    """The engine could not go on with a request."""


class GenerationTimeoutError(GenerationError):
    """A request took longer than it may."""


class ClosingError(GenerationError):
    """The server is closing."""


class PromptTooLongError(RequestError):
    """A prompt has more tokens than the context, or than the server takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What is asked: the next turn of a conversation, or the continuation of a raw prompt. One of the two is None."""

    conversation: Conversation | None = None
    prompt: str | tuple[int, ...] | None = None
    """Text is encoded without special tokens; ids are taken as they are."""
    sampling: Sampling
    """The vocabulary's own stop tokens are added."""
    stop: tuple[str, ...] = ()
    """Where one of these appears in the channel `final` (raw: anywhere), the answer ends before it."""
    grammar: TurnGrammar | None = None
    """What a turn of a conversation must follow: see `Bridge.grammar`."""


class Bridge:
    """Takes turns from the routes to the engine, and brings back what the model says."""

    def __init__(
        self,
        llm: LLM,
        worker: Worker,
        *,
        max_prompt: int | None = None,
        time_limit: float | None = None,
        on_end: OnEnd | None = None,
    ) -> None:
        """max_prompt: tokens; time_limit: seconds of a generation; on_end: told on the loop of each that ended."""
        self.llm = llm
        self.worker = worker
        self.on_end = on_end
        self._max_prompt = llm.context - 1 if max_prompt is None else min(max_prompt, llm.context - 1)
        self._time_limit = time_limit
        self._vocabulary, self._marks = _vocabulary(llm)
        self._text_threads = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="ossia-text")
        self._grammar_threads = ThreadPoolExecutor(TEXT_THREADS, thread_name_prefix="ossia-grammar")
        self._mailbox: _Mailbox | None = None
        self._running: set[Generation] = set()

    @property
    def tokenizer(self) -> Tokenizer:
        return self.llm.tokenizer

    @property
    def max_prompt(self) -> int:
        """Tokens that a prompt may have."""
        return self._max_prompt

    async def generate(self, turn: Turn) -> "Generation":
        """Begin to answer.

        Raises HarmonyError for a conversation that cannot be rendered and a grammar that cannot be built, RequestError
        and PromptTooLongError for a prompt that cannot be run, BusyError where the queue is full.
        """
        return (await self.choices(turn, 1))[0]

    async def choices(
        self, turn: Turn | Callable[[], Turn], count: int, *, constrained: bool = False
    ) -> "list[Generation]":
        """Begin several answers to one prompt; where the turn has a seed, the i-th has that seed plus i.

        A function that makes the turn is called beside the loop; `constrained` says that this builds a grammar.
        Raises as `generate`; then none is begun.
        """
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = _Mailbox(loop, self._running)
        started: list[Generation] = []
        threads = self._threads(constrained or (isinstance(turn, Turn) and turn.grammar is not None))
        work = loop.run_in_executor(threads, self._start, turn, count, self._mailbox, started)
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            work.add_done_callback(lambda _: _cancel_all(started))
            raise
        except OssiaError:
            _cancel_all(started)
            raise
        for generation in started:
            self._running.add(generation)
            generation.on_loop(self._ended, self._time_limit)
        return started

    def grammar(
        self,
        *,
        response_format: Mapping[str, Any] | None = None,
        regex: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] | None = None,
        format_place: str = "response_format",
    ) -> TurnGrammar | None:
        """See `harmony.grammar.turn_grammar`. May take a while: call it through `in_background`."""
        return turn_grammar(
            self.tokenizer,
            response_format=response_format,
            regex=regex,
            tools=tools,
            tool_choice=tool_choice,
            problem=self._vocabulary.problem,
            format_place=format_place,
        )

    async def in_background(self, work: Callable[[], T], *, constrained: bool = False) -> T:
        """The result of work on text, done beside the loop. constrained: it builds a grammar."""
        return await asyncio.get_running_loop().run_in_executor(self._threads(constrained), work)

    def _threads(self, constrained: bool) -> ThreadPoolExecutor:
        return self._grammar_threads if constrained else self._text_threads

    @property
    def num_running(self) -> int:
        """Generations that have begun and not ended."""
        return len(self._running)

    def interrupt(self) -> None:
        """End what is being generated, on the loop: those who wait get a ClosingError."""
        for generation in tuple(self._running):
            generation.fail("cancelled", ClosingError(CLOSING))

    def close(self) -> None:
        """Let go of the threads; the worker is closed by who started it."""
        self._text_threads.shutdown(wait=False, cancel_futures=True)
        self._grammar_threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, generation: "Generation", usage: Usage, end: End) -> None:
        self._running.discard(generation)
        if self.on_end is not None:
            self.on_end(usage, end)

    def _start(
        self, turn: Turn | Callable[[], Turn], count: int, mailbox: "_Mailbox", started: "list[Generation]"
    ) -> None:
        """Begin, beside the loop; what is begun before an error is in `started` too."""
        turn = turn if isinstance(turn, Turn) else turn()
        prompt = self._prompt(turn)
        if len(prompt) > self._max_prompt:
            raise PromptTooLongError(f"the prompt has {len(prompt)} tokens and may have {self._max_prompt}: shorten it")
        sampling = replace(turn.sampling, stop_ids=turn.sampling.stop_ids | self.tokenizer.stop_ids)
        for index in range(count):
            seed = None if sampling.seed is None else (sampling.seed + index) % (MAX_SEED + 1)
            constraint = self._constraint(turn, answer_limit(sampling, len(prompt), self.llm.context))
            request = Request(prompt=prompt, sampling=replace(sampling, seed=seed), constraint=constraint)
            if turn.conversation is not None:
                reader = TurnReader(self.tokenizer, stop=turn.stop)
            else:
                reader = RawReader(self.tokenizer, stop=turn.stop, stop_ids=sampling.stop_ids)
            generation = Generation(request, reader, mailbox)
            generation.begin(self.worker)
            started.append(generation)

    def _constraint(self, turn: Turn, limit: int) -> Constraint | None:
        if turn.conversation is None:
            return None
        grammar = turn.grammar
        if grammar is None:
            return GuardConstraint(self._marks, vocab_size=self.llm.config.vocab_size)
        constrained = partial(
            GrammarConstraint,
            self._vocabulary,
            grammar.lark,
            finish=grammar.finish,
            growth=grammar.growth,
            marks=self._marks,
        )
        if grammar.is_free:
            return _Unhurried(constrained(limit=UNLIMITED))
        try:
            return constrained(limit=limit)
        except RequestError as error:
            given = turn.sampling.max_tokens
            raise error if given is None else RequestError(f"max_tokens is {given}: {error}") from None

    def _prompt(self, turn: Turn) -> tuple[int, ...]:
        if turn.conversation is not None:
            return tuple(render_completion(turn.conversation, self.tokenizer))
        if isinstance(turn.prompt, str):
            return tuple(self.tokenizer.encode(turn.prompt))
        return turn.prompt or ()


class Generation:
    """One answer in the making: iterate over its events, once. Whoever leaves early must call `close`, or `cancel`."""

    def __init__(self, request: Request, reader: Reader, mailbox: "_Mailbox") -> None:
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


class _Unhurried(Constraint):
    """A grammar whose answer need not come to an end within its limit: like a free one it is cut off there."""

    def __init__(self, inner: GrammarConstraint) -> None:
        self._inner = inner

    def mask(self, remaining: int) -> Mask | None:
        del remaining
        return self._inner.mask(UNLIMITED)

    def accept(self, token: int) -> None:
        self._inner.accept(token)

    @property
    def notes(self) -> tuple[str, ...]:
        return self._inner.notes


def _vocabulary(llm: LLM) -> tuple[Vocabulary, ReasoningMarks]:
    tokenizer = llm.tokenizer
    special = tokenizer.special
    tokens = [tokenizer.token_bytes(token) if token in tokenizer else None for token in range(llm.config.vocab_size)]
    marks = ReasoningMarks(
        channel=special["<|channel|>"],
        message=special["<|message|>"],
        end=special["<|end|>"],
        headers=(tuple(tokenizer.encode("analysis")),),
    )
    return Vocabulary(tokens, special), marks


def _cancel_all(generations: Sequence[Generation]) -> None:
    for generation in generations:
        generation.cancel()


class _Mailbox:
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
