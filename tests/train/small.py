"""A model small enough to train in a test, and data that are a function of the step."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.errors import TrainingError
from ossia.kernels import select
from ossia.model.adapt import build
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer
from ossia.train.data import Batch
from ossia.train.loop import Loop
from ossia.train.loss import cross_entropy
from ossia.train.optim import Masters, Schedule, initial_weights

SMALL = ModelConfig(
    num_hidden_layers=2,
    num_experts=4,
    experts_per_token=2,
    vocab_size=64,
    hidden_size=64,
    intermediate_size=32,
    head_dim=8,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def small_model(dtype: torch.dtype = torch.float32) -> Transformer:
    """New weights, all of which learn."""
    model = build(SMALL, select("torch"))
    weights = dict(initial_weights(model, 0))
    model = model.to(dtype).to_empty(device="cpu").eval().requires_grad_(True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


def run(model: Transformer) -> Tensor:
    """Logits [50, 64] of 50 random tokens."""
    ids = torch.randint(0, 64, (50,), generator=torch.Generator().manual_seed(0))
    return model(ids, torch.arange(50), Packed(model.kernels, (50,)))


def batch_of(lengths: tuple[int, ...], seed: int, *, vocab_size: int = 64, learn: float = 1.0) -> Batch:
    """Documents of random tokens that repeat themselves, a share of whose tokens is to be learnt."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.cat(
        [torch.randint(0, vocab_size, (4,), generator=generator).repeat(n // 4 + 1)[:n] for n in lengths]
    )
    positions = torch.cat([torch.arange(n) for n in lengths])
    following = ((positions > 0) & (torch.rand(len(positions), generator=generator) < learn)).nonzero().squeeze(-1)
    return Batch(
        token_ids=token_ids, positions=positions, lengths=lengths, rows=following - 1, targets=token_ids[following]
    )


@dataclass(slots=True)
class ToyFeed:
    """Random batches, each a function of its number."""

    micro_batches: int = 1
    lengths: tuple[int, ...] = (5, 9, 14)
    digest: str = "toy"
    position: int = 0

    def next(self, step: int) -> list[Batch]:
        """The next batches."""
        begin = self.position
        self.position += self.micro_batches
        return [batch_of(self.lengths, seed) for seed in range(begin, self.position)]

    def state(self) -> dict[str, Any]:
        """The position."""
        return {"position": self.position, "digest": self.digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        if state["digest"] != self.digest:
            raise TrainingError("the data changed")
        self.position = state["position"]

    def accounting(self) -> dict[str, int]:
        """How many batches were given."""
        return {"batches": self.position}


def loop_of(out: Path, *, steps: int = 6, rate: float = 1e-2, qat: bool = True, **fields: Any) -> Loop:
    """A run of the small model on toy data; `fields` are those of `Loop`, and optimizer."""
    model = fields.pop("model", None) or small_model()
    masters = Masters.of(
        model,
        {name: parameter.float() for name, parameter in model.named_parameters()},
        optimizer=fields.pop("optimizer", "adamw"),
        learning_rate=rate,
        weight_decay=0.01,
        qat=qat,
        stored=fields.pop("stored", torch.bfloat16),
    )
    defaults: dict[str, Any] = {
        "feed": ToyFeed(),
        "objective": cross_entropy,
        "schedule": Schedule(steps=steps, warmup_steps=2, decay_steps=2),
        "settings": {"seed": 0},
        "report": lambda _metrics: None,
        "balance_coefficient": 0.01,
        "z_coefficient": 0.001,
        "save_every": 2,
        "log_every": 1,
    }
    return Loop(model=model, masters=masters, out=out, **(defaults | fields))
