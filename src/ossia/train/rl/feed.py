"""Rollouts as the batches of a step: what the loop asks for is played on the spot, by the policy as it stands.

Shapes: T tokens, R tokens that the policy drew, L layers, K experts a token.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from random import Random
from typing import Any

import torch

from ossia.errors import TrainingError
from ossia.model.transformer import Transformer
from ossia.train.data import Batch
from ossia.train.rl.environment import Checked
from ossia.train.rl.grpo import advantages
from ossia.train.rl.policy import Acting
from ossia.train.rl.rollout import Attempt, Roller, Rollout

log = logging.getLogger(__name__)

_MOST_BARREN = 8
"""Rounds in a row that may teach nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A rollout and what it teaches."""

    rollout: Rollout
    advantage: float


@dataclass(slots=True, kw_only=True)
class RolloutFeed:
    """A `data.Feed` of what the policy does.

    A round is `groups` problems, each attempted `group_size` times; it is learnt from in `updates` steps. Groups whose
    rewards are all equal teach nothing and are left out.
    """

    environment: Checked
    roller: Roller
    model: Transformer
    acting: Acting
    groups: int
    group_size: int
    updates: int
    batch_tokens: int
    """Most tokens of a micro-batch; a longer rollout is one by itself."""
    normalise: bool
    replay: bool
    """Whether training sends tokens to the experts to which they went in the rollout."""
    seed: int
    rounds: int = 0
    """Played so far; the next one's problems and random streams follow from it."""
    counts: dict[str, int] = field(default_factory=lambda: {"rollouts": 0, "rollouts_learnt": 0, "tokens_drawn": 0})
    told: dict[str, float] = field(default_factory=dict[str, float])
    """What is to be logged of the last round."""
    _pending: list[list[Batch]] = field(default_factory=list[list[Batch]])

    def next(self, step: int) -> list[Batch]:
        """The micro-batches of the next step. Raises TrainingError where nothing is left to learn."""
        if not self._pending or step % self.updates == 0:
            self._pending = self._learnable()
        return self._pending.pop(0)

    def _learnable(self) -> list[list[Batch]]:
        for _ in range(_MOST_BARREN):
            weighed = self._round()
            if len(weighed) >= self.updates:
                shares = [weighed[first :: self.updates] for first in range(self.updates)]
                return [batches(share, self.batch_tokens, replay=self.replay) for share in shares]
            log.warning("round %d taught nothing: all groups had equal rewards", self.rounds)
        raise TrainingError(
            f"{_MOST_BARREN} rounds in a row taught nothing, with {self.told['solved']:.0%} of the last solved: every "
            "group had equal rewards. Choose an easier or harder --environment, or a larger --group-size"
        )

    def _round(self) -> list[Weighed]:
        begun = time.monotonic()
        attempts = [
            Attempt(
                problem=problem,
                episode=self.environment.reset(problem),
                seed=Random(f"{self.seed}/{problem}/{place}").getrandbits(62),
            )
            for problem in range(self.rounds * self.groups, (self.rounds + 1) * self.groups)
            for place in range(self.group_size)
        ]
        rollouts = self.roller(self.acting(self.model), attempts)
        self.rounds += 1
        grouped = [rollouts[first : first + self.group_size] for first in range(0, len(rollouts), self.group_size)]
        weighed: list[Weighed] = []
        for group in grouped:
            worth = advantages([rollout.reward for rollout in group], normalise=self.normalise)
            weighed += [Weighed(rollout=r, advantage=a) for r, a in zip(group, worth or (), strict=bool(worth))]
        seconds = time.monotonic() - begun
        self.told = summary(rollouts) | {
            "kept_groups": len(weighed) / len(rollouts),
            "rollout_seconds": round(seconds, 2),
            "rollout_tokens_per_second": round(sum(rollout.length for rollout in rollouts) / seconds, 1),
        }
        self.counts["rollouts"] += len(rollouts)
        self.counts["rollouts_learnt"] += len(weighed)
        self.counts["tokens_drawn"] += sum(rollout.length for rollout in rollouts)
        return weighed

    def metrics(self) -> dict[str, float]:
        """What is to be logged of the last round: see `summary`."""
        return self.told

    def state(self) -> dict[str, Any]:
        """See `data.Feed`. Between rounds it is all there is; within one, a resumed run begins the next."""
        return {"rounds": self.rounds, "counts": self.counts}

    def restore(self, state: dict[str, Any]) -> None:
        """See `data.Feed`."""
        self.rounds, self.counts = int(state["rounds"]), dict(state["counts"])

    def accounting(self) -> dict[str, int]:
        """See `data.Feed`."""
        return self.counts


def summary(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Means over rollouts: reward, share solved and cut, tokens drawn, turns."""
    count = len(rollouts)
    return {
        "reward": sum(rollout.reward for rollout in rollouts) / count,
        "solved": sum(rollout.solved for rollout in rollouts) / count,
        "length": sum(rollout.length for rollout in rollouts) / count,
        "cut": sum(rollout.cut for rollout in rollouts) / count,
        "turns": sum(rollout.turns for rollout in rollouts) / count,
    }


def batches(weighed: Sequence[Weighed], batch_tokens: int, *, replay: bool) -> list[Batch]:
    """Rollouts in micro-batches of at most so many tokens, those of like length together."""
    out: list[Batch] = []
    chosen: list[Weighed] = []
    total = 0
    for one in sorted(weighed, key=lambda one: len(one.rollout.token_ids)):
        length = len(one.rollout.token_ids)
        if chosen and total + length > batch_tokens:
            out.append(collate(chosen, replay=replay))
            chosen, total = [], 0
        chosen.append(one)
        total += length
    return [*out, collate(chosen, replay=replay)]


def collate(weighed: Sequence[Weighed], *, replay: bool) -> Batch:
    """Rollouts end to end; what the policy drew is learnt."""
    rollouts = [one.rollout for one in weighed]
    token_ids = torch.tensor(list(chain.from_iterable(rollout.token_ids for rollout in rollouts)))
    drawn = torch.tensor(list(chain.from_iterable(rollout.drawn for rollout in rollouts))).nonzero().squeeze(-1)
    worth = [one.advantage for one in weighed for _ in range(one.rollout.length)]
    return Batch(
        token_ids=token_ids,
        positions=torch.cat([torch.arange(len(rollout.token_ids)) for rollout in rollouts]),
        lengths=tuple(len(rollout.token_ids) for rollout in rollouts),
        rows=drawn - 1,
        targets=token_ids[drawn],
        advantages=torch.tensor(worth),
        sampled_logprobs=torch.tensor(list(chain.from_iterable(rollout.logprobs for rollout in rollouts))),
        expert_ids=torch.cat([rollout.expert_ids for rollout in rollouts], dim=1) if replay else None,
    )
