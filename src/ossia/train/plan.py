"""What a run would take, before it is started: memory, traffic and time of a step, for each way to cut it.

Formulas over the shapes of a model; `tests/train/test_plan.py` holds them against small runs that were measured.
Weights are cut as `train.distributed` cuts them:

    FSDP            every weight over all processes, gathered a layer at a time
    FSDP + EP n     experts over columns of n processes, where they stay; tokens travel to them
    replicas        LoRA: each process holds the packed base, the adapters are cut over all

Bytes are those of one process, traffic what it receives and sends. Symbols: N processes, n processes of a column, T
tokens of a process and micro-batch, L layers, D hidden, I intermediate, E experts, K experts a token, V vocabulary.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ossia.config import ModelConfig
from ossia.errors import ConfigError

Recipe = Literal["full", "lora"]
BF16, FP32 = 2, 4
GB = 1e9
LOGIT_BYTES = 10
"""Of a logit while its chunk is differentiated: bfloat16, float32, and its gradient in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machines:
    """What the run has. The defaults are those of H100 nodes with eight GPUs and 400 Gb/s of network for each."""

    gpus: int
    gpu_memory: float = 80.0
    """GB of each."""
    gpus_per_node: int = 8
    peak: float = 989e12
    """Floating-point operations a second of one, in bfloat16 without sparsity."""
    efficiency: float = 0.4
    """Share of the peak that a layer's products reach."""
    within_node: float = 450e9
    """Bytes a second between GPUs of a node, one way."""
    between_nodes: float = 50e9
    """Bytes a second between nodes, for each GPU, one way."""
    reserve: float = 0.1
    """Share of the memory left to the allocator, the collectives and the driver."""

    def bandwidth(self, processes: int) -> float:
        """Bytes a second of a collective among so many neighbours."""
        return self.within_node if processes <= self.gpus_per_node else self.between_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a step does."""

    recipe: Recipe = "full"
    optimizer: Literal["adamw", "muon"] = "adamw"
    sequence: int = 4096
    """Tokens of a document."""
    micro_batch: int = 4096
    """Tokens of one process at a time."""
    batch: int = 1 << 20
    """Tokens of a step, all processes together; filled up to whole micro-batches."""
    recompute: bool = True
    """Keep only what enters each layer, and compute the layer again in the backward pass."""
    chunk: int = 1024
    """Tokens whose logits exist at a time."""
    rank: int = 8
    """Of the adapters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One way to cut the run, and what it takes."""

    layout: str
    expert_parallel: int
    memory: dict[str, float]
    """Bytes by what holds them."""
    traffic: dict[str, float]
    """Bytes of a step by kind of collective."""
    compute_seconds: float
    traffic_seconds: float
    """Of gathering and scattering, which runs beside the computing."""
    exchange_seconds: float
    """Of tokens that travel, for which the computing waits."""
    micro_batches: int
    step_tokens: int
    fits: bool

    @property
    def total(self) -> float:
        """Bytes in all."""
        return sum(self.memory.values())

    @property
    def seconds(self) -> float:
        """Of a step: what runs side by side counts once."""
        return max(self.compute_seconds, self.traffic_seconds) + self.exchange_seconds

    @property
    def tokens_per_second(self) -> float:
        """Of all processes together."""
        return self.step_tokens / self.seconds


def plans(config: ModelConfig, machines: Machines, work: Work) -> list[Plan]:
    """Every layout, those that fit first and of them the fastest first. Raises ConfigError for impossible numbers."""
    for name, value in (
        ("gpus", machines.gpus),
        ("gpu_memory", machines.gpu_memory),
        ("gpus_per_node", machines.gpus_per_node),
        ("peak", machines.peak),
        ("efficiency", machines.efficiency),
        ("within_node", machines.within_node),
        ("between_nodes", machines.between_nodes),
        ("sequence", work.sequence),
        ("micro_batch", work.micro_batch),
        ("batch", work.batch),
    ):
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}: give a number above 0")
    if work.sequence > config.max_position_embeddings:
        raise ConfigError(f"sequence is {work.sequence}: this model has {config.max_position_embeddings} positions")
    if work.micro_batch < work.sequence:
        raise ConfigError(f"micro_batch is {work.micro_batch}: give at least one sequence, {work.sequence} tokens")
    found = [_plan(config, machines, work, ways) for ways in _cuts(config, machines, work)]
    return sorted(found, key=lambda plan: (not plan.fits, plan.seconds if plan.fits else plan.total))


def _cuts(config: ModelConfig, machines: Machines, work: Work) -> Iterator[int]:
    """Numbers of processes that the experts may be cut among."""
    yield 1
    if work.recipe == "full":
        for ways in range(2, min(machines.gpus, config.num_experts) + 1):
            rows = machines.gpus // ways
            even = config.hidden_size % rows == 0 and 2 * config.intermediate_size % rows == 0 if rows else False
            if machines.gpus % ways == 0 and config.num_experts % ways == 0 and even:
                yield ways


def _plan(config: ModelConfig, machines: Machines, work: Work, ways: int) -> Plan:
    per_micro_step = work.micro_batch * machines.gpus
    micro_batches = -(-work.batch // per_micro_step)
    tokens = micro_batches * work.micro_batch
    memory = memory_of(config, machines.gpus, ways, work)
    traffic = traffic_of(config, machines.gpus, ways, work, micro_batches)
    passes = (3 if work.recipe == "full" else 2) + work.recompute
    flops = passes * tokens * config.flops_per_token(work.sequence // 2)
    everyone = machines.bandwidth(machines.gpus)
    name = "replicas" if work.recipe == "lora" else "FSDP" if ways == 1 else f"FSDP + EP {ways}"
    return Plan(
        layout=name,
        expert_parallel=ways,
        memory=memory,
        traffic=traffic,
        compute_seconds=flops / (machines.peak * machines.efficiency),
        traffic_seconds=(traffic["all-gather"] + traffic["reduce-scatter"]) / everyone,
        exchange_seconds=traffic["all-to-all"] / machines.bandwidth(ways),
        micro_batches=micro_batches,
        step_tokens=micro_batches * per_micro_step,
        fits=sum(memory.values()) <= machines.gpu_memory * GB * (1 - machines.reserve),
    )


# -------------------------------------------------------------------- weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """How many there are of each kind."""

    experts: int
    """Of one layer, biases too."""
    block: int
    """The rest of one layer."""
    embedding: int
    unembedding: int
    norm: int
    layers: int

    @property
    def all(self) -> int:
        """All of the model."""
        return self.layers * (self.experts + self.block) + self.embedding + self.unembedding + self.norm


def parameters_of(config: ModelConfig) -> Parameters:
    """The parameters of a model by what is gathered together."""
    d, i, e = config.hidden_size, config.intermediate_size, config.num_experts
    experts = e * (3 * d * i + 2 * i + d)
    table = config.vocab_size * d
    layers = config.num_hidden_layers
    block = (config.num_parameters() - 2 * table - d) // layers - experts
    return Parameters(experts=experts, block=block, embedding=table, unembedding=table, norm=d, layers=layers)


def adapter_parameters(config: ModelConfig, rank: int) -> int:
    """Parameters of adapters on all projections of attention and experts."""
    d, i = config.hidden_size, config.intermediate_size
    attention = 2 * (d + config.q_dim) + 2 * (d + config.kv_dim)
    experts = config.num_experts * ((d + 2 * i) + (i + d))
    return config.num_hidden_layers * rank * (attention + experts)


def memory_of(config: ModelConfig, processes: int, ways: int, work: Work) -> dict[str, float]:
    """Bytes of one process at the height of a step, by what holds them."""
    counts = parameters_of(config)
    if work.recipe == "lora":
        trained = adapter_parameters(config, work.rank)
        base, gathered = float(config.checkpoint_bytes()), 0.0
    else:
        trained = counts.all
        base = BF16 * trained / processes
        # Two layers, one computed and one fetched, and the gradients of one; the embedding stays for the whole pass.
        layer = counts.block + counts.experts / ways
        gathered = BF16 * (3 * layer + counts.embedding + counts.norm + counts.unembedding) if processes > 1 else 0.0
    held = trained / processes
    moments = 2 * FP32 * held
    if work.optimizer == "muon":
        matrices = counts.layers * (counts.block + counts.experts) if work.recipe == "full" else trained
        moments = FP32 * (2 * trained - matrices) / processes
    return {
        "weights": base,
        "masters": FP32 * held,
        "moments": moments,
        "gradients": (BF16 + FP32) * held,  # As they come, and in float32 for the masters.
        "gathered": gathered,
        "activations": activations_of(config, work),
        "logits": min(work.chunk, work.micro_batch) * config.vocab_size * float(LOGIT_BYTES),
    }


def activations_of(config: ModelConfig, work: Work) -> float:
    """Bytes kept for the backward pass of one micro-batch."""
    layers = config.num_hidden_layers
    inside = layer_activations(config) * work.micro_batch
    entering = BF16 * config.hidden_size * work.micro_batch
    return float(layers * entering + inside if work.recompute else layers * inside)


def layer_activations(config: ModelConfig) -> int:
    """Bytes that one layer keeps of one token for its backward pass, in bfloat16 with torch's kernels."""
    d, i, k = config.hidden_size, config.intermediate_size, config.experts_per_token
    q, kv = config.q_dim, config.kv_dim
    norms = 2 * (FP32 * d + BF16 * d)  # What enters, in float32, and what leaves.
    attention = BF16 * (2 * q + 2 * kv) + FP32 * (q + kv)  # q, k, v and the output; rotations in float32.
    router = config.num_experts * BF16 + k * (8 + BF16)
    experts = BF16 * k * (d + 2 * i + 4 * i + i + 2 * d)  # Sorted rows, gate_up, inside SwiGLU, its result, outputs.
    return norms + attention + router + experts


