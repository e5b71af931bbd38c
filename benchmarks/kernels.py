"""The native ops on packed weights: how near they come to the two limits of the machine.

    python benchmarks/kernels.py [--isa avx512,avx2] [--threads 1,2] [--op experts,linear_q8] [--repeat 5]

Shapes are those of gpt-oss-20b. For one token reading is all, so bytes of weights a second are compared with what
memory gives; for many the multiply-adds with what the 8-bit dot product gives. For one token a round passes over more
weights than the caches hold. Best of the rounds. Prints a table, then one JSON line.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from ossia.kernels import _native, cpu_packed
from ossia.kernels.packed import Q8, Bf16, Mxfp4

HIDDEN, INTERMEDIATE, NUM_EXPERTS, NUM_ACTIVE = 2880, 2880, 32, 4
EXPERT_BYTES = 3 * HIDDEN * INTERMEDIATE * 17 // 32
LIMIT_BYTES = 1 << 29
NUM_MATRICES = 6
"""Dense matrices that take turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One op on one shape; `run` does a whole round of it."""

    op: str
    shape: str
    run: Callable[[], object]
    num_bytes: int
    """Of weights that a round reads."""
    num_macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    op: str
    shape: str
    isa: str
    threads: int
    ms: float
    gb_per_s: float
    read_share: float
    gmac_per_s: float
    mac_share: float


def random_bytes(*shape: int, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, shape, dtype=torch.uint8)


def experts_cases() -> list[Case]:
    d, i, e = HIDDEN, INTERMEDIATE, NUM_EXPERTS
    gate_up = Mxfp4(
        codes=random_bytes(e, 2 * i // 16, d // 32, 256),
        scales=random_bytes(e, 2 * i // 16, d // 32, 16, low=116, high=124),
    )
    down = Mxfp4(
        codes=random_bytes(e, d // 16, i // 32, 256), scales=random_bytes(e, d // 16, i // 32, 16, low=116, high=124)
    )
    biases = torch.randn(e, 2 * i), torch.randn(e, d)

    def case(tokens: int) -> Case:
        rounds = e // NUM_ACTIVE if tokens == 1 else 1
        x, weights = torch.randn(tokens, d), torch.rand(tokens, NUM_ACTIVE)
        # Every expert as often as every other.
        ids = torch.arange(rounds * tokens * NUM_ACTIVE).view(rounds, tokens, NUM_ACTIVE) % e

        def run() -> None:
            for ids_TK in ids:
                cpu_packed.experts_packed(x, gate_up, biases[0], down, biases[1], ids_TK, weights, 7.0)

        num_slots = rounds * tokens * NUM_ACTIVE
        return Case(
            op="experts",
            shape=f"{tokens} tokens, {tokens * NUM_ACTIVE / e:g} an expert",
            run=run,
            num_bytes=min(num_slots, e) * EXPERT_BYTES,
            num_macs=num_slots * 3 * d * i,
        )

    return [case(tokens) for tokens in (1, 8, 32, 128, 512)]


def q8_cases() -> list[Case]:
    rows, columns = 5120, HIDDEN
    weights = [
        Q8(
            codes=random_bytes(rows // 16, columns // 32, 512),
            multipliers=random_bytes(rows // 16, columns // 32, 16),
            row_scales=torch.rand(rows),
        )
        for _ in range(NUM_MATRICES)
    ]
    num_bytes = rows * columns * 33 // 32
    return [
        _linear(
            "linear_q8",
            tokens,
            rows,
            num_bytes,
            [lambda x, w=w: cpu_packed.linear_q8(x, w, None, rows) for w in weights],
        )
        for tokens in (1, 4, 16, 64, 512)
    ]


def bf16_cases() -> list[Case]:
    rows, columns = 5120, HIDDEN
    weights = [Bf16(weight=torch.randn(rows // 16, columns, 16).bfloat16()) for _ in range(NUM_MATRICES)]
    calls = [lambda x, w=w: cpu_packed.linear_bf16(x, w, None, rows) for w in weights]
    return [_linear("linear_bf16", tokens, rows, 2 * rows * columns, calls) for tokens in (1, 64)]


def _linear(op: str, tokens: int, rows: int, num_bytes: int, calls: list[Callable[[Tensor], Tensor]]) -> Case:
    x = torch.randn(tokens, HIDDEN)
    used = calls if tokens == 1 else calls[:1]

    def run() -> None:
        for call in used:
            call(x)

    return Case(
        op=op,
        shape=f"{tokens} tokens, {rows} x {HIDDEN}",
        run=run,
        num_bytes=len(used) * num_bytes,
        num_macs=len(used) * tokens * rows * HIDDEN,
    )


def small_cases() -> list[Case]:
    """Ops that hardly matter, to see that they do not."""
    x, scale = torch.randn(1, HIDDEN), torch.randn(HIDDEN)
    q, cos, sin = torch.randn(1, 64, 64), torch.randn(1, 32), torch.randn(1, 32)
    return [
        Case(
            op="small",
            shape=f"rms_norm, 1 x {HIDDEN}",
            run=lambda: cpu_packed.rms_norm(x, scale, 1e-5),
            num_bytes=4 * HIDDEN,
            num_macs=HIDDEN,
        ),
        Case(
            op="small",
            shape="rope, 1 x 64 x 64",
            run=lambda: cpu_packed.rope(q, cos, sin),
            num_bytes=0,
            num_macs=64 * 64,
        ),
    ]


CASES = {"experts": experts_cases, "linear_q8": q8_cases, "linear_bf16": bf16_cases, "small": small_cases}


def seconds(run: Callable[[], object], repeat: int) -> float:
    """Of one round: the best, after one to warm up."""
    run()
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", default=_native.best_isa(), help="comma-separated: avx512, avx2, plain")
    parser.add_argument("--threads", default=str(_native.num_threads()), help="comma-separated numbers")
    parser.add_argument("--op", default=",".join(CASES), help=f"comma-separated: {', '.join(CASES)}")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    limits = {int(n): _native.measure_limits(int(n), LIMIT_BYTES) for n in args.threads.split(",")}
    for threads, (read, macs) in limits.items():
        print(f"{threads} threads: memory reads {read / 1e9:.1f} GB/s, dot products {macs / 1e9:.0f} G multiply-adds/s")
    print(f"{'op':12} {'shape':28} {'isa':7} {'thr':>3} {'ms':>9} {'GB/s':>7} {'share':>6} {'GMAC/s':>7} {'share':>6}")
    results: list[Result] = []
    for op in args.op.split(","):
        for case in CASES[op]():
            for isa in args.isa.split(","):
                for threads, (read, macs) in limits.items():
                    _native.set_isa(isa)
                    _native.set_num_threads(threads)
                    time_s = seconds(case.run, args.repeat)
                    bytes_per_s, macs_per_s = case.num_bytes / time_s, case.num_macs / time_s
                    result = Result(
                        op=case.op,
                        shape=case.shape,
                        isa=isa,
                        threads=threads,
                        ms=1e3 * time_s,
                        gb_per_s=bytes_per_s / 1e9,
                        read_share=bytes_per_s / read,
                        gmac_per_s=macs_per_s / 1e9,
                        mac_share=macs_per_s / macs,
                    )
                    results.append(result)
                    print(
                        f"{result.op:12} {result.shape:28} {isa:7} {threads:3} {result.ms:9.3f} {result.gb_per_s:7.2f} "
                        f"{result.read_share:6.2f} {result.gmac_per_s:7.1f} {result.mac_share:6.2f}"
                    )
    rows = [asdict(result) for result in results]
    print(json.dumps({"benchmark": "kernels", "limits": limits, "rows": rows}))


if __name__ == "__main__":
    main()
