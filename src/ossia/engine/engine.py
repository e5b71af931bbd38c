"""Many requests answered together, from one set of weights. Integers only; one thread uses it.

A step is one forward pass: the next token of every request that is being answered, and a piece of a prompt or more
beside them. What a request gets does not depend on its companions: `loop.generate` is the definition.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ossia.engine.blocks import PAGE, Pool, extend_keys, num_blocks
from ossia.engine.loop import CHUNK, check_cache_type, checked_context
from ossia.engine.paged import holds_pages
from ossia.engine.prefixes import PrefixStore, keep, recall
from ossia.engine.request import Drawn, Finish, Mask, Output, Request, Sampling, answer_limit, check_bias, check_prompt
from ossia.engine.runner import Runner, room
from ossia.engine.sampler import Sampler
from ossia.engine.scheduler import Chunk, Job, Scheduler
from ossia.errors import BusyError, KernelError, OssiaError, RequestError
from ossia.model import memory
from ossia.model.adapt import tensors_of
from ossia.model.adapted import Variant
from ossia.model.transformer import Transformer

log = logging.getLogger(__name__)

BESIDE = 32
"""Tokens of prompts read in a step where others decode: few, so that these do not stall."""
_CACHE_SHARE = 0.75
"""Of the memory that is free, at most so much is set aside by default."""
_TOKENS_EACH = 4096
"""Room that the default gives to each request of a full batch but the first, which may fill the context."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """An engine at one moment; the counters begin with it."""

    waiting: int
    """Requests now."""
    running: int
    batch: int
    """Requests that took part in the last step."""
    steps: int
    prompt_tokens: int
    """Of requests that began to run."""
    cached_tokens: int
    """Those among them that need not be computed."""
    generated_tokens: int
    preemptions: int
    used_blocks: int
    """Pages, of those that see everything, that requests hold now."""
    num_blocks: int


@dataclass(slots=True, kw_only=True, eq=False)
class _Live:
    """One request that has not ended."""

    request: Request
    job: Job
    sampler: Sampler
    limit: int
    """The most tokens of the answer."""
    recalled: bool = False
    """Whether the disk was asked for its beginning."""

    @property
    def num_drawn(self) -> int:
        return len(self.job.tokens) - self.job.num_prompt


class Engine:
    """See the module."""

    def __init__(
        self,
        model: Transformer,
        *,
        adapters: Mapping[str, Variant] | None = None,
        context: int | None = None,
        cache_type: str = "bf16",
        max_batch: int = 16,
        max_waiting: int = 256,
        cache_tokens: int | None = None,
        chunk: int = CHUNK,
        beside: int = BESIDE,
        share_prefixes: bool = True,
        prefixes: PrefixStore | None = None,
        watch: Callable[[Sequence[Chunk]], None] | None = None,
    ) -> None:
        """adapters: by the name under which requests ask for them.

        context: tokens that a prompt and its answer may fill together; None means all that the model has. cache_type:
        as in `loop.new_cache`. max_batch: requests answered together. max_waiting: requests that wait for that, beyond
        which `submit` refuses. cache_tokens: tokens whose keys and values there is room for, all requests and what is
        remembered of earlier ones together; by default as much as makes sense and the machine has. Less than the
        context shortens that. chunk: tokens of prompts in a step where nothing decodes; beside: where something does.
        share_prefixes: whether keys and values of a beginning that was computed serve again; prefixes: where to keep
        those of prompts beyond the end of the process, too. watch: is told, after each forward pass, what ran in it, in
        the order of the rows.

        Raises RequestError for a value out of range, KernelError as `loop.new_cache`.
        """
        given = {"max_batch": max_batch, "max_waiting": max_waiting, "chunk": chunk, "beside": beside}
        for name, value in given.items():
            if value < 1:
                raise RequestError(f"{name} is {value}: give at least 1")
        context = checked_context(model, context)
        check_cache_type(model, cache_type)
        if cache_tokens is None:
            cache_tokens = default_cache_tokens(model, context=context, max_batch=max_batch, cache_type=cache_type)
        elif cache_tokens < PAGE:
            raise RequestError(f"cache_tokens is {cache_tokens}: give at least {PAGE}")
        self.context = min(context, num_blocks(cache_tokens) * PAGE)
        """Tokens that a prompt and its answer may fill together."""
        if self.context < context:
            log.info("there is room for a context of %d tokens of %d", self.context, context)
        pages = room(model.config, cache_tokens=cache_tokens, max_batch=max_batch, chunk=max(chunk, beside))
        self.max_waiting = max_waiting
        self._vocab_size = model.config.vocab_size
        self._variants = {None: Variant(model=model), **(adapters or {})}
        self._runner = Runner(model, pages.num_pages, cache_type, variants=self._variants.values())
        pools = {window: Pool(count) for window, count in pages.num_pages.items()}
        self._scheduler = Scheduler(
            pools,
            max_batch=max_batch,
            chunk=chunk,
            beside=beside,
            share_prefixes=share_prefixes,
        )
        self._blocks = pools.get(None) or next(iter(pools.values()))
        self._prefixes = prefixes if share_prefixes else None
        self._watch = watch
        self._live: dict[int, _Live] = {}
        self._cancelled: list[tuple[int, Output]] = []
        self._next_id = 0
        self._batch = self._steps = self._prompt_tokens = self._cached_tokens = self._generated_tokens = 0

    # ---------------------------------------------------------------- requests

    def check(self, request: Request) -> None:
        """Raise RequestError for what `submit` would refuse. Any thread may call it."""
        check_prompt(request.prompt, vocab_size=self._vocab_size, context=self.context)
        check_bias(request.sampling, vocab_size=self._vocab_size)
        if request.adapter not in self._variants:
            raise RequestError(f"there is no adapter {request.adapter!r} here: name one that was loaded, or none")

    def submit(self, request: Request) -> int:
        """Queue a request; returns its id. Raises RequestError for a bad prompt, BusyError where the queue is full."""
        self.check(request)
        if self.num_waiting >= self.max_waiting:
            raise BusyError(f"{self.num_waiting} requests are waiting already: try again later")
        return self.accept(request)

    def accept(self, request: Request) -> int:
        """As `submit`, where the caller has checked the request and the length of the queue."""
        job = self._scheduler.submit(self._next_id, request.prompt, self._variants[request.adapter].key)
        self._next_id += 1
        self._live[job.id] = _Live(
            request=request,
            job=job,
            sampler=Sampler(request.sampling, request.prompt),
            limit=answer_limit(request.sampling, job.num_prompt, self.context),
        )
        return job.id

    def cancel(self, request_id: int) -> None:
        """End a request; its room is free at once, and its last output comes with the next step.

        Ids that nobody has, or that have ended, are no error.
        """
        live = self._live.get(request_id)
        if live is not None:
            self._cancelled.append((request_id, self._end(live, "cancelled")))

    @property
    def num_waiting(self) -> int:
        """Requests that are not running yet, or not at the moment. Any thread may ask."""
        return len(self._scheduler.waiting)

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do or to tell."""
        return bool(self._live or self._cancelled)

    # ---------------------------------------------------------------- a step

    def step(self) -> list[tuple[int, Output]]:
        """One forward pass at most: what each request has new, by id. Empty where there is nothing to do."""
        outputs, self._cancelled = self._cancelled, []
        if self._prefixes is not None:
            self._recall(self._prefixes)
        chunks = self._scheduler.plan()
        if not chunks:
            return outputs
        self._batch, self._steps = len(chunks), self._steps + 1
        try:
            x_RD = self._runner.forward(chunks)
        except Exception as error:  # The boundary: whatever it is ends these requests, not the engine.
            log.exception("a step failed")
            return [*outputs, *((c.job.id, self._end(self._live[c.job.id], "error", error)) for c in chunks)]
        if self._watch is not None:
            self._watch(chunks)
        for chunk in chunks:
            self._scheduler.advance(chunk)
        drawing = [self._live[chunk.job.id] for chunk in chunks if chunk.draws]
        if drawing:
            drawn = self._runner.draw(x_RD, [live.sampler for live in drawing], [self._mask(live) for live in drawing])
            outputs += [(live.job.id, self._told(live, one)) for live, one in zip(drawing, drawn, strict=True)]
        return outputs

    def _recall(self, prefixes: PrefixStore) -> None:
        """What the requests that may begin now have on disk, once each."""
        for job in self._scheduler.next_jobs():
            live = self._live[job.id]
            if not live.recalled:
                live.recalled = True
                extend_keys(job.keys, job.tokens, job.variant)
                recall(prefixes, self._runner, job.tables, job.keys[: (job.num_prompt - 1) // PAGE])

    def _mask(self, live: _Live) -> Mask | Exception | None:
        constraint = live.request.constraint
        if constraint is None:
            return None
        try:
            return constraint.mask(live.limit - live.num_drawn)
        except Exception as error:  # The boundary: it ends its own request alone.
            log.exception("the constraint of request %d failed", live.job.id)
            return error

    def _told(self, live: _Live, drawn: Drawn | Exception) -> Output:
        """What the request hears of what was drawn for it."""
        request, job = live.request, live.job
        if request.constraint is not None and isinstance(drawn, Drawn):
            try:
                request.constraint.accept(drawn.token)
            except Exception as error:  # The boundary, as above.
                log.exception("the constraint of request %d failed", job.id)
                drawn = error
        if isinstance(drawn, Exception):
            return self._end(live, "error", drawn)
        if live.num_drawn == 0:
            self._prompt_tokens += job.num_prompt
            self._cached_tokens += job.cached_tokens or 0
            if self._prefixes is not None:
                keep(self._prefixes, self._runner, job.tables, job.keys[: job.num_prompt // PAGE])
        self._scheduler.append(job, drawn.token)
        self._generated_tokens += 1
        if drawn.token in request.sampling.stop_ids:
            return self._end(live, "stop", drawn=(drawn,))
        if live.num_drawn == live.limit:
            return self._end(live, "length", drawn=(drawn,))
        return Output(drawn=(drawn,), cached_tokens=job.cached_tokens or 0)

    def _end(
        self, live: _Live, finish: Finish, error: Exception | None = None, *, drawn: tuple[Drawn, ...] = ()
    ) -> Output:
        del self._live[live.job.id]
        self._scheduler.finish(live.job, forget=error is not None)
        line = None if error is None else str(error) if isinstance(error, OssiaError) else f"internal error: {error!r}"
        return Output(drawn=drawn, cached_tokens=live.job.cached_tokens or 0, finish=finish, error=line)

    # ---------------------------------------------------------------- looking in

    def stats(self) -> Stats:
        """How things stand. Any thread may ask."""
        return Stats(
            waiting=len(self._scheduler.waiting),
            running=len(self._scheduler.running),
            batch=self._batch,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self._scheduler.preemptions,
            used_blocks=self._blocks.num_held,
            num_blocks=self._blocks.num_pages,
        )

    def check_integrity(self) -> None:
        """Raise OssiaError, which names what leaked, unless all books are right. Idle means that nothing is held."""
        self._scheduler.check_integrity()
        jobs = {job.id for job in (*self._scheduler.running, *self._scheduler.waiting)}
        if jobs != set(self._live):
            raise OssiaError(f"requests {sorted(jobs ^ set(self._live))} are scheduled and have ended, or the reverse")


def default_cache_tokens(model: Transformer, *, context: int, max_batch: int, cache_type: str) -> int:
    """The room that an engine has where it is told nothing: the whole context for one request, and some for the others.

    Less where memory is short: no more than a share of what the weights leave.
    """
    tokens = context + (max_batch - 1) * min(context, _TOKENS_EACH)
    scale = model.norm.scale
    if scale.device.type != "cpu":
        return tokens
    # Weights that are mapped from a file seem free to the system, but reading them again and again is no way to run.
    weights = sum(each.nbytes for name, each in tensors_of(model).items() if not name.startswith("embedding."))
    left = _CACHE_SHARE * min(memory.available_memory(), memory.machine_memory() - weights)
    itemsize = 2 if holds_pages(model) else scale.dtype.itemsize

    def num_bytes(cache_tokens: int) -> int:
        return room(
            model.config,
            cache_tokens=cache_tokens,
            max_batch=max_batch,
            chunk=CHUNK,
            cache_type=cache_type,
            itemsize=itemsize,
        ).num_bytes

    while tokens > PAGE and num_bytes(tokens) > left:
        tokens = max(PAGE, tokens * 7 // 8)
    return tokens


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
    Raises RequestError at once, as `generate`, naming the prompt; KernelError where a request fails.
    """
    if sampling is None or isinstance(sampling, Sampling):
        sampling = [sampling or Sampling()] * len(prompts)
    if len(sampling) != len(prompts):
        raise RequestError(f"{len(prompts)} prompts and {len(sampling)} samplings: give one for all, or one a prompt")
    if max_batch < 1:
        raise RequestError(f"max_batch is {max_batch}: give at least 1")
    context = checked_context(model, context)
    longest = 1
    for index, (prompt, one) in enumerate(zip(prompts, sampling, strict=True)):
        try:
            check_prompt(prompt, vocab_size=model.config.vocab_size, context=context)
        except RequestError as error:
            raise RequestError(f"prompts[{index}]: {error}") from None
        longest = max(longest, len(prompt) + answer_limit(one, len(prompt), context))
    max_batch = min(max_batch, max(1, len(prompts)))
    engine = Engine(
        model,
        context=longest,
        cache_type=cache_type,
        max_batch=max_batch,
        max_waiting=max(1, len(prompts)),
        cache_tokens=max_batch * num_blocks(longest) * PAGE,
        chunk=chunk,
        beside=chunk,  # Nobody waits for the next token.
    )
    ids = {
        engine.submit(Request(prompt=tuple(prompt), sampling=one)): index
        for index, (prompt, one) in enumerate(zip(prompts, sampling, strict=True))
    }

    def finished() -> Iterator[tuple[int, list[int]]]:
        answers: dict[int, list[int]] = {request: [] for request in ids}
        while engine.has_work:
            for request, output in engine.step():
                answers[request] += [drawn.token for drawn in output.drawn]
                if output.finish == "error":
                    raise KernelError(output.error or "a request failed")
                if output.finish:
                    yield ids[request], answers.pop(request)

    return finished()
