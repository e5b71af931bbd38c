"""A random policy with the bundled vocabulary, small enough to roll out in a test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ossia.config import ModelConfig
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import select
from ossia.model import adapt
from ossia.model.random_weights import RandomWeights
from ossia.model.transformer import Transformer
from ossia.reply import Reply
from ossia.train.rl.environment import Checked, Outcome, Prompt
from ossia.train.rl.rollout import Attempt

CONFIG = ModelConfig(
    num_hidden_layers=2,
    num_experts=4,
    experts_per_token=2,
    vocab_size=4096,
    hidden_size=64,
    intermediate_size=32,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=24,
    initial_context_length=256,
    max_position_embeddings=1024,
    rope_scaling_factor=4.0,
)


@pytest.fixture
def make_policy() -> Callable[[int], Transformer]:
    """By the seed of its weights."""

    def make(seed: int) -> Transformer:
        weights = RandomWeights(CONFIG, seed)
        dense = adapt.dequantized({name: weights[name] for name in weights.keys()}, torch.float32)  # noqa: SIM118
        return adapt.fill(adapt.build(CONFIG, select("torch")), dense.items(), dtype=torch.float32)

    return make


@pytest.fixture
def policy(make_policy: Callable[[int], Transformer]) -> Transformer:
    return make_policy(3)


@dataclass
class Told:
    """An environment whose outcomes are given beforehand, one a turn; it keeps what it was answered."""

    outcomes: Sequence[Any]
    prompt: Prompt = field(default_factory=lambda: Prompt(messages=[{"role": "user", "content": "Go on."}]))
    replies: list[Reply] = field(default_factory=list)

    def reset(self, index: int) -> "Told":
        return self

    def step(self, reply: Reply) -> Outcome:
        self.replies.append(reply)
        told = self.outcomes[len(self.replies) - 1]
        return told(reply) if callable(told) else told


@dataclass
class Parity:
    """One turn; 1 where the answer has an odd number of characters: about every other one of a random policy."""

    split: str = "train"
    seed: int = 0

    def reset(self, index: int) -> "Parity":
        self.prompt = Prompt(messages=[{"role": "user", "content": f"Problem {index}"}])
        return self

    def step(self, reply: Reply) -> Outcome:
        return Outcome(reward=float(len(reply.final + reply.reasoning + reply.commentary) % 2))


def attempts(environment: Any, problems: int = 1, size: int = 1) -> list[Attempt]:
    checked = Checked(parts=(("toy", environment),))
    return [
        Attempt(problem=problem, episode=checked.reset(problem), seed=100 * problem + place)
        for problem in range(problems)
        for place in range(size)
    ]


class Scripted(nn.Module):
    """An unembedding that has the next token of a script for sure, whatever it reads."""

    def __init__(self, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.token_ids = list(token_ids)

    def forward(self, x: Tensor) -> Tensor:
        assert len(x) == 1
        logits = torch.zeros(1, CONFIG.vocab_size)
        logits[0, self.token_ids.pop(0)] = 100.0
        return logits


@pytest.fixture
def scripted(policy: Transformer) -> Callable[[Sequence[int]], Transformer]:
    def make(token_ids: Sequence[int]) -> Transformer:
        policy.set_submodule("unembedding", Scripted(token_ids))
        return policy

    return make


@pytest.fixture
def said(tokenizer: Tokenizer) -> Callable[..., list[int]]:
    """Text with special tokens by name, as ids."""

    def encode(*pieces: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            special = tokenizer.special.get(piece)
            ids += tokenizer.encode(piece) if special is None else [special]
        return ids

    return encode
