"""A random model with odd layers, windows and groups, small enough to run by the hundred, and prompts for it."""

import torch

from ossia.config import ModelConfig
from ossia.kernels import select
from ossia.model import adapt
from ossia.model.random_weights import RandomWeights
from ossia.model.transformer import Transformer

CONFIG = ModelConfig(
    num_hidden_layers=3,
    num_experts=4,
    experts_per_token=2,
    vocab_size=300,
    hidden_size=64,
    intermediate_size=32,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    initial_context_length=256,
    max_position_embeddings=1024,
    rope_scaling_factor=4.0,
)


def random_model(config: ModelConfig, kernels: str = "torch") -> Transformer:
    weights = RandomWeights(config, 3)
    dense = adapt.dequantized({name: weights[name] for name in weights.keys()}, torch.float32)  # noqa: SIM118
    return adapt.fill(adapt.build(config, select(kernels)), dense.items(), dtype=torch.float32)


def random_prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
