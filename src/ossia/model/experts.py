"""The leaves that hold experts: dense, in MXFP4 as published, or in the tiles that the CPU kernels read.

Shapes: T tokens, K experts a token, S slots sorted by expert, E experts, D hidden, I intermediate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossia.config import MXFP4_BLOCK, ModelConfig
from ossia.errors import KernelError
from ossia.kernels import Kernels, cpu, mxfp4, torch_packed
from ossia.kernels.mixture import differentiated, mixture, of_each_row, swiglu
from ossia.kernels.packed import TILE, Mxfp4
from ossia.model import products
from ossia.model.linear import NO_GRADIENT


class Experts(nn.Module):
    """What every kind of experts has: two biases, the clamp of its SwiGLU, and `forward(x, ids, weights)`.

    `gate_up_product`, `swiglu` and `down_product` are the same step by step, on rows sorted by expert: where something
    is to happen between them, as with adapters.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels) -> None:
        super().__init__()
        self.kernels = kernels
        self.limit = config.swiglu_limit
        self.num_experts = config.num_experts
        self.gate_up_bias = nn.Parameter(torch.empty(config.num_experts, 2 * config.intermediate_size))
        self.down_bias = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """x [T, D], expert_ids int64 [T, K], expert_weights [T, K] → [T, D]."""
        raise NotImplementedError

    def gate_up_product(self, x: Tensor, offsets: Tensor) -> Tensor:
        """x [S, D] by expert (offsets int64 [E + 1], see `ops.GroupedMxfp4`) → [S, 2I], with biases."""
        raise NotImplementedError

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """What `gate_up_product` returns → [S, I]."""
        return swiglu(gate_up, self.limit, 1)

    def down_product(self, hidden: Tensor, offsets: Tensor) -> Tensor:
        """hidden [S, I] by expert → [S, D], with biases."""
        raise NotImplementedError

    def in_own_order(self, rows: Tensor) -> Tensor:
        """rows [E, 2I, ...] of gate_up as published, in the order that `gate_up_product` returns them in."""
        return rows

    def by_product(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """As `forward`, step by step."""
        return mixture(
            x, self.gate_up_product, self.swiglu, self.down_product, expert_ids, expert_weights, self.num_experts
        )


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

    def gate_up_product(self, x: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        return _grouped_dense(x, self.gate_up, self.gate_up_bias, offsets)

    def down_product(self, hidden: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        return _grouped_dense(hidden, self.down, self.down_bias, offsets)


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

    def gate_up_product(self, x: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        return self._product(x, self.gate_up_blocks, self.gate_up_scales, self.gate_up_bias, offsets)

    def down_product(self, hidden: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        return self._product(hidden, self.down_blocks, self.down_scales, self.down_bias, offsets)

    def _product(self, x: Tensor, blocks: Tensor, scales: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
        dequantize = cpu.dequantize if self.kernels.native else mxfp4.dequantize
        return torch_packed.grouped_blocks(x, blocks, scales, offsets, dequantize) + of_each_row(bias, offsets)


class PackedExperts(Experts):
    """Experts in MXFP4 tiles, the rows of gate_up and its bias in the order of `packed.gate_up_order`.

    exact: do not round activations to 8 bits, which is slower. The products one by one never do.
    """

    def __init__(self, config: ModelConfig, kernels: Kernels, *, exact: bool = False) -> None:
        super().__init__(config, kernels)
        self.exact = exact
        e, d, i = config.num_experts, config.hidden_size, config.intermediate_size
        self.gate_up = _empty_mxfp4(e, 2 * i, d)
        self.down = _empty_mxfp4(e, d, i)

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """See `Experts`. Raises KernelError where a gradient is asked for and these are not exact."""
        if differentiated(x, expert_weights, self.gate_up_bias, self.down_bias):
            if not self.exact:
                raise KernelError(NO_GRADIENT)
            return self.by_product(x, expert_ids, expert_weights)
        op = self.kernels.experts_exact if self.exact else self.kernels.experts_packed
        return op(x, self.gate_up, self.gate_up_bias, self.down, self.down_bias, expert_ids, expert_weights, self.limit)

    def gate_up_product(self, x: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        return products.grouped_mxfp4(self.kernels, x, self.gate_up, self.gate_up_bias, offsets)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """See `Experts`."""
        return swiglu(gate_up, self.limit, TILE)

    def down_product(self, hidden: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        return products.grouped_mxfp4(self.kernels, hidden, self.down, self.down_bias, offsets)

    def in_own_order(self, rows: Tensor) -> Tensor:
        """See `Experts`, and `packed.gate_up_order`."""
        return rows.unflatten(1, (-1, TILE, 2)).transpose(2, 3).flatten(1, 3)


def _grouped_dense(x: Tensor, weight: Tensor, bias: Tensor, offsets: Tensor) -> Tensor:
    """x [S, C] by expert, weight [E, R, C], bias [E, R] → [S, R]."""
    each = zip(x.split(offsets.diff().tolist()), weight.unbind(), bias.unbind(), strict=True)
    return torch.cat([F.linear(*one) for one in each])


def _empty_mxfp4(experts: int, rows: int, columns: int) -> Mxfp4:
    shape = (experts, rows // TILE, columns // MXFP4_BLOCK)
    return Mxfp4(
        codes=torch.empty(*shape, TILE * MXFP4_BLOCK // 2, dtype=torch.uint8),
        scales=torch.empty(*shape, TILE, dtype=torch.uint8),
    )
