"""How well a policy does on problems that it never practised."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ossia.harmony.tokenizer import Tokenizer
from ossia.model.transformer import Transformer
from ossia.train.rl.environment import Checked
from ossia.train.rl.feed import summary
from ossia.train.rl.grpo import pass_at
from ossia.train.rl.policy import Acting
from ossia.train.rl.rollout import Attempt, Roller, Rollout

_MANY = 8
"""Attempts of which one must do, beside one alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heldout:
    """Problems of the held-out split, each attempted several times by the policy as it is, at temperature 1.

    The problems and the random streams are the same at every call.
    """

    environment: Checked
    roller: Roller
    acting: Acting
    problems: int
    attempts: int
    samples: int
    """Problems whose first attempt is shown."""

    def __call__(self, model: Transformer) -> dict[str, Any]:
        """pass_at_1, pass_at_8 (or of as many attempts as there are), the mean length, and samples as text."""
        if not self.problems:
            return {}
        attempts = [
            Attempt(problem=problem, episode=self.environment.reset(problem), seed=problem * self.attempts + place)
            for problem in range(self.problems)
            for place in range(self.attempts)
        ]
        rollouts = self.roller(self.acting(model), attempts)
        groups = [rollouts[first : first + self.attempts] for first in range(0, len(rollouts), self.attempts)]
        means = {k: _mean_pass(groups, k) for k in (1, min(_MANY, self.attempts))}
        shown = [_sample(group[0], self.roller.tokenizer) for group in groups[: self.samples]]
        return {
            **{f"pass_at_{k}": mean for k, mean in means.items()},
            **{f"heldout_{name}": value for name, value in summary(rollouts).items() if name != "solved"},
            "samples": shown,
        }


def _mean_pass(groups: Sequence[Sequence[Rollout]], k: int) -> float:
    chances = [pass_at(k, sum(rollout.solved for rollout in group), len(group)) for group in groups]
    return sum(chances) / len(chances)


def _sample(rollout: Rollout, tokenizer: Tokenizer) -> dict[str, str]:
    begin = rollout.drawn.index(True)
    return {
        "prompt": tokenizer.decode(rollout.token_ids[:begin]),
        "answer": tokenizer.decode(rollout.token_ids[begin:]),
    }
