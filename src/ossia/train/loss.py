"""What is minimised: the surprise of each token to be learnt, without ever holding all logits of a long batch at once.

Shapes: T tokens, R tokens to be learnt, D hidden, V vocabulary.
"""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ossia.model.attention import Packed
from ossia.model.transformer import Transformer
from ossia.train.data.packing import Batch
from ossia.train.routers import RouterWatch

LOGITS_AT_ONCE = 2**24
"""Logits held at a time: 83 rows of the published vocabulary, 4,096 of the bundled one; 64 MB in float32."""


def cross_entropy(model: Transformer, batch: Batch, routers: RouterWatch) -> tuple[Tensor, dict[str, float]]:
    """The objective of `pretrain`, `sft` and `lora`: the sum over targets of weight times surprise, in nats."""
    surprise_R = -logprobs(model, hidden(model, batch), batch.targets)
    total = (surprise_R if batch.weights is None else surprise_R * batch.weights).sum()
    return total, {"loss": float(total.detach())}


def hidden(model: Transformer, batch: Batch) -> Tensor:
    """The normed residual stream [R, D] at the places of a batch whose next token is learnt."""
    attend = Packed(model.kernels, batch.lengths)
    return model.hidden(batch.token_ids, batch.positions, attend).index_select(0, batch.rows)


def logprobs(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities [R] in nats, at least float32, of targets int64 [R] after hidden [R, D].

    Where all logits are more than `LOGITS_AT_ONCE`, they are made a piece at a time, and again in the backward pass.
    """
    rows = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    if len(targets) <= rows:
        return _logprobs(model, hidden, targets)
    again = partial(checkpoint, _logprobs, model, use_reentrant=False, preserve_rng_state=False)
    pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
    return torch.cat([again(hidden_RD, targets_R) for hidden_RD, targets_R in pieces])


def _logprobs(model: Transformer, hidden: Tensor, targets: Tensor) -> Tensor:
    return -model.kernels.surprise(model.unembedding(hidden), targets)
