"""What the published models take, what a machine and its control groups leave, and what is said of the difference."""

import os
import platform
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.config import GPT_OSS_20B, GPT_OSS_120B, ModelConfig
from ossia.errors import RequestError
from ossia.kernels import select
from ossia.model import adapt
from ossia.model.memory import (
    CACHE_TYPES,
    available_memory,
    kv_bytes_read,
    machine_memory,
    memory_plans,
    plan,
    refusal,
)
from ossia.model.pack import packed_specs

PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GB = 10**9
NARROW = ModelConfig(
    num_hidden_layers=2,
    num_experts=5,
    experts_per_token=2,
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    head_dim=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=16,
    max_position_embeddings=1_000,
)


# -------------------------------------------------------------------- checkpoints as they are


def test_plan_of_the_published_model() -> None:
    plans = memory_plans(GPT_OSS_20B, GPT_OSS_20B.checkpoint_bytes(), 16 * GB)
    assert [plan.context for plan in plans] == [4_096, 32_768, 131_072]
    first, _, last = plans
    assert first.kv_bf16 == 4_096 * 24_576 + 128 * 24_576
    assert first.total_bf16 == 13_761_264_768 + first.kv_bf16
    assert last.kv_8bit == (131_072 + 128) * 12_288
    assert (first.fits_bf16, last.fits_bf16, last.fits_8bit) == (True, False, True)


def test_contexts_beyond_the_model_are_left_out() -> None:
    config = ModelConfig(num_hidden_layers=1, num_experts=4, max_position_embeddings=8_192)
    assert [plan.context for plan in memory_plans(config, 1, 1)] == [4_096]


# -------------------------------------------------------------------- the packed form


def test_weights_of_the_published_model() -> None:
    experts = 24 * 32 * 3 * 2880 * 2880 * 17 // 32
    expert_biases = 24 * 32 * (2 * 2880 + 2880)
    router = 24 * 32 * 2880
    rows, weights = 24 * (5120 + 2880) + 201_088, 24 * (5120 * 2880 + 2880 * 4096) + 201_088 * 2880
    others = 24 * (5120 + 2880 + 32 + 64 + 2 * 2880) + 2880
    bf16 = experts + 2 * router + 2 * weights + 4 * (expert_biases + others)
    q8 = bf16 - 2 * weights + weights * 33 // 32 + 4 * rows + 2880
    assert plan(GPT_OSS_20B, context=1, dense="bf16").weights == bf16
    assert plan(GPT_OSS_20B, context=1).weights == q8


@pytest.mark.parametrize("dense", ["q8", "bf16"])
def test_weights_are_those_of_the_packed_model(dense: Literal["q8", "bf16"]) -> None:
    """Rows and columns that fill no tile and no block, too."""
    model = adapt.build_packed(NARROW, select("torch"), dense=dense)
    assert plan(NARROW, context=1, dense=dense).weights == sum(spec.num_bytes for spec in packed_specs(model).values())


def test_experts_that_are_not_packed() -> None:
    weights = 2 * 5 * 3 * 64 * 96
    packed, unpacked = (plan(replace(NARROW, mxfp4_experts=each), context=1).weights for each in (True, False))
    assert unpacked - packed == 2 * weights - weights * 17 // 32


@pytest.mark.parametrize(("cache_type", "head"), [("bf16", 128), ("q8", 68)])
def test_cache_of_the_published_model(cache_type: str, head: int) -> None:
    row = 2 * 8 * head
    made = plan(GPT_OSS_20B, context=131_072, cache_type=cache_type)
    assert made.cache == 12 * row * 131_072 + 12 * row * (128 + 512)
    assert made.total > made.weights + made.cache
    assert kv_bytes_read(GPT_OSS_20B, 50, cache_type) == 24 * row * 50
    assert kv_bytes_read(GPT_OSS_20B, 4096, cache_type) == 12 * row * (4096 + 127)


def test_the_published_model_in_16_gb() -> None:
    assert plan(GPT_OSS_20B, context=8_192).total < 12.5 * GB
    assert plan(GPT_OSS_20B, context=131_072, cache_type="q8").total < 14.5 * GB
    assert plan(GPT_OSS_20B, context=131_072).total < 16 * GB


