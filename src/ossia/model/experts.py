"""The leaves that hold experts: dense, or packed in MXFP4.

Shapes: T tokens, K experts a token, E experts, D hidden, I intermediate.
"""

import torch
from torch import Tensor, nn

from ossia.config import MXFP4_BLOCK, ModelConfig
from ossia.kernels import Kernels


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
