"""The planner's formulas against small runs that were measured, and against counts by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.oracles import random_tensors, small
from tests.train import plan_step
from tests.train.processes import run
from torch import Tensor

from ossia.config import GPT_OSS_20B, GPT_OSS_120B, ModelConfig
from ossia.errors import ConfigError
from ossia.kernels import select
from ossia.model.adapt import build, fill
from ossia.model.attention import Packed
from ossia.train.plan import (
    Machines,
    Work,
    activations_of,
    adapter_parameters,
    layer_activations,
    memory_of,
    parameters_of,
    plans,
    traffic_of,
)


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B, small()])
def test_parameters_add_up(config: ModelConfig) -> None:
    assert parameters_of(config).all == config.num_parameters()


@pytest.mark.parametrize(("size", "ways"), [(2, 1), (4, 2)])
def test_traffic_is_what_the_collectives_carry(tmp_path: Path, size: int, ways: int) -> None:
    run(size, "plan_step", "step", tmp_path, EXPERT_PARALLEL=str(ways))
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    work = Work(micro_batch=plan_step.TOKENS, sequence=plan_step.TOKENS, recompute=False)
    expected = traffic_of(plan_step.CONFIG, size, ways, work, micro_batches=1, value=4)
    # A collective's tensor holds one's own share as well, so what comes from others is (n - 1) / n of it, and n is
    # smaller for experts that are cut among columns: the shares are compared by sums over both kinds.
    counts = parameters_of(plan_step.CONFIG)
    own = counts.layers * counts.experts / ways * (size // ways - 1) / (size // ways) if ways > 1 else 0
    for name, times in (("all-gather", 2), ("reduce-scatter", 1)):
        carried = found[0][name]
        experts = 4 * times * counts.layers * counts.experts / ways if ways > 1 else 0
        others = (carried - experts) * (size - 1) / size + 4 * times * own
        assert others == pytest.approx(expected[name], rel=0.02), name
    moved = sum(one["all-to-all"] for one in found)
    tokens = size * plan_step.TOKENS
    sent = 4 * tokens * plan_step.CONFIG.experts_per_token * plan_step.CONFIG.hidden_size
    assert moved == (plan_step.CONFIG.num_hidden_layers * 4 * sent if ways > 1 else 0)
    assert expected["all-to-all"] * size == pytest.approx(moved * (ways - 1) / ways)
    held = sum(one["held"] for one in found)
    assert held == plan_step.CONFIG.num_parameters()
    masters = memory_of(plan_step.CONFIG, size, ways, work)["masters"]
    assert masters == pytest.approx(4 * held / size)


def test_activations_are_what_autograd_keeps() -> None:
    config = replace(small(num_hidden_layers=1), vocab_size=64)
    kernels = select("torch")
    model = fill(build(config, kernels), random_tensors(config).items(), dtype=torch.bfloat16)
    model.requires_grad_(True)
    tokens = 256
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.arange(tokens) % 64
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Documents of 32 tokens: what grows with their square is left to the attention kernel.
        model.hidden(ids, torch.arange(tokens) % 32, Packed(kernels, (32,) * 8))
    assert sum(kept.values()) / tokens == pytest.approx(layer_activations(config), rel=0.2)


def test_recomputation_keeps_what_enters_each_layer() -> None:
    work = Work(micro_batch=1000, sequence=1000)
    config = GPT_OSS_20B
    kept = activations_of(config, work)
    assert kept == 1000 * (24 * 2 * 2880 + layer_activations(config))
    assert kept < activations_of(config, replace(work, recompute=False)) / 10


def test_adapters_of_the_20b() -> None:
    # Attention 2 (2880 + 4096) + 2 (2880 + 512), experts 32 ((2880 + 5760) + (2880 + 2880)), times rank and layers.
    assert adapter_parameters(GPT_OSS_20B, 8) == 24 * 8 * (13952 + 6784 + 32 * 14400)


def test_the_large_model_on_64_gpus() -> None:
    found = plans(GPT_OSS_120B, Machines(gpus=64), Work())
    assert {one.expert_parallel for one in found} == {1, 2, 4, 8, 16, 32, 64}
    assert all(one.fits for one in found)
    assert found[0].seconds == min(one.seconds for one in found)
    # Masters and moments in float32: 12 bytes a parameter over 64.
    memory = found[0].memory
    assert memory["masters"] + memory["moments"] == pytest.approx(12 * GPT_OSS_120B.num_parameters() / 64)


def test_what_does_not_fit_says_so_and_comes_last() -> None:
    found = plans(GPT_OSS_120B, Machines(gpus=8), Work())
    assert not any(one.fits for one in found)
    packed = plans(GPT_OSS_20B, Machines(gpus=1, gpu_memory=24), Work(recipe="lora", sequence=512, micro_batch=512))
    assert [one.layout for one in packed] == ["replicas"]
    assert packed[0].fits


@pytest.mark.parametrize(
    ("machines", "work", "said"),
    [
        (Machines(gpus=0), Work(), "gpus is 0"),
        (Machines(gpus=1), Work(sequence=200_000, micro_batch=200_000), "131072 positions"),
        (Machines(gpus=1), Work(sequence=4096, micro_batch=512), "at least one sequence"),
    ],
)
def test_impossible_numbers_are_refused(machines: Machines, work: Work, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plans(GPT_OSS_20B, machines, work)
