"""Reinforcement learning with rewards that a program can check: GRPO, and the plain policy gradient it comes down to.

    environment → rollouts by the engine → groups and advantages → Batch → objective → masters → checkpoint

The policy that acts is the one that learns, in the form that generates fastest; the log says how far apart the two are.
Experts that are stored in MXFP4 are seen through its quantiser at every step, so what is exported is what acted.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from ossia.errors import ConfigError
from ossia.kernels import cpu
from ossia.train.distributed import World
from ossia.train.loop import Loop, Metrics
from ossia.train.optim import Masters, Schedule
from ossia.train.recipe import RecipeSettings, empty_model, export, go_on, open_run, start_from
from ossia.train.rl.environment import environment_of
from ossia.train.rl.evaluate import Heldout
from ossia.train.rl.feed import RolloutFeed
from ossia.train.rl.grpo import PolicyObjective
from ossia.train.rl.policy import acting
from ossia.train.rl.rollout import Roller
from ossia.train.settings import flag
from ossia.train.throughput import peak_of, training_flops

HELDOUT_SEED = 1
"""Of the held-out problems, so that every run is measured on the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RlSettings(RecipeSettings):
    """The flags of `ossia train rl`, with what each is for."""

    model: str = flag("demo", help="Checkpoint to start from: demo, a folder, or a hub id.", group="Model")
    steps: int = flag(60, help="Optimiser steps in all.", min=1, free=True)
    log_every: int = flag(1, help="Steps between lines of the log.", min=1, free=True)
    save_every: int = flag(20, help="Steps between saved states.", min=1, free=True)
    batch_tokens: int = flag(8192, help="Most tokens of a batch, prompts included.", group="Rollouts", min=1)
    max_length: int = flag(1024, help="Tokens of an episode, all its turns together.", group="Rollouts", min=2)
    learning_rate: float = flag(3e-4, help="At its height.", group="Optimiser", above=0, free=True)
    warmup_steps: int = flag(5, help="Steps in which the rate rises.", group="Optimiser", min=0)
    decay_steps: int = flag(10, help="Last steps, in which it falls to zero.", group="Optimiser", min=0, free=True)
    balance_coefficient: float = flag(0.0, help="Weight of the load-balancing loss.", group="Router", min=0)
    z_coefficient: float = flag(0.0, help="Weight of the z-loss.", group="Router", min=0)

    environment: tuple[str, ...] = flag(
        help="A family of the demo curriculum, reasoning-gym:NAME, or module:Class; several take turns.",
        group="Rollouts",
    )
    groups: int = flag(16, help="Problems of a round of rollouts.", group="Rollouts", min=1)
    group_size: int = flag(8, help="Attempts at each, which are compared with one another.", group="Rollouts", min=2)
    max_tokens: int = flag(384, help="Tokens of one turn of the policy.", group="Rollouts", min=1)
    max_turns: int = flag(8, help="Turns of an episode.", group="Rollouts", min=1)
    rollout_batch: int = flag(64, help="Episodes under way at a time.", group="Rollouts", min=1, free=True)
    replay: bool = flag(True, help="Training uses the experts that acted.", group="Rollouts")
    heldout_problems: int = flag(
        100, help="Held-out problems, measured before and after; 0: none.", group="Rollouts", min=0, free=True
    )
    heldout_attempts: int = flag(8, help="Attempts at each of them.", group="Rollouts", min=1, free=True)
    samples: int = flag(4, help="Held-out problems whose answers are shown.", group="Rollouts", min=0, free=True)

    algorithm: Literal["on-policy", "grpo"] = flag(
        "on-policy", help="on-policy: the plain policy gradient, once; grpo: a clipped ratio.", group="Objective"
    )
    updates: int = flag(1, help="Steps in which a round is learnt; above 1 for grpo.", group="Objective", min=1)
    clip_low: float = flag(0.2, help="How far below 1 the ratio counts.", group="Objective", above=0, max=1)
    clip_high: float = flag(0.28, help="How far above.", group="Objective", above=0)
    normalise: bool = flag(False, help="Advantages are divided by their group's deviation.", group="Objective")
    kl_coefficient: float = flag(0.0, help="Weight of staying near the start.", group="Objective", min=0)
    mismatch_limit: float = flag(
        0.1, help="Nats a token between what acted and what learns, at which to stop.", group="Objective", above=0
    )

    def check(self) -> None:
        """Raises ConfigError where updates, steps and the algorithm do not go together."""
        if self.algorithm == "on-policy" and self.updates > 1:
            raise ConfigError(f"updates is {self.updates}: on-policy learns once from a round, so choose grpo")
        for name, value in (("steps", self.steps), ("save_every", self.save_every)):
            if value % self.updates:
                raise ConfigError(f"{name} is {value}: give a multiple of updates, {self.updates}")


