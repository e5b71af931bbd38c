"""The scheduler without a model: what runs in each step, and that whatever happens nothing leaks and all jobs end."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ossia.engine.blocks import PAGE, Pool, most_blocks
from ossia.engine.scheduler import Job, Scheduler
from ossia.errors import OssiaError

WINDOW = 100


def scheduler(
    *, full: int = 40, windowed: int = 60, max_batch: int = 4, chunk: int = 128, beside: int = 64, share: bool = True
) -> Scheduler:
    pools = {None: Pool(full), WINDOW: Pool(windowed)}
    return Scheduler(pools, max_batch=max_batch, chunk=chunk, beside=beside, share_prefixes=share)


def tokens(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(1000), k=length)


def step(plan: Scheduler) -> list[tuple[int, int]]:
    """(Job, tokens) of a step, in which every job that can draws one more token."""
    chunks = plan.plan()
    for chunk in chunks:
        draws = chunk.draws
        plan.advance(chunk)
        if draws:
            plan.append(chunk.job, chunk.job.id)
    plan.check_integrity()
    return [(chunk.job.id, chunk.stop - chunk.start) for chunk in chunks]


def test_prompts_are_read_in_chunks_the_oldest_first() -> None:
    plan = scheduler()
    for job_id, length in enumerate((200, 30, 50)):
        plan.submit(job_id, tokens(length, job_id))
    assert step(plan) == [(0, 128)]
    assert step(plan) == [(0, 72), (1, 30), (2, 26)]
    assert step(plan) == [(0, 1), (1, 1), (2, 24)]
    assert step(plan) == [(0, 1), (1, 1), (2, 1)]


def test_a_prompt_beside_decoding_ones_is_read_in_small_pieces() -> None:
    plan = scheduler()
    plan.submit(0, tokens(10, 0))
    step(plan)
    plan.submit(1, tokens(150, 1))
    assert step(plan) == [(0, 1), (1, 64)]
    assert step(plan) == [(0, 1), (1, 64)]
    assert step(plan) == [(0, 1), (1, 22)]


def test_no_more_run_than_may() -> None:
    plan = scheduler(max_batch=2)
    jobs = [plan.submit(job_id, tokens(5, job_id)) for job_id in range(3)]
    assert step(plan) == [(0, 5), (1, 5)]
    assert step(plan) == [(0, 1), (1, 1)]
    plan.finish(jobs[0])
    assert step(plan) == [(1, 1), (2, 5)]


def test_a_beginning_that_was_computed_is_not_computed_again() -> None:
    plan = scheduler()
    prompt = tokens(300)
    first = plan.submit(0, prompt)
    assert [step(plan) for _ in range(3)] == [[(0, 128)], [(0, 128)], [(0, 44)]]
    assert first.cached_tokens == 0
    second = plan.submit(1, [*prompt[:200], 1, 2, 3])
    assert step(plan) == [(0, 1), (1, 203 - 192)]
    assert second.cached_tokens == 192
    plan.finish(first)
    plan.finish(second)
    plan.check_integrity()
    third = plan.submit(2, prompt[:256])  # Its last token must run, so that there are logits.
    assert step(plan) == [(2, 64)]
    assert third.cached_tokens == 192


def test_an_answer_is_a_beginning_too() -> None:
    plan = scheduler()
    first = plan.submit(0, tokens(100))
    for _ in range(100):
        step(plan)
    plan.finish(first)
    second = plan.submit(1, [*first.tokens, 5, 5])
    step(plan)
    assert len(first.tokens) == 200
    assert second.cached_tokens == 192


def test_a_beginning_that_is_being_computed_is_waited_for() -> None:
    plan = scheduler()
    prompt = tokens(100)
    plan.submit(0, prompt)
    second = plan.submit(1, [*prompt[:90], 1, 2, 3])
    plan.submit(2, tokens(5, 9))  # Has nothing in common, and waits its turn.
    assert step(plan) == [(0, 100)]
    assert step(plan) == [(0, 1), (1, 29), (2, 5)]
    assert second.cached_tokens == 64


def test_what_another_is_about_to_compute_beyond_the_common_beginning_is_no_reason_to_wait() -> None:
    plan = scheduler(chunk=192)
    prompt = tokens(300)
    plan.submit(0, prompt)
    step(plan)
    second = plan.submit(1, [*prompt[:150], 1])
    assert step(plan) == [(0, 108), (1, 23)]
    assert second.cached_tokens == 128


def test_who_comes_leaves_a_page_for_each_that_runs() -> None:
    plan = scheduler(full=5)
    first = plan.submit(0, tokens(100, 0))
    step(plan)
    plan.submit(1, tokens(150, 1))  # Takes the three pages that are left, and the first needs another soon.
    assert step(plan) == [(0, 1)]
    plan.finish(first)
    assert step(plan) == [(1, 128)]
    assert plan.preemptions == 0


def test_who_waits_for_a_beginning_goes_on_alone_when_the_other_leaves() -> None:
    plan = scheduler(chunk=64)
    prompt = tokens(300)
    first = plan.submit(0, prompt)
    second = plan.submit(1, prompt)
    step(plan)
    plan.finish(first)
    assert step(plan) == [(1, 64)]
    assert second.cached_tokens == 64


def test_without_sharing_everything_is_computed() -> None:
    plan = scheduler(share=False)
    prompt = tokens(100)
    for job_id in range(2):
        job = plan.submit(job_id, prompt)
        assert step(plan) == [(job_id, 100)]
        plan.finish(job)
        assert job.cached_tokens == 0
    assert all(pool.num_available == pool.num_pages for pool in plan.pools.values())


def test_a_prefix_is_resumed_where_the_window_is_remembered() -> None:
    """The windowed pages of a beginning may be gone where its others are not: the longest that has both counts."""
    plan = scheduler(windowed=most_blocks(128, WINDOW) + 2, chunk=128)
    prompt = tokens(64 * 8)
    plan.finish(run_alone(plan, 0, prompt))
    windowed = plan.pools[WINDOW]
    job = plan.submit(1, prompt)
    remembered = [key for key in job_keys(prompt) if windowed.find(key) is not None]
    assert 2 <= len(remembered) < 8
    step(plan)
    assert job.cached_tokens == 64 * 7
    plan.finish(job)
    shorter = plan.submit(2, prompt[:130])  # Block 1 is out of the windowed pool.
    step(plan)
    assert shorter.cached_tokens == 0


def job_keys(prompt: list[int]) -> list[bytes]:
    from ossia.engine.blocks import extend_keys

    keys: list[bytes] = []
    extend_keys(keys, prompt)
    return keys


def run_alone(plan: Scheduler, job_id: int, prompt: list[int], answer: int = 1) -> Job:
    job = plan.submit(job_id, prompt)
    while len(job.tokens) < len(prompt) + answer:
        step(plan)
    return job


def test_the_youngest_gives_its_pages_back_and_comes_again_first() -> None:
    plan = scheduler(full=8, windowed=40, max_batch=3)
    jobs = [plan.submit(job_id, tokens(120, job_id)) for job_id in range(2)]
    late = plan.submit(2, tokens(10, 2))
    while not plan.preemptions:
        step(plan)
    assert plan.waiting[0] is jobs[1] or plan.waiting[0] is late
    before = len(plan.waiting[0].tokens)
    assert before > plan.waiting[0].num_prompt
    again = plan.waiting[0]
    plan.finish(jobs[0])
    step(plan)
    assert again in plan.running
    while len(again.tokens) == before:
        step(plan)
    assert len(again.tokens) == before + 1


def test_the_oldest_is_never_the_one() -> None:
    plan = scheduler(full=8, windowed=40, max_batch=4)
    jobs = {job_id: plan.submit(job_id, tokens(60 + job_id, job_id)) for job_id in range(6)}
    ended: list[int] = []
    for _ in range(3000):
        oldest = min(jobs, default=None)
        if oldest is None:
            break
        running = oldest in [job.id for job in plan.running]
        step(plan)
        assert not running or jobs[oldest] in plan.running
        for job_id, job in list(jobs.items()):
            if len(job.tokens) >= 400:
                plan.finish(jobs.pop(job_id))
                ended.append(job_id)
    assert ended == list(range(6))
    assert plan.preemptions > 0


def test_what_failed_is_not_used_again() -> None:
    plan = scheduler()
    prompt = tokens(200)
    job = run_alone(plan, 0, prompt)
    plan.finish(job, forget=True)
    again = plan.submit(1, prompt)
    step(plan)
    assert again.cached_tokens == 0
    plan.check_integrity()


def test_pools_that_are_too_small_for_a_chunk_are_refused() -> None:
    with pytest.raises(OssiaError, match="3 pages of window 100 are too few for a chunk: give 5"):
        scheduler(windowed=3)
    with pytest.raises(OssiaError, match="0 pages of window None are too few"):
        scheduler(full=0)


def test_a_job_out_of_order_or_a_page_out_of_place_is_noticed() -> None:
    plan = scheduler()
    for job_id in range(2):
        plan.submit(job_id, tokens(100, job_id))
    step(plan)
    plan.running.reverse()
    with pytest.raises(OssiaError, match="not in the order of arrival"):
        plan.check_integrity()
    plan.running.reverse()
    one, other = plan.running
    table, theirs = one.tables[0], other.tables[0]
    table.pool.release(table.pages[1])
    table.pages[1] = theirs.pages[1]
    with pytest.raises(OssiaError, match="pages of window None: page"):
        plan.check_integrity()
    table.pool.share(table.pages[1])
    table.pool._free = [page for page in table.pool._free if page != table.pages[1]]
    with pytest.raises(OssiaError, match="writes to a page that another one holds"):
        plan.check_integrity()


# -------------------------------------------------------------------- anything at all, in any order


@dataclass
class Wanted:
    job: Job
    length: int
    """Tokens of prompt and answer."""
    steps_waited: int = 0
    drawn: list[int] = field(default_factory=list)


class AnyOrder(RuleBasedStateMachine):
    """Arrivals, cancellations, failures and steps in any order, with pools of any size."""

    @initialize(
        full=st.integers(6, 24),
        spare=st.integers(0, 12),
        max_batch=st.integers(1, 5),
        chunk=st.sampled_from([1, 5, 64, 100, 200]),
        beside=st.sampled_from([1, 17, 64]),
        share=st.booleans(),
        windows=st.sampled_from([(None, WINDOW), (None,), (WINDOW,), (None, 1), (None, 64, 129)]),
    )
    def begin(
        self, full: int, spare: int, max_batch: int, chunk: int, beside: int, share: bool, windows: tuple
    ) -> None:
        pools = {
            window: Pool(full if window is None else most_blocks(max(chunk, beside), window) + spare)
            for window in windows
        }
        self.plan = Scheduler(pools, max_batch=max_batch, chunk=chunk, beside=beside, share_prefixes=share)
        self.room = full * PAGE
        self.jobs: dict[int, Wanted] = {}
        self.next_id = 0

    @rule(seed=st.integers(0, 3), shared=st.integers(0, 300), own=st.integers(1, 200), answer=st.integers(1, 150))
    def arrive(self, seed: int, shared: int, own: int, answer: int) -> None:
        prompt = (tokens(shared, seed) + tokens(own, 100 + self.next_id % 3))[: self.room - 1]
        job = self.plan.submit(self.next_id, prompt)
        self.jobs[self.next_id] = Wanted(job=job, length=min(len(prompt) + answer, self.room))
        self.next_id += 1

    @rule(data=st.data(), forget=st.booleans())
    @precondition(lambda self: self.jobs)
    def leave(self, data: st.DataObject, forget: bool) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        self.plan.finish(self.jobs.pop(job_id).job, forget=forget)

    @rule(count=st.integers(1, 30))
    def run(self, count: int) -> None:
        for _ in range(count):
            self.one_step()

    @rule()
    def fail(self) -> None:
        """A step whose model raised: what it planned ends, and nothing of it is remembered."""
        for chunk in self.plan.plan():
            self.plan.finish(self.jobs.pop(chunk.job.id).job, forget=True)

    def one_step(self) -> None:
        chunks = self.plan.plan()
        assert bool(chunks) == bool(self.jobs)
        seen = [chunk.job.id for chunk in chunks]
        assert len(seen) == len(set(seen)) <= self.plan.max_batch
        read = sum(chunk.stop - chunk.start for chunk in chunks if chunk.stop - chunk.start > 1)
        assert read <= max(self.plan.chunk, self.plan.beside)
        for chunk in chunks:
            job = chunk.job
            assert chunk.start == job.computed < chunk.stop <= len(job.tokens)
            for table in job.tables:
                assert len(table.pages) * PAGE >= chunk.stop
        self.plan.check_integrity()
        for chunk in chunks:
            draws = chunk.draws
            self.plan.advance(chunk)
            if draws:
                self.plan.append(chunk.job, 7)
                if len(chunk.job.tokens) == self.jobs[chunk.job.id].length:
                    self.plan.finish(self.jobs.pop(chunk.job.id).job)

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "plan"):
            self.plan.check_integrity()
            assert {job.id for job in (*self.plan.running, *self.plan.waiting)} == set(self.jobs)

    def teardown(self) -> None:
        """Everything comes to its end, and when nothing is left nothing is held."""
        if not hasattr(self, "plan"):
            return
        for _ in range(200_000):
            if not self.jobs:
                break
            self.one_step()
        assert not self.jobs
        for pool in self.plan.pools.values():
            assert pool.num_held == 0
        self.plan.check_integrity()


AnyOrder.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestAnyOrder = AnyOrder.TestCase


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 250), min_size=1, max_size=12), full=st.integers(8, 20))
def test_first_tokens_come_in_the_order_of_arrival(lengths: list[int], full: int) -> None:
    plan = scheduler(full=full, windowed=40)
    jobs = [plan.submit(job_id, tokens(length, job_id)) for job_id, length in enumerate(lengths)]
    first: list[int] = []
    for _ in range(2000):
        step(plan)
        for job in list(plan.running):
            if len(job.tokens) > job.num_prompt and job.id not in first:
                first.append(job.id)
            if len(job.tokens) >= job.num_prompt + 3:
                plan.finish(job)
        if len(first) == len(jobs):
            break
    assert first == sorted(first)
    assert len(first) == len(jobs)
