"""The loops that turn a prompt into an answer: one request at a time, which is the definition, and many together.

Shapes: B sequences, T their new tokens end to end, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import torch
from torch import Tensor

from ossia.engine.cache import Cache, Cached
from ossia.engine.request import Sampling, answer_limit, check_prompt
from ossia.engine.sampler import Sampler
from ossia.errors import RequestError
from ossia.model.transformer import Transformer

CHUNK = 512
"""Tokens of a prompt run at once: enough for the matrix products, and a bound on the memory of a long prompt."""


@torch.inference_mode()
def step(model: Transformer, chunks: Sequence[Sequence[int]], caches: Sequence[Cache]) -> Tensor:
    """Run the next tokens of several sequences, at least one of each, and extend their caches.

    Returns logits [B, V] of the token after the last of each chunk.
    """
    lengths = tuple(map(len, chunks))
    device = model.embedding.weight.device
    token_ids_T = torch.tensor(list(chain.from_iterable(chunks)), device=device)
    spans = (range(cache.length, cache.length + length) for cache, length in zip(caches, lengths, strict=True))
    positions_T = torch.tensor(list(chain.from_iterable(spans)), device=device)
    last_B = None if max(lengths) == 1 else torch.tensor([end - 1 for end in accumulate(lengths)], device=device)
    attend = Cached(kernels=model.kernels, caches=tuple(caches), lengths=lengths)
    logits_BV = model(token_ids_T, positions_T, attend, last_B)
    for cache, length in zip(caches, lengths, strict=True):
        cache.length += length
    return logits_BV


def prefill(model: Transformer, token_ids: Sequence[int], cache: Cache, *, chunk: int = CHUNK) -> Tensor:
    """Run a prompt into its cache, `chunk` tokens at a time. Returns logits [V] of the token after it."""
    logits_BV = torch.empty(0)
    for first in range(0, len(token_ids), chunk):
        logits_BV = step(model, [token_ids[first : first + chunk]], [cache])
    return logits_BV[0]


def generate(
    model: Transformer, token_ids: Sequence[int], sampling: Sampling | None = None, *, chunk: int = CHUNK
) -> Iterator[int]:
    """The tokens of an answer to the prompt, one by one as they come.

    Ends after a token of `sampling.stop_ids`, after `max_tokens`, or where the context is full. Raises RequestError at
    once for a prompt that is empty, too long for the context, or holds an id outside the vocabulary.
    """
    sampling = sampling or Sampling()
    context = model.config.max_position_embeddings
    check_prompt(token_ids, vocab_size=model.config.vocab_size, context=context)

    def tokens() -> Iterator[int]:
        cache, sampler = Cache(model.config), Sampler(sampling)
        logits_V = prefill(model, token_ids, cache, chunk=chunk)
        for _ in range(answer_limit(sampling, len(token_ids), context) - 1):
            token = sampler.draw(logits_V)
            yield token
            if token in sampling.stop_ids:
                return
            logits_V = step(model, [[token]], [cache])[0]
        yield sampler.draw(logits_V)

    return tokens()


@dataclass(slots=True, kw_only=True)
class _Running:
    """One request of a batch that is being answered."""

    index: int
    cache: Cache
    sampler: Sampler
    limit: int
    answer: list[int] = field(default_factory=list[int])

    @property
    def finished(self) -> bool:
        return len(self.answer) == self.limit or self.answer[-1] in self.sampler.sampling.stop_ids


def generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling | Sequence[Sampling] | None = None,
    *,
    max_batch: int = 32,
    chunk: int = CHUNK,
) -> Iterator[tuple[int, list[int]]]:
    """Answer many prompts, up to `max_batch` at a time: (index of the prompt, its whole answer), each as it finishes.

    `sampling` is one for all or one a prompt; each request draws from its own random stream, as it would in `generate`.
    When one finishes, the next prompt takes its place. `dict(generate_batch(...))` has the answers by index.
    Raises RequestError at once, as `generate`, naming the prompt.
    """
    if sampling is None or isinstance(sampling, Sampling):
        sampling = [sampling or Sampling()] * len(prompts)
    if len(sampling) != len(prompts):
        raise RequestError(f"{len(prompts)} prompts and {len(sampling)} samplings: give one for all, or one a prompt")
    if max_batch < 1:
        raise RequestError(f"max_batch is {max_batch}: give at least 1")
    context = model.config.max_position_embeddings
    for index, prompt in enumerate(prompts):
        try:
            check_prompt(prompt, vocab_size=model.config.vocab_size, context=context)
        except RequestError as error:
            raise RequestError(f"prompts[{index}]: {error}") from None
    waiting = (
        _Running(
            index=index,
            cache=Cache(model.config),
            sampler=Sampler(one),
            limit=answer_limit(one, len(prompt), context),
        )
        for index, (prompt, one) in enumerate(zip(prompts, sampling, strict=True))
    )

    def finished() -> Iterator[tuple[int, list[int]]]:
        running: list[_Running] = []
        while True:
            while len(running) < max_batch and (new := next(waiting, None)) is not None:
                logits_V = prefill(model, prompts[new.index], new.cache, chunk=chunk)
                new.answer.append(new.sampler.draw(logits_V))
                if new.finished:
                    yield new.index, new.answer
                else:
                    running.append(new)
            if not running:
                return
            running.sort(key=lambda one: one.cache.length)  # Like lengths side by side need less padding.
            logits_BV = step(model, [one.answer[-1:] for one in running], [one.cache for one in running])
            for one, logits_V in zip(running, logits_BV, strict=True):
                one.answer.append(one.sampler.draw(logits_V))
            yield from ((one.index, one.answer) for one in running if one.finished)
            running = [one for one in running if not one.finished]

    return finished()
