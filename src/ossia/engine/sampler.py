"""Logits → the next token. Shapes: V vocabulary."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ossia.engine.request import Drawn, Mask, Sampling
from ossia.errors import KernelError
from ossia.model.transformer import NOT_NUMBERS


class Sampler:
    """Draws the tokens of one request, from a random stream of its own: neighbours in a batch change nothing."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self.greedy_only = sampling.temperature == 0
        self._random = torch.Generator()  # On the CPU whatever the device, so that a seed means the same everywhere.
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(sampling.seed)

    def draw(self, logits: Tensor, mask: Mask | None = None) -> Drawn:
        """The next token, from logits [V] of any floating type. Raises KernelError where they are NaN."""
        if self.sampling.temperature == 0:
            token = int(logits.argmax())
            if logits[token].isnan():  # To argmax, NaN is the largest of all.
                raise KernelError(NOT_NUMBERS)
            return Drawn(token=token)
        weights_V = probabilities(logits, self.sampling)
        if weights_V.isnan().any():
            raise KernelError(NOT_NUMBERS)
        return Drawn(token=int(torch.multinomial(weights_V, 1, generator=self._random)))


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What `draw` draws from at a temperature above 0: float64 [V] on the CPU, filtered tokens 0, not renormalised."""
    scores_V = logits.to("cpu", torch.float64)
    scores_V = (scores_V - scores_V.max()) / sampling.temperature  # Subtracted first: no temperature is too small.
    weights_V = scores_V.softmax(dim=-1)
    if sampling.top_k or sampling.top_p < 1:
        sorted_V, order_V = weights_V.sort(descending=True, stable=True)
        if sampling.top_k:
            sorted_V[sampling.top_k :] = 0
        if sampling.top_p < 1:
            reached_V = sorted_V.cumsum(dim=-1) - sorted_V  # Without itself, so that the likeliest always stays.
            sorted_V[reached_V >= sampling.top_p * sorted_V.sum()] = 0
        weights_V = torch.zeros_like(weights_V).scatter_(0, order_V, sorted_V)
    if sampling.min_p:
        weights_V = weights_V.where(weights_V >= sampling.min_p * weights_V.max(), 0.0)
    return weights_V
