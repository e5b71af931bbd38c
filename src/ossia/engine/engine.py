"""The loops that turn a prompt into an answer: one request at a time, which is the definition, and many together.

Shapes: B sequences, T their new tokens end to end, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain

import torch
from torch import Tensor

from ossia.engine.cache import Cache, Cached
from ossia.engine.paged import Paged, PagedCache, paged_caches
from ossia.engine.request import Sampling, answer_limit, check_prompt
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
    return new_caches(model, 1, context=context, cache_type=cache_type)[0]


def new_caches(
    model: Transformer, count: int, *, context: int | None = None, cache_type: str = "bf16"
) -> list[AnyCache]:
    """As `new_cache`, for sequences that are answered together."""
    context = _checked_context(model, context)
    if cache_type not in CACHE_TYPES:
        raise RequestError(f"unknown cache type {cache_type!r}: choose one of {', '.join(CACHE_TYPES)}")
    dtype, device = model.norm.scale.dtype, model.norm.scale.device
    if model.kernels.native and (dtype, device.type) == (torch.float32, "cpu"):
        return [*paged_caches(model.config, count, context=context, cache_type=cache_type)]
    if cache_type != "bf16":
        raise KernelError(f"these kernels have no cache of type {cache_type!r}: leave it out, or use kernels cpu")
    return [*(Cache(model.config, context=context, dtype=dtype, device=device) for _ in range(count))]


def _checked_context(model: Transformer, context: int | None) -> int:
    most = model.config.max_position_embeddings
    if context is not None and not 1 <= context <= most:
        raise RequestError(f"context {context:,} is not to be had: this model takes 1 to {most:,} tokens")
    return most if context is None else context


def _inputs(
    model: Transformer, chunks: Sequence[Sequence[int]], caches: Sequence[AnyCache]
) -> tuple[Tensor, Tensor, Attend, Tensor | None]:
    """What the model is called with to run the next tokens of several sequences: ids, positions, attention, rows."""
    lengths = tuple(map(len, chunks))
    for cache, length in zip(caches, lengths, strict=True):
        if cache.length + length > cache.context:
            raise RequestError(
                f"{length} more tokens do not fit a cache of {cache.context} that holds {cache.length}: make it larger"
            )
    device = model.embedding.weight.device
    token_ids_T = torch.tensor(list(chain.from_iterable(chunks)), device=device)
    spans = (range(cache.length, cache.length + length) for cache, length in zip(caches, lengths, strict=True))
    positions_T = torch.tensor(list(chain.from_iterable(spans)), device=device)
    last_B = None if max(lengths) == 1 else torch.tensor([end - 1 for end in accumulate(lengths)], device=device)
    return token_ids_T, positions_T, _attend(model.kernels, caches, lengths), last_B


def _attend(kernels: Kernels, caches: Sequence[AnyCache], lengths: tuple[int, ...]) -> Attend:
    paged = [cache for cache in caches if isinstance(cache, PagedCache)]
    if not paged:
        return Cached(kernels=kernels, caches=tuple(c for c in caches if isinstance(c, Cache)), lengths=lengths)
    if not kernels.native or len(paged) < len(caches):
        raise KernelError("a cache of another kind than these kernels read: make all caches with new_cache")
    return Paged(kernels.attention_paged, paged, lengths)


def _extended(caches: Sequence[AnyCache], chunks: Sequence[Sequence[int]]) -> None:
    for cache, chunk in zip(caches, chunks, strict=True):
        cache.length += len(chunk)


@torch.inference_mode()
def step(model: Transformer, chunks: Sequence[Sequence[int]], caches: Sequence[AnyCache]) -> Tensor:
    """Run the next tokens of several sequences, at least one of each, and extend their caches.

    Returns logits [B, V] of the token after the last of each chunk. Raises RequestError where a cache is full.
    """
    logits_BV = model(*_inputs(model, chunks, caches))
    _extended(caches, chunks)
    return logits_BV


def prefill(model: Transformer, token_ids: Sequence[int], cache: AnyCache, *, chunk: int = CHUNK) -> Tensor:
    """Run a prompt into its cache, `chunk` tokens at a time. Returns logits [V] of the token after it."""
    logits_BV = torch.empty(0)
    for first in range(0, len(token_ids), chunk):
        logits_BV = step(model, [token_ids[first : first + chunk]], [cache])
    return logits_BV[0]


@torch.no_grad()
def score(model: Transformer, token_ids: Sequence[int], cache: AnyCache, *, chunk: int = CHUNK) -> Tensor:
    """Logits [T, V] of the token after each of T, which are run into the cache as `prefill` does."""
    parts: list[Tensor] = []
    for first in range(0, len(token_ids), chunk):
        chunks = [token_ids[first : first + chunk]]
        *inputs, _ = _inputs(model, chunks, [cache])
        parts.append(model(*inputs))
        _extended([cache], chunks)
    return torch.cat(parts)


def next_token(model: Transformer, token: int, cache: AnyCache, sampler: Sampler) -> int:
    """Run one token into its cache and draw the one after it."""
    return _next_tokens(model, [token], [cache], [sampler])[0]


@torch.inference_mode()
def _next_tokens(
    model: Transformer, tokens: Sequence[int], caches: Sequence[AnyCache], samplers: Sequence[Sampler]
) -> list[int]:
    """As `next_token`, for many. Where all take the likeliest token, the other logits need not be computed."""
    chunks = [[token] for token in tokens]
    if any(sampler.sampling.temperature > 0 for sampler in samplers):
        return [sampler.draw(logits_V) for sampler, logits_V in zip(samplers, step(model, chunks, caches), strict=True)]
    best_B = model.best(*_inputs(model, chunks, caches))
    _extended(caches, chunks)
    return best_B.tolist()


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
    context = _checked_context(model, context)
    check_prompt(token_ids, vocab_size=model.config.vocab_size, context=context)
    limit = answer_limit(sampling, len(token_ids), context)
    cache, sampler = new_cache(model, context=len(token_ids) + limit, cache_type=cache_type), Sampler(sampling)

    def tokens() -> Iterator[int]:
        token = sampler.draw(prefill(model, token_ids, cache, chunk=chunk))
        yield token
        for _ in range(limit - 1):
            if token in sampling.stop_ids:
                return
            token = next_token(model, token, cache, sampler)
            yield token

    return tokens()


@dataclass(slots=True, kw_only=True)
class _Running:
    """One request of a batch that is being answered."""

    index: int
    cache: AnyCache
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
    context: int | None = None,
    cache_type: str = "bf16",
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
    context = _checked_context(model, context)
    for index, prompt in enumerate(prompts):
        try:
            check_prompt(prompt, vocab_size=model.config.vocab_size, context=context)
        except RequestError as error:
            raise RequestError(f"prompts[{index}]: {error}") from None
    limits = [answer_limit(one, len(prompt), context) for one, prompt in zip(sampling, prompts, strict=True)]
    needed = max((len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True)), default=1)
    free = new_caches(model, min(max_batch, len(prompts)), context=needed, cache_type=cache_type)
    waiting = iter(zip(range(len(prompts)), sampling, limits, strict=True))

    def finished() -> Iterator[tuple[int, list[int]]]:
        running: list[_Running] = []
        while True:
            while free and (new := next(waiting, None)) is not None:
                index, one, limit = new
                started = _Running(index=index, cache=free.pop(), sampler=Sampler(one), limit=limit)
                started.answer.append(started.sampler.draw(prefill(model, prompts[index], started.cache, chunk=chunk)))
                running.append(started)
                if started.finished:
                    break
            ended = [one for one in running if one.finished]
            running = [one for one in running if not one.finished]
            for one in ended:
                one.cache.clear()
                free.append(one.cache)
                yield one.index, one.answer
            if ended:
                continue
            if not running:
                return
            running.sort(key=lambda one: one.cache.length)  # Like lengths side by side need less padding.
            tokens = [one.answer[-1] for one in running]
            drawn = _next_tokens(model, tokens, [one.cache for one in running], [one.sampler for one in running])
            for one, token in zip(running, drawn, strict=True):
                one.answer.append(token)

    return finished()