# -------------------------------------------------------------------- traffic


def traffic_of(
    config: ModelConfig, processes: int, ways: int, work: Work, micro_batches: int, value: int = BF16
) -> dict[str, float]:
    """Bytes that one process receives in a step, by kind of collective. `value` is the bytes of a weight in transit."""
    counts = parameters_of(config)
    if work.recipe == "lora":
        once = FP32 * adapter_parameters(config, work.rank) * _others(processes)
        return {"all-gather": once, "reduce-scatter": once * micro_batches, "all-to-all": 0.0}
    rows = processes // ways
    shared = counts.layers * counts.block * _others(processes)
    if ways == 1:
        shared += counts.layers * counts.experts * _others(processes)
    else:
        shared += counts.layers * counts.experts / ways * _others(rows)
    edges = (counts.embedding + counts.norm) * _others(processes)
    last = counts.unembedding * _others(processes)
    # A layer is gathered for the forward and again for the backward pass; what stays gathered, once.
    gather = value * (2 * shared + edges + 2 * last)
    scatter = value * (shared + edges + last)
    sent = value * work.micro_batch * config.experts_per_token * config.hidden_size * _others(ways)
    exchange = config.num_hidden_layers * sent * (4 + 2 * work.recompute)
    return {
        "all-gather": micro_batches * gather,
        "reduce-scatter": micro_batches * scatter,
        "all-to-all": micro_batches * exchange,
    }


def _others(processes: int) -> float:
    """The share of a whole that is not one's own."""
    return (processes - 1) / processes
