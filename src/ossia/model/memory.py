"""How much memory a model takes, how much there is, and what to say where the one is more than the other."""

import ctypes
import math
import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ossia.config import ModelConfig
from ossia.errors import RequestError
from ossia.model.layouts import parameter_shapes

CONTEXTS = (4_096, 32_768, 131_072)
"""Lengths in tokens that a plan shows."""

CACHE_TYPES = ("bf16", "q8")
"""How keys and values can be held."""

_BF16_BYTES = 2
_F32_BYTES = 4
_TILE = 16
"""Dense rows come in tiles, filled up with zeros."""
_Q8_BLOCK = 32
"""Values of a dense row that share a scale byte; the row has one more scale, in float32."""
_WINDOW_ROOM = 512
"""Tokens that a windowed layer holds beyond its window: the chunk of a prompt that is being read."""
_RUNTIME_BYTES = 400_000_000
"""Python, torch and the activations of a chunk."""
_M_MMAP_THRESHOLD = -3
"""The parameter of `mallopt`: from what size on a piece is mapped by itself. Once set, glibc no longer adapts it."""
_LARGE_BYTES = 4 * 2**20
_ROUND = 256
"""The contexts that a refusal offers are multiples of it."""


# -------------------------------------------------------------------- checkpoints as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes for one sequence of `context` tokens. Activations are left out: they are small beside these."""

    context: int
    weights: int
    kv_bf16: int
    kv_8bit: int
    memory: int
    """What the machine, or the control group the process is in, allows."""

    @property
    def total_bf16(self) -> int:
        """Weights and a BF16 cache."""
        return self.weights + self.kv_bf16

    @property
    def total_8bit(self) -> int:
        """Weights and an 8-bit cache."""
        return self.weights + self.kv_8bit

    @property
    def fits_bf16(self) -> bool:
        """Whether weights and a BF16 cache fit."""
        return self.total_bf16 <= self.memory

    @property
    def fits_8bit(self) -> bool:
        """Whether weights and an 8-bit cache fit."""
        return self.total_8bit <= self.memory


def memory_plans(config: ModelConfig, weights: int, memory: int) -> tuple[MemoryPlan, ...]:
    """A plan for each of CONTEXTS that the model allows. `weights` and `memory` in bytes."""
    return tuple(
        MemoryPlan(
            context=context,
            weights=weights,
            kv_bf16=config.kv_bytes(context),
            kv_8bit=config.kv_bytes(context, bytes_per_value=1),
            memory=memory,
        )
        for context in CONTEXTS
        if context <= config.max_position_embeddings
    )


