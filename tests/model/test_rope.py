"""Rotary positions and YaRN: the published constants, the tables of two other implementations, and exact angles."""

import math
from dataclasses import replace
from decimal import Decimal, getcontext

import pytest
import torch
from tests.model.oracles import transformers_config

from ossia.config import GPT_OSS_20B, ModelConfig
from ossia.model.rope import angles, concentration, inverse_frequencies

SHORT = replace(
    GPT_OSS_20B,
    head_dim=24,
    initial_context_length=256,
    rope_scaling_factor=4.0,
    rope_theta=20_000.0,
    rope_beta_fast=20.0,
)
CONFIGS = {"published": GPT_OSS_20B, "another": SHORT}


def test_concentration() -> None:
    assert concentration(GPT_OSS_20B) == pytest.approx(1.34657, abs=5e-6)
    assert concentration(replace(GPT_OSS_20B, rope_scaling_factor=1.0)) == 1.0


def test_the_bounds_are_not_rounded() -> None:
    """Components up to 8.09 are kept, those from 17.40 are slowed by 32, those between lie on a straight ramp."""
    plain = inverse_frequencies(replace(GPT_OSS_20B, rope_scaling_factor=1.0))
    slowed = (1 - inverse_frequencies(GPT_OSS_20B) / plain) * 32 / 31
    assert slowed.shape == (32,)
    assert slowed[:9].abs().max() == 0
    assert torch.allclose(slowed[18:], torch.ones(14, dtype=torch.float64), rtol=0, atol=1e-12)
    between = slowed[9:18]
    steps = between.diff()
    assert torch.allclose(steps, steps[:1].expand(8), rtol=0, atol=1e-12)
    low, high = 9 - float(between[0] / steps[0]), 17 + float((1 - between[-1]) / steps[0])
    assert low == pytest.approx(8.09, abs=0.005)
    assert high == pytest.approx(17.40, abs=0.005)


def test_the_first_component_turns_a_radian_a_position() -> None:
    assert inverse_frequencies(GPT_OSS_20B)[0] == 1
    assert inverse_frequencies(GPT_OSS_20B)[31] == pytest.approx(150_000 ** (-31 / 32) / 32, rel=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_are_those_of_transformers(name: str) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = CONFIGS[name]
    theirs, factor = ROPE_INIT_FUNCTIONS["yarn"](transformers_config(config), torch.device("cpu"))
    assert factor == pytest.approx(concentration(config), rel=1e-12)
    torch.testing.assert_close(inverse_frequencies(config).float(), theirs, rtol=1e-6, atol=0)


def official_rope(config: ModelConfig):
    from gpt_oss.torch.model import RotaryEmbedding

    return RotaryEmbedding(
        config.head_dim,
        config.rope_theta,  # type: ignore[arg-type]
        torch.float32,
        initial_context_length=config.initial_context_length,
        scaling_factor=config.rope_scaling_factor,
        ntk_alpha=config.rope_beta_slow,
        ntk_beta=config.rope_beta_fast,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_frequencies_are_those_of_the_official_code(name: str) -> None:
    config = CONFIGS[name]
    factor, theirs = official_rope(config)._compute_concentration_and_inv_freq()
    assert factor == pytest.approx(concentration(config), rel=1e-12)
    torch.testing.assert_close(inverse_frequencies(config).float(), theirs, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_tables_are_those_of_both(name: str) -> None:
    """Over 300 positions their products in float32 are good to 1e-4."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    config, positions = CONFIGS[name], torch.arange(300)
    cos, sin = angles(config, positions)
    assert cos.dtype == sin.dtype == torch.float32
    assert cos.shape == sin.shape == (300, config.head_dim // 2)
    official = official_rope(config)._compute_cos_sin(300)
    theirs = GptOssRotaryEmbedding(transformers_config(config))(torch.zeros(1), positions[None])
    for ours, one, other in zip((cos, sin), official, theirs, strict=True):
        torch.testing.assert_close(ours, one, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours, other[0], rtol=0, atol=1e-4)


def test_angles_are_exact_at_the_end_of_the_context() -> None:
    """Against 50 decimal digits: right to the last bit or so of float32, where a product in float32 is off by 1e-3."""
    getcontext().prec = 50
    position = GPT_OSS_20B.max_position_embeddings - 1
    cos, sin = angles(GPT_OSS_20B, torch.tensor([position]))
    two_pi = 2 * Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
    turn = Decimal(150_000).ln() / 32
    for component in (0, 3, 7, 20, 31):  # Kept as they are, or slowed by 32.
        frequency = (-turn * component).exp() / (1 if component < 9 else 32)
        rest = float(frequency * position % two_pi)
        assert cos[0, component].item() == pytest.approx(math.cos(rest) * concentration(GPT_OSS_20B), abs=2e-7)
        assert sin[0, component].item() == pytest.approx(math.sin(rest) * concentration(GPT_OSS_20B), abs=2e-7)
    narrow = inverse_frequencies(GPT_OSS_20B).float() * position
    assert (narrow.cos() * concentration(GPT_OSS_20B) - cos[0]).abs().max() > 1e-3


def test_positions_need_no_order() -> None:
    positions = torch.tensor([7, 0, 7, 100_000])
    cos, sin = angles(GPT_OSS_20B, positions)
    assert torch.equal(cos[0], cos[2])
    assert torch.equal(cos[1], torch.full((32,), concentration(GPT_OSS_20B)))
    assert torch.equal(sin[1], torch.zeros(32))
    alone = angles(GPT_OSS_20B, positions[3:])
    assert torch.equal(alone[0][0], cos[3])
