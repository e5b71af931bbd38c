"""How fast a model reads and answers on this machine, beside what the machine allows.

Decoding is bound by bytes: each token reads the weights it passes through and the keys and values before it. Reading a
prompt is bound by multiply-adds. Both limits are measured in the same run, so that a speed can be told as a share of
what is possible here and now.
"""

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.engine import loop
from ossia.engine.request import Sampling
from ossia.engine.sampler import Sampler
from ossia.errors import RequestError, StorageError
from ossia.kernels import cpu
from ossia.llm import LLM
from ossia.model.adapt import tensors_of
from ossia.model.checkpoint import Checkpoint
from ossia.model.layouts import parameter_shapes
from ossia.model.mapping import MappedFile
from ossia.model.memory import available_memory, kv_bytes_read
from ossia.model.random_weights import RandomWeights
from ossia.model.safetensors_header import TensorSpec
from ossia.model.transformer import Transformer

SHORT_PROMPT = 64
"""Tokens of the prompt whose first answer token is timed: about a short question in its frame."""
_PROBE_BYTES = 2**30
"""Memory that is read to learn how fast that goes; less where a quarter of what is free is less."""

Progress = Callable[[str], None]


# -------------------------------------------------------------------- results


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What this machine can do at most, on as many threads as the model had."""

    read_bytes_per_s: float
    int8_macs_per_s: float
    """8-bit multiply-adds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """What was measured behind `depth` tokens of cache; empty where it was not asked for."""

    depth: int
    prefill_tps: tuple[float, ...]
    """Tokens a second of a prompt, one figure a repeat."""
    decode_tps: tuple[float, ...]
    bytes_per_token: int
    """Read to decode one."""
    macs_per_token: int
    """Multiply-adds for one of the prompt."""

    def to_json(self, limits: Limits | None) -> dict[str, Any]:
        """Medians, all figures, and the shares of the limits that the medians reach."""
        prefill = median(self.prefill_tps) if self.prefill_tps else None
        decode = median(self.decode_tps) if self.decode_tps else None
        return {
            "prefill_tps": prefill,
            "prefill_all": list(self.prefill_tps),
            "decode_tps": decode,
            "decode_all": list(self.decode_tps),
            "bytes_per_token": self.bytes_per_token,
            "macs_per_token": self.macs_per_token,
            "prefill_fraction": limits and prefill and prefill * self.macs_per_token / limits.int8_macs_per_s,
            "decode_fraction": limits and decode and decode * self.bytes_per_token / limits.read_bytes_per_s,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run of the benchmark; made by `measure`."""

    model: str
    kernels: dict[str, str]
    """Op → implementation."""
    threads: int
    context: int
    cache_type: str
    prompt: int
    generate: int
    load_s: float
    first_token_s: float
    peak_rss_bytes: int
    speeds: tuple[Speeds, ...] = field(repr=False)
    """One a depth."""
    limits: Limits | None
    """None where the native kernels, which measure them, were not built."""

    def to_json(self) -> dict[str, Any]:
        """One object: what was measured at depth 0 beside the rest, the other depths under `depths`.

        Speeds in tokens, bytes and multiply-adds a second; null for what was not measured.
        """
        by_depth = {each.depth: each.to_json(self.limits) for each in self.speeds}
        nothing = dict.fromkeys(next(iter(by_depth.values())))
        return {
            "model": self.model,
            "kernels": self.kernels,
            "threads": self.threads,
            "context": self.context,
            "cache_type": self.cache_type,
            "prompt": self.prompt,
            "generate": self.generate,
            "load_s": self.load_s,
            "first_token_s": self.first_token_s,
            "peak_rss_bytes": self.peak_rss_bytes,
            "read_limit_bytes_per_s": self.limits and self.limits.read_bytes_per_s,
            "int8_limit_macs_per_s": self.limits and self.limits.int8_macs_per_s,
            **by_depth.pop(0, nothing),
            "depths": {str(depth): speeds for depth, speeds in by_depth.items()},
        }


# -------------------------------------------------------------------- measuring


def measure(
    llm: LLM,
    *,
    name: str,
    load_s: float,
    first_token_s: float,
    prompt: int = 512,
    generate: int = 48,
    depths: Sequence[int] = (0,),
    repeat: int = 3,
    threads: int | None = None,
    progress: Progress = lambda _: None,
) -> Report:
    """Time `prompt` tokens read and `generate` decoded behind each of `depths`, `repeat` times; 0 leaves one out.

    name, load_s and first_token_s are what the report is to say of the loading; `threads` are those the model was
    loaded with; `progress` is told what is measured next. Raises RequestError where depth and tokens together exceed
    the context.
    """
    check_depths(depths, prompt=prompt, generate=generate, context=llm.context)
    speeds: list[Speeds] = []
    for depth in depths:
        read: list[float] = []
        decoded: list[float] = []
        for seed in range(repeat):
            progress(f"depth {depth:,}, run {seed + 1} of {repeat}")
            if prompt:
                read.append(prompt / timed_prefill(llm, prompt, depth=depth, seed=seed))
            if generate:
                decoded.append(generate / timed_decode(llm, generate, depth=depth, seed=seed))
        speeds.append(
            Speeds(
                depth=depth,
                prefill_tps=tuple(read),
                decode_tps=tuple(decoded),
                bytes_per_token=weight_bytes_read(llm.model) + kv_bytes_read(llm.config, depth, llm.cache_type),
                macs_per_token=prefill_macs(llm.config, prompt, depth) // max(prompt, 1),
            )
        )
    threads = threads or cpu.physical_cores()
    peak = peak_rss_bytes()  # Before the limits: their buffer is not the model's.
    progress("the machine's limits")
    return Report(
        model=name,
        kernels=llm.model.kernels.sources,
        threads=threads,
        context=llm.context,
        cache_type=llm.cache_type,
        prompt=prompt,
        generate=generate,
        load_s=load_s,
        first_token_s=first_token_s,
        peak_rss_bytes=peak,
        speeds=tuple(speeds),
        limits=machine_limits(threads),
    )


def check_depths(depths: Sequence[int], *, prompt: int, generate: int, context: int) -> None:
    """Raise RequestError unless each depth leaves room for the prompt, and for the answer, in the context."""
    room = needed_context((0,), prompt=prompt, generate=generate)
    for depth in depths:
        if depth + room > context:
            raise RequestError(
                f"depth {depth:,} and {room:,} tokens more exceed the context of {context:,}: "
                "give a smaller depth, a longer context, or fewer tokens"
            )


def needed_context(depths: Sequence[int], *, prompt: int, generate: int) -> int:
    """Tokens of context that measuring these takes."""
    return max(depths) + max(prompt, generate)


def timed_prefill(llm: LLM, num_tokens: int, *, depth: int = 0, seed: int = 0) -> float:
    """Seconds to read `num_tokens` random tokens behind `depth` others, up to the first token of the answer."""
    cache = llm.new_cache()
    if depth:
        cache.fill_random(depth, seed)
    token_ids = random_tokens(llm.config, num_tokens, seed)
    begin = time.perf_counter()
    int(loop.prefill(llm.model, token_ids, cache).argmax())
    return time.perf_counter() - begin


def timed_decode(llm: LLM, num_tokens: int, *, depth: int = 0, seed: int = 0) -> float:
    """Seconds to decode `num_tokens` tokens, the likeliest each time, behind `depth` others."""
    cache, sampler = llm.new_cache(), Sampler(Sampling(temperature=0))
    if depth:
        cache.fill_random(depth, seed)
    (token,) = random_tokens(llm.config, 1, seed)
    begin = time.perf_counter()
    for _ in range(num_tokens):
        token = loop.next_token(llm.model, token, cache, sampler)
    return time.perf_counter() - begin


def first_token(llm: LLM) -> int:
    """The first token of an answer to SHORT_PROMPT random tokens, or to as many as the context holds."""
    prompt = random_tokens(llm.config, min(SHORT_PROMPT, llm.context - 1), seed=0)
    return next(iter(llm.generate(prompt, Sampling(temperature=0, max_tokens=1))))


def random_tokens(config: ModelConfig, num_tokens: int, seed: int) -> list[int]:
    """Ids drawn from the whole vocabulary."""
    rng = Random(seed)
    return [rng.randrange(config.vocab_size) for _ in range(num_tokens)]


def process_start() -> float | None:
    """When this process began, on the clock of `time.perf_counter`; None where the system does not tell (no Linux)."""
    if sys.platform != "linux":
        return None
    # The command's name, in brackets, may hold anything; the start, in ticks since boot, is the twentieth field after.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.perf_counter() - age


def peak_rss_bytes() -> int:
    """The most memory that this process has had resident so far."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


# -------------------------------------------------------------------- counting


def weight_bytes_read(model: Transformer) -> int:
    """Bytes of weights that decoding one token reads, in the form in which the model holds them.

    Of the experts the share that is active, of the embedding one row. The second plane of an unembedding that has two
    is not counted: of it only rows that could still be the likeliest are read.
    """
    config, total = model.config, 0
    for name, tensor in tensors_of(model).items():
        if ".experts." in name:
            total += tensor.nbytes * config.experts_per_token // config.num_experts
        elif name.startswith("embedding."):
            total += tensor.nbytes // config.vocab_size
        elif name != "unembedding.weight.low":
            total += tensor.nbytes
    return total


def prefill_macs(config: ModelConfig, num_tokens: int, depth: int) -> int:
    """Multiply-adds to read a prompt behind `depth` tokens; the unembedding runs for the last token alone."""
    flops = sum(config.flops_per_token(depth + i) for i in range(num_tokens))
    return flops // 2 - max(num_tokens - 1, 0) * config.vocab_size * config.hidden_size


def machine_limits(threads: int) -> Limits | None:
    """Measured now, in about a second, on `threads` threads; None without the native kernels."""
    if not cpu.available():
        return None
    read, macs = cpu.machine_limits(threads, min(_PROBE_BYTES, available_memory() // 4))
    return Limits(read_bytes_per_s=read, int8_macs_per_s=macs)


# -------------------------------------------------------------------- a model without files


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomCheckpoint(Checkpoint):
    """Random weights that pass for an opened checkpoint, each tensor made when it is asked for."""

    weights: RandomWeights = field(repr=False, compare=False)

    def tensor(self, name: str) -> Tensor:
        """The parameter `name`. The embedding is in a mapped file, as it is in a checkpoint on disk.

        Raises CheckpointError if there is none of that name, StorageError where the disk refuses.
        """
        made = self.weights[name]
        return _in_a_file(made) if name == "embedding.weight" else made

    def forget(self, name: str) -> None:
        """Nothing to do: what was made is gone with its last user."""


def random_checkpoint(preset: str, config: ModelConfig, seed: int = 0) -> RandomCheckpoint:
    """The weights that `ossia init` writes for this configuration and seed, without writing them."""
    weights = RandomWeights(config, seed)
    specs = {
        name: TensorSpec(dtype=torch.uint8 if name.endswith(("_blocks", "_scales")) else torch.bfloat16, shape=shape)
        for name, shape in parameter_shapes(config, packed=True).items()
    }
    return RandomCheckpoint(
        folder=Path(f"random {preset}"),
        layout="original",
        config=config,
        packed=True,
        specs=specs,
        stored=specs,
        files={},
        sources={},
        weights=weights,
    )


def _in_a_file(tensor: Tensor) -> Tensor:
    """The same values in a mapped file without a name, gone when nobody uses them any more."""
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(tensor.contiguous().view(torch.uint8).numpy().data)
            file.flush()
            return MappedFile(Path(file.name)).tensor(TensorSpec(dtype=tensor.dtype, shape=tuple(tensor.shape)), 0)
    except OSError as error:
        raise StorageError(
            f"{tempfile.gettempdir()}: {tensor.nbytes:,} bytes cannot be written ({error.strerror}): free some space, "
            "or name another folder in TMPDIR"
        ) from None
