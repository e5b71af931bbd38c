"""The engine in its thread: many threads ask, some leave, and each hears of its end once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pytest
from tests.engine.small import CONFIG, random_model, random_prompt

from ossia.engine.engine import Engine
from ossia.engine.loop import generate
from ossia.engine.request import Output, Request, Sampling
from ossia.engine.worker import Worker
from ossia.errors import BusyError, RequestError
from ossia.model.transformer import Transformer

GREEDY = Sampling(temperature=0, max_tokens=12)
LONG = 60.0
"""Seconds after which a test that hangs gives up."""


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(CONFIG, "auto")


@contextmanager
def working(engine: Engine) -> Iterator[Worker]:
    worker = Worker(engine)
    worker.start()
    try:
        yield worker
    finally:
        worker.close()
        engine.check_integrity()
        assert engine.stats().used_blocks == 0


@dataclass
class Listener:
    tokens: list[int] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    first: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    threads: set[str] = field(default_factory=set)

    def __call__(self, output: Output) -> None:
        assert not self.ended.is_set()
        self.threads.add(threading.current_thread().name)
        self.outputs.append(output)
        self.tokens += [drawn.token for drawn in output.drawn]
        self.first.set()
        if output.finish:
            self.ended.set()

    @property
    def finish(self) -> str | None:
        assert self.ended.wait(LONG)
        return self.outputs[-1].finish


def ask(length: int, sampling: Sampling = GREEDY) -> Request:
    return Request(prompt=tuple(random_prompt(length, seed=length)), sampling=sampling)


def test_many_threads_are_answered_as_each_alone(model: Transformer) -> None:
    listeners: dict[int, Listener] = {length: Listener() for length in range(1, 25)}
    with working(Engine(model, max_batch=5)) as worker:
        threads = [
            threading.Thread(target=worker.submit, args=(ask(length), listener))
            for length, listener in listeners.items()
        ]
        for thread in threads:
            thread.start()
        for length, listener in listeners.items():
            assert listener.finish == "length"
            assert listener.tokens == list(generate(model, random_prompt(length, seed=length), GREEDY))
            assert listener.threads == {"ossia-engine"}
        assert worker.stats().generated_tokens == 24 * 12


def test_who_leaves_is_told_and_the_others_go_on(model: Transformer) -> None:
    endless = Sampling(temperature=0)
    with working(Engine(model, max_batch=2)) as worker:
        leaving, waiting, staying = Listener(), Listener(), Listener()
        leaving_id = worker.submit(ask(10, endless), leaving)
        assert leaving.first.wait(LONG)
        worker.submit(ask(11, replace(endless, max_tokens=40)), staying)
        waiting_id = worker.submit(ask(12, endless), waiting)
        worker.cancel(waiting_id)
        assert waiting.finish == "cancelled"
        worker.cancel(leaving_id)
        assert leaving.finish == "cancelled"
        worker.cancel(leaving_id)
        worker.cancel(999)
        assert staying.finish == "length"
        assert staying.tokens == list(generate(model, ask(11).prompt, replace(GREEDY, max_tokens=40)))


def test_bad_prompts_and_full_queues_are_refused_on_the_spot(model: Transformer) -> None:
    engine = Engine(model, max_batch=1, max_waiting=2)
    worker = Worker(engine)
    listeners = [Listener(), Listener()]
    for listener in listeners:
        worker.submit(ask(5), listener)  # It has not started: they wait.
    with pytest.raises(BusyError, match="2 requests are waiting already: try again later"):
        worker.submit(ask(5), Listener())
    with pytest.raises(RequestError, match="the prompt is empty"):
        worker.submit(Request(prompt=()), Listener())
    worker.start()
    assert [listener.finish for listener in listeners] == ["length", "length"]
    later = Listener()
    worker.submit(ask(5), later)
    assert later.finish == "length"
    worker.close()


def test_closing_waits_for_what_runs_if_told(model: Transformer) -> None:
    worker = Worker(Engine(model, max_batch=2))
    worker.start()
    listeners = [Listener() for _ in range(4)]
    for length, listener in enumerate(listeners, start=5):
        worker.submit(ask(length), listener)
    worker.close(drain=LONG)
    assert [listener.outputs[-1].finish for listener in listeners] == ["length"] * 4
    with pytest.raises(BusyError, match="the engine is closing"):
        worker.submit(ask(5), Listener())
    worker.close()


def test_closing_at_once_cancels_the_rest(model: Transformer) -> None:
    worker = Worker(Engine(model, max_batch=1))
    worker.start()
    running, waiting = Listener(), Listener()
    worker.submit(ask(5, Sampling(temperature=0)), running)
    worker.submit(ask(6), waiting)
    assert running.first.wait(LONG)
    worker.close()
    assert running.outputs[-1].finish == "cancelled"
    assert waiting.outputs[-1].finish == "cancelled"
    assert worker.stats().used_blocks == 0


def test_a_worker_that_never_began_ends_what_it_took(model: Transformer) -> None:
    worker, listener = Worker(Engine(model)), Listener()
    worker.submit(ask(5), listener)
    worker.close()
    assert listener.outputs[-1].finish == "cancelled"


def test_a_listener_that_fails_is_cancelled_alone(model: Transformer, caplog: pytest.LogCaptureFixture) -> None:
    def failing(output: Output) -> None:
        raise ValueError("not listening")

    with working(Engine(model, max_batch=2)) as worker:
        other = Listener()
        worker.submit(ask(5, Sampling(temperature=0)), failing)
        worker.submit(ask(6), other)
        assert other.finish == "length"
    assert "could not be delivered: it is cancelled" in caplog.text


def test_an_engine_that_fails_tells_everyone(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(model)

    def broken() -> list[tuple[int, Output]]:
        raise RuntimeError("out of order")

    monkeypatch.setattr(engine, "step", broken)
    worker = Worker(engine)
    listeners = [Listener(), Listener()]
    for listener in listeners:
        worker.submit(ask(5), listener)
    worker.start()
    for listener in listeners:
        assert listener.finish == "error"
        assert listener.outputs[-1].error == "the engine failed: its log says why"
    with pytest.raises(BusyError):
        worker.submit(ask(5), Listener())
    worker.close()


def test_asking_and_leaving_from_everywhere_leaks_nothing(model: Transformer) -> None:
    """Sixteen threads ask and leave at random moments, more than there is room for."""
    engine = Engine(model, max_batch=4, max_waiting=8, cache_tokens=512, chunk=64)
    ends: list[str | None] = []
    refused: list[int] = []

    def client(worker: Worker, seed: int) -> None:
        for turn in range(4):
            listener = Listener()
            try:
                request_id = worker.submit(
                    ask(1 + (seed * 37 + turn * 11) % 150, replace(GREEDY, max_tokens=20)), listener
                )
            except BusyError:
                refused.append(seed)
                continue
            if (seed + turn) % 3 == 0:
                listener.first.wait(LONG)
                worker.cancel(request_id)
            ends.append(listener.finish)

    with working(engine) as worker:
        threads = [threading.Thread(target=client, args=(worker, seed)) for seed in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG)
    assert len(ends) + len(refused) == 64
    assert set(ends) <= {"length", "cancelled"}
    assert ends.count("length") > 0


_: Callable[[Output], None] = Listener()
