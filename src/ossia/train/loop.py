"""The loop that every recipe shares: batches in, steps out, a log, and states from which a killed run goes on.

out/run/log.jsonl    one line for each logged step, one for each validation
out/run/states/      see `states`
"""

import json
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ossia.errors import StorageError, TrainingError
from ossia.files import write_whole
from ossia.model.transformer import Transformer
from ossia.train.data import Batch, Feed
from ossia.train.distributed import World
from ossia.train.optim import Masters, Schedule
from ossia.train.routers import CollapseAlarm, RouterWatch, load_metrics
from ossia.train.states import States, clear_partial

log = logging.getLogger(__name__)

Metrics = dict[str, Any]
RUN, LOG, STATES = "run", "log.jsonl", "states"


class Objective(Protocol):
    """What a step lowers."""

    def __call__(self, model: Transformer, batch: Batch, routers: RouterWatch) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch and what is to be logged of it, all of them sums over what is learnt: the loop divides by
        the number of learnt tokens (by their weights, where a batch has weights) of the whole step."""
        ...


def _no_metrics(_model: Transformer) -> Metrics:
    return {}


@dataclass(slots=True, kw_only=True)
class Loop:
    """One training run. `run` takes it from where it stands to the last step of its schedule."""

    model: Transformer
    masters: Masters
    feed: Feed
    objective: Objective
    schedule: Schedule
    out: Path
    settings: Mapping[str, Any]
    """What decides the course of the run, as JSON: saved with each state, and compared when it is resumed."""
    report: Callable[[Metrics], None]
    """Called with each line of the log, by the main process."""
    clip: float = 1.0
    balance_coefficient: float = 0.0
    balance_pooled: bool = False
    z_coefficient: float = 0.0
    largest_loss: float = math.inf
    """A loss above this stops the run: the rate exploded."""
    collapse_patience: int = 20
    """Steps in a row in which a router may look collapsed; 0: any number."""
    save_every: int = 100
    log_every: int = 10
    keep: int = 2
    """Saved states that stay."""
    validate: Callable[[Transformer], Metrics] = _no_metrics
    """Called when a state is saved; what it returns is logged."""
    also: Callable[[], Metrics] = dict
    """Called for each logged step; what it returns is logged with it."""
    flops: Callable[[Sequence[int], int], float] | None = None
    """Lengths of documents and learnt tokens → the operations a step over them asks for; see `throughput`."""
    peak: float = math.inf
    """Operations a second that a process could do at most."""
    world: World = field(default_factory=World.single)
    step: int = 0
    _alarm: CollapseAlarm = field(init=False)
    _states: States = field(init=False)
    _stop: bool = field(default=False, init=False)
    _tokens: float = field(default=0, init=False)
    _flops: float = field(default=0, init=False)
    _since: float = field(default=0, init=False)

    def __post_init__(self) -> None:
        folder = self.out / RUN / STATES
        if self.world.is_main:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"{folder}: cannot be made a folder ({error.strerror}): choose another --out"
                ) from None
            clear_partial(folder)
        self.world.barrier()
        self._states = States(folder, self.keep, self.world)
        self._alarm = CollapseAlarm(self.model.config.experts_per_token, self.collapse_patience)

    def run(self) -> None:
        """Train to the end of the schedule, saving a state every `save_every` steps and at the end.

        Raises TrainingError where the run diverged, StorageError where the disk refuses, KeyboardInterrupt after a
        state was saved where the user asked to stop.
        """
        self._restart_clock()
        with self._interruptible(), self.world.watched():
            while self.step < self.schedule.steps:
                try:
                    metrics = self._advance(self.feed.next(self.step))
                except TrainingError as error:
                    raise self._without_the_diverged(error) from None
                self.step += 1
                last = self.step == self.schedule.steps
                if self.step % self.log_every == 0 or last:
                    self.record(metrics | self.also() | self._pace())
                if self.step % self.save_every == 0 or last or self._stop:
                    self._save()
                if self._stop and not last:
                    self._states.wait()
                    raise KeyboardInterrupt
        self._states.wait()

    def _advance(self, batches: list[Batch]) -> Metrics:
        device = next(self.model.parameters()).device
        batches = [_to(batch, device) for batch in batches]
        mine = [
            sum(map(_learnt, batches)),
            sum(len(batch.token_ids) for batch in batches),
            sum(self.flops(batch.lengths, len(batch.rows)) for batch in batches) if self.flops else 0,
            self._stop,
        ]
        learnt, tokens, flops, stop = self.world.sum(torch.tensor(mine, dtype=torch.float64)).tolist()
        self._stop = stop > 0  # One process that is told to stop tells the others.
        if not learnt:
            raise TrainingError(f"step {self.step + 1} has nothing to learn: see what --data gives")

        sums: dict[str, float] = {}
        counts_LE: Tensor | None = None
        for batch in batches:
            with RouterWatch.of(self.model, batch.expert_ids) as routers:
                total, told = self.objective(self.model, batch, routers)
                balance, z = routers.balance(self.world, pooled=self.balance_pooled), routers.z()
                health = self.balance_coefficient * balance + self.z_coefficient * z
                (total / learnt + health / tokens).backward()
            self.masters.collect()
            told |= {"balance": float(balance.detach()), "z": float(z.detach()), "entropy": float(routers.entropy())}
            sums = {name: sums.get(name, 0.0) + value for name, value in told.items()}
            counts_LE = routers.counts() if counts_LE is None else counts_LE + routers.counts()
        assert counts_LE is not None
        counts_LE = self.world.sum(counts_LE)
        values = self.world.sum(torch.tensor(list(sums.values()), dtype=torch.float64)).tolist()
        over = {"balance": tokens, "z": tokens, "entropy": tokens}
        means = {name: value / over.get(name, learnt) for name, value in zip(sums, values, strict=True)}
        self._refuse_bad(means["loss"])
        factor = self.schedule(self.step)
        update = self.masters.step(factor, clip=self.clip)
        self._alarm.hear(counts_LE)
        self._tokens += tokens
        self._flops += flops
        return {
            "step": self.step + 1,
            "router_entropy": means.pop("entropy"),
            **means,
            "gradient_norm": update.gradient_norm,
            "rate": self.masters.learning_rate * factor,
            "learnt_tokens": learnt,
            **({} if update.flips is None else {"flips": update.flips}),
            **load_metrics(counts_LE),
        }

    # ---------------------------------------------------------------- what goes wrong

    def _refuse_bad(self, loss: float) -> None:
        if not loss <= self.largest_loss or math.isinf(loss):
            worse = "" if not math.isfinite(loss) else ", far worse than guessing"
            raise TrainingError(
                f"the loss is {loss:.4g} at step {self.step + 1}{worse}: --resume from the last state, with a lower "
                "--learning-rate"
            )

    def _without_the_diverged(self, error: TrainingError) -> TrainingError:
        """Weights that diverge at the very next step were lost already when they were saved."""
        if self._states.set_aside(self.step):
            return TrainingError(f"{error} (the state of step {self.step} had diverged and was set aside)")
        return error

    @contextmanager
    def _interruptible(self) -> Generator[None]:
        """Ctrl-C finishes the step and saves; a second one stops at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(_signal: int, _frame: Any) -> None:
            self._stop = True
            if self.world.is_main:
                log.warning("stopping when this step is done and saved; press again to stop at once")
            signal.signal(signal.SIGINT, before)

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # ---------------------------------------------------------------- the log

    def _restart_clock(self) -> None:
        self._tokens, self._flops, self._since = 0, 0, time.monotonic()

    def _pace(self) -> Metrics:
        """Tokens a second of all processes together, and the share of their peak that the model's products take."""
        seconds = max(time.monotonic() - self._since, 1e-9)
        pace = {"tokens_per_second": round(self._tokens / seconds, 1)}
        if self.flops:
            pace["mfu"] = self._flops / seconds / (self.peak * self.world.size)
        self._restart_clock()
        return pace

    def record(self, metrics: Metrics) -> None:
        """Write a line of the log and report it; metrics hold the `step`."""
        if not self.world.is_main:
            return
        path = self.out / RUN / LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror}): free some space and --resume") from None
        self.report(metrics)

    # ---------------------------------------------------------------- stopping and going on

    def _save(self) -> None:
        self.record({"step": self.step, **self.validate(self.model), "accounting": self.feed.accounting()})
        self.save()
        self._restart_clock()

    def save(self) -> None:
        """Save the state of this step, in the background."""
        facts = {
            "settings": dict(self.settings),
            "feed": self.feed.state(),
            "updates": self.masters.updates,
            "streaks": self._alarm.streaks,
        }
        self._states.save(self.step, self.masters.tensors(), facts)

    def resume(self) -> None:
        """Go on from the newest whole state, and drop the lines of the log that were written after it.

        A run that was killed before it saved anything starts again. Raises TrainingError where a setting or the data
        are not those of the state, where it is past the last step, or where every state is damaged.
        """
        state = self._states.newest()
        if state is None:
            if self.world.is_main:
                log.warning("%s: no state was saved yet, so the run starts from the beginning", self.out)
        else:
            if state.step > self.schedule.steps:
                raise TrainingError(
                    f"{state.folder}: {state.step} steps are done, which is more than --steps {self.schedule.steps}: "
                    "give as many or more, or start in another --out"
                )
            for name, value in self.settings.items():
                before = state.facts["settings"].get(name)
                if before != value:
                    raise TrainingError(
                        f"{state.folder}: {name} was {before!r} and is now {value!r}: resume with the same, or start "
                        "in another --out"
                    )
            self.feed.restore(state.facts["feed"])
            state.read_into(self.masters.tensors())
            self.masters.resume(state.facts["updates"])
            self._alarm.streaks = list(state.facts["streaks"])
            self.step = state.step
            if self.world.is_main and self.step == self.schedule.steps:
                log.warning("all %d steps were done already; give more --steps to train further", self.step)
            log.info("resumed at step %d", self.step)
        if self.world.is_main:
            whole = [] if state is None else read_log(self.out)
            kept = [json.dumps(line) + "\n" for line in whole if line["step"] <= self.step]
            write_whole(self.out / RUN / LOG, "".join(kept))
        self.world.barrier()


def recompute(model: Transformer) -> None:
    """Make the activations of each layer again in the backward pass instead of keeping them (activation checkpointing).

    One more forward pass, for the memory of all layers but one.
    """
    for block in model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)


def read_log(out: Path) -> list[Metrics]:
    """The lines of a run's log, up to one that is none: the last may have been cut off when the run was killed."""
    path = out / RUN / LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    whole: list[Metrics] = []
    for line in lines:
        try:
            read = json.loads(line)
        except ValueError:
            break
        if not isinstance(read, dict) or not isinstance(read.get("step"), int):
            break
        whole.append(read)
    return whole


def _learnt(batch: Batch) -> float:
    return len(batch.rows) if batch.weights is None else float(batch.weights.sum())


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    tensors = {each.name: getattr(batch, each.name) for each in fields(batch)}
    moved = {name: value.to(device) for name, value in tensors.items() if isinstance(value, Tensor)}
    return replace(batch, **moved)
