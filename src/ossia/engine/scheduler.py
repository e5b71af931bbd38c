"""Which sequences run which of their tokens in the next step. Pure Python, no torch.

First come, first served: running and waiting jobs together are always in the order of arrival. Every running job that
needs but one more token to draw the next takes part in every step; prompts are read in chunks beside them, the oldest
first. Where pages run out the youngest running job gives its own back and waits at the front of the queue; the oldest
is never the one, so every job comes to its end.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from ossia.engine.blocks import PAGE, Pool, Table, extend_keys, most_blocks, num_blocks
from ossia.errors import OssiaError


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """One request as the scheduler sees it."""

    id: int
    """In the order of arrival."""
    tokens: list[int]
    """Its prompt, then what was drawn."""
    num_prompt: int
    tables: Sequence[Table]
    """One of each pool; empty while it waits."""
    variant: bytes = b""
    """Of the model, for the keys of its blocks."""
    computed: int = 0
    """Tokens whose keys and values are in the pages."""
    cached_tokens: int | None = None
    """Tokens of the prompt that were there already when it was first admitted; None until then."""
    keys: list[bytes] = field(default_factory=list[bytes])
    """Of its complete blocks."""

    @property
    def left(self) -> int:
        """Tokens to run before the next one can be drawn."""
        return len(self.tokens) - self.computed


@dataclass(frozen=True, slots=True)
class Chunk:
    """Neighbouring tokens of one job, to be run in one step."""

    job: Job
    start: int
    stop: int

    @property
    def draws(self) -> bool:
        """Whether the next token is drawn after it."""
        return self.stop == len(self.job.tokens)


class Scheduler:
    """Decides, keeps the books, and never sees a model.

    A step is `plan`, the model's work, then for each chunk `advance` and what became of it: `append` or `finish`.
    """

    def __init__(
        self,
        pools: Mapping[int | None, Pool],
        *,
        max_batch: int,
        chunk: int,
        beside: int,
        share_prefixes: bool = True,
    ) -> None:
        """pools: window (None: none) → the pages of the layers with it.

        max_batch: jobs that run together. chunk: tokens of prompts in a step where no job decodes; beside: where some
        do. Raises OssiaError for pools that are too small for a chunk.
        """
        self.pools = pools
        self.max_batch = max_batch
        self.chunk = chunk
        self.beside = beside
        self.share_prefixes = share_prefixes
        self.running: list[Job] = []
        self.waiting: deque[Job] = deque()
        self.preemptions = 0
        for window, pool in pools.items():
            least = 1 if window is None else most_blocks(max(chunk, beside), window)
            if pool.num_pages < least:
                raise OssiaError(f"{pool.num_pages} pages of window {window} are too few for a chunk: give {least}")

    # ---------------------------------------------------------------- arrivals and departures

    def submit(self, job_id: int, prompt: Sequence[int], variant: bytes = b"") -> Job:
        """A new job at the end of the queue, whose whole sequence the pools have room for."""
        tables = tuple(Table(pool, window) for window, pool in self.pools.items())
        job = Job(id=job_id, tokens=list(prompt), num_prompt=len(prompt), tables=tables, variant=variant)
        self.waiting.append(job)
        return job

    def finish(self, job: Job, *, forget: bool = False) -> None:
        """The job is done with, wherever it is: its pages serve others at once.

        `forget`: what it computed is not to be used again.
        """
        if forget:
            for table in job.tables:
                for key in job.keys:
                    table.pool.forget(key)
        self._clear(job)
        (self.running if job in self.running else self.waiting).remove(job)

    def _clear(self, job: Job) -> None:
        for table in job.tables:
            table.clear()
        job.computed = 0

    def next_jobs(self) -> Iterator[Job]:
        """Those that wait and may be admitted in the next step."""
        return islice(self.waiting, self.max_batch - len(self.running))

    # ---------------------------------------------------------------- a step

    def plan(self) -> list[Chunk]:
        """What to run next, with pages for all of it. Empty where there is no job."""
        chunks: list[Chunk] = []
        budget = self.beside if any(job.left == 1 for job in self.running) else self.chunk
        preemptions = self.preemptions
        for job in list(self.running):
            if job not in self.running:
                break
            count = 1 if job.left == 1 else min(job.left, budget)
            if count and self._make_room(job, job.computed + count):
                chunks.append(Chunk(job, job.computed, job.computed + count))
                budget -= count if job.left > 1 else 0
        while budget > 0 and self.preemptions == preemptions and self._admit():
            job = self.running[-1]
            count = min(job.left, budget)
            if self._make_room(job, job.computed + count):
                chunks.append(Chunk(job, job.computed, job.computed + count))
                budget -= count
        return chunks

    def advance(self, chunk: Chunk) -> None:
        """The keys and values of this chunk are in their pages."""
        job = chunk.job
        if self.share_prefixes:
            extend_keys(job.keys, job.tokens, job.variant)
            for block in range(chunk.start // PAGE, chunk.stop // PAGE):
                for table in job.tables:
                    table.name(block, job.keys[block])
        job.computed = chunk.stop
        for table in job.tables:
            table.trim(job.computed)

    def append(self, job: Job, token: int) -> None:
        """This one was drawn."""
        job.tokens.append(token)

    # ---------------------------------------------------------------- pages

    def _make_room(self, job: Job, stop: int) -> bool:
        """Pages up to `stop`, if need be from younger jobs; False where the job had to give up its own."""
        while not all(table.grow(num_blocks(stop)) for table in job.tables):
            youngest = self.running.pop()
            self._clear(youngest)
            self.waiting.appendleft(youngest)
            self.preemptions += 1
            if youngest is job:
                return False
        return True

    def _admit(self) -> bool:
        """Let the oldest waiting job run, if its whole prompt has room and no running one is about to do its work."""
        if not self.waiting or len(self.running) == self.max_batch:
            return False
        job = self.waiting[0]
        blocks, found = self._prefix(job)
        if self._comes_soon(job, blocks):
            return False
        needed = num_blocks(len(job.tokens))
        for table, pages in zip(job.tables, found, strict=True):
            if table.window is None:
                idle = sum(not table.pool.is_held(page) for page in pages)
                # One page more for each that runs, so that it does not have to give them back at once.
                if table.pool.num_available - idle < needed - blocks + len(self.running):
                    return False
        for table, pages in zip(job.tables, found, strict=True):
            table.resume(blocks, pages)
            if table.window is None:
                table.grow(needed)
        job.computed = blocks * PAGE
        if job.cached_tokens is None:
            job.cached_tokens = job.computed
        self.running.append(self.waiting.popleft())
        return True

    def _prefix(self, job: Job) -> tuple[int, list[list[int]]]:
        """The most blocks that need not be computed, with their pages in each table. One token at least is left."""
        if self.share_prefixes:
            extend_keys(job.keys, job.tokens, job.variant)
            most = (len(job.tokens) - 1) // PAGE
            for table in job.tables:
                if table.window is None:
                    most = next((n for n in range(most) if table.pool.find(job.keys[n]) is None), most)
            for blocks in range(most, 0, -1):
                found = [table.found(job.keys, blocks) for table in job.tables if table.window is not None]
                if None not in found:
                    every = [table.found(job.keys, blocks) for table in job.tables]
                    return blocks, [pages for pages in every if pages is not None]
        return 0, [[] for _ in job.tables]

    def _comes_soon(self, job: Job, block: int) -> bool:
        """Whether a running job is still reading a prompt with the same tokens up to the end of this block."""
        if not self.share_prefixes or block >= (len(job.tokens) - 1) // PAGE:
            return False
        return any(
            other.computed < (block + 1) * PAGE and block < len(other.keys) and other.keys[block] == job.keys[block]
            for other in self.running
        )

    def check_integrity(self) -> None:
        """Raise OssiaError where a page leaked, is counted wrongly, or is written to by one job and held by another."""
        for index, (window, pool) in enumerate(self.pools.items()):
            held = Counter(page for job in self.running for page in job.tables[index].held)
            try:
                pool.check(held)
            except OssiaError as error:
                raise OssiaError(f"pages of window {window}: {error}") from None
            for job in self.running:
                table = job.tables[index]
                written = table.pages[max(table.first, job.computed // PAGE) :]
                if any(held[page] > 1 for page in written):
                    raise OssiaError(f"pages of window {window}: job {job.id} writes to a page that another one holds")
        for job in self.waiting:
            if any(table.pages for table in job.tables) or job.computed:
                raise OssiaError(f"job {job.id} waits and holds pages")
        ids = [job.id for job in (*self.running, *self.waiting)]
        if ids != sorted(set(ids)):
            raise OssiaError(f"jobs {ids} are not in the order of arrival")
