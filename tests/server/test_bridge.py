"""Between the engine's thread and the loop: nothing waits, nothing is lost, nothing goes on unwanted."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest
from tests.server.fake import FakeWorker, said, turn_ids

from ossia.engine.request import Sampling
from ossia.errors import BusyError, HarmonyError, RequestError
from ossia.harmony.messages import Conversation, Message
from ossia.llm import LLM
from ossia.server import generation as generation_module
from ossia.server.bridge import (
    Bridge,
    ClosingError,
    Done,
    Event,
    Generation,
    GenerationError,
    GenerationTimeoutError,
    PromptTooLongError,
    Text,
    Turn,
    Usage,
)

ASKED = Conversation(messages=(Message(role="user", content="What is 6 times 7?"),))

POPE = Message(role="pope", content="")


def run(llm: LLM, worker: FakeWorker, use: Callable[[Bridge], Awaitable[Any]], **options: Any) -> Any:
    """What `use` makes of a bridge, in a loop of its own."""
    bridge = Bridge(llm, worker, **options)  # type: ignore[arg-type]
    worker.start()

    async def main() -> Any:
        async with asyncio.timeout(30):
            return await use(bridge)

    try:
        return asyncio.run(main())
    finally:
        worker.close()
        bridge.close()


def turn(**options: Any) -> Turn:
    return Turn(**{"conversation": ASKED, "sampling": Sampling(), **options})


def long_answer(llm: LLM, words: int = 300) -> list[int]:
    return turn_ids(llm.tokenizer, said("analysis", "Hm."), said("final", "word " * words))


async def everything(generation: Generation) -> list[Event]:
    return [event async for event in generation]


def test_an_answer_in_events(llm: LLM) -> None:
    ids = turn_ids(llm.tokenizer, said("analysis", "Hm."), said("final", "42"))

    async def use(bridge: Bridge) -> list[Event]:
        return await everything(await bridge.generate(turn()))

    events = run(llm, FakeWorker(lambda _: ids), use)
    assert [event.text for event in events if isinstance(event, Text) and event.channel == "final"]
    done = events[-1]
    assert isinstance(done, Done)
    assert done.finish == "stop"
    assert done.usage.completion_tokens == len(ids)
    assert done.usage.cached_tokens == 3
    assert 0 <= done.usage.first_token_seconds <= done.usage.total_seconds


def test_tokens_that_come_fast_come_together(llm: LLM) -> None:
    """Hundreds of tokens a second wake the loop some fifty times."""
    ids = long_answer(llm, 200)

    async def use(bridge: Bridge) -> list[Event]:
        return await everything(await bridge.generate(turn()))

    events = run(llm, FakeWorker(lambda _: ids, pace=generation_module.PACE / 20), use)
    assert len([event for event in events if isinstance(event, Text)]) < len(ids) / 4


def test_tokens_that_come_slowly_come_at_once(llm: LLM) -> None:
    ids = turn_ids(llm.tokenizer, said("final", "one two three"))

    async def use(bridge: Bridge) -> list[Event]:
        return await everything(await bridge.generate(turn()))

    events = run(llm, FakeWorker(lambda _: ids, pace=2 * generation_module.PACE), use)
    texts = [event.text for event in events if isinstance(event, Text)]
    assert len(texts) == len(llm.tokenizer.encode("one two three"))


def test_the_first_token_does_not_wait(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others keep the loop paced, a new request's first token is still brought at once."""
    monkeypatch.setattr(generation_module, "PACE", 3600.0)
    ids = long_answer(llm)
    worker = FakeWorker(lambda _: ids, pace=0.001)

    async def use(bridge: Bridge) -> None:
        first = await bridge.generate(turn())
        await anext(first)
        second = await bridge.generate(turn())
        await anext(second)
        first.close()
        second.close()

    run(llm, worker, use)


def test_leaving_early_stops_the_engine(llm: LLM) -> None:
    ids = long_answer(llm, 100_000)
    worker = FakeWorker(lambda _: ids, pace=0.001)

    async def use(bridge: Bridge) -> int:
        async with aclosing(await bridge.generate(turn())) as generation:
            async for _ in generation:
                break
        await asyncio.to_thread(worker.wait_until_idle)
        return bridge.num_running

    assert run(llm, worker, use) == 0
    assert worker.cancelled == [1]


def test_cancelling_ends_the_events(llm: LLM) -> None:
    ids = long_answer(llm, 100_000)

    async def use(bridge: Bridge) -> list[Event]:
        generation = await bridge.generate(turn())
        asyncio.get_running_loop().call_later(0.05, generation.cancel)
        return await everything(generation)

    events = run(llm, FakeWorker(lambda _: ids, pace=0.001), use)
    assert isinstance(events[-1], Done)
    assert events[-1].finish == "cancelled"


