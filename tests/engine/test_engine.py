"""Many requests together against each alone: the same tokens, whatever runs beside, is remembered, or is taken away."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from tests.engine.small import CONFIG, random_model, random_prompt

import ossia
from ossia.engine.engine import Engine, default_cache_tokens, generate_batch
from ossia.engine.loop import generate
from ossia.engine.request import Output, Request, Sampling
from ossia.engine.runner import room
from ossia.errors import BusyError, KernelError, RequestError
from ossia.kernels import cpu
from ossia.kernels.pages import PAGE, page_bytes
from ossia.model import memory
from ossia.model.transformer import Transformer

GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture(scope="module", params=["cpu", "torch"])
def any_model(request: pytest.FixtureRequest) -> Transformer:
    if request.param == "cpu" and not cpu.available():
        pytest.skip(str(cpu.why_not()))
    return random_model(CONFIG, request.param)


@pytest.fixture(scope="module")
def model() -> Transformer:
    if not cpu.available():
        pytest.skip(str(cpu.why_not()))
    return random_model(CONFIG, "cpu")


@dataclass
class Heard:
    """What one request was told."""

    tokens: list[int] = field(default_factory=list)
    last: Output | None = None
    cached: list[int] = field(default_factory=list)

    def hear(self, output: Output) -> None:
        assert self.last is None, "something came after the last output"
        assert output.drawn or output.finish
        self.tokens += [drawn.token for drawn in output.drawn]
        self.cached.append(output.cached_tokens)
        if output.finish:
            self.last = output


def run(engine: Engine, requests: Sequence[Request], *, steps_between: int = 0) -> list[Heard]:
    """All of them to their end; `steps_between`: steps from one's arrival to the next one's."""
    heard: dict[int, Heard] = {}
    order: list[int] = []
    waiting = list(requests)
    step = 0
    while waiting or engine.has_work:
        while waiting and step >= len(order) * steps_between:
            order.append(engine.submit(waiting.pop(0)))
            heard[order[-1]] = Heard()
        for request_id, output in engine.step():
            heard[request_id].hear(output)
        engine.check_integrity()
        step += 1
    assert engine.stats().used_blocks == 0
    return [heard[request_id] for request_id in order]


def ask(prompt: Sequence[int], sampling: Sampling = GREEDY) -> Request:
    return Request(prompt=tuple(prompt), sampling=sampling)


def mixed(count: int, *, seed: int = 0) -> list[Request]:
    """Greedy and drawn answers to prompts of all lengths, some with a beginning in common."""
    choose, shared = random.Random(seed), random_prompt(260)
    requests: list[Request] = []
    for index in range(count):
        own = random_prompt(choose.choice([1, 2, 60, 127, 128, 200]), seed=index + 1)
        prompt = shared[: choose.choice([0, 64, 128, 190, 260])] + own
        sampling = Sampling(temperature=index % 2, top_p=0.9, seed=index, max_tokens=choose.randint(1, 30))
        requests.append(ask(prompt, sampling))
    return requests


def alone(model: Transformer, request: Request, cache_type: str = "bf16") -> list[int]:
    return list(generate(model, request.prompt, request.sampling, cache_type=cache_type))


# -------------------------------------------------------------------- the same tokens


@pytest.mark.parametrize("cache_type", ["bf16", "q8"])
@pytest.mark.parametrize("share", [True, False])
def test_among_sixteen_others_as_alone(model: Transformer, cache_type: str, share: bool) -> None:
    requests = mixed(17)
    engine = Engine(model, cache_type=cache_type, max_batch=17, share_prefixes=share)
    heard = run(engine, requests)
    assert [one.tokens for one in heard] == [alone(model, request, cache_type) for request in requests]
    assert [one.last.finish for one in heard if one.last] == ["length"] * 17
    assert (engine.stats().cached_tokens > 0) == share


@pytest.mark.parametrize("chunk", [1, 50, 64, 512])
@pytest.mark.parametrize("steps_between", [0, 3])
def test_whatever_the_chunks_and_arrivals(model: Transformer, chunk: int, steps_between: int) -> None:
    requests = mixed(6, seed=chunk)
    engine = Engine(model, max_batch=4, chunk=chunk, beside=max(1, chunk // 2))
    heard = run(engine, requests, steps_between=steps_between)
    assert [one.tokens for one in heard] == [alone(model, request) for request in requests]


@pytest.mark.parametrize("cache_type", ["bf16", "q8"])
def test_preempted_as_alone(model: Transformer, cache_type: str) -> None:
    requests = [
        ask(random_prompt(100 + index, seed=index), Sampling(temperature=index % 2, seed=index, max_tokens=90))
        for index in range(6)
    ]
    engine = Engine(model, cache_type=cache_type, cache_tokens=6 * PAGE, chunk=64)
    heard = run(engine, requests)
    assert engine.stats().preemptions > 0
    assert [one.tokens for one in heard] == [alone(model, request, cache_type) for request in requests]
    assert all(len(one.tokens) == 90 for one in heard)


def test_a_second_time_as_the_first(model: Transformer) -> None:
    engine = Engine(model)
    request = ask(random_prompt(300), replace(GREEDY, max_tokens=80))
    (first,) = run(engine, [request])
    (second,) = run(engine, [request])
    assert first.tokens == second.tokens == alone(model, request)
    assert set(first.cached) == {0}
    assert set(second.cached) == {256}
    (third,) = run(engine, [ask([*request.prompt, *first.tokens, 3])])
    assert set(third.cached) == {320}
    assert third.tokens == alone(model, ask([*request.prompt, *first.tokens, 3]))


def test_neighbours_that_leave_in_the_middle_change_nothing(model: Transformer) -> None:
    requests = mixed(8)
    engine = Engine(model, max_batch=6)
    ids = [engine.submit(request) for request in requests]
    heard = {request_id: Heard() for request_id in ids}
    for step in range(400):
        if step in (1, 5, 9):
            engine.cancel(ids[{1: 0, 5: 3, 9: 7}[step]])
            engine.check_integrity()
        for request_id, output in engine.step():
            heard[request_id].hear(output)
    assert not engine.has_work
    assert engine.stats().used_blocks == 0
    for index, request_id in enumerate(ids):
        expected = alone(model, requests[index])
        last = heard[request_id].last
        assert last is not None
        if last.finish == "cancelled":
            assert index in (0, 3, 7)
            assert heard[request_id].tokens == expected[: len(heard[request_id].tokens)]
        else:
            assert heard[request_id].tokens == expected


def test_the_bundled_model_answers_as_alone() -> None:
    llm = ossia.load("demo")
    prompts = [
        ossia.render(text, tokenizer=llm.tokenizer, effort=effort)
        for text in ("What is 17 + 25?", "Name a colour.", "Count to five.")
        for effort in ("low", "high")
    ]
    requests = [
        ask(prompt, Sampling(temperature=index % 2, seed=index, max_tokens=60, stop_ids=llm.tokenizer.stop_ids))
        for index, prompt in enumerate(prompts)
    ]
    engine = Engine(llm.model, max_batch=4, cache_tokens=512)
    heard = run(engine, requests)
    assert [one.tokens for one in heard] == [alone(llm.model, request) for request in requests]
    assert "stop" in [one.last.finish for one in heard if one.last]


def test_any_kernels_and_types_are_served(any_model: Transformer) -> None:
    requests = [replace(request, sampling=replace(request.sampling, temperature=0)) for request in mixed(5)]
    heard = run(Engine(any_model, max_batch=3, cache_tokens=1024), requests)
    assert [one.tokens for one in heard] == [alone(any_model, request) for request in requests]


@pytest.mark.parametrize("kernels", ["torch", "cpu", "reference"])
def test_activations_in_bfloat16_are_served(kernels: str) -> None:
    if kernels == "cpu" and not cpu.available():
        pytest.skip(str(cpu.why_not()))
    half = random_model(CONFIG, kernels).bfloat16()
    length = 9 if kernels == "reference" else 140
    request = ask(random_prompt(length), Sampling(temperature=0, max_tokens=3))
    (heard,) = run(Engine(half), [request])
    assert heard.tokens == alone(half, request)


# -------------------------------------------------------------------- ends


def test_a_stop_token_ends_an_answer_and_is_told(model: Transformer) -> None:
    free = alone(model, ask(random_prompt(50)))
    stop = free[5]
    (heard,) = run(Engine(model), [ask(random_prompt(50), replace(GREEDY, stop_ids=frozenset({stop})))])
    assert heard.tokens == free[: free.index(stop) + 1]
    assert heard.last is not None
    assert heard.last.finish == "stop"
    assert [drawn.token for drawn in heard.last.drawn] == [stop]


def test_an_answer_ends_where_the_room_does(model: Transformer) -> None:
    long = Sampling(temperature=0)
    heard = run(Engine(model, context=100), [ask(random_prompt(90), long), ask(random_prompt(99), long)])
    assert [len(one.tokens) for one in heard] == [10, 1]
    small = Engine(model, cache_tokens=128, chunk=64)
    assert small.context == 128
    (one,) = run(small, [ask(random_prompt(100), long)])
    assert len(one.tokens) == 28
    assert one.tokens == alone(model, ask(random_prompt(100), replace(long, max_tokens=28)))


def test_who_leaves_is_told_once_and_frees_at_once(model: Transformer) -> None:
    engine = Engine(model, max_batch=1)
    running, waiting = (engine.submit(ask(random_prompt(100, seed=n))) for n in range(2))
    engine.step()
    assert engine.stats().used_blocks == 2
    engine.cancel(running)
    engine.cancel(running)
    engine.cancel(waiting)
    engine.cancel(12345)
    assert engine.stats().used_blocks == 0
    engine.check_integrity()
    assert engine.has_work
    told = engine.step()
    assert [(request_id, output.finish) for request_id, output in told] == [
        (running, "cancelled"),
        (waiting, "cancelled"),
    ]
    assert not engine.has_work
    assert engine.step() == []


def test_what_cannot_be_honoured_is_refused_at_once(model: Transformer) -> None:
    engine = Engine(model, cache_tokens=128, max_waiting=2, chunk=64)
    with pytest.raises(RequestError, match="the prompt has 128 tokens and the context 128"):
        engine.submit(ask([1] * 128))
    with pytest.raises(RequestError, match="the prompt is empty"):
        engine.submit(ask([]))
    with pytest.raises(RequestError, match="token id 300 at index 1 is outside the vocabulary of 300"):
        engine.submit(ask([1, 300]))
    with pytest.raises(RequestError, match="logit_bias has token id 300, outside the vocabulary of 300"):
        engine.submit(ask([1], Sampling(logit_bias={300: 1.0})))
    engine.submit(ask([1]))
    engine.submit(ask([2]))
    with pytest.raises(BusyError, match="2 requests are waiting already: try again later"):
        engine.submit(ask([3]))
    engine.step()
    engine.submit(ask([3]))
    for option in ("max_batch", "max_waiting", "chunk", "beside"):
        with pytest.raises(RequestError, match=f"{option} is 0: give at least 1"):
            Engine(model, **{option: 0})
    with pytest.raises(RequestError, match="cache_tokens is 63: give at least 64"):
        Engine(model, cache_tokens=63)
    with pytest.raises(RequestError, match="context 2,000 is not to be had"):
        Engine(model, context=2000)
    with pytest.raises(RequestError, match="unknown cache type 'q4'"):
        Engine(model, cache_type="q4")


# -------------------------------------------------------------------- failures


def test_logits_that_are_no_numbers_end_their_own_request(model: Transformer) -> None:
    broken = random_model(CONFIG, "cpu")
    with torch.no_grad():
        broken.embedding.weight[7] = torch.nan
    requests = [ask(random_prompt(70, seed=1)), ask([7]), ask([7, 7], Sampling(seed=1)), ask(random_prompt(90, seed=2))]
    requests = [
        replace(each, prompt=tuple(t if t != 7 or len(each.prompt) < 3 else 8 for t in each.prompt))
        for each in requests
    ]
    heard = run(Engine(broken), requests)
    assert [one.last.finish for one in heard if one.last] == ["length", "error", "error", "length"]
    for one in heard[1:3]:
        assert one.last is not None
        assert one.last.error is not None
        assert "the model's logits are not numbers" in one.last.error
        assert one.tokens == []
    assert heard[0].tokens == alone(model, requests[0])
    assert heard[3].tokens == alone(model, requests[3])


def test_what_a_failed_request_computed_is_not_remembered() -> None:
    broken = random_model(CONFIG, "torch")
    with torch.no_grad():
        broken.embedding.weight[7] = torch.nan
    engine = Engine(broken, max_batch=2)
    prompt = [7, *(t if t != 7 else 8 for t in random_prompt(200))]
    for _ in range(2):
        (heard,) = run(engine, [ask(prompt)])
        assert heard.last is not None
        assert heard.last.finish == "error"
        assert heard.cached == [0]


def test_a_step_that_raises_ends_what_was_in_it_and_nothing_else(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(model, max_batch=2)
    ids = [engine.submit(ask(random_prompt(40, seed=n))) for n in range(3)]

    def out_of_memory(*inputs: object) -> torch.Tensor:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(model, "hidden", out_of_memory)
        told = engine.step()
    assert [(request_id, output.finish) for request_id, output in told] == [(ids[0], "error"), (ids[1], "error")]
    assert told[0][1].error == "internal error: MemoryError('no more')"
    engine.check_integrity()
    heard = Heard()
    while engine.has_work:
        for request_id, output in engine.step():
            assert request_id == ids[2]
            heard.hear(output)
    assert heard.tokens == alone(model, ask(random_prompt(40, seed=2)))


# -------------------------------------------------------------------- constraints


@dataclass
class Only:
    """Allows but one token after another, then everything; notes what it is told."""

    allowed: list[int]
    vocab_size: int = CONFIG.vocab_size
    remaining: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def mask(self, remaining: int) -> np.ndarray | None:
        self.remaining.append(remaining)
        if len(self.accepted) >= len(self.allowed):
            return None
        bits = np.zeros(-(-self.vocab_size // 32) * 32, np.uint8)
        bits[self.allowed[len(self.accepted)]] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token: int) -> None:
        self.accepted.append(token)

    @property
    def notes(self) -> tuple[str, ...]:
        return ()


@pytest.mark.parametrize("temperature", [0, 1])
def test_a_constraint_says_what_may_come_and_hears_what_came(model: Transformer, temperature: int) -> None:
    constraint = Only([299, 0, 31, 32])
    prompt = random_prompt(30)
    free = [ask(random_prompt(20 + n, seed=n)) for n in range(3)]
    bound = Request(
        prompt=tuple(prompt), sampling=Sampling(temperature=temperature, max_tokens=8), constraint=constraint
    )
    heard = run(Engine(model), [*free, bound])
    assert heard[3].tokens[:4] == [299, 0, 31, 32]
    assert constraint.accepted == heard[3].tokens
    assert constraint.remaining == [8, 7, 6, 5, 4, 3, 2, 1]
    if temperature == 0:
        assert heard[3].tokens[4:] == alone(model, ask([*prompt, 299, 0, 31, 32], replace(GREEDY, max_tokens=4)))
    assert [one.tokens for one in heard[:3]] == [alone(model, request) for request in free]


def test_a_constraint_survives_preemption(model: Transformer) -> None:
    allowed = [(37 * n) % 300 for n in range(90)]
    requests = [
        Request(
            prompt=tuple(random_prompt(100, seed=n)), sampling=replace(GREEDY, max_tokens=90), constraint=Only(allowed)
        )
        for n in range(3)
    ]
    engine = Engine(model, cache_tokens=5 * PAGE, chunk=64)
    assert [one.tokens for one in run(engine, requests)] == [allowed] * 3
    assert engine.stats().preemptions > 0


def test_a_constraint_that_fails_ends_its_own_request(model: Transformer) -> None:
    class BadMask(Only):
        def mask(self, remaining: int) -> np.ndarray | None:
            raise ValueError("no mask")

    class BadAccept(Only):
        def accept(self, token: int) -> None:
            raise ValueError("not this one")

    requests = [
        Request(prompt=(1, 2), sampling=GREEDY, constraint=BadMask([1])),
        Request(prompt=(1, 2, 3), sampling=GREEDY, constraint=BadAccept([1])),
        ask([4, 5]),
    ]
    heard = run(Engine(model), requests)
    assert [one.last.error for one in heard if one.last] == [
        "internal error: ValueError('no mask')",
        "internal error: ValueError('not this one')",
        None,
    ]
    assert heard[2].tokens == alone(model, requests[2])


# -------------------------------------------------------------------- figures


def test_the_figures_are_of_what_happened(model: Transformer) -> None:
    engine = Engine(model, max_batch=2)
    for _ in range(3):
        engine.submit(ask(random_prompt(200), replace(GREEDY, max_tokens=2)))
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.steps, stats.generated_tokens) == (3, 0, 0, 0)
    engine.step()
    stats = engine.stats()
    assert (stats.waiting, stats.running, stats.batch, stats.prompt_tokens, stats.generated_tokens) == (2, 1, 1, 200, 1)
    assert (stats.used_blocks, stats.num_blocks) == (4, engine.stats().num_blocks)
    while engine.has_work:
        engine.step()
    stats = engine.stats()
    assert (stats.prompt_tokens, stats.cached_tokens, stats.generated_tokens) == (600, 2 * 192, 6)
    assert (stats.waiting, stats.running, stats.used_blocks, stats.preemptions) == (0, 0, 0, 0)


def test_the_room_is_counted_in_bytes(model: Transformer) -> None:
    """Layers 0 and 2 have a window of 128, layer 1 sees everything."""
    for cache_type in ("bf16", "q8"):
        page = page_bytes(2, 16, cache_type)
        pages = room(CONFIG, cache_tokens=64 * 100, max_batch=4, chunk=512, cache_type=cache_type)
        assert pages.num_pages[None] == 100
        # Three of each that decodes and one that begins, eight of a chunk, and a quarter of a hundred remembered.
        assert pages.num_pages[128] == 4 * (3 + 1) + 8 + 25
        assert pages.num_bytes == (100 + 2 * pages.num_pages[128]) * page
    wide = room(CONFIG, cache_tokens=64, max_batch=1, chunk=64, itemsize=4)
    assert wide.num_bytes == 2 * room(CONFIG, cache_tokens=64, max_batch=1, chunk=64).num_bytes


def test_the_default_room_is_what_makes_sense_and_the_machine_has(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"context": 1024, "max_batch": 8, "cache_type": "bf16"}
    assert default_cache_tokens(model, **asked) == 8 * 1024
    pages = room(CONFIG, cache_tokens=3000, max_batch=8, chunk=512)
    monkeypatch.setattr(memory, "available_memory", lambda: pages.num_bytes * 4 // 3)
    assert 2600 < default_cache_tokens(model, **asked) <= 3008
    monkeypatch.setattr(memory, "available_memory", lambda: 10**12)
    monkeypatch.setattr(memory, "machine_memory", lambda: 500_000)
    weights = sum(each.nbytes for name, each in model.named_parameters() if not name.startswith("embedding"))
    assert weights > 500_000  # They are taken off first.
    assert default_cache_tokens(model, **asked) == PAGE


# -------------------------------------------------------------------- many prompts at once


@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_a_batch_answers_as_each_alone(any_model: Transformer, max_batch: int) -> None:
    prompts = [random_prompt(length, seed=length) for length in (5, 127, 40, 128, 250, 1, 129)]
    samplings = [Sampling(temperature=0, max_tokens=8 + 3 * index) for index in range(len(prompts))]
    expected = {
        index: list(generate(any_model, prompt, one))
        for index, (prompt, one) in enumerate(zip(prompts, samplings, strict=True))
    }
    assert dict(generate_batch(any_model, prompts, samplings, max_batch=max_batch)) == expected


def test_sampling_in_a_batch_draws_as_alone(any_model: Transformer) -> None:
    prompts = [random_prompt(9), random_prompt(30)]
    samplings = [Sampling(temperature=1, seed=1, max_tokens=10), Sampling(temperature=1, seed=2, max_tokens=10)]
    expected = {
        index: list(generate(any_model, prompt, one))
        for index, (prompt, one) in enumerate(zip(prompts, samplings, strict=True))
    }
    assert dict(generate_batch(any_model, prompts, samplings)) == expected


def test_stop_tokens_and_one_token_answers_in_a_batch(any_model: Transformer) -> None:
    prompts = [random_prompt(length, seed=length) for length in (4, 6, 8)]
    first = next(generate(any_model, prompts[1], Sampling(temperature=0)))
    stopped = Sampling(temperature=0, max_tokens=9, stop_ids=frozenset({first}))
    answers = dict(generate_batch(any_model, prompts, stopped, max_batch=2))
    assert answers[1] == [first]
    assert sorted(answers) == [0, 1, 2]


def test_a_batch_comes_as_it_finishes(model: Transformer) -> None:
    answers: Iterator[tuple[int, list[int]]] = generate_batch(
        model, [[1], [2], [3]], [replace(GREEDY, max_tokens=count) for count in (9, 1, 4)]
    )
    assert [index for index, _ in answers] == [1, 2, 0]


def test_no_prompt_is_no_work(any_model: Transformer) -> None:
    assert list(generate_batch(any_model, [])) == []


def test_a_batch_that_cannot_be_honoured_is_refused_before_any_work(model: Transformer) -> None:
    with pytest.raises(RequestError, match=r"prompts\[1\]: the prompt is empty"):
        generate_batch(model, [[1], []])
    with pytest.raises(RequestError, match="2 prompts and 1 samplings"):
        generate_batch(model, [[1], [2]], [Sampling()])
    with pytest.raises(RequestError, match="max_batch is 0"):
        generate_batch(model, [[1]], max_batch=0)


def test_a_batch_whose_logits_are_no_numbers_is_an_error() -> None:
    broken = random_model(CONFIG, "torch")
    with torch.no_grad():
        broken.unembedding.weight[7] = torch.nan
    with pytest.raises(KernelError, match="the model's logits are not numbers"):
        list(generate_batch(broken, [[1], [2]], GREEDY))


def test_the_callers_gradients_stay_on(model: Transformer) -> None:
    engine = Engine(model)
    engine.submit(ask([1, 2]))
    engine.step()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
