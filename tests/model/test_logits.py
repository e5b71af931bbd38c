"""Logits in float32 against two independent implementations, on random models of every shape.

Each configuration differs from the published ones in ways that would show a mistake: hidden and intermediate size
differ, head size is not hidden size over heads, layers are odd in number. The limit is 5e-4 on logits of unit spread;
the largest difference that was seen is in docs/numerics.md, and `pytest -s` prints each.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from tests.model.oracles import ORACLES, packed, random_tensors, small
from torch import Tensor

from ossia.config import ModelConfig
from ossia.kernels import Kernels, select
from ossia.model.adapt import build, fill
from ossia.model.attention import Packed
from ossia.model.transformer import Transformer

LIMIT = 5e-4
LENGTHS = (1, 127, 128, 129, 300)

CONFIGS: dict[str, dict[str, Any]] = {
    "one layer, all experts active": {
        "num_hidden_layers": 1,
        "num_experts": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "three layers, one group": {"num_attention_heads": 8, "num_key_value_heads": 1},
    "32 experts": {
        "num_hidden_layers": 2,
        "num_experts": 32,
        "hidden_size": 64,
        "intermediate_size": 32,
        "head_dim": 32,
    },
    "five layers, three heads a group": {
        "num_hidden_layers": 5,
        "num_experts": 16,
        "hidden_size": 64,
        "intermediate_size": 96,
        "head_dim": 8,
        "num_attention_heads": 6,
    },
    "head of the published size, intermediate above hidden": {
        "num_experts": 5,
        "experts_per_token": 2,
        "hidden_size": 32,
        "head_dim": 64,
        "num_key_value_heads": 1,
    },
    "other rope, narrow window, early clamp": {
        "num_hidden_layers": 4,
        "num_experts": 12,
        "experts_per_token": 3,
        "hidden_size": 160,
        "intermediate_size": 32,
        "head_dim": 24,
        "num_attention_heads": 10,
        "sliding_window": 17,
        "initial_context_length": 256,
        "max_position_embeddings": 1024,
        "rope_theta": 20_000.0,
        "rope_scaling_factor": 4.0,
        "swiglu_limit": 1.0,
    },
    "one expert a token": {"num_experts": 6, "experts_per_token": 1, "hidden_size": 128, "intermediate_size": 32},
}
KINDS = ("dense", "mxfp4")


SLOW_LENGTH = 300
"""The reference takes this one only with the first configuration."""


def token_ids(config: ModelConfig, length: int) -> Tensor:
    return torch.randint(config.vocab_size, (length,), generator=torch.Generator().manual_seed(length))


def loaded(config: ModelConfig, kernels: Kernels, tensors: dict[str, Tensor], kind: str) -> Transformer:
    return fill(build(config, kernels, experts=kind), tensors.items(), dtype=torch.float32)


@pytest.fixture(scope="module", params=[(name, kind) for name in CONFIGS for kind in KINDS], ids=", ".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str, dict[str, Tensor], dict[str, list[Tensor]]]:
    """A random model, and what each oracle says for each length."""
    name, kind = request.param
    config = small(**CONFIGS[name])
    tensors = random_tensors(config)
    if kind == "mxfp4":
        tensors = packed(tensors)
    oracles = {oracle: build_oracle(config, tensors) for oracle, build_oracle in ORACLES.items()}
    logits = {oracle: [run(token_ids(config, length)) for length in LENGTHS] for oracle, run in oracles.items()}
    return name, kind, tensors, logits


@pytest.mark.parametrize("choice", ["reference", "torch", "auto"])
def test_logits_are_those_of_both_oracles(case, choice: str) -> None:
    name, kind, tensors, expected = case
    config, kernels = small(**CONFIGS[name]), select(choice)
    model = loaded(config, kernels, tensors, kind)
    worst = dict.fromkeys(expected, 0.0)
    with torch.no_grad():
        for n, length in enumerate(LENGTHS):
            if choice == "reference" and length == SLOW_LENGTH and name != next(iter(CONFIGS)):
                continue
            ours = model(token_ids(config, length), torch.arange(length), Packed(kernels, (length,)))
            assert ours.dtype == torch.float32
            assert 0.7 < float(ours.std()) < 1.4, "logits must have about unit spread for the limit to mean something"
            for oracle, logits in expected.items():
                worst[oracle] = max(worst[oracle], float((ours - logits[n]).abs().max()))
    print(f"{name}, {kind}, {choice}: " + ", ".join(f"{oracle} {value:.2e}" for oracle, value in worst.items()))
    assert max(worst.values()) <= LIMIT, worst


def test_the_configurations_are_what_the_bar_asks_for() -> None:
    configs = [small(**fields) for fields in CONFIGS.values()]
    assert len(configs) >= 6
    assert all(config.hidden_size != config.intermediate_size for config in configs)
    assert all(config.head_dim * config.num_attention_heads != config.hidden_size for config in configs)
    assert {config.num_hidden_layers % 2 for config in configs} == {0, 1}
    assert {min(config.num_experts for config in configs), max(config.num_experts for config in configs)} == {4, 32}
    groups = {config.num_attention_heads // config.num_key_value_heads for config in configs}
    assert {1, 2, 3, 4, 5, 8} <= groups


FAR = 4_200


@pytest.fixture(scope="module")
def far() -> tuple[ModelConfig, dict[str, Tensor], dict[str, Tensor]]:
    """A model, and what each oracle says of a sequence whose last hundred tokens stand beyond position 4,096."""
    config = small(
        num_hidden_layers=2,
        num_experts=4,
        experts_per_token=2,
        vocab_size=64,
        hidden_size=64,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    tensors = random_tensors(config)
    ids = token_ids(config, FAR)
    return config, tensors, {name: build_oracle(config, tensors)(ids) for name, build_oracle in ORACLES.items()}


@pytest.mark.parametrize("choice", ["reference", "torch"])
def test_positions_beyond_the_initial_context(far, choice: str) -> None:
    """Most of the difference is the oracles': their angles are products in float32."""
    config, tensors, expected = far
    kernels = select(choice)
    with torch.no_grad():
        model = loaded(config, kernels, tensors, "dense")
        ours = model(token_ids(config, FAR), torch.arange(FAR), Packed(kernels, (FAR,)))
    worst = {oracle: float((ours - logits).abs().max()) for oracle, logits in expected.items()}
    print(f"{FAR} tokens, {choice}: " + ", ".join(f"{oracle} {value:.2e}" for oracle, value in worst.items()))
    assert max(worst.values()) <= LIMIT, worst