def test_a_task_that_is_cancelled_while_it_begins_leaves_nothing_behind(llm: LLM) -> None:
    ids = long_answer(llm, 100_000)
    worker = FakeWorker(lambda _: ids, pace=0.001)
    begun, go_on = threading.Event(), threading.Event()
    submit = worker.submit

    def slow(*arguments: Any) -> int:
        begun.set()
        go_on.wait()
        return submit(*arguments)

    worker.submit = slow  # type: ignore[method-assign]

    async def use(bridge: Bridge) -> None:
        task = asyncio.create_task(bridge.generate(turn()))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        while not worker.cancelled:
            await asyncio.sleep(0.005)

    run(llm, worker, use)
    assert worker.cancelled == [1]


def test_an_answer_that_takes_too_long(llm: LLM) -> None:
    ids = long_answer(llm, 100_000)
    worker = FakeWorker(lambda _: ids, pace=0.001)

    async def use(bridge: Bridge) -> None:
        with pytest.raises(GenerationTimeoutError, match=r"not complete after 0.1 seconds"):
            await everything(await bridge.generate(turn()))
        await asyncio.to_thread(worker.wait_until_idle)

    run(llm, worker, use, time_limit=0.1)
    assert worker.cancelled == [1]


def test_an_engine_that_fails(llm: LLM) -> None:
    async def use(bridge: Bridge) -> list[Event]:
        generation = await bridge.generate(turn())
        events: list[Event] = []
        with pytest.raises(GenerationError, match="the logits are not numbers"):
            async for event in generation:
                events.append(event)  # noqa: PERF401 - what came before the error counts
        return events

    assert run(llm, FakeWorker(lambda _: long_answer(llm), fails_after=8), use)


def test_closing_is_told_to_those_who_wait(llm: LLM) -> None:
    ids = long_answer(llm, 100_000)

    async def use(bridge: Bridge) -> None:
        generation = await bridge.generate(turn())
        await anext(generation)
        bridge.interrupt()
        with pytest.raises(ClosingError, match="the server closes"):
            await everything(generation)

    run(llm, FakeWorker(lambda _: ids, pace=0.001), use)


def test_a_worker_that_closes_is_told_too(llm: LLM) -> None:
    ids = long_answer(llm, 100_000)
    worker = FakeWorker(lambda _: ids, pace=0.001)

    async def use(bridge: Bridge) -> None:
        generation = await bridge.generate(turn())
        await anext(generation)
        await asyncio.to_thread(worker.close)
        with pytest.raises(ClosingError, match="the server closes"):
            await everything(generation)

    run(llm, worker, use)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"conversation": ASKED.__class__(messages=(Message(role="pope", content=""),))},
            HarmonyError,
            "role is 'pope'",
        ),
        ({"conversation": None, "prompt": "a" * 30_000}, PromptTooLongError, "may have 4095"),
        ({"conversation": None, "prompt": ()}, RequestError, "empty"),
    ],
)
def test_what_cannot_be_run_is_refused(llm: LLM, changes: Any, error: type[Exception], message: str) -> None:
    async def use(bridge: Bridge) -> None:
        with pytest.raises(error, match=message):
            await bridge.generate(turn(**changes))

    run(llm, FakeWorker(lambda _: ()), use)


def test_all_choices_or_none(llm: LLM) -> None:
    worker = FakeWorker(lambda _: long_answer(llm, 100_000), pace=0.001, max_waiting=2)

    async def use(bridge: Bridge) -> None:
        with pytest.raises(BusyError, match="try again later"):
            await bridge.choices(turn(), 3)
        await asyncio.to_thread(worker.wait_until_idle)

    run(llm, worker, use)
    assert sorted(worker.cancelled) == [1, 2]


def test_every_end_is_told_once(llm: LLM) -> None:
    ends: list[tuple[Usage, str]] = []
    worker = FakeWorker(lambda _: long_answer(llm, 20), pace=0.002)

    async def use(bridge: Bridge) -> None:
        await everything(await bridge.generate(turn()))
        generation = await bridge.generate(turn())
        await anext(generation)
        generation.close()
        generation.close()
        await everything(await bridge.generate(turn(sampling=Sampling(max_tokens=2))))

    run(llm, worker, use, on_end=lambda usage, end: ends.append((usage, end)))
    assert [end for _, end in ends] == ["stop", "cancelled", "length"]
    assert ends[2][0].completion_tokens == 2
