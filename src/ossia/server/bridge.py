"""The one place where text meets the engine: a `Turn` goes in, the events of `server.events` come out.

    event loop                                   engine's thread
    generate(turn) ── render, grammar ──▶ worker.submit
                                                 step: deliver(output) for each request
    Generation ◀── events ◀── reader ◀── mailbox ◀── one wake-up of the loop a step, or fewer

The loop never waits for the model, and the engine never waits for the loop.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from ossia.engine.grammar import GrammarConstraint, GuardConstraint, ReasoningMarks, Vocabulary
from ossia.engine.request import MAX_SEED, Constraint, Mask, Request, Sampling, answer_limit
from ossia.engine.worker import Worker
from ossia.errors import OssiaError, RequestError
from ossia.harmony.grammar import TurnGrammar, turn_grammar
from ossia.harmony.messages import Conversation
from ossia.harmony.render import render_completion
from ossia.harmony.tokenizer import Tokenizer
from ossia.llm import LLM
from ossia.server.events import Closed, Done, Event, Mended, Opened, Text, TokenLogprob, Usage
from ossia.server.generation import (
    CLOSING,
    ClosingError,
    End,
    Generation,
    GenerationError,
    GenerationTimeoutError,
    Mailbox,
    OnEnd,
)
from ossia.server.reader import RawReader, TurnReader

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

UNLIMITED = 2**31 - 1
"""More tokens than any context holds."""

TEXT_THREADS = 2
"""Prompts that are rendered at a time, and grammars that are built: those may take long, and nobody else waits."""


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
    adapter: str | None = None
    """Name of the adapter that answers; None is the model itself."""


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
        self._mailbox: Mailbox | None = None
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
            self._mailbox = Mailbox(loop, self._running)
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
        self, turn: Turn | Callable[[], Turn], count: int, mailbox: "Mailbox", started: "list[Generation]"
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
            request = Request(
                prompt=prompt, sampling=replace(sampling, seed=seed), constraint=constraint, adapter=turn.adapter
            )
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
