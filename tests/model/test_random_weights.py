"""Random weights depend on seed and name alone, and keep the logits in proportion."""

import pytest
import torch
from transformers import GptOssConfig, GptOssForCausalLM

from ossia.config import ModelConfig
from ossia.errors import CheckpointError
from ossia.kernels import mxfp4
from ossia.model.random_weights import RandomWeights

CONFIG = ModelConfig(
    num_hidden_layers=4,
    num_experts=8,
    vocab_size=500,
    hidden_size=96,
    intermediate_size=160,
    head_dim=32,
    num_attention_heads=4,
    num_key_value_heads=2,
)


def test_a_tensor_depends_on_seed_and_name_alone() -> None:
    first, second, other = RandomWeights(CONFIG, 7), RandomWeights(CONFIG, 7), RandomWeights(CONFIG, 8)
    names = list(first.keys())
    tensors = {name: first[name] for name in names}
    assert all(torch.equal(second[name], tensors[name]) for name in reversed(names))
    assert not any(torch.equal(other[name], tensors[name]) for name in names)
    k, v = tensors["layers.0.attention.k.weight"], tensors["layers.0.attention.v.weight"]
    assert not torch.equal(k, v)


def test_spread_follows_the_fan_in() -> None:
    weights = RandomWeights(CONFIG, 0)
    for name, fan_in in (("gate_up", 96), ("down", 160)):
        stem = f"layers.0.mlp.experts.{name}"
        values = mxfp4.dequantize(weights[f"{stem}_blocks"], weights[f"{stem}_scales"])
        assert values.square().mean().sqrt().item() == pytest.approx(fan_in**-0.5, rel=0.05)
        assert len(weights[f"{stem}_scales"].unique()) == 2
    assert weights["layers.0.attention.o.weight"].float().std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert weights["norm.scale"].float().mean().item() == pytest.approx(1, abs=0.05)


def test_rows_of_a_large_matrix_do_not_repeat() -> None:
    config = ModelConfig(num_hidden_layers=1, num_experts=4, vocab_size=201_088, hidden_size=64)
    rows = RandomWeights(config, 0)["embedding.weight"]
    assert len(rows.view(torch.int16).unique(dim=0)) == 201_088


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"no parameter layers\.9\.nothing"):
        RandomWeights(CONFIG, 0)["layers.9.nothing"]


def test_logits_have_unit_spread() -> None:
    """Run by an independent implementation, so that ours is not needed to see it."""
    weights = RandomWeights(CONFIG, 0)
    model = GptOssForCausalLM(GptOssConfig.from_dict(CONFIG.to_json() | {"attn_implementation": "eager"}))
    state = {
        "model.embed_tokens.weight": weights["embedding.weight"],
        "model.norm.weight": weights["norm.scale"],
        "lm_head.weight": weights["unembedding.weight"],
    }
    for n in range(4):
        layer, ours = f"model.layers.{n}", f"layers.{n}"
        state[f"{layer}.input_layernorm.weight"] = weights[f"{ours}.attention_norm.scale"]
        state[f"{layer}.post_attention_layernorm.weight"] = weights[f"{ours}.mlp_norm.scale"]
        state[f"{layer}.self_attn.sinks"] = weights[f"{ours}.attention.sinks"]
        for leaf in ("weight", "bias"):
            state[f"{layer}.mlp.router.{leaf}"] = weights[f"{ours}.mlp.router.{leaf}"]
            for which in "qkvo":
                state[f"{layer}.self_attn.{which}_proj.{leaf}"] = weights[f"{ours}.attention.{which}.{leaf}"]
        for which in ("gate_up", "down"):
            stem = f"{ours}.mlp.experts.{which}"
            values = mxfp4.dequantize(weights[f"{stem}_blocks"], weights[f"{stem}_scales"])
            state[f"{layer}.mlp.experts.{which}_proj"] = values.transpose(1, 2)
            state[f"{layer}.mlp.experts.{which}_proj_bias"] = weights[f"{stem}_bias"]
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits = model.float()(torch.arange(300)[None]).logits
    assert bool(torch.isfinite(logits).all())
    assert 0.7 < logits.std().item() < 1.4
