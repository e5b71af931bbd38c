"""How much memory a model takes, and how much this machine has."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from ossia.config import ModelConfig

CONTEXTS = (4_096, 32_768, 131_072)
"""Lengths in tokens that a plan shows."""


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


def machine_memory(root: Path = Path("/")) -> int:
    """Bytes of main memory, or of the control group's limit where that is less. `root`: where /proc and /sys begin."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, *_cgroup_limits(root)) if sys.platform == "linux" else physical


def _cgroup_limits(root: Path) -> list[int]:
    """Every limit from the process's group up to the top, of version 2 and of version 1; at least one entry."""
    limits = [sys.maxsize]
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        inner = Path(group.lstrip("/"))
        for level in (inner, *inner.parents):
            text = _text(base / level / name).strip()
            if text.isdigit():
                limits.append(int(text))
    return limits


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
