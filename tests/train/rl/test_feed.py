"""Rounds of rollouts as batches: nothing lost, equal groups left out, and gone on with exactly after a stop."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from ossia.errors import TrainingError
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.transformer import Transformer
from ossia.train.data import Batch
from ossia.train.rl.environment import Checked, Outcome
from ossia.train.rl.feed import RolloutFeed, Weighed, batches
from ossia.train.rl.rollout import Roller

from .conftest import Parity, attempts


@pytest.fixture
def make_feed(policy: Transformer, tokenizer: Tokenizer) -> Callable[..., RolloutFeed]:
    def make(environment: Any = None, **changes: Any) -> RolloutFeed:
        given: dict[str, Any] = {
            "environment": Checked(parts=(("toy", environment or Parity()),)),
            "roller": Roller(tokenizer=tokenizer, max_tokens=8, context=128, max_batch=8),
            "model": policy,
            "acting": lambda model: model,
            "groups": 3,
            "group_size": 4,
            "updates": 1,
            "batch_tokens": 200,
            "normalise": False,
            "replay": True,
            "seed": 0,
        }
        return RolloutFeed(**(given | changes))

    return make


def same(left: list[Batch], right: list[Batch]) -> bool:
    names = ("token_ids", "rows", "targets", "advantages", "sampled_logprobs", "expert_ids")
    pairs = [(getattr(a, n), getattr(b, n)) for a, b in zip(left, right, strict=True) for n in names]
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_feed_goes_on_where_it_stood(make_feed: Callable[..., RolloutFeed]) -> None:
    whole = make_feed()
    steps = [whole.next(step) for step in range(3)]
    begun = make_feed()
    assert same(begun.next(0), steps[0])
    resumed = make_feed()
    resumed.restore(begun.state())
    assert same(resumed.next(1), steps[1])
    assert same(resumed.next(2), steps[2])
    assert resumed.accounting() == whole.accounting()
    assert not same(steps[0][:1], steps[1][:1])


def test_another_seed_draws_other_tokens(make_feed: Callable[..., RolloutFeed]) -> None:
    first, other = make_feed(seed=0).next(0), make_feed(seed=1).next(0)
    assert not torch.equal(first[0].token_ids, other[0].token_ids)


@dataclass
class ByProblem:
    """Worth what is told of the problem, in turn of its attempts."""

    rewards: list[list[float]]

    def __post_init__(self) -> None:
        self.left = [list(each) for each in self.rewards]

    def reset(self, index: int) -> Any:
        episode = Parity().reset(index)
        reward = self.left[index % len(self.left)].pop(0) if self.left[index % len(self.left)] else 0.0
        episode.step = lambda reply: Outcome(reward=reward)  # type: ignore[method-assign]
        return episode


def test_groups_of_equal_rewards_are_left_out_and_counted(make_feed: Callable[..., RolloutFeed]) -> None:
    feed = make_feed(ByProblem([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]), batch_tokens=10_000)
    [batch] = feed.next(0)
    assert sorted(set(batch.advantages.tolist())) == [-0.25, 0.75]  # type: ignore[union-attr]
    assert len(batch.lengths) == 4
    drawn = 12 * 8
    assert feed.accounting() == {"rollouts": 12, "rollouts_learnt": 4, "tokens_drawn": drawn}
    told = feed.metrics()
    assert told["kept_groups"] == pytest.approx(1 / 3)
    assert told["reward"] == told["solved"] == pytest.approx(5 / 12)
    assert (told["length"], told["cut"], told["turns"]) == (8, 1, 1)


def test_rounds_that_teach_nothing_end_the_run(make_feed: Callable[..., RolloutFeed]) -> None:
    feed = make_feed(ByProblem([[]]), groups=1, group_size=2)
    with pytest.raises(
        TrainingError, match=r"^8 rounds in a row taught nothing, with 0% of the last solved: .*--group-size"
    ):
        feed.next(0)


def test_a_round_is_learnt_in_so_many_updates(make_feed: Callable[..., RolloutFeed]) -> None:
    rewards = [[0.0, 1.0, 0.0, 1.0]] * 3
    whole = make_feed(ByProblem(rewards)).next(0)
    feed = make_feed(ByProblem(rewards), updates=2)
    parts = [*feed.next(0), *feed.next(1)]
    assert feed.rounds == 1
    assert sorted(n for batch in parts for n in batch.lengths) == sorted(n for batch in whole for n in batch.lengths)
    assert sum(float(b.sampled_logprobs.sum()) for b in parts) == pytest.approx(  # type: ignore[union-attr]
        sum(float(b.sampled_logprobs.sum()) for b in whole)  # type: ignore[union-attr]
    )


@pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
def test_batches_hold_every_rollout_once_and_what_was_drawn_of_it(
    policy: Transformer, tokenizer: Tokenizer, batch_tokens: int
) -> None:
    roller = Roller(tokenizer=tokenizer, max_tokens=8, context=128)
    rollouts = [replace(each, reward=0.0) for each in roller(policy, attempts(Parity(), problems=2, size=3))]
    made = batches(
        [Weighed(rollout=each, advantage=float(place)) for place, each in enumerate(rollouts)],
        batch_tokens,
        replay=True,
    )
    found: dict[tuple[int, ...], tuple[float, list[float]]] = {}
    for batch in made:
        assert len(batch.lengths) == 1 or sum(batch.lengths) <= batch_tokens
        begin = first = 0
        assert batch.expert_ids is not None and batch.advantages is not None and batch.sampled_logprobs is not None
        assert batch.expert_ids.shape == (2, sum(batch.lengths), 2)
        for length in batch.lengths:
            tokens = batch.token_ids[begin : begin + length]
            rows = batch.rows[(batch.rows >= begin) & (batch.rows < begin + length)]
            assert batch.token_ids[rows + 1].tolist() == batch.targets[first : first + len(rows)].tolist()
            assert batch.positions[begin : begin + length].tolist() == list(range(length))
            [worth] = set(batch.advantages[first : first + len(rows)].tolist())
            found[tuple(tokens.tolist())] = (worth, batch.sampled_logprobs[first : first + len(rows)].tolist())
            begin, first = begin + length, first + len(rows)
    expected: dict[tuple[int, ...], tuple[float, list[float]]] = {
        tuple(each.token_ids): (float(place), pytest.approx(each.logprobs)) for place, each in enumerate(rollouts)
    }
    assert found == expected
