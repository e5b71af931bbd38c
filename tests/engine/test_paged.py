"""The paged cache in the engine: what it computes, what it keeps, what it refuses."""

from dataclasses import replace

import pytest
import torch
from tests.engine.small import CONFIG, random_model, random_prompt

from ossia.engine.cache import Cache
from ossia.engine.engine import generate_batch
from ossia.engine.loop import generate, new_cache, next_token, prefill, step
from ossia.engine.paged import PagedCache
from ossia.engine.request import Sampling
from ossia.engine.sampler import Sampler
from ossia.errors import KernelError, RequestError
from ossia.kernels import cpu
from ossia.kernels.pages import PAGE, page_bytes
from ossia.model.transformer import Transformer

GREEDY = Sampling(temperature=0, max_tokens=20)


@pytest.fixture(scope="module")
def model() -> Transformer:
    if not cpu.available():
        pytest.skip(str(cpu.why_not()))
    return random_model(CONFIG, "cpu")


@pytest.fixture(scope="module")
def torch_model() -> Transformer:
    return random_model(CONFIG, "torch")


@pytest.mark.parametrize(("cache_type", "tolerance"), [("bf16", 0.02), ("q8", 0.02)])
@pytest.mark.parametrize("length", [1, 127, 129, 300, 700])
def test_logits_are_those_of_the_torch_path(
    model: Transformer, torch_model: Transformer, length: int, cache_type: str, tolerance: float
) -> None:
    token_ids = random_prompt(length + 3)
    ours, theirs = new_cache(model, cache_type=cache_type), new_cache(torch_model)
    assert isinstance(ours, PagedCache)
    assert isinstance(theirs, Cache)
    pairs = [(prefill(model, token_ids[:-3], ours), prefill(torch_model, token_ids[:-3], theirs))]
    pairs += [(step(model, [t], ours), step(torch_model, [t], theirs)) for t in token_ids[-3:]]
    assert ours.length == theirs.length == length + 3
    for logits, expected in pairs:
        assert (logits - expected).abs().max() <= tolerance
        assert expected.std() > 0.3  # Else a small difference says nothing.


@pytest.mark.parametrize("cache_type", ["bf16", "q8"])
def test_answers_are_those_of_the_torch_path(model: Transformer, torch_model: Transformer, cache_type: str) -> None:
    for length in (1, 60, 125, 500):
        prompt = random_prompt(length, seed=length)
        expected = list(generate(torch_model, prompt, GREEDY))
        assert list(generate(model, prompt, GREEDY, cache_type=cache_type)) == expected


@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_a_batch_answers_as_each_alone(model: Transformer, max_batch: int) -> None:
    prompts = [random_prompt(length, seed=length) for length in (5, 127, 40, 128, 250, 1, 129)]
    samplings = [Sampling(temperature=index % 2, seed=index, max_tokens=5 + 3 * index) for index in range(7)]
    expected = {i: list(generate(model, p, s)) for i, (p, s) in enumerate(zip(prompts, samplings, strict=True))}
    assert dict(generate_batch(model, prompts, samplings, max_batch=max_batch)) == expected


def test_a_cache_sets_aside_pages_for_its_context_and_a_ring_for_the_window(model: Transformer) -> None:
    cache = new_cache(model, context=500)
    assert isinstance(cache, PagedCache)
    assert [layer.keys.shape[0] for layer in cache.layers] == [3, 8, 3]
    assert cache.num_bytes == (3 + 8 + 3) * page_bytes(2, 16)
    assert cache.num_bytes == sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    short = new_cache(model, context=PAGE)
    assert isinstance(short, PagedCache)
    assert [layer.keys.shape[0] for layer in short.layers] == [1, 1, 1]


@pytest.mark.parametrize("kernels", ["cpu", "torch"])
@pytest.mark.parametrize("num_tokens", [0, 1, 130, 1000])
def test_a_random_filling_is_as_long_as_said_and_goes_on(
    model: Transformer, torch_model: Transformer, kernels: str, num_tokens: int
) -> None:
    chosen = {"cpu": model, "torch": torch_model}[kernels]
    for cache_type in ("bf16", "q8") if kernels == "cpu" else ("bf16",):
        one, same, other = (new_cache(chosen, cache_type=cache_type) for _ in range(3))
        one.fill_random(num_tokens, seed=1)
        same.fill_random(num_tokens, seed=1)
        other.fill_random(num_tokens, seed=2)
        assert one.length == num_tokens
        logits = step(chosen, [5, 6], one)
        assert logits.isfinite().all()
        assert torch.equal(step(chosen, [5, 6], same), logits)
        assert torch.equal(step(chosen, [5, 6], other), logits) == (num_tokens == 0)
    with pytest.raises(RequestError, match=r"1,025 tokens do not fit a cache of 1,024: give at most that many"):
        new_cache(chosen).fill_random(1025)


