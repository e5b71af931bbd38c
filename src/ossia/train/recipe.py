"""What the recipes share: their common settings, the folder of a run, what it starts from, and what comes out.

out/                 at the end a checkpoint in the official layout
out/run/             settings.toml, tokenizer.json, log.jsonl, states/, lock
"""

import fcntl
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ossia.config import PRESETS, ModelConfig
from ossia.errors import CheckpointError, ConfigError, StorageError, TrainingError
from ossia.files import read_json, write_whole
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import cpu, select, select_for_training
from ossia.kernels.mxfp4 import dequantize
from ossia.model.adapt import build
from ossia.model.checkpoint import Checkpoint, open_checkpoint
from ossia.model.locate import resolve_model, tokenizer_file
from ossia.model.transformer import Transformer
from ossia.model.write import GENERATION_CONFIG, TensorSource, write_checkpoint
from ossia.train.data import Batch, Rendering, TooLong, batches_of, source_of
from ossia.train.distributed import World, shard, whole
from ossia.train.loop import LOG, RUN, STATES, Loop, Metrics, recompute
from ossia.train.loss import hidden, logprobs
from ossia.train.optim import Optimizer, initial_weights
from ossia.train.settings import Settings, flag

log = logging.getLogger(__name__)

SETTINGS, TOKENIZER, LOCK = "settings.toml", "tokenizer.json", "lock"
GENERATED = ("demo", "demo-text")
"""Data of which there is a split that is never trained on."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_BESIDE = ("chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json")
"""Files of a model that go along with what is made of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSettings(Settings):
    """What every recipe is told."""

    out: Path = flag(help="Folder for the checkpoint, and in run/ for the log and the saved states.", free=True)
    steps: int = flag(1000, help="Optimiser steps in all.", min=1, free=True)
    seed: int = flag(0, help="Of new weights and the order of the data.", min=0)
    save_every: int = flag(100, help="Steps between saved states and validations.", min=1, free=True)
    log_every: int = flag(10, help="Steps between lines of the log.", min=1, free=True)
    keep: int = flag(2, help="Saved states that stay.", min=1, free=True)
    resume: bool = flag(False, help="Go on from the newest saved state in --out.", free=True)
    threads: int = flag(0, help="Threads of torch; 0 leaves it the choice.", min=0, free=True)
    device: str = flag("cpu", help="A torch device: cpu or cuda.", free=True)

    model: str | None = flag(None, help="Checkpoint to start from: demo, a folder, or a hub id.", group="Model")
    precision: Literal["bfloat16", "float32"] = flag("bfloat16", help="Of all that is computed.", group="Model")
    recompute: bool = flag(False, help="Make activations again instead of keeping them.", group="Model", free=True)

    batch_tokens: int = flag(4096, help="Most tokens of a batch, prompts included.", group="Data", min=1)
    max_length: int = flag(1024, help="Tokens a document may have.", group="Data", min=2)

    optimizer: Optimizer = flag("adamw", help="muon: matrices of the layers, the rest by adamw.", group="Optimiser")
    learning_rate: float = flag(1e-4, help="At its height.", group="Optimiser", above=0, free=True)
    weight_decay: float = flag(0.01, help="Of matrices; biases, scales and sinks have none.", group="Optimiser", min=0)
    warmup_steps: int = flag(10, help="Steps in which the rate rises.", group="Optimiser", min=0)
    decay_steps: int = flag(200, help="Last steps, in which it falls to zero.", group="Optimiser", min=0, free=True)
    clip: float = flag(1.0, help="Largest norm of all gradients together.", group="Optimiser", above=0)

    balance_coefficient: float = flag(1e-3, help="Weight of the load-balancing loss.", group="Router", min=0)
    balance_pooled: bool = flag(False, help="Loads are pooled over layers, as transformers does.", group="Router")
    z_coefficient: float = flag(1e-3, help="Weight of the z-loss.", group="Router", min=0)
    collapse_patience: int = flag(
        20, help="Steps that a router may send all to the same experts; 0: any.", group="Router", min=0, free=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings(RecipeSettings):
    """What a recipe is told that learns from records."""

    data: tuple[str, ...] = flag(
        ("demo",), help="demo, demo-text, FILE.jsonl, FILE.txt or hf:NAME; *WEIGHT to mix several.", group="Data"
    )
    accumulate: int = flag(1, help="Batches of a step.", group="Data", min=1)
    too_long: TooLong = flag("error", help="What becomes of a longer one.", group="Data")
    validation_data: tuple[str, ...] = flag(
        (), help="Held-out data; what is generated has its own.", group="Data", free=True
    )
    validation_records: int = flag(64, help="Held-out records; 0: none.", group="Data", min=0, free=True)
    samples: int = flag(
        4, help="Held-out prompts that the model answers before and after.", group="Data", min=0, free=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FullSettings(DataSettings):
    """What a recipe is told in which every weight learns."""

    preset: str | None = flag(None, help=f"Shape of a new model: {', '.join(PRESETS)}.", group="Model")
    tokenizer: Path | None = flag(
        None, help="tokenizer.json or its folder for a new model; by default learnt from the curriculum.", group="Model"
    )
    expert_parallel: int = flag(1, help="Processes among which the experts are cut.", min=1, free=True)
    qat: bool | None = flag(
        None, help="Experts are seen through MXFP4; by default where they are stored in it.", group="Model"
    )

    def check(self) -> None:
        """Raises ConfigError where it is not clear what to start from."""
        if (self.model is None) == (self.preset is None):
            raise ConfigError("give either --model, a checkpoint to start from, or --preset, the shape of a new model")
        if self.preset is not None and self.preset not in PRESETS:
            raise ConfigError(f"preset is {self.preset!r}: give one of {', '.join(PRESETS)}")
        if self.model is not None and self.tokenizer is not None:
            raise ConfigError("tokenizer is for a new model: one that is there has its own")


# -------------------------------------------------------------------- the folder of a run


def open_run(settings: RecipeSettings, world: World) -> Path:
    """Make the folder `run` in --out, and see that nothing is overwritten; returns it.

    Raises StorageError where --out holds a run and is not to be resumed, or one that another process is at,
    TrainingError where it holds none and is to be, ConfigError for a device that is not there.
    """
    run = settings.out / RUN
    if settings.resume and not (run / SETTINGS).is_file():
        raise TrainingError(f"{settings.out}: holds no run to resume: start without --resume")
    if not settings.resume and any((run / STATES).glob("step-*")):
        raise StorageError(f"{settings.out}: holds a run already; go on with --resume, or choose another --out")
    _check_device(settings.device)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if cpu.available():
        cpu.configure(settings.threads or None)
    world.barrier()  # Everyone has looked before anyone writes.
    if (refusal := world.agree(_take(run) if world.is_main else None)) is not None:
        raise StorageError(refusal)
    if world.is_main and not settings.resume:
        (run / LOG).unlink(missing_ok=True)  # Of a run that was killed before it saved anything.
        settings.write(run / SETTINGS)
    return run


def go_on(settings: RecipeSettings, loop: Loop) -> None:
    """Resume where that was asked for; only what was not refused becomes the run's settings."""
    if settings.resume:
        loop.resume()
        if loop.world.is_main:
            settings.write(settings.out / RUN / SETTINGS)


def _take(run: Path) -> str | None:
    """Make the folder `run` this process's own until it ends, however it ends; why not, where that cannot be."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = os.open(run / LOCK, os.O_RDWR | os.O_CREAT)  # Never closed: a lock goes when its process does.
    except OSError as error:
        return f"{run}: cannot be made a folder ({error.strerror}); choose another --out"
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return f"{run.parent}: another process is training here; wait for it, or choose another --out"
    except OSError as error:
        log.info("%s: cannot be locked (%s)", run, error.strerror)
    return None


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise ConfigError(f"device is {device!r}: give cpu or cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}: torch finds no GPU here, so give cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device is {device!r}: torch finds {torch.cuda.device_count()} GPUs here, counted from 0")


# -------------------------------------------------------------------- what a run starts from


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What a run starts from."""

    config: ModelConfig
    checkpoint: Checkpoint | None
    """None for a new model."""
    vocabulary: Path
    """The run's own copy."""
    tokenizer: Tokenizer
    beside: Mapping[str, Path]
    """Further files of the model that go along, by name."""
    generation_config: Mapping[str, Any]

    def weights(self, model: Transformer, seed: int) -> TensorSource:
        """Every parameter of `model`: as the checkpoint has it, or drawn anew."""
        return Dequantized(self.checkpoint) if self.checkpoint else dict(initial_weights(model, seed))


@dataclass(frozen=True, slots=True)
class Dequantized:
    """The parameters of a checkpoint, packed experts unpacked to float32, one at a time."""

    checkpoint: Checkpoint

    def keys(self) -> Iterable[str]:
        """The names of all parameters."""
        return (name.removesuffix("_blocks") for name in self.checkpoint.specs if not name.endswith("_scales"))

    def __getitem__(self, name: str) -> Tensor:
        if f"{name}_blocks" not in self.checkpoint.specs:
            return self.checkpoint[name]
        return dequantize(self.checkpoint[f"{name}_blocks"], self.checkpoint[f"{name}_scales"])


def start_of(settings: FullSettings, run: Path, world: World) -> Start:
    """The checkpoint that --model names, or the shape and vocabulary of a new model.

    Raises ConfigError where vocabulary and shape do not go together, CheckpointError for an unsound model.
    """
    if settings.model is not None:
        return start_from(settings, run, world, qat=settings.qat)
    assert settings.preset is not None
    config = PRESETS[settings.preset]
    _check_length(settings, config)
    config = config if settings.qat is None else replace(config, mxfp4_experts=settings.qat)
    kept = run / TOKENIZER
    if world.is_main and settings.tokenizer is not None:
        named = settings.tokenizer / TOKENIZER if settings.tokenizer.is_dir() else settings.tokenizer
        Tokenizer.load(named)  # A foreign one is refused before it is copied.
        write_whole(kept, named.read_bytes())
    elif world.is_main and not kept.exists():
        from ossia.demo.curriculum.vocabulary import train_vocabulary

        train_vocabulary(run)
    world.barrier()
    tokenizer = Tokenizer.load(kept)
    if tokenizer.vocab_size != config.vocab_size:
        raise ConfigError(f"{kept} has {tokenizer.vocab_size} ids, {settings.preset} needs {config.vocab_size}")
    return Start(
        config=config,
        checkpoint=None,
        vocabulary=kept,
        tokenizer=tokenizer,
        beside={},
        generation_config=greedy(tokenizer),
    )


def start_from(settings: RecipeSettings, run: Path, world: World, *, qat: bool | None = None) -> Start:
    """The checkpoint that --model names; its vocabulary is copied into the run's folder."""
    assert settings.model is not None
    checkpoint = open_checkpoint(resolve_model(settings.model))
    config = checkpoint.config if qat is None else replace(checkpoint.config, mxfp4_experts=qat)
    _check_length(settings, config)
    named = tokenizer_file(checkpoint.folder)
    if named is None:
        raise CheckpointError(f"{checkpoint.folder}: has no vocabulary: put tokenizer.json into the folder")
    kept = run / named.name
    if world.is_main:
        write_whole(kept, named.read_bytes())
    world.barrier()
    tokenizer = Tokenizer.load(kept)
    generation = named.parent / GENERATION_CONFIG
    return Start(
        config=config,
        checkpoint=checkpoint,
        vocabulary=kept,
        tokenizer=tokenizer,
        beside={name: path for name in _BESIDE if (path := named.parent / name).is_file()},
        generation_config=read_json(generation, CheckpointError) if generation.is_file() else greedy(tokenizer),
    )


def _check_length(settings: RecipeSettings, config: ModelConfig) -> None:
    if settings.max_length > config.max_position_embeddings:
        raise ConfigError(
            f"max_length is {settings.max_length}: the model's context has {config.max_position_embeddings} tokens"
        )


def empty_model(config: ModelConfig, settings: RecipeSettings, world: World) -> Transformer:
    """A model whose every parameter learns and waits to be filled, cut among the processes."""
    # FSDP frees the storage of what it gathered, which a numpy view, as native kernels take, would forbid.
    kernels = select_for_training(device=settings.device) if world.size == 1 else select("torch")
    model = build(config, kernels).to(DTYPES[settings.precision])
    shard(model, world)
    model = model.to_empty(device=settings.device).eval().requires_grad_(True)
    if settings.recompute:
        recompute(model)
    return model


def greedy(tokenizer: Tokenizer) -> dict[str, Any]:
    """A generation_config.json that recommends the likeliest token, with the vocabulary's own special ids."""
    return {
        "bos_token_id": tokenizer.special.get("<|startoftext|>"),
        "do_sample": False,
        "eos_token_id": sorted(tokenizer.stop_ids),
        "pad_token_id": tokenizer.special.get("<|endoftext|>"),
    }


def worse_than_guessing(config: ModelConfig) -> float:
    """A loss that no model reaches unless it diverged: twice that of one which knows nothing."""
    return 2 * math.log(config.vocab_size)


# -------------------------------------------------------------------- what was held out


def heldout(settings: DataSettings, rendering: Rendering) -> list[Batch]:
    """Batches that training never sees: of --validation-data, or of the held-out split of what is generated."""
    specs = settings.validation_data or tuple(spec for spec in settings.data if spec.split("*")[0] in GENERATED)
    if not specs or not settings.validation_records:
        return []
    source = source_of(specs, seed=settings.seed, split="heldout")
    return batches_of(source, rendering, records=settings.validation_records, batch_tokens=settings.batch_tokens)


def validation(batches: list[Batch]) -> Callable[[Transformer], Metrics]:
    """A function that gives the mean loss on these batches; the same on every process."""

    @torch.no_grad()
    def validate(model: Transformer) -> Metrics:
        if not batches:
            return {}
        losses = [-logprobs(model, hidden(model, batch), batch.targets) for batch in batches]
        return {"validation_loss": float(torch.cat(losses).mean())}

    return validate


# -------------------------------------------------------------------- what comes out


def export(settings: RecipeSettings, start: Start, model: Transformer, world: World) -> Path:
    """Write what the model holds, in the official layout, into --out; returns it.

    Experts that were seen through MXFP4 are packed, to which they are exact; everything else is BF16 already.
    """
    tensors = {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}
    if world.is_main:
        made = settings.out / RUN / "export"
        write_checkpoint(
            made,
            start.config,
            tensors,
            extra_files={TOKENIZER if start.vocabulary.suffix == ".json" else start.vocabulary.name: start.vocabulary}
            | dict(start.beside),
            generation_config=start.generation_config,
            overwrite=True,
        )
        move_up(made, settings.out)
    world.barrier()
    return settings.out


def move_up(made: Path, out: Path) -> None:
    """Move the files of a finished folder into `out`, config.json last, without which they are no model."""
    for path in sorted(made.iterdir(), key=lambda path: path.name == "config.json"):
        path.replace(out / path.name)
    shutil.rmtree(made)
