import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.engine.request import Sampling, check_bias
from ossia.engine.sampler import Sampler, probabilities
from ossia.errors import KernelError, RequestError

# Probabilities 0.5, 0.25, 0.15, 0.1 at temperature 1, in an order that is not theirs.
LOGITS = torch.tensor([0.15, 0.5, 0.1, 0.25]).log()


def kept(**options: float) -> set[int]:
    return set(probabilities(LOGITS, Sampling(**options)).nonzero().flatten().tolist())


def test_greedy_takes_the_likeliest() -> None:
    assert Sampler(Sampling(temperature=0)).draw(LOGITS).token == 1


def test_filters_keep_what_they_say() -> None:
    assert kept() == {0, 1, 2, 3}
    assert kept(top_k=1) == {1}
    assert kept(top_k=3) == {0, 1, 3}
    assert kept(top_k=9) == {0, 1, 2, 3}
    assert kept(top_p=0.01) == {1}
    assert kept(top_p=0.51) == {1, 3}
    assert kept(top_p=0.76) == {0, 1, 3}
    assert kept(min_p=0.29) == {0, 1, 3}
    assert kept(min_p=1) == {1}
    # After top_k = 3 the rest sums to 0.9, of which 0.8 is reached by two.
    assert kept(top_k=3, top_p=0.8) == {1, 3}


def test_temperature_is_the_exponent_of_the_probabilities() -> None:
    weights = probabilities(LOGITS, Sampling(temperature=2))
    assert float(weights[1] / weights[3]) == pytest.approx(math.sqrt(2))


def test_the_smallest_temperature_is_greedy() -> None:
    assert Sampler(Sampling(temperature=5e-324)).draw(LOGITS).token == 1


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(seed=0))
    counts = Counter(sampler.draw(LOGITS).token for _ in range(4000))
    for token, expected in enumerate((0.15, 0.5, 0.1, 0.25)):
        assert abs(counts[token] / 4000 - expected) < 0.03


def test_a_seed_fixes_the_draws_whatever_happens_around() -> None:
    flat = torch.zeros(1000)
    alone = Sampler(Sampling(seed=7))
    expected = [alone.draw(flat).token for _ in range(20)]
    other, again, drawn = Sampler(Sampling(seed=8)), Sampler(Sampling(seed=7)), []
    for _ in range(20):
        other.draw(flat)
        torch.rand(3)
        drawn.append(again.draw(flat).token)
    assert drawn == expected
    assert [Sampler(Sampling()).draw(flat) for _ in range(6)] != [Sampler(Sampling()).draw(flat) for _ in range(6)]


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_refused(temperature: float) -> None:
    with pytest.raises(KernelError, match="the model's logits are not numbers"):
        Sampler(Sampling(temperature=temperature)).draw(torch.tensor([0.0, math.nan, 1.0]))


# -------------------------------------------------------------------- against other implementations


def random_logits(seed: int, size: int = 300) -> torch.Tensor:
    """Some of them equal, as logits in bfloat16 often are."""
    return (torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 3).bfloat16().float()


@given(
    st.integers(0, 1000),
    st.integers(1, 300),
    st.sampled_from([0.01, 0.3, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.02, 0.7]),
    st.sampled_from([0.3, 1.0, 2.5]),
)
@settings(max_examples=60)
def test_filters_keep_what_transformers_keeps(seed: int, k: int, p: float, min_p: float, temperature: float) -> None:
    from transformers.generation import logits_process as hf

    # Distinct: among equal tokens at the edge it keeps all where we keep the first.
    logits = random_logits(seed) + torch.arange(300) * 1e-4
    processors = [hf.TemperatureLogitsWarper(temperature), hf.TopKLogitsWarper(k), hf.TopPLogitsWarper(p)]
    if min_p:
        processors.append(hf.MinPLogitsWarper(min_p))
    scores = logits[None].double()
    for processor in processors:
        scores = processor(torch.zeros(1, 0, dtype=torch.int64), scores)
    ours = probabilities(logits, Sampling(temperature=temperature, top_k=k, top_p=p, min_p=min_p))
    torch.testing.assert_close(ours / ours.sum(), scores.softmax(-1)[0])


def test_top_p_ends_beyond_the_first_look() -> None:
    flat = torch.zeros(5000)
    weights = probabilities(flat, Sampling(top_p=0.4999))
    assert weights.nonzero().flatten().tolist() == list(range(2500))


def test_of_equal_tokens_at_the_edge_the_first_stay() -> None:
    logits = torch.tensor([0.0, 1.0, 1.0, 2.0, 1.0])
    assert probabilities(logits, Sampling(top_k=3)).nonzero().flatten().tolist() == [1, 2, 3]
    assert Sampler(Sampling(temperature=0)).draw(torch.tensor([0.0, 2.0, 1.0, 2.0])).token == 1


def test_a_repetition_penalty_is_that_of_transformers() -> None:
    from transformers.generation import logits_process as hf

    logits, prompt = random_logits(3), [5, 7, 7, 250]
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.7, logprobs=0), prompt)
    answer: list[int] = []
    for _ in range(40):
        ids = torch.tensor([prompt + answer])
        expected = hf.RepetitionPenaltyLogitsProcessor(1.7)(ids, logits[None].double()).argmax()
        answer.append(sampler.draw(logits).token)
        assert answer[-1] == expected
    assert len(set(answer)) > 10


