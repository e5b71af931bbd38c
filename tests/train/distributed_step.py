"""What the processes of test_distributed.py do: one forward and backward pass over each one's documents."""

import os
from pathlib import Path

import torch
from tests.model.oracles import random_tensors, small

from ossia.kernels import select
from ossia.model.adapt import build, fill
from ossia.model.attention import Packed
from ossia.train.distributed import World, local, part, shard, whole

CONFIG = small()
DOCUMENTS = [(0, 9), (1, 5), (2, 14), (3, 3)]
"""Seed and length of each."""


def document(seed: int, length: int) -> torch.Tensor:
    """Random tokens."""
    return torch.randint(CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(seed))


def gradients(folder: Path) -> None:
    """Gradients of the summed loss of all documents, each process taking its share of them; the first writes them."""
    torch.set_num_threads(1)
    world = World.from_environment(expert_parallel=int(os.environ.get("EXPERT_PARALLEL", "1")), timeout=60)
    tensors = random_tensors(CONFIG)
    kernels = select("torch")
    model = build(CONFIG, kernels)
    if world.size == 1:
        fill(model, tensors.items(), dtype=torch.float32)
        model.requires_grad_(True)
    else:
        shard(model, world)
        model.to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                local(parameter).copy_(part(tensors[name], parameter))
    mine = [document(*each) for each in DOCUMENTS[world.rank :: world.size]]
    token_ids = torch.cat(mine)
    positions = torch.cat([torch.arange(len(each)) for each in mine])
    x_TD = model.hidden(token_ids, positions, Packed(kernels, tuple(len(each) for each in mine)))
    loss = torch.nn.functional.cross_entropy(model.unembedding(x_TD), token_ids, reduction="sum")
    loss.backward()
    total = world.sum(loss)
    found = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
    held = {name: local(parameter).numel() for name, parameter in model.named_parameters()}
    if world.is_main:
        torch.save({"loss": total, "gradients": found, "held": held}, folder / "found.pt")
    world.barrier()
    world.close()