def test_a_cleared_cache_is_as_new(model: Transformer, torch_model: Transformer) -> None:
    for chosen in (model, torch_model):
        cache = new_cache(chosen)
        expected = prefill(chosen, random_prompt(150), cache)
        prefill(chosen, random_prompt(50, seed=9), cache)
        cache.clear()
        assert torch.equal(prefill(chosen, random_prompt(150), cache), expected)


def test_the_likeliest_token_comes_from_the_model_and_others_from_the_logits(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = random_prompt(9)
    expected = list(generate(model, prompt, GREEDY))
    asked: list[int] = []

    def best(*inputs: object) -> torch.Tensor:
        asked.append(1)
        return Transformer.best(model, *inputs)

    monkeypatch.setattr(model, "best", best)
    assert list(generate(model, prompt, GREEDY)) == expected
    assert len(asked) == 19
    cache, sampler = new_cache(model), Sampler(Sampling(temperature=1, seed=3))
    prefill(model, prompt, cache)
    next_token(model, 5, cache, sampler)
    assert len(asked) == 19
    assert cache.length == 10


def test_logits_that_are_no_numbers_are_an_error_in_every_way(model: Transformer) -> None:
    broken = random_model(CONFIG, "cpu")
    cache = new_cache(broken)
    prefill(broken, [1, 2], cache)
    broken.unembedding.weight[7] = torch.nan
    for temperature in (0, 1):
        with pytest.raises(KernelError, match="the model's logits are not numbers"):
            next_token(broken, 3, cache, Sampler(Sampling(temperature=temperature)))
    with pytest.raises(KernelError, match="the model's logits are not numbers"):
        list(generate_batch(broken, [[1], [2]], GREEDY))


def test_an_answer_ends_where_the_given_context_is_full(model: Transformer) -> None:
    assert len(list(generate(model, random_prompt(90), Sampling(temperature=0), context=100))) == 10
    answers = dict(generate_batch(model, [random_prompt(90), random_prompt(99)], Sampling(temperature=0), context=100))
    assert {index: len(answer) for index, answer in answers.items()} == {0: 10, 1: 1}
    with pytest.raises(RequestError, match="the prompt has 100 tokens and the context 100"):
        generate(model, random_prompt(100), context=100)


def test_what_a_cache_cannot_be_or_hold_is_refused(model: Transformer, torch_model: Transformer) -> None:
    for context in (0, -1, 1025):
        for call in (lambda c: new_cache(model, context=c), lambda c: generate(model, [1], context=c)):
            with pytest.raises(
                RequestError, match=rf"context {context:,} is not to be had: this model takes 1 to 1,024"
            ):
                call(context)
    with pytest.raises(RequestError, match="unknown cache type 'q4': choose one of bf16, q8"):
        new_cache(model, cache_type="q4")
    with pytest.raises(KernelError, match="these kernels have no cache of type 'q8'"):
        new_cache(torch_model, cache_type="q8")
    for chosen in (model, torch_model):
        cache = new_cache(chosen, context=10)
        prefill(chosen, random_prompt(9), cache)
        with pytest.raises(RequestError, match="2 more tokens do not fit a cache of 10 that holds 9"):
            step(chosen, [1, 2], cache)
        step(chosen, [1], cache)
    with pytest.raises(KernelError, match="a cache of another kind than these kernels read"):
        step(torch_model, [1], new_cache(model))


def test_other_types_keep_keys_and_values_as_they_come(model: Transformer) -> None:
    half = random_model(CONFIG, "cpu").bfloat16()
    assert isinstance(new_cache(half), Cache)
    assert list(generate(half, [1, 2, 3], GREEDY))


def test_checking_mode_passes(model: Transformer) -> None:
    from ossia.kernels import select

    kernels = select("cpu", verify=("attention_paged",))
    assert kernels.sources["attention_paged"] == "cpu (verified)"
    checked = random_model(CONFIG, "cpu")
    for module in checked.modules():
        if hasattr(module, "kernels"):
            module.kernels = replace(module.kernels, attention_paged=kernels.attention_paged)
    prompt = random_prompt(150)
    assert list(generate(checked, prompt, replace(GREEDY, max_tokens=3))) == list(
        generate(model, prompt, replace(GREEDY, max_tokens=3))
    )
