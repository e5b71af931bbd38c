"""One step of LoRA on a model of published size: memory, seconds, and how near to the arithmetic limit.

    python benchmarks/lora_20b.py --model FOLDER [--tokens 512] [--rank 8] [--steps 2] [--threads 2]

FOLDER holds a checkpoint with experts in MXFP4; random weights do (`ossia init`). Adapters stand beside all projections
of attention and all experts, which stay packed; the embedding stays in its file. The activations of each layer are made
again in the backward pass, logits a few rows at a time. The first step, in which the weights are read from disk, is
shown apart.

Needed are the multiply-adds of the frozen products alone, forward once and backward once, and those of attention; what
is done again to save memory is counted apart. The limit is what the same threads multiply and add in float32 when they
do nothing else. Peak memory is all that was ever resident, mapped files included. Prints a table, then one JSON line.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch

from ossia import llm
from ossia.config import ModelConfig
from ossia.kernels import cpu
from ossia.model.adapt import add_lora
from ossia.model.memory import keep_no_freed_memory
from ossia.train.data import Batch
from ossia.train.loop import recompute
from ossia.train.loss import cross_entropy
from ossia.train.optim import Masters
from ossia.train.routers import RouterWatch
from ossia.train.throughput import visible_keys

LIMIT_BYTES = 1 << 28
FLOATS_OF_BYTES = 4
"""8-bit products a second for each one in float32: lanes are four times as wide."""


def random_batch(config: ModelConfig, num_tokens: int, seed: int) -> Batch:
    """One document, each token of which is learnt but the first."""
    generator = torch.Generator().manual_seed(seed)
    ids_T = torch.randint(config.vocab_size, (num_tokens + 1,), generator=generator)
    places_T = torch.arange(num_tokens)
    return Batch(token_ids=ids_T[:-1], positions=places_T, lengths=(num_tokens,), rows=places_T, targets=ids_T[1:])


def multiply_adds(config: ModelConfig, num_tokens: int) -> tuple[int, int]:
    """Of one step: what is needed, and what is done."""
    c = config
    attention = 2 * c.hidden_size * (c.q_dim + c.kv_dim)
    experts = 3 * c.experts_per_token * c.hidden_size * c.intermediate_size
    layers = num_tokens * c.num_hidden_layers * (attention + experts + c.hidden_size * c.num_experts)
    unembedding = num_tokens * c.hidden_size * c.vocab_size
    scores = 2 * c.q_dim * visible_keys(c, (num_tokens,))
    forward = layers + unembedding + scores
    return 2 * (layers + unembedding) + 3 * scores, 2 * (layers + unembedding) + 3 * scores + forward


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=2, help="after the first")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    keep_no_freed_memory()
    loaded = llm.load(args.model, dense="bf16", threads=args.threads, context=args.tokens, report=print)
    model, config = loaded.model, loaded.config
    add_lora(model, rank=args.rank, alpha=2 * args.rank)
    recompute(model)
    masters = Masters.of(model, dict(model.named_parameters()), learning_rate=1e-4, stored=torch.float32)
    num_trained = sum(parameter.numel() for parameter in masters.parameters.values())
    limit = cpu.machine_limits(args.threads, LIMIT_BYTES)[1] / FLOATS_OF_BYTES
    after_loading = peak_bytes()

    def step(seed: int) -> dict[str, float]:
        batch = random_batch(config, args.tokens, seed)
        start, cpu_start = time.perf_counter(), time.process_time()
        with RouterWatch.of(model) as routers:
            loss, _ = cross_entropy(model, batch, routers)
            forward_s = time.perf_counter() - start
            (loss / args.tokens).backward()
        backward_s = time.perf_counter() - start - forward_s
        norm = masters.step(1.0).gradient_norm
        seconds = time.perf_counter() - start
        assert math.isfinite(norm)
        return {
            "forward_s": forward_s,
            "backward_s": backward_s,
            "step_s": seconds,
            "cpu_s": time.process_time() - cpu_start,
            "loss": loss.item() / args.tokens,
        }

    steps = [step(seed) for seed in range(1 + args.steps)]
    peak = peak_bytes()
    needed, done = multiply_adds(config, args.tokens)
    best = min(each["step_s"] for each in steps[1:] or steps)
    print(f"{num_trained:,} adapter parameters of rank {args.rank}; {args.tokens} tokens; {args.threads} threads")
    print(f"{'step':>5}{'forward s':>11}{'backward s':>12}{'all s':>8}{'CPU s':>8}{'loss':>9}")
    for index, each in enumerate(steps):
        print(
            f"{index:5}{each['forward_s']:11.1f}{each['backward_s']:12.1f}{each['step_s']:8.1f}{each['cpu_s']:8.1f}{each['loss']:9.3f}"
        )
    print(f"limit {limit / 1e9:.1f} G multiply-adds/s; needed {needed / 1e12:.2f} T, done {done / 1e12:.2f} T")
    print(f"share of the limit: needed {needed / best / limit:.2f}, done {done / best / limit:.2f}")
    print(f"peak resident {peak / 1e9:.2f} GB ({peak / 2**30:.2f} GiB), after loading {after_loading / 1e9:.2f} GB")
    print(
        json.dumps(
            {
                "benchmark": "lora_20b",
                "tokens": args.tokens,
                "rank": args.rank,
                "threads": args.threads,
                "parameters": num_trained,
                "steps": steps,
                "limit_macs_per_s": limit,
                "needed_macs": needed,
                "done_macs": done,
                "share_needed": needed / best / limit,
                "share_done": done / best / limit,
                "peak_bytes": peak,
                "loaded_bytes": after_loading,
            }
        )
    )


if __name__ == "__main__":
    main()
