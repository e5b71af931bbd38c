"""The unembedding in two stages: bytes a second of each, and how many rows the second one reads.

    python benchmarks/unembedding.py [--rows 201088] [--columns 2880] [--threads 2] [--repeat 15]

Weights and activations are Gaussian. The limit is what the same threads read of the same memory when they do nothing
else, alternately with the ops. Prints a table, then one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import fields
from threading import Thread

import numpy as np
import torch

from ossia.kernels import _native, cpu_unembedding
from ossia.kernels.packed import Split

COUNTS = (1, 5, 50)


def read(parts: list[np.ndarray]) -> None:
    """Every byte once, a part a thread."""
    threads = [Thread(target=np.bitwise_or.reduce, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def median_seconds(bodies: dict[str, Callable[[], object]], repeat: int) -> dict[str, float]:
    """Of each, taken in turns; the first round does not count."""
    times: dict[str, list[float]] = {name: [] for name in bodies}
    for _ in range(repeat + 1):
        for name, body in bodies.items():
            start = time.perf_counter()
            body()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=201_088)
    parser.add_argument("--columns", type=int, default=2_880)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    _native.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    pieces = [
        torch.randn(len(part), args.columns, generator=generator).bfloat16()
        for part in torch.arange(args.rows).split(8192)
    ]
    unpacked = torch.cat(pieces)
    del pieces
    start = time.perf_counter()
    weight = cpu_unembedding.pack_split(unpacked)
    pack_s = time.perf_counter() - start
    del unpacked
    x_TD = torch.randn(8, args.columns, generator=generator)
    x_1D = x_TD[:1].contiguous()
    arrays = [getattr(weight, field.name).numpy() for field in fields(Split)]
    upper = np.empty((1, len(weight.row_scales)), dtype=np.float32)
    coarse_bytes = weight.high.nbytes + weight.multipliers.nbytes
    words = weight.high.numpy().reshape(-1).view(np.uint64)
    parts = np.array_split(words, args.threads)

    def largest(count: int) -> Callable[[], object]:
        return lambda: cpu_unembedding.best_split(x_1D, weight, args.rows, count)

    seconds = median_seconds(
        {
            "limit": lambda: read(parts),
            "coarse": lambda: _native.bounds_split(x_1D.numpy(), *arrays, cpu_unembedding.deviations(1), upper),
            **{f"best {count}": largest(count) for count in COUNTS},
            "logits": lambda: cpu_unembedding.logits_split(x_1D, weight, args.rows),
        },
        args.repeat,
    )
    limit = weight.high.nbytes / seconds.pop("limit")
    bytes_read = {"logits": coarse_bytes + weight.low.nbytes}
    completed = {}
    for count in COUNTS:
        ids = np.empty((len(x_TD), count), dtype=np.int64)
        values, rows_T = ids.astype(np.float32), np.empty(len(x_TD), dtype=np.int64)
        z = cpu_unembedding.deviations(count)
        _native.best_split(x_TD.numpy(), *arrays, args.rows, z, ids, values, rows_T)
        completed[f"best {count}"] = float(rows_T.mean())
    rows = []
    for name, each in seconds.items():
        speed = bytes_read.get(name, coarse_bytes) / each
        rows.append(
            {
                "op": name,
                "ms": 1e3 * each,
                "gbps": speed / 1e9,
                "share": speed / limit,
                "completed": completed.get(name),
            }
        )
    print(f"[{args.rows}, {args.columns}] on {args.threads} threads, packed in {pack_s:.1f} s")
    print(f"memory limit {limit / 1e9:.1f} GB/s")
    print(f"{'one token':12}{'ms':>9}{'GB/s':>9}{'of limit':>10}{'completed':>11}")
    for row in rows:
        rows_text = "" if row["completed"] is None else f"{row['completed']:.0f}"
        print(f"{row['op']:12}{row['ms']:9.2f}{row['gbps']:9.1f}{row['share']:10.2f}{rows_text:>11}")
    print(
        json.dumps(
            {
                "benchmark": "unembedding",
                "threads": args.threads,
                "limit_gbps": limit / 1e9,
                "pack_s": pack_s,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