def test_presence_and_frequency_count_the_answer_alone() -> None:
    logits = random_logits(4)
    asked = Sampling(temperature=0, presence_penalty=0.7, frequency_penalty=0.4, logit_bias={9: 3.5, 11: -100})
    sampler, answer = Sampler(asked, [int(logits.argmax())] * 9), []
    for _ in range(60):
        counts = np.bincount(answer, minlength=300)
        expected = logits.double().numpy() - 0.7 * (counts > 0) - 0.4 * counts
        expected[9] += 3.5
        expected[11] -= 100
        answer.append(sampler.draw(logits).token)
        assert answer[-1] == expected.argmax()
    assert len(set(answer)) > 3


def test_penalties_come_before_the_bias_and_the_bias_before_the_mask() -> None:
    logits = torch.tensor([4.0, 3.0, -2.0, 0.0])
    # Tokens 0 and 1 stand at 4 / 2 = 2 and 3 / 2 + 0.6 = 2.1, each a point less once drawn; 3 is not allowed.
    asked = Sampling(temperature=0, repetition_penalty=2, presence_penalty=1, logit_bias={1: 0.6, 3: 90})
    sampler = Sampler(asked, [0, 1])
    mask = np.array([0b0111], dtype=np.int32)
    assert [sampler.draw(logits, mask).token for _ in range(3)] == [1, 0, 1]
    assert sampler.draw(logits).token == 3


def test_a_draw_is_where_a_uniform_number_falls_among_the_probabilities() -> None:
    logits = random_logits(5)
    sampler, random = Sampler(Sampling(seed=3, temperature=0.8, top_p=0.9)), torch.Generator().manual_seed(3)
    for _ in range(30):
        weights, order = (logits.double() / 0.8).softmax(-1).sort(descending=True, stable=True)
        weights[weights.cumsum(0) - weights >= 0.9] = 0
        full = torch.zeros_like(weights).scatter_(0, order, weights).numpy()
        number = float(torch.rand((), dtype=torch.float64, generator=random))
        edges = np.concatenate([[0.0], np.cumsum(full)])
        token = sampler.draw(logits).token
        assert edges[token] <= number * edges[-1] < edges[token + 1]


def test_masked_draws_follow_what_is_left_of_the_probabilities() -> None:
    logits, mask = torch.tensor([1.0, 0.0, 2.0, -1.0, 9.0] + [9.0] * 35), np.array([0b1111, 1], dtype=np.int32)
    sampler = Sampler(Sampling(seed=1, temperature=1.5, top_k=4), [])
    counts = Counter(sampler.draw(logits, mask).token for _ in range(6000))
    kept = np.exp(np.array([1.0, 0.0, 2.0, 9.0]) / 1.5)  # Of the five allowed, the four likeliest.
    expected = 6000 * kept / kept.sum()
    observed = np.array([counts[token] for token in (0, 1, 2, 32)])
    assert observed.sum() == 6000
    assert ((observed - expected) ** 2 / expected).sum() < 16.3  # chi square, 3 degrees of freedom, p = 0.001


def test_logprobs_are_of_the_raw_logits() -> None:
    logits = random_logits(6)
    exact = logits.double().log_softmax(-1)
    asked = Sampling(seed=0, temperature=0.5, top_k=40, logit_bias={3: 50}, presence_penalty=1, logprobs=5)
    drawn = Sampler(asked).draw(logits)
    assert drawn.token == 3
    assert drawn.logprob == pytest.approx(float(exact[3]))
    assert [token for token, _ in drawn.top] == exact.sort(descending=True, stable=True).indices[:5].tolist()
    for token, logprob in drawn.top:
        assert logprob == pytest.approx(float(exact[token]))
    alone = Sampler(Sampling(temperature=0, logprobs=0)).draw(logits)
    assert (alone.logprob, alone.top) == (pytest.approx(float(exact.max())), ())
    silent = Sampler(Sampling(temperature=0)).draw(logits)
    assert (silent.logprob, silent.top) == (None, ())


@pytest.mark.parametrize(
    ("options", "greedy_only"),
    [
        ({}, True),
        ({"temperature": 0.1}, False),
        ({"logprobs": 0}, False),
        ({"logit_bias": {1: 1}}, False),
        ({"repetition_penalty": 1.1}, False),
        ({"presence_penalty": 0.1}, False),
        ({"frequency_penalty": 0.1}, False),
        ({"top_p": 0.1, "seed": 1}, True),
    ],
)
def test_greedy_only_where_the_likeliest_is_all_that_is_wanted(options: dict[str, object], greedy_only: bool) -> None:
    assert Sampler(Sampling(**{"temperature": 0, **options})).greedy_only is greedy_only


def test_a_bias_of_a_token_that_is_not_there_is_refused() -> None:
    asked = Sampling(logit_bias={4: 1})
    with pytest.raises(RequestError, match="logit_bias has token id 4, outside the vocabulary of 4: leave it out"):
        check_bias(asked, vocab_size=4)
    with pytest.raises(RequestError, match="outside the vocabulary of 4"):
        Sampler(asked).draw(LOGITS)
    check_bias(asked, vocab_size=5)
