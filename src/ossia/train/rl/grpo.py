"""Group-relative policy optimisation, and its on-policy simplification.

A rollout's advantage is its reward less the mean of its group, the attempts at one problem (Shao et al. 2024). All of
its tokens share it, and the loop divides by the tokens of the whole step, so that long answers count for what they are
(Yu et al. 2025). Where each batch is learnt from once, this is the plain policy gradient.

Shapes: G rollouts of a group, R tokens that the policy drew.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.errors import TrainingError
from ossia.model.transformer import Transformer
from ossia.train.data import Batch
from ossia.train.loss import hidden, logprobs
from ossia.train.routers import RouterWatch

log = logging.getLogger(__name__)


def advantages(rewards: Sequence[float], *, normalise: bool) -> list[float] | None:
    """Each reward less their mean, divided by their standard deviation if `normalise`; None where all are equal."""
    mean = math.fsum(rewards) / len(rewards)
    centred = [reward - mean for reward in rewards]
    deviation = math.sqrt(math.fsum(each * each for each in centred) / len(rewards))
    if max(rewards) == min(rewards) or deviation == 0:
        return None
    return [each / deviation for each in centred] if normalise else centred


def pass_at(k: int, solved: int, attempts: int) -> float:
    """The chance that one of k attempts solves a problem of which `solved` of `attempts` were: unbiased (Chen et al.
    2021)."""
    if not 0 < k <= attempts:
        raise ValueError(f"pass@{k} of {attempts} attempts")
    return 1.0 - math.comb(attempts - solved, k) / math.comb(attempts, k)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObjective:
    """What a step lowers: minus the advantage-weighted likelihood of what the policy did."""

    clip: tuple[float, float] | None
    """How far below and above 1 the ratio of new to sampled probability still counts; None: the plain policy gradient,
    for batches that are learnt from once."""
    mismatch_limit: float
    """The KL divergence a token, in nats, between what acted and what learns, beyond which the run stops."""
    kl_coefficient: float = 0.0
    reference: Transformer | None = None
    """The policy to stay near to; needed where `kl_coefficient` is not 0."""

    def __call__(self, model: Transformer, batch: Batch, routers: RouterWatch) -> tuple[Tensor, dict[str, float]]:
        """See `loop.Objective`. Raises TrainingError where the two policies have come apart."""
        assert batch.advantages is not None and batch.sampled_logprobs is not None
        new_R = logprobs(model, hidden(model, batch), batch.targets)
        step_R = new_R - batch.sampled_logprobs.to(new_R.dtype)
        mismatch = float(_kl(step_R.detach()).sum())
        self._watch(mismatch / len(batch.rows))
        loss_R, clipped = self._loss(new_R, step_R, batch.advantages.to(new_R.dtype))
        told = {"mismatch_kl": mismatch, "clipped": clipped, "surprise": -float(new_R.detach().sum())}
        if self.kl_coefficient:
            assert self.reference is not None
            with torch.no_grad():
                reference_R = logprobs(self.reference, hidden(self.reference, batch), batch.targets)
            kl_R = _kl(reference_R - new_R)
            loss_R = loss_R + self.kl_coefficient * kl_R
            told["reference_kl"] = float(kl_R.detach().sum())
        loss = loss_R.sum()
        return loss, {"loss": float(loss.detach()), **told}

    def _loss(self, new_R: Tensor, step_R: Tensor, advantages_R: Tensor) -> tuple[Tensor, float]:
        """The loss of each token, and of how many the ratio no longer counts."""
        if self.clip is None:
            return -advantages_R * new_R, 0.0
        low, high = self.clip
        ratio_R = step_R.exp()
        plain_R, bounded_R = ratio_R * advantages_R, ratio_R.clamp(1 - low, 1 + high) * advantages_R
        return -torch.minimum(plain_R, bounded_R), float((bounded_R < plain_R).sum())

    def _watch(self, kl: float) -> None:
        if not kl <= self.mismatch_limit:
            raise TrainingError(
                f"the policy that acted is {kl:.3g} nats a token from the one that learns, more than --mismatch-limit "
                f"{self.mismatch_limit:g}: --resume with a lower --learning-rate or fewer --updates, or in float32"
            )
        if kl > self.mismatch_limit / 4:
            log.warning("the policy that acted is %.3g nats a token from the one that learns", kl)


def _kl(log_ratio_R: Tensor) -> Tensor:
    """Never negative, and on average over samples of p the divergence of p from q, where this is log q - log p."""
    return log_ratio_R.exp() - 1 - log_ratio_R
