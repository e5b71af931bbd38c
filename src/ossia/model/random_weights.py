"""Random weights of any gpt-oss shape, made one tensor at a time: for benchmarks, capacity planning and tests.

The values are drawn so that activations and logits have a spread of about one, whatever the sizes. Each tensor depends
on the seed and its own name alone, so the order in which tensors are asked for, the layout and the sharding do not matter.
"""

import hashlib
import math
from collections.abc import Iterable

import torch

from ossia.config import ModelConfig
from ossia.errors import CheckpointError
from ossia.kernels.mxfp4 import MAGNITUDES
from ossia.model.layouts import parameter_shapes

_POOL = 16_777_213
"""Values drawn once; tensors are cut out of them. A prime, so that rows of a matrix do not line up with the repeats."""
_BIAS_SPREAD = 0.1
_SINK_SPREAD = 0.5
_NORM_SPREAD = 0.1
_SCALE_BIAS = 127


class RandomWeights:
    """A read-only mapping from parameter name to random tensor, experts in MXFP4."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._config = config
        self._seed = seed
        self._shapes = parameter_shapes(config, packed=True)
        size = min(_POOL, _next_prime_like(self._shapes))
        self._normal = torch.randn(size, generator=generator).bfloat16()
        self._bytes = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
