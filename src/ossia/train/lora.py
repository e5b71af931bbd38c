"""Adapters of low rank beside the frozen weights of a checkpoint (LoRA, Hu et al. 2021).

    conversations → harmony tokens and a loss mask → packed batches → Transformer → loss → masters → adapter

Experts stay packed in MXFP4, forward and backward, and the router as it is. What comes out is an adapter in PEFT's
format, for `ossia serve --adapter`, `ossia merge`, PEFT and vLLM.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ossia.errors import ConfigError
from ossia.kernels import cpu, select
from ossia.model.adapt import DEFAULT_LORA_TARGETS, LORA_TARGETS, add_lora, build, check_lora_targets, fill
from ossia.model.adapters import adapter_of, base_digest, write_adapter
from ossia.model.checkpoint import Checkpoint
from ossia.model.memory import keep_no_freed_memory
from ossia.model.packed_cache import packed_model
from ossia.model.transformer import Transformer
from ossia.train.data import packed_feed, source_of
from ossia.train.distributed import World
from ossia.train.loop import Loop, Metrics, recompute
from ossia.train.loss import cross_entropy
from ossia.train.optim import Masters, Schedule
from ossia.train.recipe import (
    DTYPES,
    DataSettings,
    go_on,
    heldout,
    open_run,
    start_from,
    validation,
    worse_than_guessing,
)
from ossia.train.samples import Samples
from ossia.train.settings import flag
from ossia.train.throughput import peak_of, training_flops

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSettings(DataSettings):
    """The flags of `ossia train lora`, with what each is for."""

    model: str = flag("demo", help="The frozen checkpoint: demo, a folder, or a hub id.", group="Model")
    rank: int = flag(8, help="Of each matrix, and of each expert's.", group="Adapter", min=1)
    alpha: float = flag(16.0, help="Adapters are scaled by alpha / rank.", group="Adapter", above=0)
    targets: tuple[str, ...] = flag(
        DEFAULT_LORA_TARGETS, help=f"What they stand beside: of {', '.join(LORA_TARGETS)}.", group="Adapter"
    )
    learning_rate: float = flag(5e-4, help="At its height.", group="Optimiser", above=0, free=True)
    weight_decay: float = flag(0.0, help="Of the adapters.", group="Optimiser", min=0)
    balance_coefficient: float = flag(0.0, help="Weight of the load-balancing loss.", group="Router", min=0)
    z_coefficient: float = flag(0.0, help="Weight of the z-loss.", group="Router", min=0)

    def check(self) -> None:
        """Raises ConfigError for no target, or one that there is not."""
        check_lora_targets(self.targets)


def train(settings: LoraSettings, report: Callable[[Metrics], None]) -> Path:
    """Run the recipe; returns the folder of the adapter. `report` gets each line of the log."""
    world = World.from_environment(device=settings.device)
    if world.size > 1:
        raise ConfigError("adapters are trained by one process: start ossia train lora without torchrun")
    run = open_run(settings, world)

    # What is learnt from.
    start = start_from(settings, run, world)
    assert start.checkpoint is not None
    feed = packed_feed(
        source_of(settings.data, seed=settings.seed),
        start.tokenizer,
        batch_tokens=settings.batch_tokens,
        micro_batches=settings.accumulate,
        max_length=settings.max_length,
        too_long=settings.too_long,
        every_token=False,
        vocab_size=start.config.vocab_size,
    )
    held_out = heldout(settings, feed.rendering)
    samples = Samples.of(held_out, start.tokenizer, settings.samples)

    # What learns: the adapters alone, in float32 wherever they are.
    base = base_digest(start.checkpoint)
    native = settings.device == "cpu" and start.checkpoint.packed and cpu.available()
    dtype = torch.float32 if native else DTYPES[settings.precision]
    peak = peak_of(torch.device(settings.device), dtype).flops_per_s
    model = add_lora(
        packed(start.checkpoint, settings) if native else plain(start.checkpoint, settings),
        rank=settings.rank,
        alpha=settings.alpha,
        targets=settings.targets,
        seed=settings.seed,
    )
    if settings.recompute:
        recompute(model)
    masters = Masters.of(
        model,
        dict(model.named_parameters()),
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        stored=torch.float32,
    )
    loop = Loop(
        model=model,
        masters=masters,
        feed=feed,
        objective=cross_entropy,
        schedule=Schedule(steps=settings.steps, warmup_steps=settings.warmup_steps, decay_steps=settings.decay_steps),
        out=settings.out,
        settings={**settings.course(), "model": f"sha256 {base[:16]}"},
        report=report,
        clip=settings.clip,
        balance_coefficient=settings.balance_coefficient,
        balance_pooled=settings.balance_pooled,
        z_coefficient=settings.z_coefficient,
        largest_loss=worse_than_guessing(start.config),
        collapse_patience=settings.collapse_patience,
        save_every=settings.save_every,
        log_every=settings.log_every,
        keep=settings.keep,
        validate=validation(held_out),
        flops=partial(training_flops, start.config, frozen=True),
        peak=peak,
    )
    go_on(settings, loop)
    if loop.step == 0:
        loop.record({"step": 0, **loop.validate(model), "samples": samples.answers(model)})
    loop.run()
    loop.record({"step": loop.step, "samples": samples.answers(model)})

    write_adapter(settings.out, adapter_of(model, base=base), start.config, base_name=settings.model)
    return settings.out


def packed(checkpoint: Checkpoint, settings: LoraSettings) -> Transformer:
    """The model beneath as the native kernels read it, which compute in float32."""
    keep_no_freed_memory()
    cpu.configure(settings.threads or None)
    torch.set_num_threads(1)  # What is left to torch is small, and its threads would be in the way.
    return packed_model(checkpoint, select("cpu"), dense="bf16", keep=True, report=log.info)


def plain(checkpoint: Checkpoint, settings: LoraSettings) -> Transformer:
    """The model beneath as it is stored, for torch: experts in MXFP4 are unpacked one at a time."""
    kernels = select("torch", device=settings.device)
    model = build(checkpoint.config, kernels, experts="mxfp4" if checkpoint.packed else "dense")
    return fill(model, checkpoint.tensors(), dtype=DTYPES[settings.precision], device=settings.device)
