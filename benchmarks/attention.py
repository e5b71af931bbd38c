"""Attention of a training batch, forward and backward: scores in memory against torch's fused kernel.

    python benchmarks/attention.py [--length 200] [--repeat 7]

Both run alternately on the same operands. Prints a table, then one JSON line.
"""

import argparse
import json
import statistics
import time

import torch

from ossia.kernels import torch_ops

NUM_SEQUENCES, NUM_HEADS, NUM_GROUPS, HEAD_DIM = 15, 8, 2, 32


def milliseconds(dtype: torch.dtype, length: int, plain_up_to: int) -> float:
    """Process time of one forward and backward pass."""
    torch_ops.PLAIN_UP_TO_KEYS = plain_up_to
    generator = torch.Generator().manual_seed(0)
    total = NUM_SEQUENCES * length
    q, k, v = (
        torch.randn(total, heads, HEAD_DIM, generator=generator).to(dtype).requires_grad_()
        for heads in (NUM_HEADS, NUM_GROUPS, NUM_GROUPS)
    )
    sinks = torch.zeros(NUM_HEADS, dtype=dtype, requires_grad=True)
    lengths = (length,) * NUM_SEQUENCES
    start = time.process_time()
    torch_ops.attention(q, k, v, sinks, lengths, lengths, None).sum().backward()
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
            times["plain"].append(milliseconds(dtype, args.length, plain_up_to=1 << 30))
            times["fused"].append(milliseconds(dtype, args.length, plain_up_to=0))
        plain, fused = (statistics.median(times[name][1:]) for name in ("plain", "fused"))
        rows.append({"dtype": str(dtype), "plain_ms": plain, "fused_ms": fused, "ratio": fused / plain})
    print(f"{NUM_SEQUENCES} sequences of {args.length}, {NUM_HEADS} heads on {NUM_GROUPS} of {HEAD_DIM}, one thread")
    print(f"{'type':16}{'plain, ms':>12}{'fused, ms':>12}{'fused/plain':>13}")
    for row in rows:
        print(f"{row['dtype']:16}{row['plain_ms']:12.1f}{row['fused_ms']:12.1f}{row['ratio']:13.2f}")
    print(json.dumps({"benchmark": "attention", "length": args.length, "rows": rows}))


if __name__ == "__main__":
    main()
