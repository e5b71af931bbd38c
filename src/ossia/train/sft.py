"""Supervised training on conversations, from a fresh model: the recipe of the bundled demo model.

    conversations → harmony tokens and a loss mask → packed batches → Transformer → loss → masters → checkpoint

Only what the assistant must produce is learnt. Experts are seen through the MXFP4 quantiser at every step, so the
checkpoint that comes out computes what was trained.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ossia.config import PRESETS
from ossia.errors import ConfigError, StorageError
from ossia.files import write_whole
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import select
from ossia.model.adapt import build, fill
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer
from ossia.model.write import write_checkpoint
from ossia.train.data import Batches, curriculum, jsonl
from ossia.train.flags import flag
from ossia.train.loop import LOG, STATE, Loop, Metrics
from ossia.train.loss import cross_entropy
from ossia.train.optim import Masters, Schedule, initial_weights

ABOVE_ZERO = ("steps", "batch_tokens", "max_length", "save_every", "log_every", "learning_rate", "clip")
FREE_TO_CHANGE = (
    "out resume tokenizer threads steps decay_steps learning_rate save_every log_every validation_records"
).split()
"""Flags that may differ when a run is resumed. The vocabulary lies in the run's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig:
    """The flags of `ossia train sft`, with what each is for."""

    out: Path = flag(help="Folder for the log, the state and, at the end, the checkpoint.")
    preset: str = flag("ossia-demo", help=f"Shape of the new model: {', '.join(PRESETS)}.")
    data: str = flag("demo", help="demo for the built-in curriculum, or a JSONL file of conversations.")
    tokenizer: Path | None = flag(None, help="A tokenizer.json or its folder; by default learnt from the curriculum.")
    steps: int = flag(4100, help="Optimiser steps in all.")
    batch_tokens: int = flag(4096, help="Tokens a step, prompts included.")
    max_length: int = flag(1024, help="Tokens an example may have.")
    optimizer: str = flag("muon", help="muon (matrices of the layers; the rest by AdamW) or adamw.")
    learning_rate: float = flag(3e-3, help="At its height.")
    weight_decay: float = flag(0.01, help="Of matrices; biases, scales and sinks have none.")
    warmup_steps: int = flag(100, help="Steps in which the rate rises.")
    decay_steps: int = flag(1600, help="Last steps, in which it falls to zero.")
    clip: float = flag(1.0, help="Largest norm of all gradients together.")
    balance_coefficient: float = flag(0.01, help="Weight of the load-balancing loss.")
    z_coefficient: float = flag(0.001, help="Weight of the router's z-loss.")
    dtype: str = flag("bfloat16", help="Type of the activations: bfloat16 or float32.")
    threads: int = flag(0, help="Threads of torch; 0 leaves it the choice.")
    save_every: int = flag(100, help="Steps between saved states and validations.")
    log_every: int = flag(10, help="Steps between lines of the log.")
    validation_records: int = flag(64, help="Held-out conversations of the curriculum; 0 for none.")
    seed: int = flag(0, help="Of the first weights and the order of the data.")
    resume: bool = flag(False, help="Go on from the state in --out.")


