"""The loop that turns a prompt into an answer, one request at a time: the definition of what the engine gives.

Shapes: T new tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ossia.engine.cache import Cache, Cached
from ossia.engine.paged import Paged, PagedCache, holds_pages, paged_cache
from ossia.engine.request import Sampling, answer_limit, check_bias, check_prompt
from ossia.engine.sampler import Sampler
from ossia.errors import KernelError, RequestError
from ossia.kernels import Kernels
from ossia.kernels.pages import CACHE_TYPES
from ossia.model.attention import Attend
from ossia.model.transformer import Transformer

CHUNK = 512
"""Tokens of a prompt run at once: enough for the matrix products, and a bound on the memory of a long prompt."""


AnyCache = Cache | PagedCache


def new_cache(model: Transformer, *, context: int | None = None, cache_type: str = "bf16") -> AnyCache:
    """An empty cache for one sequence of up to `context` tokens; None means all that the model has.

    It is paged, in the given type ("bf16" or "q8"), where the model's kernels can read pages and its activations are
    float32 on a CPU; else it holds keys and values as they come. Raises RequestError for a context that the model does
    not have and for an unknown type, KernelError for a type that its kernels do not have and where memory is refused.
    """
    context = checked_context(model, context)
    check_cache_type(model, cache_type)
    if holds_pages(model):
        return paged_cache(model.config, context=context, cache_type=cache_type)
    scale = model.norm.scale
    return Cache(model.config, context=context, dtype=scale.dtype, device=scale.device)


def checked_context(model: Transformer, context: int | None) -> int:
    """The context to give room to, which is the model's own where None. Raises RequestError where it has no such."""
    most = model.config.max_position_embeddings
    if context is not None and not 1 <= context <= most:
        raise RequestError(f"context {context:,} is not to be had: this model takes 1 to {most:,} tokens")
    return most if context is None else context


def check_cache_type(model: Transformer, cache_type: str) -> None:
    """Raise RequestError for a type that nobody knows, KernelError for one that the model's kernels do not have."""
    if cache_type not in CACHE_TYPES:
        raise RequestError(f"unknown cache type {cache_type!r}: choose one of {', '.join(CACHE_TYPES)}")
    if cache_type != "bf16" and not holds_pages(model):
        raise KernelError(f"these kernels have no cache of type {cache_type!r}: leave it out, or use kernels cpu")


def _inputs(model: Transformer, token_ids: Sequence[int], cache: AnyCache) -> tuple[Tensor, Tensor, Attend]:
    """What the model is called with to run the next tokens: ids, positions, attention."""
    length = len(token_ids)
    if cache.length + length > cache.context:
        raise RequestError(
            f"{length} more tokens do not fit a cache of {cache.context} that holds {cache.length}: make it larger"
        )
    device = model.embedding.weight.device
    token_ids_T = torch.tensor(token_ids, device=device)
    positions_T = torch.arange(cache.length, cache.length + length, device=device)
    return token_ids_T, positions_T, _attend(model.kernels, cache, length)


def _attend(kernels: Kernels, cache: AnyCache, length: int) -> Attend:
    if isinstance(cache, Cache):
        return Cached(kernels=kernels, cache=cache)
    if not kernels.native:
        raise KernelError("a cache of another kind than these kernels read: make it with new_cache")
    return Paged(
        kernels.attention_paged,
        cache.layers,
        tables={window: table.unsqueeze(0) for window, table in cache.tables.items()},
        starts=torch.tensor([cache.length]),
        lengths=torch.tensor([length]),
    )


@torch.inference_mode()
def step(model: Transformer, token_ids: Sequence[int], cache: AnyCache) -> Tensor:
    """Run the next tokens, at least one, and extend their cache. Returns logits [V] of the token after the last.

    Raises RequestError where the cache is full.
    """
    logits_1V = model(*_inputs(model, token_ids, cache), rows=torch.tensor([len(token_ids) - 1]))
    cache.length += len(token_ids)
    return logits_1V[0]


def prefill(model: Transformer, token_ids: Sequence[int], cache: AnyCache, *, chunk: int = CHUNK) -> Tensor:
    """Run a prompt into its cache, `chunk` tokens at a time. Returns logits [V] of the token after it."""
    logits_V = torch.empty(0)
    for first in range(0, len(token_ids), chunk):
        logits_V = step(model, token_ids[first : first + chunk], cache)
    return logits_V


@torch.no_grad()
def score(model: Transformer, token_ids: Sequence[int], cache: AnyCache, *, chunk: int = CHUNK) -> Tensor:
    """Logits [T, V] of the token after each of T, which are run into the cache as `prefill` does."""
    parts: list[Tensor] = []
    for first in range(0, len(token_ids), chunk):
        part = token_ids[first : first + chunk]
        parts.append(model(*_inputs(model, part, cache)))
        cache.length += len(part)
    return torch.cat(parts)


@torch.inference_mode()
def next_token(model: Transformer, token: int, cache: AnyCache, sampler: Sampler) -> int:
    """Run one token into its cache and draw the one after it.

    Where that is the likeliest, the logits of the others need not be computed.
    """
    if not sampler.greedy_only:
        return sampler.draw(step(model, [token], cache)).token
    best_1 = model.best(*_inputs(model, [token], cache))
    cache.length += 1
    return int(best_1)


def generate(
    model: Transformer,
    token_ids: Sequence[int],
    sampling: Sampling | None = None,
    *,
    chunk: int = CHUNK,
    context: int | None = None,
    cache_type: str = "bf16",
) -> Iterator[int]:
    """The tokens of an answer to the prompt, one by one as they come.

    Ends after a token of `sampling.stop_ids`, after `max_tokens`, or where the context is full: `context` tokens, or
    all that the model has. `cache_type` is that of `new_cache`. Raises RequestError at once for a prompt that is empty,
    too long for the context, or holds an id outside the vocabulary.
    """
    sampling = sampling or Sampling()
    context = checked_context(model, context)
    check_prompt(token_ids, vocab_size=model.config.vocab_size, context=context)
    check_bias(sampling, vocab_size=model.config.vocab_size)
    limit = answer_limit(sampling, len(token_ids), context)
    cache = new_cache(model, context=len(token_ids) + limit, cache_type=cache_type)
    sampler = Sampler(sampling, token_ids)

    def tokens() -> Iterator[int]:
        token = sampler.draw(prefill(model, token_ids, cache, chunk=chunk)).token
        yield token
        for _ in range(limit - 1):
            if token in sampling.stop_ids:
                return
            token = next_token(model, token, cache, sampler)
            yield token

    return tokens()
