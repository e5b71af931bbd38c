"""The loop that every recipe shares: batches in, steps out, a log, and a state from which a killed run goes on."""

import io
import json
import logging
import pickle
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ossia.errors import StorageError, TrainingError
from ossia.files import write_whole
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer
from ossia.train.data import Batch, Batches
from ossia.train.loss import RouterWatch, cross_entropy
from ossia.train.optim import Masters, Schedule

log = logging.getLogger(__name__)

Metrics = dict[str, Any]
STATE, LOG = "state.pt", "log.jsonl"


@dataclass(slots=True, kw_only=True)
class Loop:
    """One training run. `run` takes it from where it stands to the last step of its schedule."""

    model: Transformer
    masters: Masters
    batches: Batches
    schedule: Schedule
    out: Path
    """Folder of `log.jsonl` and `state.pt`."""
    settings: Mapping[str, Any]
    """What decides the course of the run: saved with the state, and compared when it is resumed."""
    clip: float
    balance_coefficient: float
    z_coefficient: float
    save_every: int
    log_every: int
    validate: Callable[[Transformer], Metrics]
    """Called when the state is saved; what it returns is logged."""
    report: Callable[[Metrics], None]
    """Called with each line of the log."""
    step: int = 0
    index: int = 0
    """The next record of the source."""
    _tokens: int = field(default=0, init=False)
    _since: float = field(default_factory=time.monotonic, init=False)

    def run(self) -> None:
        """Train to the end of the schedule, saving the state every `save_every` steps and at the end."""
        self._since = time.monotonic()
        while self.step < self.schedule.steps:
            batch, self.index = self.batches.at(self.index)
            metrics = self._advance(batch)
            self.step += 1
            if self.step % self.log_every == 0 or self.step == self.schedule.steps:
                self._record(metrics)
            if self.step % self.save_every == 0 or self.step == self.schedule.steps:
                self._record({"step": self.step, **self.validate(self.model)})
                self.save()
                self._since, self._tokens = time.monotonic(), 0

    def _advance(self, batch: Batch) -> Metrics:
        with RouterWatch.of(self.model) as routers:
            logits = self.model(
                batch.token_ids, batch.positions, Packed(self.model.kernels, batch.lengths), rows=batch.rows
            )
        loss = cross_entropy(logits, batch.targets)
        balance, z = routers.balance_loss(), routers.z_loss()
        if not torch.isfinite(loss):
            what = f"the loss is {float(loss.detach())} at step {self.step + 1}"
            raise TrainingError(f"{what}: resume from the last state, with a lower --learning-rate")
        (loss + self.balance_coefficient * balance + self.z_coefficient * z).backward()
        factor = self.schedule(self.step)
        norm = self.masters.step(factor, clip=self.clip)
        self._tokens += len(batch.token_ids)
        loads = routers.loads()
        even = 1 / loads.shape[-1]
        return {
            "step": self.step + 1,
            "loss": float(loss.detach()),
            "balance": float(balance.detach()),
            "z": float(z.detach()),
            "gradient_norm": norm,
            "rate": factor,
            "learnt_tokens": len(batch.targets),
            "largest_load": float(loads.max()) / even,
            "smallest_load": float(loads.min()) / even,
        }

    def _record(self, metrics: Metrics) -> None:
        seconds = time.monotonic() - self._since
        if "loss" in metrics:
            metrics["tokens_per_second"] = round(self._tokens / seconds, 1)
            self._since, self._tokens = time.monotonic(), 0
        path = self.out / LOG
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics) + "\n")
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror}); free some space and --resume") from None
        self.report(metrics)

    # ---------------------------------------------------------------- stopping and going on

    def save(self) -> None:
        """Write `state.pt`, whole or not at all."""
        state = {
            "step": self.step,
            "index": self.index,
            "settings": dict(self.settings),
            "masters": self.masters.state(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self.out / STATE, buffer.getbuffer())

    def resume(self) -> None:
        """Go on from `state.pt`, and drop the lines of the log that were written after it."""
        path = self.out / STATE
        if not path.exists():
            raise TrainingError(f"{path}: no saved state to resume from; start without --resume")
        try:
            state = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).split("\n")[0]
            raise TrainingError(f"{path}: cannot be read ({reason}); start again in another --out") from None
        if not isinstance(state, dict) or set(state) != {"step", "index", "settings", "masters"}:
            raise TrainingError(f"{path}: is no state of a run; start again in another --out")
        for name, value in self.settings.items():
            if state["settings"].get(name) != value:
                raise TrainingError(
                    f"{path}: {name} was {state['settings'].get(name)!r} and is now {value!r}: resume with the same"
                )
        self.masters.restore(state["masters"])
        self.step, self.index = state["step"], state["index"]
        kept = [json.dumps(line) + "\n" for line in read_log(self.out) if line["step"] <= self.step]
        write_whole(self.out / LOG, "".join(kept))
        log.info("resumed at step %d", self.step)


def read_log(run: Path) -> list[Metrics]:
    """The lines of a run's log; a last one that was cut off when the run was killed is left out."""
    path = run / LOG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    whole: list[Metrics] = []
    for line in lines:
        try:
            whole.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return whole
