"""A step of training of the bundled configuration: ours against transformers' `GptOssForCausalLM`, by turns in one run.

    python benchmarks/train.py [--threads 1] [--rounds 6] [--types bfloat16,float32] [--experts grouped_mm,eager]

Both learn the same conversations of the demo's curriculum with AdamW, clipping and a balance loss; a batch has
documents of like length, as padding needs it. Ours is what `ossia train sft` does: packed documents, float32 masters,
experts through the MXFP4 quantiser. Theirs gets the cheapest that works: AdamW on the weights themselves, nothing
quantised, and each way it has to do experts is a contender of its own; its attention is "eager", the only one of its
that trains on a CPU. Tokens are those of the documents, not of the padding. Prints a table, then one JSON line.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import ossia.demo
from ossia.config import PRESETS, ModelConfig
from ossia.harmony.tokenizer import Tokenizer
from ossia.kernels import cpu, select_for_training
from ossia.model.adapt import build, fill
from ossia.train.data import Batch, Document, collate
from ossia.train.data.records import demo_records
from ossia.train.data.rendering import documents
from ossia.train.loss import cross_entropy
from ossia.train.optim import BETAS, EPS, Masters, initial_weights
from ossia.train.routers import RouterWatch

RATE, DECAY, CLIP, BALANCE = 3e-4, 0.01, 1.0, 0.01
IGNORED = -100
"""The label of what is not learnt, in transformers."""

Step = Callable[[Batch], float]
"""Learns a batch; returns its loss, the balance loss aside."""


def batches_of_like_length(tokenizer: Tokenizer, count: int, batch_tokens: int) -> list[Batch]:
    """`count` batches of about so many tokens from as many documents as they hold, sorted together; mixed again."""
    records, chosen, index = demo_records(0, "train"), list[Document](), 0
    while sum(map(len, chosen)) < (count + 1) * batch_tokens:
        chosen += documents(records.read(index), tokenizer)
        index += 1
    batches: list[list[Document]] = [[]]
    for document in sorted(chosen, key=len):
        if sum(map(len, batches[-1])) >= batch_tokens:
            batches.append([])
        batches[-1].append(document)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    return [collate(batches[i]) for i in order]


def ours(config: ModelConfig, dtype: torch.dtype) -> Step:
    """What the loop of `ossia train sft --optimizer adamw` does in a step."""
    model = build(config, select_for_training())
    weights = dict(initial_weights(model, 0))
    fill(model, ((name, weight.clone()) for name, weight in weights.items()), dtype=dtype).requires_grad_()
    masters = Masters.of(model, weights, learning_rate=RATE, weight_decay=DECAY, qat=True)

    def step(batch: Batch) -> float:
        with RouterWatch.of(model) as routers:
            total, told = cross_entropy(model, batch, routers)
            (total / len(batch.targets) + BALANCE * routers.balance() / len(batch.token_ids)).backward()
        masters.collect()
        masters.step(1.0, clip=CLIP)
        return told["loss"] / len(batch.targets)

    return step


def theirs(config: ModelConfig, dtype: torch.dtype, experts: str) -> Step:
    """transformers' model as its users train it; `experts` is one of its implementations of them."""
    from transformers import GptOssConfig, GptOssForCausalLM

    shape = json.loads((Path(ossia.demo.__file__).parent / "config.json").read_text())
    shape = {name: value for name, value in shape.items() if name != "quantization_config"}
    their_config = GptOssConfig(**shape | {"router_aux_loss_coef": BALANCE, "pad_token_id": 0})
    their_config._attn_implementation, their_config._experts_implementation = "eager", experts
    model = GptOssForCausalLM(their_config).to(dtype).train()
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, eps=EPS, weight_decay=DECAY, fused=True)

    def step(batch: Batch) -> float:
        labels_T = torch.full_like(batch.token_ids, IGNORED).index_copy(0, batch.rows + 1, batch.targets)
        padded = (
            nn.utils.rnn.pad_sequence(list(x.split(batch.lengths)), batch_first=True, padding_value=filling)
            for x, filling in ((batch.token_ids, 0), (labels_T, IGNORED), (torch.ones_like(labels_T), 0))
        )
        ids, labels, mask = padded
        out = model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False, output_router_logits=True)
        out.loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(out.loss.detach()) - BALANCE * float(out.aux_loss.detach())

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=6, help="batches that all learn, by turns, after one to warm up")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--types", default="bfloat16,float32", help="comma-separated types of the activations")
    parser.add_argument("--experts", default="grouped_mm,eager", help="comma-separated: what transformers is to use")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if cpu.available():
        cpu.configure(args.threads)
    config = PRESETS["ossia-demo"]
    tokenizer = Tokenizer.load(Path(ossia.demo.__file__).parent)
    batches = batches_of_like_length(tokenizer, args.rounds + 1, args.batch_tokens)

    contenders: dict[str, Step] = {}
    for name in args.types.split(","):
        dtype = getattr(torch, name)
        contenders[f"ossia, {name}"] = ours(config, dtype)
        for experts in args.experts.split(","):
            contenders[f"transformers, {name}, {experts}"] = theirs(config, dtype, experts)

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    losses: dict[str, float] = {}
    for batch in batches:
        for name, step in contenders.items():
            wall, process = time.perf_counter(), time.process_time()
            losses[name] = step(batch)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - process))

    learnt = batches[1:]
    tokens = sum(len(batch.token_ids) for batch in learnt)
    padded = sum(len(batch.lengths) * max(batch.lengths) for batch in learnt)
    print(f"{len(learnt)} batches, {tokens} tokens in documents, {padded} where padded; {args.threads} threads")
    print(f"{'':40}{'tokens/s':>10}{'of process time':>17}{'ours / this':>13}{'last loss':>11}")
    rows = []
    for name in contenders:
        walls, processes = zip(*seconds[name][1:], strict=True)
        mine = seconds[f"ossia, {name.split(', ')[1]}"][1:]
        row = {
            "name": name,
            "tokens_per_second": tokens / sum(walls),
            "tokens_per_process_second": tokens / sum(processes),
            "ratio": statistics.median(other / own for (_, own), other in zip(mine, processes, strict=True)),
            "loss": losses[name],
        }
        rows.append(row)
        print(
            f"{name:40}{row['tokens_per_second']:10.0f}{row['tokens_per_process_second']:17.0f}{row['ratio']:13.2f}"
            f"{row['loss']:11.3f}"
        )
    print(json.dumps({"benchmark": "train", "threads": args.threads, "rows": rows}))


if __name__ == "__main__":
    main()
