"""Prefill and decoding against one full pass, and many requests against each alone."""

import pytest
import torch

from ossia.config import ModelConfig
from ossia.engine.cache import Cache
from ossia.engine.engine import generate, generate_batch, prefill, step
from ossia.engine.request import Sampling
from ossia.errors import RequestError
from ossia.kernels import select
from ossia.model import adapt
from ossia.model.attention import Packed
from ossia.model.random_weights import RandomWeights
from ossia.model.transformer import Transformer

CONFIG = ModelConfig(
    num_hidden_layers=3,
    num_experts=4,
    experts_per_token=2,
    vocab_size=300,
    hidden_size=64,
    intermediate_size=32,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    initial_context_length=256,
    max_position_embeddings=1024,
    rope_scaling_factor=4.0,
)


def random_model(config: ModelConfig, kernels: str = "torch") -> Transformer:
    weights = RandomWeights(config, 3)
    dense = adapt.dequantized({name: weights[name] for name in weights.keys()}, torch.float32)  # noqa: SIM118
    return adapt.fill(adapt.build(config, select(kernels)), dense.items(), dtype=torch.float32)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(CONFIG)


def random_prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def full_pass(model: Transformer, token_ids: list[int]) -> torch.Tensor:
    attend = Packed(model.kernels, (len(token_ids),))
    return model(torch.tensor(token_ids), torch.arange(len(token_ids)), attend)


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
@pytest.mark.parametrize("chunk", [1, 7, 128, 512])
def test_prefill_and_decode_give_the_logits_of_one_full_pass(model: Transformer, length: int, chunk: int) -> None:
    token_ids = random_prompt(length + 3)
    expected = full_pass(model, token_ids)
    cache = Cache(CONFIG)
    worst = float((prefill(model, token_ids[:length], cache, chunk=chunk) - expected[length - 1]).abs().max())
    for position in range(length, len(token_ids)):
        logits = step(model, [[token_ids[position]]], [cache])[0]
        worst = max(worst, float((logits - expected[position]).abs().max()))
    assert cache.length == len(token_ids)
    assert worst <= 1e-5
    assert expected.std() > 0.3  # Else a small difference says nothing.


def test_decoding_goes_on_across_every_move_of_the_stores(model: Transformer) -> None:
    token_ids = random_prompt(420)
    expected = full_pass(model, token_ids)
    cache = Cache(CONFIG)
    logits = torch.stack([step(model, [[token]], [cache])[0] for token in token_ids])
    assert (logits - expected).abs().max() <= 1e-5


def test_windowed_layers_keep_no_more_than_they_need(model: Transformer) -> None:
    cache = Cache(CONFIG)
    prefill(model, random_prompt(900), cache, chunk=9)
    windowed, full = cache.layers[0], cache.layers[1]
    assert windowed.num_rows == 127 + 9
    assert full.num_rows == 900
    assert windowed.capacity < 300 < 900 <= full.capacity


def test_a_ragged_batch_gives_the_logits_of_each_sequence_alone(model: Transformer) -> None:
    prompts = [random_prompt(length, seed=length) for length in (3, 126, 131, 260)]
    caches = [Cache(CONFIG) for _ in prompts]
    first = step(model, [prompt[:-2] for prompt in prompts], caches)
    second = step(model, [prompt[-2:] for prompt in prompts], caches)
    for index, prompt in enumerate(prompts):
        expected = full_pass(model, prompt)
        assert (first[index] - expected[-3]).abs().max() <= 1e-5
        assert (second[index] - expected[-1]).abs().max() <= 1e-5


def test_generate_is_greedy_search_by_full_passes(model: Transformer) -> None:
    token_ids = random_prompt(120)
    answer = list(generate(model, token_ids, Sampling(temperature=0, max_tokens=20)))
    expected: list[int] = []
    for _ in range(20):
        expected.append(int(full_pass(model, token_ids + expected)[-1].argmax()))
    assert answer == expected


