"""Supervised fine-tuning on conversations, of a checkpoint that is there or of a new model.

    conversations → harmony tokens and a loss mask → packed batches → Transformer → loss → masters → checkpoint

Only what the assistant must produce is learnt. Experts that are stored in MXFP4 are seen through its quantiser at every
step, so the checkpoint that comes out computes what was trained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from ossia.train.data import packed_feed, source_of
from ossia.train.distributed import World
from ossia.train.loop import Loop, Metrics
from ossia.train.loss import cross_entropy
from ossia.train.optim import Masters, Schedule
from ossia.train.recipe import (
    FullSettings,
    empty_model,
    export,
    go_on,
    heldout,
    open_run,
    start_of,
    validation,
    worse_than_guessing,
)
from ossia.train.samples import Samples
from ossia.train.throughput import peak_of, training_flops


@dataclass(frozen=True, slots=True, kw_only=True)
class SftSettings(FullSettings):
    """The flags of `ossia train sft`, with what each is for."""


def train(settings: SftSettings, report: Callable[[Metrics], None]) -> Path:
    """Run the recipe; returns the folder of the finished checkpoint. `report` gets each line of the log."""
    world = World.from_environment(expert_parallel=settings.expert_parallel, device=settings.device)
    run = open_run(settings, world)

    # What is learnt from.
    start = start_of(settings, run, world)
    feed = packed_feed(
        source_of(settings.data, seed=settings.seed),
        start.tokenizer,
        batch_tokens=settings.batch_tokens,
        micro_batches=settings.accumulate,
        max_length=settings.max_length,
        too_long=settings.too_long,
        every_token=False,
        vocab_size=start.config.vocab_size,
        rank=world.rank,
        world=world.size,
    )
    held_out = heldout(settings, feed.rendering)
    samples = Samples.of(held_out, start.tokenizer, settings.samples)

    # What learns. The masters are float32; the model holds them as a checkpoint would.
    model = empty_model(start.config, settings, world)
    masters = Masters.of(
        model,
        start.weights(model, settings.seed),
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        qat=start.config.mxfp4_experts,
        world=world,
    )
    loop = Loop(
        model=model,
        masters=masters,
        feed=feed,
        objective=cross_entropy,
        schedule=Schedule(steps=settings.steps, warmup_steps=settings.warmup_steps, decay_steps=settings.decay_steps),
        out=settings.out,
        settings=settings.course(),
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
        flops=partial(training_flops, start.config),
        peak=peak_of(torch.device(settings.device), model.embedding.weight.dtype).flops_per_s,
        world=world,
    )
    go_on(settings, loop)
    if loop.step == 0:
        loop.record({"step": 0, **loop.validate(model), "samples": samples.answers(model)})
    loop.run()
    loop.record({"step": loop.step, "samples": samples.answers(model)})
    return export(settings, start, model, world)