# -------------------------------------------------------------------- the packed form


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Bytes of a model in the packed form of the CPU kernels and of the cache of one sequence; made by `plan`."""

    config: ModelConfig
    context: int
    """Tokens for which the cache has room."""
    cache_type: str
    """One of CACHE_TYPES."""
    dense: str
    """How the dense layers and the unembedding are held: "bf16" or "q8"."""

    @property
    def weights(self) -> int:
        """All weights but the embedding table, of which only the rows in use are read from the file."""
        shapes = parameter_shapes(self.config, packed=self.config.mxfp4_experts)
        return sum(_parameter_bytes(name, shape, self.dense) for name, shape in shapes.items())

    @property
    def cache(self) -> int:
        """Keys and values of `context` tokens in the full layers, of window and chunk in the windowed ones."""
        windows = (self.config.window(layer) for layer in range(self.config.num_hidden_layers))
        rows = sum(self.context if window is None else window + _WINDOW_ROOM for window in windows)
        return rows * _row_bytes(self.config, self.cache_type)

    @property
    def total(self) -> int:
        """Weights, cache, and what the program itself takes."""
        return self.weights + self.cache + _RUNTIME_BYTES

    def largest_context(self, available: int) -> int:
        """The longest context that fits in `available` bytes with this cache type; 0 where none does."""
        fixed = replace(self, context=0).total
        num_full = self.config.layer_types.count("full_attention")
        most = self.config.max_position_embeddings
        if fixed > available or num_full == 0:
            return most if fixed <= available else 0
        fits = (available - fixed) // (num_full * _row_bytes(self.config, self.cache_type))
        return most if fits >= most else fits // _ROUND * _ROUND


def plan(config: ModelConfig, *, context: int, cache_type: str = "bf16", dense: str = "q8") -> Plan:
    """What a model of this shape takes with room for `context` tokens.

    Raises RequestError for a context that the model does not have, and for an unknown cache type.
    """
    most = config.max_position_embeddings
    if not 1 <= context <= most:
        raise RequestError(f"context {context:,} is not to be had: this model takes 1 to {most:,} tokens")
    if cache_type not in CACHE_TYPES:
        raise RequestError(f"unknown cache type {cache_type!r}: choose one of {', '.join(CACHE_TYPES)}")
    return Plan(config=config, context=context, cache_type=cache_type, dense=dense)


def refusal(wanted: Plan, available: int) -> str | None:
    """None where the plan fits in `available` bytes, else one line that says so and what would fit."""
    if wanted.total <= available:
        return None
    largest = {each: replace(wanted, cache_type=each).largest_context(available) for each in CACHE_TYPES}
    offers = [f"{context:,} tokens in {cache_type}" for cache_type, context in largest.items() if context]
    if offers:
        advice = f"what fits is a context of {' or '.join(offers)}"
    else:
        least = replace(wanted, context=min(_ROUND, wanted.context), cache_type=CACHE_TYPES[-1])
        advice = f"no context fits, the shortest takes {_gb(least.total)}: free some memory, or choose a smaller model"
    return (
        f"not enough memory: {_gb(wanted.total)} needed ({_gb(wanted.weights)} of weights, {_gb(wanted.cache)} of "
        f"{wanted.cache_type} cache for {wanted.context:,} tokens, {_gb(_RUNTIME_BYTES)} to run), "
        f"{_gb(available)} available; {advice}"
    )


def kv_bytes_read(config: ModelConfig, num_tokens: int, cache_type: str = "bf16") -> int:
    """Bytes of keys and values that decoding one token reads after `num_tokens` others."""
    windows = (config.window(layer) for layer in range(config.num_hidden_layers))
    rows = sum(num_tokens if window is None else min(num_tokens, window - 1) for window in windows)
    return rows * _row_bytes(config, cache_type)


def _row_bytes(config: ModelConfig, cache_type: str) -> int:
    """Bytes of one token's keys and values in one layer; in 8 bits every head's row has a scale in float32."""
    head = config.head_dim * _BF16_BYTES if cache_type == "bf16" else config.head_dim + _F32_BYTES
    return 2 * config.num_key_value_heads * head


def _parameter_bytes(name: str, shape: tuple[int, ...], dense: str) -> int:
    size = math.prod(shape)
    if name == "embedding.weight":
        return 0
    if name.endswith(("_blocks", "_scales")):
        return size
    if name.endswith(".weight"):
        rows, blocks = -(-shape[0] // _TILE) * _TILE, -(-shape[1] // _Q8_BLOCK)
        if dense == "bf16" or name.endswith(".router.weight"):  # Small, and it decides for the rest.
            return rows * shape[1] * _BF16_BYTES
        dither = blocks * _Q8_BLOCK if name == "unembedding.weight" else 0
        return rows * (blocks * (_Q8_BLOCK + 1) + _F32_BYTES) + dither
    if name.endswith((".gate_up", ".down")):
        return size * _BF16_BYTES
    return size * _F32_BYTES  # Biases, norm scales and sinks.


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


# -------------------------------------------------------------------- the machine


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory, or of the control group's limit where that is less. `root`: where /proc and /sys begin."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if sys.platform != "linux":
        return physical
    return min([physical, *(limit for limit, _ in _cgroups(root))])


def available_memory(root: Path = Path("/")) -> int:
    """Bytes that this process can still take: free memory, and what its control groups and its own limit leave.

    Files that the system keeps in memory count as free, since it lets them go. Where the system does not tell how much
    is free (it is not Linux), all of its memory counts. `root`: where /proc and /sys begin.
    """
    left = [machine_memory(root)]
    if sys.platform == "linux":
        left += [free << 10 for free in _fields(root / "proc/meminfo", "MemAvailable:")]
        left += [limit - used for limit, used in _cgroups(root)]
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        pages = _text(root / "proc/self/statm").split()
        left.append(most - (int(pages[0]) * os.sysconf("SC_PAGE_SIZE") if pages else 0))
    return max(0, min(left))


def keep_no_freed_memory() -> None:
    """Have the C library give back each large piece of memory when it is freed, where it would keep some for later.

    For training near the limit: what it keeps is full of holes, some hundred megabytes of them. Elsewhere than under
    glibc nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)


def _cgroups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of every limited group from the process's own up to the top, of version 2 and 1."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            cached = ("active_file", "inactive_file")
        elif "memory" in controllers.split(","):
            base, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
            cached = ("total_active_file", "total_inactive_file")
        else:
            continue
        inner = Path(group.lstrip("/"))
        for level in (inner, *inner.parents):
            limit, used = (_text(base / level / name).strip() for name in names)
            if limit.isdigit():
                files = sum(_fields(base / level / "memory.stat", *cached))
                yield int(limit), max(0, int(used) - files if used.isdigit() else 0)


def _fields(path: Path, *names: str) -> Iterator[int]:
    """The numbers of those lines of a file that begin with one of `names`."""
    for line in _text(path).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in names and words[1].isdigit():
            yield int(words[1])


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