def test_a_stop_token_ends_the_answer_and_belongs_to_it(model: Transformer) -> None:
    prompt = random_prompt(50)
    free = list(generate(model, prompt, Sampling(temperature=0, max_tokens=12)))
    stop = free[5]
    stopped = list(generate(model, prompt, Sampling(temperature=0, max_tokens=12, stop_ids=frozenset({stop}))))
    assert stopped == free[: free.index(stop) + 1]


def test_an_answer_ends_where_the_context_is_full(model: Transformer) -> None:
    assert len(list(generate(model, random_prompt(1020), Sampling(temperature=0)))) == 4
    assert len(list(generate(model, random_prompt(1023), Sampling(temperature=0)))) == 1


@pytest.mark.parametrize("max_batch", [1, 3, 32])
def test_a_batch_answers_as_each_alone(model: Transformer, max_batch: int) -> None:
    prompts = [random_prompt(length, seed=length) for length in (5, 127, 40, 128, 250, 1, 129)]
    samplings = [Sampling(temperature=0, max_tokens=8 + 3 * index) for index in range(len(prompts))]
    expected = {
        index: list(generate(model, prompt, one))
        for index, (prompt, one) in enumerate(zip(prompts, samplings, strict=True))
    }
    assert dict(generate_batch(model, prompts, samplings, max_batch=max_batch)) == expected


def test_sampling_in_a_batch_draws_as_alone(model: Transformer) -> None:
    prompts = [random_prompt(9), random_prompt(30)]
    samplings = [Sampling(temperature=1, seed=1, max_tokens=10), Sampling(temperature=1, seed=2, max_tokens=10)]
    alone = {
        index: list(generate(model, prompt, one))
        for index, (prompt, one) in enumerate(zip(prompts, samplings, strict=True))
    }
    assert dict(generate_batch(model, prompts, samplings)) == alone


def test_stop_tokens_and_one_token_answers_in_a_batch(model: Transformer) -> None:
    prompts = [random_prompt(length, seed=length) for length in (4, 6, 8)]
    first = next(generate(model, prompts[1], Sampling(temperature=0)))
    answers = dict(
        generate_batch(model, prompts, Sampling(temperature=0, max_tokens=9, stop_ids=frozenset({first})), max_batch=2)
    )
    assert answers[1] == [first]
    assert sorted(answers) == [0, 1, 2]


def test_no_prompt_is_no_work(model: Transformer) -> None:
    assert list(generate_batch(model, [])) == []


def test_requests_that_cannot_be_honoured_are_refused_before_any_work(model: Transformer) -> None:
    with pytest.raises(RequestError, match="the prompt has 1024 tokens and the context 1024"):
        generate(model, [0] * 1024)
    with pytest.raises(RequestError, match="the prompt is empty"):
        generate(model, [])
    with pytest.raises(RequestError, match="token id 300 at index 2 is outside the vocabulary of 300"):
        generate(model, [0, 1, 300])
    with pytest.raises(RequestError, match=r"prompts\[1\]: the prompt is empty"):
        generate_batch(model, [[1], []])
    with pytest.raises(RequestError, match="2 prompts and 1 samplings"):
        generate_batch(model, [[1], [2]], [Sampling()])
    with pytest.raises(RequestError, match="max_batch is 0"):
        generate_batch(model, [[1]], max_batch=0)


def test_reference_kernels_decode_too() -> None:
    model = random_model(CONFIG, "reference")
    token_ids = random_prompt(6)
    cache = Cache(CONFIG)
    prefill(model, token_ids[:4], cache, chunk=3)
    logits = step(model, [token_ids[4:]], [cache])[0]
    assert (logits - full_pass(model, token_ids)[-1]).abs().max() <= 1e-5


def test_generation_leaves_the_callers_gradients_on(model: Transformer) -> None:
    answer = generate(model, [1, 2], Sampling(max_tokens=3, temperature=0))
    next(answer)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