@pytest.mark.parametrize(
    ("context", "cache_type", "message"),
    [
        (200_000, "bf16", "context 200,000 is not to be had: this model takes 1 to 131,072 tokens"),
        (0, "bf16", "context 0 is not to be had: this model takes 1 to 131,072 tokens"),
        (1, "fp4", "unknown cache type 'fp4': choose one of bf16, q8"),
    ],
)
def test_plans_that_cannot_be_made(context: int, cache_type: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        plan(GPT_OSS_20B, context=context, cache_type=cache_type)
    assert str(caught.value) == message


# -------------------------------------------------------------------- refusals


def test_a_plan_that_fits_is_not_refused() -> None:
    wanted = plan(GPT_OSS_20B, context=8_192)
    assert refusal(wanted, wanted.total) is None
    assert refusal(wanted, wanted.total - 1) is not None


def test_a_refusal_names_what_fits() -> None:
    text = refusal(plan(GPT_OSS_20B, context=131_072), 14 * GB)
    assert text == (
        "not enough memory: 15.08 GB needed (11.44 GB of weights, 3.24 GB of bf16 cache for 131,072 tokens, 0.40 GB to "
        "run), 14.00 GB available; what fits is a context of 87,040 tokens in bf16 or 131,072 tokens in q8"
    )


def test_a_refusal_where_nothing_fits() -> None:
    text = refusal(plan(GPT_OSS_120B, context=4_096), 16 * GB)
    assert text is not None
    assert text.endswith(
        "16.00 GB available; no context fits, the shortest takes 63.10 GB: free some memory, or choose a smaller model"
    )


@given(st.integers(0, 200 * 10**8), st.sampled_from(CACHE_TYPES))
def test_the_largest_context_is_the_largest(available: int, cache_type: str) -> None:
    wanted = plan(GPT_OSS_20B, context=1, cache_type=cache_type)
    largest = wanted.largest_context(available)
    if largest:
        assert replace(wanted, context=largest).total <= available
    if largest < 131_072:
        assert replace(wanted, context=largest + 256).total > available


def test_a_model_of_windows_has_any_context() -> None:
    wanted = plan(replace(NARROW, layer_types=("sliding_attention",) * 2), context=1)
    assert [wanted.largest_context(wanted.total - short) for short in (0, 1)] == [1_000, 0]


# -------------------------------------------------------------------- the machine


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
    assert available_memory(tmp_path) == PHYSICAL


def test_what_this_machine_leaves() -> None:
    assert 0 < available_memory() <= machine_memory()


linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


@linux
@pytest.mark.parametrize(
    ("group", "version", "expected"),
    [
        (
            {"max": "9000", "current": "5000", "stat": "anon 1\nactive_file 700\ninactive_file 300\nfile 4000\n"},
            2,
            5000,
        ),
        ({"max": "9000", "current": "5000"}, 2, 4000),
        ({"max": "9000"}, 2, 9000),
        ({"max": "9000", "current": "9500"}, 2, 0),
        ({"max": "9000", "current": "500", "stat": "active_file 700\n"}, 2, 9000),
        ({"max": "max", "current": "5000"}, 2, 8_000 * 1024),
        (
            {
                "limit_in_bytes": "9000",
                "usage_in_bytes": "5000",
                "stat": "active_file 9\ntotal_active_file 700\ntotal_inactive_file 300\n",
            },
            1,
            5000,
        ),
    ],
)
def test_what_a_control_group_leaves(tmp_path: Path, group: dict[str, str], version: int, expected: int) -> None:
    write(tmp_path, "proc/meminfo", "MemTotal:       9000 kB\nMemFree:        10 kB\nMemAvailable:   8000 kB\n")
    write(tmp_path, "proc/self/cgroup", "0::/x\n" if version == 2 else "3:memory:/x\n")
    base = "sys/fs/cgroup/x" if version == 2 else "sys/fs/cgroup/memory/x"
    for name, text in group.items():
        write(tmp_path, f"{base}/memory.{name}", f"{text}\n")
    assert available_memory(tmp_path) == expected


@linux
def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/outer/inner\n")
    for group, limit, used in (("outer/inner", 6000, 1000), ("outer", 9000, 7000)):
        write(tmp_path, f"sys/fs/cgroup/{group}/memory.max", str(limit))
        write(tmp_path, f"sys/fs/cgroup/{group}/memory.current", str(used))
    assert available_memory(tmp_path) == 2000


def test_the_limit_of_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = {resource.RLIMIT_AS: (3_000_000, resource.RLIM_INFINITY)}
    monkeypatch.setattr(resource, "getrlimit", limit.__getitem__)
    assert available_memory(tmp_path) == 3_000_000
    write(tmp_path, "proc/self/statm", "100 50 20 1 0 30 0\n")
    assert available_memory(tmp_path) == 3_000_000 - 100 * os.sysconf("SC_PAGE_SIZE")


HOLES = """
import sys
from ossia.model.memory import keep_no_freed_memory

if sys.argv[1] == "yes":
    keep_no_freed_memory()
del (first := {"once": bytearray(24 << 20)})["once"]  # From now on glibc takes pieces of this size from its heap.
pieces = [(bytearray(20 << 20), bytearray(500_000)) for _ in range(8)]
kept = [small for _, small in pieces]
del pieces
(line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon:"))
print(line.split()[1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's own habit")
def test_freed_memory_is_given_back() -> None:
    def resident(called: str) -> int:
        ran = subprocess.run([sys.executable, "-c", HOLES, called], capture_output=True, text=True, check=True)
        return int(ran.stdout) * 1024

    assert resident("no") - resident("yes") > 100 * 2**20
