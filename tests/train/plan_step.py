"""What the processes of test_plan.py do: one step of a small model, counting the bytes that travel and those held."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tests.model.oracles import random_tensors, small

from ossia.kernels import select
from ossia.model.adapt import build
from ossia.model.attention import Packed
from ossia.train.distributed import World, local, part, shard

CONFIG = small(vocab_size=320)
TOKENS = 24


def counting(name: str, counts: dict[str, int], measure: Any) -> Any:
    """A collective of torch.distributed that also notes what it moves."""
    collective = getattr(dist, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts[name] = counts.get(name, 0) + measure(args, kwargs)
        return collective(*args, **kwargs)

    return counted


def size_of(index: int, name: str) -> Any:
    """Bytes of one operand of a collective, given by place or by name."""

    def measured(args: Any, kwargs: Any) -> int:
        tensor = kwargs[name] if name in kwargs else args[index]
        return tensor.numel() * tensor.element_size() if tensor.is_floating_point() else 0

    return measured


def step(folder: Path) -> None:
    """Forward and backward; each process writes what it counted."""
    torch.set_num_threads(1)
    world = World.from_environment(expert_parallel=int(os.environ["EXPERT_PARALLEL"]), timeout=60)
    tensors = random_tensors(CONFIG)
    kernels = select("torch")
    model = build(CONFIG, kernels)
    shard(model, world)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local(parameter).copy_(part(tensors[name], parameter))
    counts: dict[str, int] = {}
    gathers = ("all_gather_into_tensor", "all_gather_single")
    scatters = ("reduce_scatter_tensor", "reduce_scatter_single")
    for name, measure in (
        *((name, size_of(0, "output_tensor")) for name in gathers),
        *((name, size_of(1, "input")) for name in scatters),
        ("all_to_all_single", size_of(1, "input")),
    ):
        if name in vars(dist):
            setattr(dist, name, counting(name, counts, measure))
    token_ids = torch.arange(TOKENS) + world.rank
    x_TD = model.hidden(token_ids, torch.arange(TOKENS), Packed(kernels, (TOKENS,)))
    torch.nn.functional.cross_entropy(model.unembedding(x_TD), token_ids).backward()
    held = sum(local(parameter).numel() for parameter in model.parameters())
    found = {
        "all-gather": sum(counts.get(name, 0) for name in gathers),
        "reduce-scatter": sum(counts.get(name, 0) for name in scatters),
        "all-to-all": counts.get("all_to_all_single", 0),
        "held": held,
    }
    (folder / f"{world.rank}.json").write_text(json.dumps(found))
    world.barrier()
    world.close()
