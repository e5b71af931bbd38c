import math
from collections import Counter

import pytest
import torch

from ossia.engine.request import Sampling
from ossia.engine.sampler import Sampler, probabilities
from ossia.errors import KernelError

# Probabilities 0.5, 0.25, 0.15, 0.1 at temperature 1, in an order that is not theirs.
LOGITS = torch.tensor([0.15, 0.5, 0.1, 0.25]).log()


def kept(**options: float) -> set[int]:
    return set(probabilities(LOGITS, Sampling(**options)).nonzero().flatten().tolist())


def test_greedy_takes_the_likeliest() -> None:
    assert Sampler(Sampling(temperature=0)).draw(LOGITS) == 1


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
    assert Sampler(Sampling(temperature=5e-324)).draw(LOGITS) == 1


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(seed=0))
    counts = Counter(sampler.draw(LOGITS) for _ in range(4000))
    for token, expected in enumerate((0.15, 0.5, 0.1, 0.25)):
        assert abs(counts[token] / 4000 - expected) < 0.03


def test_a_seed_fixes_the_draws_whatever_happens_around() -> None:
    flat = torch.zeros(1000)
    alone = Sampler(Sampling(seed=7))
    expected = [alone.draw(flat) for _ in range(20)]
    other, again, drawn = Sampler(Sampling(seed=8)), Sampler(Sampling(seed=7)), []
    for _ in range(20):
        other.draw(flat)
        torch.rand(3)
        drawn.append(again.draw(flat))
    assert drawn == expected
    assert [Sampler(Sampling()).draw(flat) for _ in range(6)] != [Sampler(Sampling()).draw(flat) for _ in range(6)]


@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_no_numbers_are_refused(temperature: float) -> None:
    with pytest.raises(KernelError, match="the model's logits are not numbers"):
        Sampler(Sampling(temperature=temperature)).draw(torch.tensor([0.0, math.nan, 1.0]))
