"""The arithmetic of a step: counted by formula, by torch's own counter, and pair by pair."""

from random import Random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ossia.config import OSSIA_DEMO, ModelConfig
from ossia.kernels import select
from ossia.model.adapt import build
from ossia.model.attention import Packed
from ossia.train.throughput import peak_of, training_flops, visible_keys

SMALL = ModelConfig(
    num_hidden_layers=3,
    num_experts=4,
    experts_per_token=2,
    vocab_size=96,
    hidden_size=64,
    intermediate_size=32,
    head_dim=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=16,
)
LENGTHS = (40, 7, 16, 17, 1)


@pytest.mark.parametrize("config", [SMALL, OSSIA_DEMO])
def test_visible_keys_are_those_that_are_seen(config: ModelConfig) -> None:
    seen = 0
    for layer in range(config.num_hidden_layers):
        window = config.window(layer)
        for length in LENGTHS:
            seen += sum(1 for q in range(length) for k in range(q + 1) if window is None or k > q - window)
    assert visible_keys(config, LENGTHS) == seen


def test_a_step_is_three_forward_passes() -> None:
    forward = sum(SMALL.flops_per_token(i) for length in LENGTHS for i in range(length))
    assert training_flops(SMALL, LENGTHS, sum(LENGTHS)) == 3 * forward
    unembedding = 2 * SMALL.vocab_size * SMALL.hidden_size
    assert training_flops(SMALL, LENGTHS, sum(LENGTHS) - 10) == 3 * (forward - 10 * unembedding)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_products_are_those_that_torch_counts(frozen: bool) -> None:
    """All but attention, whose pairs are counted above: what computes it here also multiplies what is masked."""
    model = build(SMALL, select("torch")).to_empty(device="cpu")
    random = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=random)
    model.requires_grad_(not frozen)
    model.embedding.weight.requires_grad_(True)  # Of a frozen model too a gradient has to reach the first layer.
    num_tokens = sum(LENGTHS)
    token_ids = torch.tensor([Random(0).randrange(SMALL.vocab_size) for _ in range(num_tokens)])
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    with FlopCounterMode(display=False) as counter:
        logits = model(token_ids, positions, Packed(model.kernels, LENGTHS), rows=torch.arange(0, num_tokens, 2))
        logits.square().sum().backward()
    ops = counter.get_flop_counts()["Global"]
    products = sum(count for op, count in ops.items() if str(op) in ("aten.mm", "aten.addmm"))
    attention = 3 * 4 * SMALL.q_dim * visible_keys(SMALL, LENGTHS)
    assert training_flops(SMALL, LENGTHS, len(logits), frozen=frozen) - attention == products


def test_the_peak_is_measured_where_nobody_states_it() -> None:
    peak = peak_of(torch.device("cpu"), torch.float32)
    assert peak.source == "measured"
    assert 1e8 < peak.flops_per_s < 1e15


@pytest.mark.parametrize(("name", "flops"), [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12)])
def test_the_peak_of_a_known_gpu_is_stated(monkeypatch: pytest.MonkeyPatch, name: str, flops: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: name)
    peak = peak_of(torch.device("cuda"), torch.bfloat16)
    assert (peak.source, peak.flops_per_s) == ("stated", flops)
