"""The leaves that hold experts: dense, in MXFP4 as published, or in the tiles that the CPU kernels read.

Shapes: T tokens, K experts a token, E experts, D hidden, I intermediate.
"""

import torch
from torch import Tensor, nn

from ossia.config import MXFP4_BLOCK, ModelConfig
from ossia.kernels import Kernels
from ossia.kernels.packed import TILE, Mxfp4


class Experts(nn.Module):
    """What every kind of experts has: two biases, the clamp of its SwiGLU, and `forward(x, ids, weights)`."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.limit = config.swiglu_limit
        self.gate_up_bias = nn.Parameter(torch.empty(config.num_experts, 2 * config.intermediate_size))
        self.down_bias = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """x [T, D], expert_ids int64 [T, K], expert_weights [T, K] → [T, D]."""
        raise NotImplementedError


class DenseExperts(Experts):
    """gate_up [E, 2I, D] (gate rows even, linear rows odd) and down [E, D, I] in a floating type."""

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__(config, kernels)
        e, d, i = config.num_experts, config.hidden_size, config.intermediate_size
        self.gate_up = nn.Parameter(torch.empty(e, 2 * i, d))
        self.down = nn.Parameter(torch.empty(e, d, i))

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """See `Experts`."""
        return self.kernels.experts(
            x, self.gate_up, self.gate_up_bias, self.down, self.down_bias, expert_ids, expert_weights, self.limit
        )


class Mxfp4Experts(Experts):
    """Experts as published: four-bit codes and a scale byte per 32 of them. Frozen; the biases may train."""

    gate_up_blocks: Tensor
    gate_up_scales: Tensor
    down_blocks: Tensor
    down_scales: Tensor

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__(config, kernels)
        e, d, i = config.num_experts, config.hidden_size, config.intermediate_size
        for name, rows, columns in (("gate_up", 2 * i, d), ("down", d, i)):
            num_blocks = columns // MXFP4_BLOCK
            self.register_buffer(
                f"{name}_blocks", torch.empty(e, rows, num_blocks, MXFP4_BLOCK // 2, dtype=torch.uint8)
            )
            self.register_buffer(f"{name}_scales", torch.empty(e, rows, num_blocks, dtype=torch.uint8))

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """See `Experts`."""
        return self.kernels.experts_mxfp4(
            x,
            self.gate_up_blocks,
            self.gate_up_scales,
            self.gate_up_bias,
            self.down_blocks,
            self.down_scales,
            self.down_bias,
            expert_ids,
            expert_weights,
            self.limit,
        )


class PackedExperts(Experts):
    """Experts in MXFP4 tiles, the rows of gate_up and its bias in the order of `packed.gate_up_order`.

    exact: do not round activations to 8 bits, which is slower.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels, *, exact: bool = False) -> None:
        super().__init__(config, kernels)
        self.exact = exact
        e, d, i = config.num_experts, config.hidden_size, config.intermediate_size
        self.gate_up = _empty_mxfp4(e, 2 * i, d)
        self.down = _empty_mxfp4(e, d, i)

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """See `Experts`."""
        op = self.kernels.experts_exact if self.exact else self.kernels.experts_packed
        return op(x, self.gate_up, self.gate_up_bias, self.down, self.down_bias, expert_ids, expert_weights, self.limit)


def _empty_mxfp4(experts: int, rows: int, columns: int) -> Mxfp4:
    shape = (experts, rows // TILE, columns // MXFP4_BLOCK)
    return Mxfp4(
        codes=torch.empty(*shape, TILE * MXFP4_BLOCK // 2, dtype=torch.uint8),
        scales=torch.empty(*shape, TILE, dtype=torch.uint8),
    )
