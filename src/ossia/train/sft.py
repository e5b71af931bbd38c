"""Supervised training on conversations, from a fresh model: the recipe of the bundled demo model.

    conversations → harmony tokens and a loss mask → packed batches → Transformer → loss → masters → checkpoint

Only what the assistant must produce is learnt. Experts are seen through the MXFP4 quantiser at every step, so the
checkpoint that comes out computes what was trained.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from ossia.config import ModelConfig
from ossia.errors import ConfigError, StorageError
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import select
from ossia.model.adapt import build, fill
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer
from ossia.model.write import write_checkpoint
from ossia.train.data import Batches, curriculum, jsonl
from ossia.train.loop import Loop, Metrics, writing
from ossia.train.loss import cross_entropy
from ossia.train.optim import Masters, Schedule, initial_weights

DEMO = ModelConfig(
    num_hidden_layers=6,
    num_experts=8,
    experts_per_token=2,
    vocab_size=4096,
    hidden_size=160,
    intermediate_size=192,
    head_dim=32,
    num_attention_heads=8,
    num_key_value_heads=2,
    initial_context_length=1024,
    max_position_embeddings=4096,
    rope_scaling_factor=4.0,
    router_aux_loss_coef=0.01,
)
"""The bundled model: 6.3 M parameters, of which 2.3 M work on each token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig:
    """The flags of `ossia train sft`."""

    out: Path
    """Folder for the log, the state and, at the end, the checkpoint."""
    data: str = "demo"
    """"demo" for the built-in curriculum, or a JSONL file of conversations."""
    tokenizer: Path
    """A tokenizer.json, or a folder that holds one."""
    steps: int = 6000
    batch_tokens: int = 8192
    max_length: int = 1024
    """Tokens an example may have at most."""
    optimizer: str = "muon"
    """adamw or muon."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    decay_steps: int = 1500
    clip: float = 1.0
    balance_coefficient: float = 0.01
    z_coefficient: float = 0.001
    dtype: str = "bfloat16"
    """Type of activations and of the model's copy of the masters: bfloat16 or float32."""
    save_every: int = 250
    log_every: int = 25
    validation_records: int = 256
    seed: int = 0
    resume: bool = False


def train(config: SftConfig, report: Callable[[Metrics], None]) -> Path:
    """Run the recipe; returns the folder of the finished checkpoint. `report` gets each line of the log."""
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}.get(config.dtype)
    if dtype is None or config.optimizer not in ("adamw", "muon"):
        raise ConfigError(f"unknown dtype {config.dtype!r} or optimizer {config.optimizer!r}: see ossia train sft --help")
    state = config.out / "state.pt"
    if state.exists() and not config.resume:
        raise StorageError(f"{config.out}: holds a run already; go on with --resume, or choose another --out")
    config.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)

    # What is learnt from.
    tokenizer = Tokenizer.load(config.tokenizer)
    source = curriculum(config.seed) if config.data == "demo" else jsonl(Path(config.data), config.seed)
    batches = Batches(
        source=source, tokenizer=tokenizer, batch_tokens=config.batch_tokens, max_length=config.max_length
    )

    # What learns. The masters are float32; the model holds them as a checkpoint would.
    kernels = select("torch")
    model = build(DEMO, kernels)
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
        seed=config.seed,
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
    with writing(config.out / "config.json") as temporary:
        temporary.write_text(json.dumps(asdict(config), default=str, indent=2) + "\n", encoding="utf-8")
    loop.run()

    # What is shipped: what the model held, experts packed, to which they are exact.
    folder = config.out / "checkpoint"
    vocabulary = config.tokenizer / "tokenizer.json" if config.tokenizer.is_dir() else config.tokenizer
    write_checkpoint(
        folder,
        DEMO,
        {name: parameter.detach() for name, parameter in model.named_parameters()},
        layout="hf",
        extra_files=[vocabulary],
        generation_config={"do_sample": False},
        overwrite=True,
    )
    return folder


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