def train(config: SftConfig, report: Callable[[Metrics], None]) -> Path:
    """Run the recipe; returns the folder of the finished checkpoint. `report` gets each line of the log."""
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(config.dtype)
    if dtype is None:
        raise ConfigError(f"dtype is {config.dtype!r}: give bfloat16 or float32")
    if config.preset not in PRESETS:
        raise ConfigError(f"preset is {config.preset!r}: give one of {', '.join(PRESETS)}")
    for name, value in asdict(config).items():
        if name in ABOVE_ZERO and not value > 0:
            raise ConfigError(f"{name} is {value}: give a number above 0")
        if isinstance(value, (int, float)) and not 0 <= value < 2**63:
            raise ConfigError(f"{name} is {value}: give a number that is not negative, below 2^63")
    if (config.out / STATE).exists() and not config.resume:
        raise StorageError(f"{config.out}: holds a run already; go on with --resume, or choose another --out")
    try:
        config.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{config.out}: cannot be made a folder ({error.strerror}); choose another --out") from None
    if config.threads:
        torch.set_num_threads(config.threads)

    # What is learnt from.
    shape = PRESETS[config.preset]
    vocabulary = vocabulary_file(config)
    tokenizer = Tokenizer.load(vocabulary)
    if tokenizer.vocab_size != shape.vocab_size:
        raise ConfigError(f"{vocabulary} has {tokenizer.vocab_size} ids, {config.preset} needs {shape.vocab_size}")
    if config.data == "demo":
        source = curriculum(config.seed)
    else:
        source = jsonl(Path(config.data), config.seed, tokenizer, config.max_length)
    batches = Batches(
        source=source, tokenizer=tokenizer, batch_tokens=config.batch_tokens, max_length=config.max_length
    )

    # What learns. The masters are float32; the model holds them as a checkpoint would.
    kernels = select("torch")
    model = build(shape, kernels)
    weights = dict(initial_weights(model, config.seed))
    fill(model, ((name, weight.clone()) for name, weight in weights.items()), dtype=dtype)
    model.requires_grad_(True)
    masters = Masters.of(
        model,
        weights,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        quantize_experts=True,
    )
    loop = Loop(
        model=model,
        masters=masters,
        batches=batches,
        schedule=Schedule(steps=config.steps, warmup_steps=config.warmup_steps, decay_steps=config.decay_steps),
        out=config.out,
        settings={name: str(value) for name, value in asdict(config).items() if name not in FREE_TO_CHANGE},
        clip=config.clip,
        balance_coefficient=config.balance_coefficient,
        z_coefficient=config.z_coefficient,
        save_every=config.save_every,
        log_every=config.log_every,
        validate=validation(config, tokenizer),
        report=report,
    )
    if config.resume:
        loop.resume()
    else:
        (config.out / LOG).unlink(missing_ok=True)  # Of a run that was killed before it saved anything.
    write_whole(config.out / "flags.json", json.dumps(asdict(config), default=str, indent=2) + "\n")
    loop.run()

    # What is shipped: what the model held, experts packed, to which they are exact.
    folder = config.out / "checkpoint"
    write_checkpoint(
        folder,
        shape,
        {name: parameter.detach() for name, parameter in model.named_parameters()},
        layout="hf",
        extra_files=[vocabulary],
        generation_config=greedy(tokenizer),
        overwrite=True,
    )
    return folder


def greedy(tokenizer: Tokenizer) -> dict[str, Any]:
    """A generation_config.json that recommends the likeliest token, with the vocabulary's own special ids."""
    return {
        "bos_token_id": tokenizer.special.get("<|startoftext|>"),
        "do_sample": False,
        "eos_token_id": sorted(tokenizer.stop_ids),
        "pad_token_id": tokenizer.special.get("<|endoftext|>"),
    }


def vocabulary_file(config: SftConfig) -> Path:
    """The run's own tokenizer.json: a copy of the one that is named, or else learnt from the curriculum."""
    kept = config.out / "tokenizer.json"
    if config.tokenizer is not None:
        named = config.tokenizer / "tokenizer.json" if config.tokenizer.is_dir() else config.tokenizer
        Tokenizer.load(named)  # A foreign one is refused before it is copied.
        write_whole(kept, named.read_bytes())
    elif not kept.exists():
        from ossia.demo.curriculum.vocabulary import train_vocabulary

        train_vocabulary(config.out)
    return kept


def validation(config: SftConfig, tokenizer: Tokenizer) -> Callable[[Transformer], Metrics]:
    """A function that gives the loss on records which training never sees; none for a file, which has no such split."""
    if config.data != "demo" or not config.validation_records:
        return lambda _model: {}
    heldout = Batches(
        source=curriculum(config.seed, "heldout"),
        tokenizer=tokenizer,
        batch_tokens=config.batch_tokens,
        max_length=config.max_length,
    )

    @torch.no_grad()
    def validate(model: Transformer) -> Metrics:
        index, total, count = 0, 0.0, 0
        while index < config.validation_records:
            batch, index = heldout.at(index)
            logits = model(batch.token_ids, batch.positions, Packed(model.kernels, batch.lengths), rows=batch.rows)
            total += float(cross_entropy(logits, batch.targets)) * len(batch.targets)
            count += len(batch.targets)
        return {"validation_loss": total / count}

    return validate
