"""A model small enough to train in a test."""

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.kernels import select
from ossia.model.adapt import build, fill
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer
from ossia.train.optim import initial_weights

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


def small_model() -> Transformer:
    model = build(SMALL, select("torch"))
    return fill(model, list(initial_weights(model, 0)), dtype=torch.float32)


def run(model: Transformer) -> Tensor:
    """Logits [50, 64] of 50 random tokens."""
    ids = torch.randint(0, 64, (50,), generator=torch.Generator().manual_seed(0))
    return model(ids, torch.arange(50), Packed(model.kernels, (50,)))
