"""Prefill and decoding against one full pass."""

import pytest
import torch
from tests.engine.small import CONFIG, random_model, random_prompt

from ossia.engine.cache import Cache
from ossia.engine.loop import generate, prefill, step
from ossia.engine.request import Sampling
from ossia.errors import RequestError
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    return random_model(CONFIG)


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
        logits = step(model, [token_ids[position]], cache)
        worst = max(worst, float((logits - expected[position]).abs().max()))
    assert cache.length == len(token_ids)
    assert worst <= 1e-5
    assert expected.std() > 0.3  # Else a small difference says nothing.


def test_decoding_goes_on_across_every_move_of_the_stores(model: Transformer) -> None:
    token_ids = random_prompt(420)
    expected = full_pass(model, token_ids)
    cache = Cache(CONFIG)
    logits = torch.stack([step(model, [token], cache) for token in token_ids])
    assert (logits - expected).abs().max() <= 1e-5


def test_windowed_layers_keep_no_more_than_they_need(model: Transformer) -> None:
    cache = Cache(CONFIG)
    prefill(model, random_prompt(900), cache, chunk=9)
    windowed, full = cache.layers[0], cache.layers[1]
    assert windowed.num_rows == 127 + 9
    assert full.num_rows == 900
    assert windowed.capacity < 300 < 900 <= full.capacity


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


def test_requests_that_cannot_be_honoured_are_refused_before_any_work(model: Transformer) -> None:
    with pytest.raises(RequestError, match="the prompt has 1024 tokens and the context 1024"):
        generate(model, [0] * 1024)
    with pytest.raises(RequestError, match="the prompt is empty"):
        generate(model, [])
    with pytest.raises(RequestError, match="token id 300 at index 2 is outside the vocabulary of 300"):
        generate(model, [0, 1, 300])


def test_reference_kernels_decode_too() -> None:
    model = random_model(CONFIG, "reference")
    token_ids = random_prompt(6)
    cache = Cache(CONFIG)
    prefill(model, token_ids[:4], cache, chunk=3)
    logits = step(model, token_ids[4:], cache)
    assert (logits - full_pass(model, token_ids)[-1]).abs().max() <= 1e-5


def test_generation_leaves_the_callers_gradients_on(model: Transformer) -> None:
    answer = generate(model, [1, 2], Sampling(max_tokens=3, temperature=0))
    next(answer)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