# ---------------------------------------------------------------- in pieces and in company


@dataclass(slots=True)
class Remembering:
    """The plainest cache: every key and value of every sequence, kept whole."""

    kernels: Kernels
    lengths: tuple[int, ...]
    """New tokens of each sequence."""
    kept: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)
    """(layer, sequence) → keys and values."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
        for n, (new_k, new_v) in enumerate(zip(k.split(self.lengths), v.split(self.lengths), strict=True)):
            old = self.kept.get((layer, n), (k[:0], v[:0]))
            self.kept[layer, n] = torch.cat((old[0], new_k)), torch.cat((old[1], new_v))
        keys, values = zip(*(self.kept[layer, n] for n in range(len(self.lengths))), strict=True)
        lengths = tuple(len(one) for one in keys)
        return self.kernels.attention(q, torch.cat(keys), torch.cat(values), sinks, self.lengths, lengths, window)


@pytest.mark.parametrize("choice", ["reference", "torch", "auto"])
@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decode_give_the_logits_of_one_pass(choice: str, kind: str) -> None:
    """In pieces that end at and around the edge of the window, then a token at a time."""
    config, kernels = small(), select(choice)
    tensors = random_tensors(config) if kind == "dense" else packed(random_tensors(config))
    model, ids = loaded(config, kernels, tensors, kind), token_ids(config, 150)
    expected = ORACLES["transformers"](config, tensors)(ids)
    cache, start, pieces = Remembering(kernels, ()), 0, []
    with torch.no_grad():
        for size in (1, 100, 26, 1, 1, 1, 10, *[1] * 10):
            cache.lengths = (size,)
            pieces.append(model(ids[start : start + size], torch.arange(start, start + size), cache))
            start += size
    assert start == len(ids)
    assert float((torch.cat(pieces) - expected).abs().max()) <= LIMIT


@pytest.mark.parametrize("choice", ["reference", "torch", "auto"])
def test_sequences_end_to_end_do_not_see_each_other(choice: str) -> None:
    config, kernels, lengths = small(), select(choice), (3, 140, 1, 20)
    tensors = random_tensors(config)
    oracle = ORACLES["transformers"](config, tensors)
    sequences = [token_ids(config, length) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])
    model = loaded(config, kernels, tensors, "dense")
    with torch.no_grad():
        together = model(torch.cat(sequences), positions, Packed(kernels, lengths))
    for ours, sequence in zip(together.split(lengths), sequences, strict=True):
        assert float((ours - oracle(sequence)).abs().max()) <= LIMIT


def test_only_the_rows_that_are_asked_for() -> None:
    config, kernels = small(), select("torch")
    model, ids = loaded(config, kernels, random_tensors(config), "dense"), token_ids(config, 20)
    with torch.no_grad():
        whole = model(ids, torch.arange(20), Packed(kernels, (20,)))
        some = model(ids, torch.arange(20), Packed(kernels, (20,)), torch.tensor([19, 3]))
    torch.testing.assert_close(some, whole[[19, 3]], rtol=0, atol=1e-5)


def test_bfloat16_stays_near() -> None:
    """A sanity check alone: in bfloat16 a router may choose otherwise, so single logits may be far."""
    config, kernels = small(), select("torch")
    tensors, ids = random_tensors(config), token_ids(config, 60)
    model = fill(build(config, kernels), tensors.items(), dtype=torch.bfloat16)
    with torch.no_grad():
        ours = model(ids, torch.arange(60), Packed(kernels, (60,)))
    expected = ORACLES["transformers"](config, tensors)(ids)
    assert ours.dtype == torch.bfloat16
    assert float((ours.float() - expected).abs().median()) < 0.05
