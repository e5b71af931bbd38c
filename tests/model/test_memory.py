"""The memory plan of the published models, and the limits a control group sets."""

import os
from pathlib import Path

import pytest

from ossia.config import GPT_OSS_20B, ModelConfig
from ossia.model.memory import machine_memory, memory_plans

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_plan_of_the_published_model() -> None:
    plans = memory_plans(GPT_OSS_20B, GPT_OSS_20B.checkpoint_bytes(), 16 * 10**9)
    assert [plan.context for plan in plans] == [4_096, 32_768, 131_072]
    first, _, last = plans
    assert first.kv_bf16 == 4_096 * 24_576 + 128 * 24_576
    assert first.total_bf16 == 13_761_264_768 + first.kv_bf16
    assert last.kv_8bit == (131_072 + 128) * 12_288
    assert (first.fits_bf16, last.fits_bf16, last.fits_8bit) == (True, False, True)


def test_contexts_beyond_the_model_are_left_out() -> None:
    config = ModelConfig(num_hidden_layers=1, num_experts=4, max_position_embeddings=8_192)
    assert [plan.context for plan in memory_plans(config, 1, 1)] == [4_096]


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("groups", "limits", "expected"),
    [
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.max": "4096\n"}, 4096),
        ("0::/a/b\n", {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/memory.max": "8192\n"}, 8192),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "12288\n"}, 12288),
        ("5:cpu,memory:/x\n", {"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "20480\n"}, 20480),
        ("5:cpu:/x\n", {"sys/fs/cgroup/memory/x/memory.limit_in_bytes": "20480\n"}, PHYSICAL),
        ("0::/a\n", {"sys/fs/cgroup/a/memory.max": f"{2 * PHYSICAL}\n"}, PHYSICAL),
    ],
)
def test_the_smallest_limit_counts(tmp_path: Path, groups: str, limits: dict[str, str], expected: int) -> None:
    write(tmp_path, "proc/self/cgroup", groups)
    for path, text in limits.items():
        write(tmp_path, path, text)
    assert machine_memory(tmp_path) == expected


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    assert machine_memory(tmp_path) == PHYSICAL
