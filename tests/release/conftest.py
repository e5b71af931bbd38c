"""Small checkpoints with random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ossia.config import ModelConfig
from ossia.model.checkpoint import Checkpoint
from ossia.model.random_weights import RandomWeights
from ossia.model.write import write_checkpoint

Make = Callable[..., Checkpoint]


def small_config(**changes: Any) -> ModelConfig:
    shape: dict[str, Any] = {
        "num_hidden_layers": 2,
        "num_experts": 4,
        "experts_per_token": 2,
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 16,
        "initial_context_length": 64,
        "max_position_embeddings": 256,
        "rope_scaling_factor": 4.0,
    }
    return ModelConfig(**shape | changes)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a random checkpoint and opens it; arguments as `write_checkpoint`, and `changes` to the shape."""

    def make(name: str = "model", *, changes: dict[str, Any] | None = None, **options: Any) -> Checkpoint:
        config = small_config(**changes or {})
        return write_checkpoint(tmp_path / name, config, RandomWeights(config, 3), **options)

    return make
