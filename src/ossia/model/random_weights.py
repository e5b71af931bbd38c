"""Random weights of any gpt-oss shape, made one tensor at a time: for benchmarks, capacity planning and tests.

The values are drawn so that activations and logits have a spread of about one, whatever the sizes. Each tensor depends
on the seed and its own name alone: the order of asking, the layout and the sharding do not matter.
"""

import hashlib
import math
from collections.abc import Iterable

import torch

from ossia.config import ModelConfig
from ossia.errors import CheckpointError
from ossia.kernels.mxfp4 import MAGNITUDES
from ossia.model.layouts import parameter_shapes

_POOL = 4_194_301
"""Values drawn once; tensors are cut out of them. A prime, so that rows of a matrix do not line up with the repeats."""
_BIAS_SPREAD = 0.1
_SINK_SPREAD = 0.5
_NORM_SPREAD = 0.1
_SCALE_BIAS = 127
_CODE_RMS = math.sqrt(sum(magnitude**2 for magnitude in MAGNITUDES) / len(MAGNITUDES))


class RandomWeights:
    """A read-only mapping from parameter name to random tensor: experts in MXFP4, the rest in BF16."""

    def __init__(self, config: ModelConfig, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._seed = seed
        self._shapes = parameter_shapes(config, packed=True)
        self._fan_in = {"gate_up": config.hidden_size, "down": config.intermediate_size}
        self._normal = torch.randn(_POOL, generator=generator).bfloat16()
        self._bytes = torch.randint(0, 256, (_POOL,), generator=generator, dtype=torch.uint8)

    def keys(self) -> Iterable[str]:
        """The names of all parameters."""
        return self._shapes.keys()

    def __getitem__(self, name: str) -> torch.Tensor:
        """The parameter `name`. Raises CheckpointError if the architecture has none of that name."""
        if name not in self._shapes:
            raise CheckpointError(f"the architecture has no parameter {name}")
        shape = self._shapes[name]
        if name.endswith("_blocks"):
            return self._cut(self._bytes, name, shape)
        if name.endswith("_scales"):
            fan_in = self._fan_in["gate_up" if "gate_up" in name else "down"]
            return _scale_bytes(self._cut(self._bytes, name, shape), 1 / math.sqrt(fan_in))
        values = self._cut(self._normal, name, shape)
        if name.endswith("norm.scale"):
            return values.mul_(_NORM_SPREAD).add_(1)
        if name.endswith(".sinks"):
            return values.mul_(_SINK_SPREAD)
        if name.endswith(("bias", "_bias")):
            return values.mul_(_BIAS_SPREAD)
        if name == "embedding.weight":
            return values
        return values.mul_(1 / math.sqrt(shape[-1]))

    def _cut(self, pool: torch.Tensor, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A copy of as many values as `shape` has, from a place in `pool` that seed and name fix, going round."""
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        begin = int.from_bytes(digest[:8], "little") % _POOL
        out = torch.empty(math.prod(shape), dtype=pool.dtype)
        filled = 0
        while filled < out.numel():
            count = min(_POOL - begin, out.numel() - filled)
            out[filled : filled + count] = pool[begin : begin + count]
            filled, begin = filled + count, 0
        return out.view(shape)


def _scale_bytes(random: torch.Tensor, spread: float) -> torch.Tensor:
    """Scale bytes under which uniformly random codes have the root mean square `spread`.

    A power of two rarely hits it, so each block takes the one above or the one below, by chance, in due proportion.
    """
    wanted = spread / _CODE_RMS
    above = math.ceil(math.log2(wanted))
    share_above = (wanted**2 - 4.0 ** (above - 1)) / (4.0**above - 4.0 ** (above - 1))
    return (random < round(256 * share_above)).to(torch.uint8) + (above - 1 + _SCALE_BIAS)
