"""Logits → the next token. Shapes: V vocabulary, K kept of it."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ossia.engine.request import Drawn, Sampling, check_bias
from ossia.errors import KernelError
from ossia.model.transformer import NOT_NUMBERS

_FIRST_LOOK = 64
"""Likeliest tokens among which the end of `top_p` is looked for first: sorting a whole vocabulary takes far longer."""


class Sampler:
    """Draws the tokens of one request, from a random stream of its own: neighbours in a batch change nothing."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        """prompt: the ids before the answer, which a repetition penalty counts too."""
        self.sampling = sampling
        self._random = torch.Generator()  # On the CPU whatever the device, so that a seed means the same everywhere.
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)
        self._penalties = _Penalties(sampling, prompt) if sampling.shapes_logits else None

    @property
    def greedy_only(self) -> bool:
        """Whether the likeliest token is all that is wanted of the logits, where no mask comes with them."""
        return self.sampling.temperature == 0 and self.sampling.logprobs is None and self._penalties is None

    def draw(self, logits: Tensor, mask: np.ndarray | None = None) -> Drawn:
        """The next token, which from then on counts as part of the answer.

        logits: [V] of any floating type; mask: the tokens allowed, as a Constraint gives them.
        Raises KernelError where the logits are NaN, RequestError for a bias of a token that is not in the vocabulary.
        """
        if self.greedy_only and mask is None:
            token = int(logits.argmax())
            if logits[token].isnan():  # To argmax, NaN is the largest of all.
                raise KernelError(NOT_NUMBERS)
            return Drawn(token=token)
        raw_V = logits.to("cpu", torch.float64)
        if raw_V.max().isnan():
            raise KernelError(NOT_NUMBERS)
        scores_V = raw_V if self._penalties is None else self._penalties.applied(raw_V)
        if mask is None:
            token = self._chosen(scores_V)
        else:
            ids_K = allowed(mask, len(scores_V))
            token = int(ids_K[self._chosen(scores_V[ids_K])])
        if self._penalties is not None:
            self._penalties.count(token)
        return self._told(token, raw_V)

    def _chosen(self, scores: Tensor) -> int:
        """The place of the token among the scores."""
        if self.sampling.temperature == 0:
            return int(scores.argmax())
        # One uniform number a token: torch.multinomial takes one for each of the vocabulary, and far longer.
        reached_V = probabilities(scores, self.sampling).cumsum(dim=-1)
        total = reached_V[-1]
        wanted = torch.rand((), dtype=torch.float64, generator=self._random) * total
        # The product may round up to the total, which the last token with any weight is the first to reach.
        return int(
            torch.minimum(torch.searchsorted(reached_V, wanted, right=True), torch.searchsorted(reached_V, total))
        )

    def _told(self, token: int, raw_V: Tensor) -> Drawn:
        """With the log-probabilities asked for."""
        if self.sampling.logprobs is None:
            return Drawn(token=token)
        total = float(raw_V.logsumexp(dim=-1))
        best_K, ids_K = raw_V.topk(min(self.sampling.logprobs, len(raw_V)))
        best: list[tuple[float, int]] = sorted(zip((-best_K).tolist(), ids_K.tolist(), strict=True))
        return Drawn(
            token=token,
            logprob=float(raw_V[token]) - total,
            top=tuple((other, -score - total) for score, other in best),
        )


class _Penalties:
    """What prompt and answer so far, and the bias, do to the logits: only these ids of a vocabulary are touched."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int]) -> None:
        self._sampling = sampling
        self._prompt = frozenset(prompt) if sampling.repetition_penalty != 1 else frozenset[int]()
        self._prompt_ids = torch.tensor(sorted(self._prompt), dtype=torch.int64)
        self._counts: dict[int, int] = {}
        self._bias_ids = torch.tensor(list(sampling.logit_bias), dtype=torch.int64)
        self._bias = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float64)

    def count(self, token: int) -> None:
        """The answer has one more of this token."""
        self._counts[token] = self._counts.get(token, 0) + 1

    def applied(self, logits_V: Tensor) -> Tensor:
        """The logits after penalties and bias, float64 [V]."""
        asked, scores_V = self._sampling, logits_V.clone()
        if asked.repetition_penalty != 1:
            own = torch.tensor([token for token in self._counts if token not in self._prompt], dtype=torch.int64)
            for ids_K in (self._prompt_ids, own):
                seen_K = scores_V[ids_K]
                penalty = asked.repetition_penalty
                scores_V[ids_K] = torch.where(seen_K > 0, seen_K / penalty, seen_K * penalty)
        if asked.counts_answer and self._counts:
            ids_K = torch.tensor(list(self._counts))
            counts_K = torch.tensor(list(self._counts.values()), dtype=torch.float64)
            scores_V[ids_K] -= asked.presence_penalty + asked.frequency_penalty * counts_K
        if asked.logit_bias:
            check_bias(asked, vocab_size=len(scores_V))
            scores_V[self._bias_ids] += self._bias
        return scores_V


def allowed(mask: np.ndarray, vocab_size: int) -> Tensor:
    """int64 [K], the ids in a Constraint's mask."""
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little", count=vocab_size)
    return torch.from_numpy(np.flatnonzero(bits))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What `draw` draws from at a temperature above 0, penalties, bias and mask aside.

    float64 [V] on the CPU, filtered tokens 0, not renormalised.
    """
    scores_V = logits.to("cpu", torch.float64)
    scores_V = (scores_V - scores_V.max()) / sampling.temperature  # Subtracted first: no temperature is too small.
    weights_V = scores_V.softmax(dim=-1)
    if 0 < sampling.top_k < len(weights_V):
        weights_V = _likeliest(weights_V, sampling.top_k)
    if sampling.top_p < 1:
        weights_V = _likeliest(weights_V, _num_reaching(weights_V, sampling.top_p * float(weights_V.sum())))
    if sampling.min_p:
        weights_V = weights_V.where(weights_V >= sampling.min_p * weights_V.max(), 0.0)
    return weights_V


def _num_reaching(weights_V: Tensor, wanted: float) -> int:
    """How many of the likeliest tokens together reach the wanted weight; at least one."""
    size = _FIRST_LOOK
    while True:
        size = min(size, len(weights_V))
        best_K = weights_V.topk(size).values
        before_K = best_K.cumsum(dim=-1) - best_K  # Without itself, so that the likeliest always stays.
        count = int((before_K < wanted).sum())
        if count < size or size == len(weights_V):
            return count
        size *= 16


def _likeliest(weights_V: Tensor, count: int) -> Tensor:
    """The `count` largest weights, of equal ones the first; the others 0."""
    smallest = weights_V.topk(count).values[-1]
    kept_V = weights_V.where(weights_V >= smallest, 0.0)
    if (excess := int(kept_V.count_nonzero()) - count) > 0:
        kept_V[(weights_V == smallest).nonzero()[-excess:]] = 0
    return kept_V
