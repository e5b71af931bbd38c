"""A scripted engine: what the server needs of a Worker, without a model. Tests say which tokens come, and how fast."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import ossia
from ossia.config import ModelConfig
from ossia.engine.engine import Stats
from ossia.engine.request import Drawn, Output, Request, Sampling, answer_limit, check_prompt
from ossia.errors import BusyError
from ossia.harmony.messages import Conversation, Message
from ossia.harmony.render import render_training
from ossia.harmony.tokenizer import Tokenizer
from ossia.llm import LLM

DEMO = Path(ossia.__file__).parent / "demo"
CONFIG = ModelConfig.from_json(DEMO / "config.json")

Script = Callable[[Request], Sequence[int]]
"""The tokens of the answer to a request."""


def fake_llm(*, context: int = 4096) -> LLM:
    """The bundled model's vocabulary and configuration, without its weights."""
    return LLM(
        folder=DEMO,
        config=CONFIG,
        model=cast("Any", None),
        sampling=Sampling(temperature=0),
        context=context,
        cache_type="bf16",
        _tokenizer=Tokenizer.load(DEMO),
    )


def turn_ids(tokenizer: Tokenizer, *messages: Message) -> list[int]:
    """What a model generates to say these messages of the assistant."""
    asked = Message(role="user", content="?")
    ids, is_learnt = render_training(Conversation(messages=(asked, *messages)), tokenizer)
    return [token for token, learnt in zip(ids, is_learnt, strict=True) if learnt]


def said(channel: str, content: str, recipient: str | None = None) -> Message:
    """A message of the assistant."""
    content_type = "json" if recipient else None
    return Message(role="assistant", channel=channel, content=content, recipient=recipient, content_type=content_type)


@dataclass(slots=True)
class _Running:
    id: int
    request: Request
    tokens: Sequence[int]
    deliver: Callable[[Output], None]
    sent: int = 0


@dataclass
class FakeWorker:
    """Answers each request with the tokens of `script`, all running requests a step at a time."""

    script: Script
    pace: float = 0.0
    """Seconds of a step."""
    per_step: int = 1
    """Tokens of each request in a step."""
    max_waiting: int = 1000
    """Requests that may run; more are refused."""
    fails_after: int | None = None
    """Tokens after which the engine fails."""
    context: int = 4096
    logprob: Callable[[int], float] = lambda _: -0.5
    requests: list[Request] = field(default_factory=list)
    """All that were submitted."""
    cancelled: list[int] = field(default_factory=list)
    """Ids for which `cancel` was called while they ran."""
    gate: threading.Event = field(default_factory=threading.Event)
    """While cleared, nothing comes."""

    def __post_init__(self) -> None:
        self.gate.set()
        self._lock = threading.Condition()
        self._running: list[_Running] = []
        self._closing = False
        self._cancelling: set[int] = set()
        self._generated = 0
        self._last_id = 0
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)

    def reset(self) -> None:
        """As before the first request, once nothing runs."""
        self.wait_until_idle()
        self.pace, self.per_step, self.fails_after, self.max_waiting = 0.0, 1, None, 1000
        self.requests.clear()
        self.cancelled.clear()

    def start(self) -> None:
        self._thread.start()

    def submit(self, request: Request, deliver: Callable[[Output], None]) -> int:
        check_prompt(request.prompt, vocab_size=CONFIG.vocab_size, context=self.context)
        with self._lock:
            if self._closing or len(self._running) >= self.max_waiting:
                raise BusyError(f"{len(self._running)} requests are waiting already: try again later")
            self.requests.append(request)
            self._last_id += 1
            request_id = self._last_id
            self._running.append(_Running(request_id, request, self.script(request), deliver))
            self._lock.notify()
            return request_id

    def cancel(self, request_id: int) -> None:
        with self._lock:
            if any(one.id == request_id for one in self._running):
                self.cancelled.append(request_id)
                self._cancelling.add(request_id)

    @property
    def is_open(self) -> bool:
        return not self._closing

    def stats(self) -> Stats:
        with self._lock:
            return Stats(
                waiting=0,
                running=len(self._running),
                batch=len(self._running),
                steps=0,
                prompt_tokens=sum(len(request.prompt) for request in self.requests),
                cached_tokens=0,
                generated_tokens=self._generated,
                preemptions=0,
                used_blocks=0,
                num_blocks=1,
            )

    def close(self, *, drain: float = 0.0) -> None:
        self.gate.set()
        with self._lock:
            self._closing = True
            self._cancelling |= {one.id for one in self._running}
            self._lock.notify()
        if self._thread.is_alive():
            self._thread.join(10)

    def wait_until_idle(self, seconds: float = 10.0) -> None:
        """Return once nothing runs."""
        end = time.monotonic() + seconds
        while self._running:
            assert time.monotonic() < end, "requests are still running"
            time.sleep(0.005)

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._running:
                    if self._closing:
                        return
                    self._lock.wait()
                running = list(self._running)
            self.gate.wait()
            if self.pace:
                time.sleep(self.pace)
            for one in running:
                self._step(one)

    def _step(self, one: _Running) -> None:
        sampling = one.request.sampling
        limit = answer_limit(sampling, len(one.request.prompt), self.context)
        if one.id in self._cancelling:
            output = Output(finish="cancelled")
        elif self.fails_after is not None and one.sent >= self.fails_after:
            output = Output(finish="error", error="the logits are not numbers: this is a test")
        else:
            tokens = one.tokens[one.sent : min(one.sent + self.per_step, limit)]
            one.sent += len(tokens)
            self._generated += len(tokens)
            drawn = tuple(self._drawn(token, sampling.logprobs) for token in tokens)
            finish = None
            if tokens and tokens[-1] in sampling.stop_ids:
                finish = "stop"
            elif one.sent >= min(len(one.tokens), limit):
                finish = "length"
            output = Output(drawn=drawn, cached_tokens=3, finish=finish)
        if output.finish is not None:
            with self._lock:
                self._running.remove(one)
        one.deliver(output)

    def _drawn(self, token: int, logprobs: int | None) -> Drawn:
        if logprobs is None:
            return Drawn(token=token)
        top = tuple((other, self.logprob(other)) for other in range(65, 65 + logprobs))
        return Drawn(token=token, logprob=self.logprob(token), top=top)
