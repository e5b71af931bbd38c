"""Advantages, pass@k, and the gradient of the objective against formulas written out by hand."""

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ossia.errors import TrainingError
from ossia.model.transformer import Transformer
from ossia.train.data import Batch
from ossia.train.loss import hidden
from ossia.train.rl.grpo import PolicyObjective, advantages, pass_at
from ossia.train.routers import RouterWatch

REWARDS = st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=2, max_size=9)


@given(REWARDS, st.booleans())
def test_advantages_are_rewards_seen_from_their_mean(rewards: list[float], normalise: bool) -> None:
    found = advantages(rewards, normalise=normalise)
    if len(set(rewards)) == 1:
        assert found is None
        return
    assert found is not None
    values = torch.tensor(rewards, dtype=torch.float64)
    expected = values - values.mean()
    if normalise:
        expected /= values.std(correction=0)
    torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected)


@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.integers(1, n), st.integers(0, n), st.just(n))))
def test_pass_at_k_is_the_share_of_choices_that_hold_a_success(numbers: tuple[int, int, int]) -> None:
    k, solved, attempts = numbers
    outcomes = [place < solved for place in range(attempts)]
    choices = list(combinations(outcomes, k))
    assert pass_at(k, solved, attempts) == pytest.approx(sum(map(any, choices)) / len(choices))


def test_pass_at_more_than_there_were_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@8 of 4 attempts"):
        pass_at(8, 1, 4)


def batch() -> Batch:
    """Two rollouts, of which 3 and 4 tokens were drawn, with log-probabilities of some other policy."""
    generator = torch.Generator().manual_seed(1)
    token_ids = torch.randint(0, 4096, (13,), generator=generator)
    rows = torch.tensor([2, 3, 4, 8, 9, 10, 11])
    return Batch(
        token_ids=token_ids,
        positions=torch.cat([torch.arange(6), torch.arange(7)]),
        lengths=(6, 7),
        rows=rows,
        targets=token_ids[rows + 1],
        advantages=torch.tensor([0.5] * 3 + [-1.5] * 4),
        sampled_logprobs=None,
    )


def with_sampled(one: Batch, sampled: Tensor) -> Batch:
    fields = {name: getattr(one, name) for name in one.__dataclass_fields__}
    return Batch(**(fields | {"sampled_logprobs": sampled}))


def of_unembedding(model: Transformer, one: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states [R, D], probabilities [R, V], and log-probabilities [R] of the targets, all in float64."""
    with torch.no_grad():
        x = hidden(model, one)
        probabilities = (x @ model.unembedding.weight.T).softmax(dim=-1)
        return x, probabilities, probabilities.gather(1, one.targets[:, None])[:, 0].log()


def gradient(model: Transformer, one: Batch, objective: PolicyObjective) -> tuple[Tensor, dict[str, float]]:
    model.requires_grad_(True)
    model.zero_grad()
    with RouterWatch.of(model) as routers:
        loss, told = objective(model, one, routers)
        loss.backward()
    assert model.unembedding.weight.grad is not None
    return model.unembedding.weight.grad, told


def by_hand(x: Tensor, probabilities: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
    """Gradient [V, D] of the sum over tokens of factor times -log p: factor times (p - one-hot) for each logit."""
    onehot = torch.nn.functional.one_hot(targets, probabilities.shape[-1])
    return ((probabilities - onehot) * factors[:, None]).T @ x


DRIFT = torch.tensor([0.0, 0.3, -0.3, 0.0, 0.35, -0.35, 0.1], dtype=torch.float64)
"""How far the log-probabilities of the policy moved since it was sampled."""


def test_the_plain_policy_gradient_is_that_of_the_formula(policy: Transformer) -> None:
    model, one = policy.double(), batch()
    x, probabilities, new = of_unembedding(model, one)
    assert one.advantages is not None
    found, told = gradient(model, with_sampled(one, new - DRIFT), PolicyObjective(clip=None, mismatch_limit=1.0))
    expected = by_hand(x, probabilities, one.targets, one.advantages.double())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert told["loss"] == pytest.approx(float(-(one.advantages * new).sum()))
    assert told["mismatch_kl"] == pytest.approx(float((DRIFT.exp() - 1 - DRIFT).sum()))
    assert told["surprise"] == pytest.approx(float(-new.sum()))


def test_the_clipped_gradient_is_that_of_the_formula(policy: Transformer) -> None:
    """A ratio that left its bounds in the direction of its advantage teaches nothing; the others count by the ratio."""
    model, one = policy.double(), batch()
    x, probabilities, new = of_unembedding(model, one)
    assert one.advantages is not None
    found, told = gradient(model, with_sampled(one, new - DRIFT), PolicyObjective(clip=(0.2, 0.28), mismatch_limit=1.0))
    counts = torch.tensor([1, 0, 1, 1, 1, 0, 1])  # Ratios 1, 1.35 up, 0.74 | 1, 1.42, 0.70 down, 1.11.
    factors = one.advantages.double() * DRIFT.exp() * counts
    expected = by_hand(x, probabilities, one.targets, factors)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert told["clipped"] == 2


def test_the_gradient_of_staying_near_is_that_of_the_formula(policy: Transformer, other: Transformer) -> None:
    model, reference, one = policy.double(), other.double(), batch()
    x, probabilities, new = of_unembedding(model, one)
    far = of_unembedding(reference, one)[2] - new
    assert one.advantages is not None
    objective = PolicyObjective(clip=None, mismatch_limit=1.0, kl_coefficient=0.5, reference=reference)
    found, told = gradient(model, with_sampled(one, new), objective)
    # d/dlog p of exp(far) - 1 - far, where far falls as log p rises, is 1 - exp(far).
    factors = one.advantages.double() - 0.5 * (1 - far.exp())
    torch.testing.assert_close(found, by_hand(x, probabilities, one.targets, factors), rtol=1e-9, atol=1e-12)
    assert told["reference_kl"] == pytest.approx(float((far.exp() - 1 - far).sum()))
    assert all(parameter.grad is None for parameter in reference.parameters())


@pytest.fixture
def other(make_policy: Callable[[int], Transformer]) -> Transformer:
    return make_policy(4).requires_grad_(False)


@pytest.mark.parametrize("drift", [0.5, float("nan")])
def test_policies_that_come_apart_stop_the_run(policy: Transformer, drift: float) -> None:
    one = batch()
    new = of_unembedding(policy, one)[2]
    with pytest.raises(TrainingError, match=r"^the policy that acted is .* nats a token .* --mismatch-limit 0.1"):
        gradient(policy, with_sampled(one, new + drift), PolicyObjective(clip=None, mismatch_limit=0.1))
