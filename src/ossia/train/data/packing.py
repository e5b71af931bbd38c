"""Documents laid end to end in one batch, blind to one another; there is no padding.

Shapes: T tokens of a batch, R tokens to be learnt, L layers, K experts a token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Document:
    """What attention sees as one: an assistant turn and all that came before it, or a text."""

    token_ids: list[int]
    learn: list[bool]
    """For each token whether it is to be learnt; never the first, which nothing foretells."""
    divisible: bool = False
    """Whether it may go on in another document where it is too long, as texts may."""

    def __len__(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One micro-batch of one rank."""

    token_ids: Tensor
    """int64 [T]."""
    positions: Tensor
    """int64 [T], from 0 within each document."""
    lengths: tuple[int, ...]
    """Tokens of each document; their sum is T."""
    rows: Tensor
    """int64 [R]: the places whose next token is learnt."""
    targets: Tensor
    """int64 [R]: those next tokens."""
    weights: Tensor | None = None
    """float32 [R]: what the loss of each target counts; None: all one."""
    advantages: Tensor | None = None
    """float32 [R]: reinforcement learning alone."""
    sampled_logprobs: Tensor | None = None
    """float32 [R]: log-probability with which each target was sampled; reinforcement learning alone."""
    expert_ids: Tensor | None = None
    """int64 [L, T, K]: routing to be replayed, -1 where none was recorded; reinforcement learning alone."""


def collate(documents: Sequence[Document]) -> Batch:
    """Lay documents end to end, shortest first, as the attention of ragged batches likes it."""
    documents = sorted(documents, key=len)
    token_ids = torch.tensor(list(chain.from_iterable(document.token_ids for document in documents)))
    learn = torch.tensor(list(chain.from_iterable(document.learn for document in documents)))
    following = learn.nonzero().squeeze(-1)
    return Batch(
        token_ids=token_ids,
        positions=torch.cat([torch.arange(len(document)) for document in documents]),
        lengths=tuple(len(document) for document in documents),
        rows=following - 1,
        targets=token_ids[following],
    )


def shares(documents: Sequence[Document], world: int) -> list[list[Document]]:
    """The documents of one global micro-batch, cut among ranks.

    The longest go first, each to the rank with the fewest tokens; no rank is left without one where there are as many
    documents as ranks.
    """
    chosen: list[list[Document]] = [[] for _ in range(world)]
    tokens = [0] * world
    for document in sorted(documents, key=len, reverse=True):
        rank = tokens.index(min(tokens))
        chosen[rank].append(document)
        tokens[rank] += len(document)
    return chosen