def train(settings: RlSettings, report: Callable[[Metrics], None]) -> Path:
    """Run the recipe; returns the folder of the finished checkpoint. `report` gets each line of the log."""
    world = World.from_environment(device=settings.device)
    if world.size > 1:
        raise ConfigError(f"rl runs in one process, not in {world.size}: start it without torchrun")
    practice = environment_of(settings.environment, split="train", seed=settings.seed)
    heldout = environment_of(settings.environment, split="heldout", seed=HELDOUT_SEED)
    run = open_run(settings, world)
    if cpu.available():
        cpu.configure(settings.threads or None)

    # What learns. The masters are float32; the model holds them as a checkpoint would.
    start = start_from(settings, run, world)
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

    # How it acts, and what it learns from.
    act = acting(model, qat=start.config.mxfp4_experts)
    roller = Roller(
        tokenizer=start.tokenizer,
        max_tokens=settings.max_tokens,
        max_turns=settings.max_turns,
        context=settings.max_length,
        max_batch=settings.rollout_batch,
    )
    feed = RolloutFeed(
        environment=practice,
        roller=roller,
        model=model,
        acting=act,
        groups=settings.groups,
        group_size=settings.group_size,
        updates=settings.updates,
        batch_tokens=settings.batch_tokens,
        normalise=settings.normalise,
        replay=settings.replay,
        seed=settings.seed,
    )
    objective = PolicyObjective(
        clip=None if settings.algorithm == "on-policy" else (settings.clip_low, settings.clip_high),
        mismatch_limit=settings.mismatch_limit,
        kl_coefficient=settings.kl_coefficient,
        reference=deepcopy(model).requires_grad_(False) if settings.kl_coefficient else None,
    )
    measure = Heldout(
        environment=heldout,
        roller=roller,
        acting=act,
        problems=settings.heldout_problems,
        attempts=settings.heldout_attempts,
        samples=settings.samples,
    )
    loop = Loop(
        model=model,
        masters=masters,
        feed=feed,
        objective=objective,
        schedule=Schedule(steps=settings.steps, warmup_steps=settings.warmup_steps, decay_steps=settings.decay_steps),
        out=settings.out,
        settings=settings.course(),
        report=report,
        clip=settings.clip,
        balance_coefficient=settings.balance_coefficient,
        balance_pooled=settings.balance_pooled,
        z_coefficient=settings.z_coefficient,
        collapse_patience=settings.collapse_patience,
        save_every=settings.save_every,
        log_every=settings.log_every,
        keep=settings.keep,
        also=feed.metrics,
        flops=partial(training_flops, start.config),
        peak=peak_of(torch.device(settings.device), model.embedding.weight.dtype).flops_per_s,
        world=world,
    )
    go_on(settings, loop)
    if loop.step == 0:
        loop.record({"step": 0, **measure(model)})
    loop.run()
    loop.record({"step": loop.step, **measure(model)})
    return export(settings, start, model, world)
