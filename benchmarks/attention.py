"""Attention of a training batch, forward and backward: scores in memory against torch's fused kernel.

    python benchmarks/attention.py [--length 200] [--repeat 7]

Both run alternately on the same operands. Prints a table, then one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ossia.kernels import torch_ops

NUM_SEQUENCES, NUM_HEADS, NUM_GROUPS, HEAD_DIM = 15, 8, 2, 32


Softmax = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]


def milliseconds(attend: Softmax, dtype: torch.dtype, length: int) -> float:
    """Process time of one forward and backward pass."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(NUM_SEQUENCES, heads, length, HEAD_DIM, generator=generator).to(dtype).requires_grad_()
        for heads in (NUM_HEADS, NUM_GROUPS, NUM_GROUPS)
    )
    visible = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    start = time.process_time()
    attend(q, k, v, visible, HEAD_DIM**-0.5).sum().backward()
    return 1e3 * (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--length", type=int, default=200, help="tokens of each sequence")
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        times: dict[str, list[float]] = {"plain": [], "fused": []}
        for _ in range(args.repeat + 1):
            times["plain"].append(milliseconds(torch_ops.plain_attention, dtype, args.length))
            times["fused"].append(milliseconds(torch_ops.fused_attention, dtype, args.length))
        plain, fused = (statistics.median(times[name][1:]) for name in ("plain", "fused"))
        rows.append({"dtype": str(dtype), "plain_ms": plain, "fused_ms": fused, "ratio": fused / plain})
    print(f"{NUM_SEQUENCES} sequences of {args.length}, {NUM_HEADS} heads on {NUM_GROUPS} of {HEAD_DIM}, one thread")
    print(f"{'type':16}{'plain, ms':>12}{'fused, ms':>12}{'fused/plain':>13}")
    for row in rows:
        print(f"{row['dtype']:16}{row['plain_ms']:12.1f}{row['fused_ms']:12.1f}{row['ratio']:13.2f}")
    print(json.dumps({"benchmark": "attention", "length": args.length, "rows": rows}))


if __name__ == "__main__":
    main()
