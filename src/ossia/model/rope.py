"""Rotary position embeddings, stretched by YaRN (Peng et al. 2023, NTK by parts).

Shapes: T tokens, H head size.
"""

import math

import torch
from torch import Tensor

from ossia.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """[H/2], float64: radians a position, per pair of components.

    Components that turn more than `beta_fast` times within the initial context are kept, those that turn less than
    `beta_slow` times are slowed by the factor, and those between are blended. The two bounds are not rounded.
    """
    half = config.head_dim // 2
    index = torch.arange(half, dtype=torch.float64)
    frequency = config.rope_theta ** (-index / half)
    if config.rope_scaling_factor == 1:
        return frequency

    def index_of(turns: float) -> float:
        """The component that turns this many times within the initial context."""
        return half * math.log(config.initial_context_length / (turns * 2 * math.pi)) / math.log(config.rope_theta)

    low, high = index_of(config.rope_beta_fast), index_of(config.rope_beta_slow)
    slowed = ((index - low) / (high - low)).clamp(0, 1)
    return frequency * (1 - slowed) + frequency / config.rope_scaling_factor * slowed


def concentration(config: ModelConfig) -> float:
    """The factor on cos and sin, so that its square scales the attention scores of a stretched context."""
    return 0.1 * math.log(config.rope_scaling_factor) + 1 if config.rope_scaling_factor > 1 else 1.0


def angles(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T, H/2], of integer positions [T], the concentration included.

    The angles are taken in float64, since at position 131,071 a float32 product is off by some thousandths. Not every
    device has float64, so this is done on the CPU, once for all layers; the result lies where `positions` does.
    """
    angle_TH = positions.to("cpu", torch.float64)[:, None] * inverse_frequencies(config)
    scale = concentration(config)
    cos_TH, sin_TH = angle_TH.cos() * scale, angle_TH.sin() * scale
    return cos_TH.float().to(positions.device), sin_TH.float().to(positions.device)
