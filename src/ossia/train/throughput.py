"""How much work a run is, and what the machine could do: the two sides of the share that a log calls MFU.

The share (MFU) is the floating-point operations that the mathematics asks for, divided by what the machine could do in
the same time. A multiply-add counts as two. With T tokens, R learnt ones, S the pairs of query and visible key summed
over layers and documents, N active weights outside the embedding and unembedding, D hidden and V vocabulary:

    forward = 2 N T + 2 D V R + 4 (heads x head size) S
    a step  = 3 forward                               each product again for the gradients of both of its operands
    frozen  = 2 (2 N T + 2 D V R) + 3 (attention)     weights without gradients: adapters, which themselves are left out

Active are the experts that are chosen, not those that lie still. What is computed twice to save memory, computed and
masked, or spent on norms and optimisers counts as lost, not as work.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ossia.config import ModelConfig

STATED_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
}
"""Dense bfloat16 operations a second by a part of the GPU's name, from the vendors' data sheets; first match counts."""
_PROBE_SIDE = 1024
_PROBE_SECONDS = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What a machine could do at most."""

    flops_per_s: float
    source: str
    """"measured", or "stated" from `STATED_PEAKS`."""


def peak_of(device: torch.device, dtype: torch.dtype) -> Peak:
    """The stated peak of a known GPU in bfloat16, else the best of products of square matrices, timed now.

    Measuring takes about a third of a second, on as many threads as torch has.
    """
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for part, flops in STATED_PEAKS.items():
            if part in name:
                return Peak(flops_per_s=flops, source="stated")
    return Peak(flops_per_s=_measured(device, dtype), source="measured")


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    a = torch.ones(_PROBE_SIDE, _PROBE_SIDE, dtype=dtype, device=device)
    best, begin = float("inf"), time.perf_counter()
    while time.perf_counter() - begin < _PROBE_SECONDS or best == float("inf"):
        start = time.perf_counter()
        float((a @ a)[0, 0])  # The transfer of one value waits for a device that runs on by itself.
        best = min(best, time.perf_counter() - start)
    return 2 * _PROBE_SIDE**3 / best


def visible_keys(config: ModelConfig, lengths: Sequence[int]) -> int:
    """Pairs of a query and a key it sees, summed over layers and over documents of these lengths."""
    total = 0
    for layer in range(config.num_hidden_layers):
        window = config.window(layer)
        for length in lengths:
            seen = length if window is None else min(length, window)
            total += seen * (seen + 1) // 2 + (length - seen) * seen
    return total


def training_flops(config: ModelConfig, lengths: Sequence[int], num_learnt: int, *, frozen: bool = False) -> int:
    """Floating-point operations of forward and backward over documents of these lengths, end to end.

    num_learnt: tokens whose logits are computed. frozen: only adapters learn, whose own products are left out.
    """
    unembedding = 2 * config.hidden_size * config.vocab_size
    attention = 4 * config.q_dim
    per_token = config.flops_per_token(0) - unembedding - attention * config.num_hidden_layers
    products = sum(lengths) * per_token + num_learnt * unembedding
    return (2 if frozen else 3) * products + 3 * attention * visible_keys(config, lengths)
