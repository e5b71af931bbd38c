"""The benchmark: what is timed, what is counted, and how it is told."""

import errno
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ossia import bench
from ossia.bench import Limits, Report, Speeds
from ossia.config import ModelConfig
from ossia.errors import RequestError, StorageError
from ossia.kernels import cpu, select
from ossia.llm import LLM, from_checkpoint
from ossia.model import adapt
from ossia.model.attention import Attend
from ossia.model.checkpoint import open_checkpoint
from ossia.model.random_weights import RandomWeights
from ossia.model.transformer import Transformer
from ossia.model.write import write_checkpoint

CONFIG = ModelConfig(
    num_hidden_layers=3,
    num_experts=6,
    experts_per_token=2,
    vocab_size=200,
    hidden_size=64,
    intermediate_size=96,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    sliding_window=8,
    initial_context_length=64,
    max_position_embeddings=128,
    rope_scaling_factor=2.0,
)


@pytest.fixture(scope="module")
def model() -> Transformer:
    built = adapt.build(CONFIG, select("torch"), experts="mxfp4")
    return adapt.fill(built, bench.random_checkpoint("tiny", CONFIG).tensors(), dtype=torch.bfloat16)


@pytest.fixture(scope="module", params=["torch", "cpu"])
def llm(request: pytest.FixtureRequest) -> LLM:
    if request.param == "cpu" and not cpu.available():
        pytest.skip("the native kernels were not built")
    return from_checkpoint(bench.random_checkpoint("tiny", CONFIG), kernels=request.param, context=128)


# -------------------------------------------------------------------- timing


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The position at which each pass through the model begins, and the tokens it runs."""
    seen: list[tuple[int, int]] = []
    run = Transformer.hidden

    def hidden(self: Transformer, token_ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        assert len(token_ids) == len(positions)
        seen.append((int(positions[0]), len(positions)))
        return run(self, token_ids, positions, attend)

    monkeypatch.setattr(Transformer, "hidden", hidden)
    return seen


@pytest.mark.parametrize("depth", [0, 40])
def test_a_prompt_is_read_behind_the_depth(llm: LLM, steps: list[tuple[int, int]], depth: int) -> None:
    assert bench.timed_prefill(llm, 20, depth=depth) > 0
    assert steps == [(depth, 20)]


@pytest.mark.parametrize("depth", [0, 40])
def test_tokens_are_decoded_one_by_one_behind_the_depth(llm: LLM, steps: list[tuple[int, int]], depth: int) -> None:
    assert bench.timed_decode(llm, 5, depth=depth) > 0
    assert steps == [(depth + i, 1) for i in range(5)]


def test_the_first_token_follows_a_short_prompt(llm: LLM, steps: list[tuple[int, int]]) -> None:
    assert 0 <= bench.first_token(llm) < CONFIG.vocab_size
    assert steps == [(0, bench.SHORT_PROMPT)]


def test_measuring(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = Limits(read_bytes_per_s=1e9, int8_macs_per_s=1e11)
    monkeypatch.setattr(bench, "machine_limits", lambda threads: limits if threads == 3 else None)
    told: list[str] = []
    report = bench.measure(
        llm,
        name="tiny",
        load_s=1.5,
        first_token_s=2.5,
        prompt=12,
        generate=4,
        depths=(0, 100),
        repeat=2,
        threads=3,
        progress=told.append,
    )
    assert told == [f"depth {d}, run {n} of 2" for d in (0, 100) for n in (1, 2)] + ["the machine's limits"]
    assert [(s.depth, len(s.prefill_tps), len(s.decode_tps)) for s in report.speeds] == [(0, 2, 2), (100, 2, 2)]
    assert report.limits is limits
    shallow, deep = report.speeds
    # One full layer sees all of the depth, the two windowed ones 7 tokens before: keys and values of 2 heads of 16.
    assert deep.bytes_per_token - shallow.bytes_per_token == (100 + 2 * 7) * 2 * 2 * 16 * 2
    assert shallow.macs_per_token == bench.prefill_macs(CONFIG, 12, 0) // 12
    with pytest.raises(RequestError, match=r"^depth 117 and 12 tokens more exceed the context of 128: give a smaller"):
        bench.measure(llm, name="tiny", load_s=0, first_token_s=0, prompt=12, generate=4, depths=(0, 117))


def test_what_is_not_asked_for_is_not_measured(
    llm: LLM, steps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "machine_limits", lambda _: None)
    report = bench.measure(llm, name="tiny", load_s=0, first_token_s=0, prompt=0, generate=3, depths=(125,), repeat=1)
    assert steps == [(125, 1), (126, 1), (127, 1)]
    assert report.speeds[0].prefill_tps == ()
    told = report.to_json()
    assert told["depths"]["125"]["prefill_tps"] is None


def test_a_process_knows_when_it_began() -> None:
    code = "from ossia.bench import process_start; print(process_start())"
    before = time.perf_counter()
    began = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    if sys.platform == "linux":  # Where that clock is the same in every process.
        assert before - 0.011 <= began <= time.perf_counter()  # It is counted in ticks of 10 ms.


def test_the_peak_is_no_less_than_what_is_resident() -> None:
    block = bytearray(b"x") * 30_000_000
    assert bench.peak_rss_bytes() >= len(block)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        assert bench.peak_rss_bytes() >= 0.9 * pages * 4096  # The kernel counts pages in lots.


# -------------------------------------------------------------------- counting


def test_weights_read_for_a_token(model: Transformer) -> None:
    expert_weights = 3 * 2 * 3 * 64 * 96
    rest = CONFIG.num_active_parameters() - expert_weights
    assert bench.weight_bytes_read(model) == expert_weights * 17 // 32 + 2 * rest + 2 * 64


def test_weights_read_for_a_token_of_a_packed_model() -> None:
    """Of the experts those in use, of the unembedding the first plane, of the embedding a row; the rest whole."""
    packed = adapt.build_packed(CONFIG, select("torch"))
    held = sum(tensor.nbytes for tensor in adapt.tensors_of(packed).values())
    idle_experts = 3 * (6 - 2) * (3 * 64 * 96 * 17 // 32 + 4 * (2 * 96 + 64))
    low = 208 * 64 // 2
    assert bench.weight_bytes_read(packed) == held - idle_experts - low - 199 * 2 * 64


@pytest.mark.parametrize(("num_tokens", "depth"), [(1, 0), (1, 50), (5, 0), (20, 3)])
def test_multiply_adds_of_a_prompt(num_tokens: int, depth: int) -> None:
    attention = 64 * 64 + 2 * 64 * 32 + 64 * 64
    matrices = 3 * (attention + 64 * 6 + 2 * 3 * 64 * 96)
    seen = sum(pos + 1 + 2 * min(pos + 1, 8) for pos in range(depth, depth + num_tokens))
    assert bench.prefill_macs(CONFIG, num_tokens, depth) == num_tokens * matrices + 200 * 64 + 2 * 64 * seen


def test_limits_are_measured_in_a_quarter_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def machine_limits(threads: int, num_bytes: int) -> tuple[float, float]:
        asked.append((threads, num_bytes))
        return 2.0, 3.0

    monkeypatch.setattr(cpu, "available", lambda: True)
    monkeypatch.setattr(cpu, "machine_limits", machine_limits, raising=False)
    for free in (4_000, 2**40):
        monkeypatch.setattr(bench, "available_memory", lambda free=free: free)
        assert bench.machine_limits(5) == Limits(read_bytes_per_s=2.0, int8_macs_per_s=3.0)
    assert asked == [(5, 1_000), (5, 2**30)]
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert bench.machine_limits(5) is None


@pytest.mark.skipif(not cpu.available(), reason="the native kernels were not built")
@pytest.mark.parametrize(("threads", "num_bytes"), [(1, 2**24), (10_000, 2**20), (2, 0)])
def test_native_limits(threads: int, num_bytes: int) -> None:
    read, macs = cpu.machine_limits(threads, num_bytes)
    assert read > 0
    assert macs > 1e6


# -------------------------------------------------------------------- telling


def speeds(depth: int, prefill: tuple[float, ...], decode: tuple[float, ...]) -> Speeds:
    return Speeds(depth=depth, prefill_tps=prefill, decode_tps=decode, bytes_per_token=100, macs_per_token=2_000)


def report(*all_speeds: Speeds, limits: Limits | None) -> Report:
    return Report(
        model="tiny",
        kernels={"rope": "torch"},
        threads=2,
        context=64,
        cache_type="q8",
        prompt=8,
        generate=4,
        load_s=1.0,
        first_token_s=2.0,
        peak_rss_bytes=3,
        speeds=all_speeds,
        limits=limits,
    )


def test_depth_0_stands_beside_the_rest() -> None:
    limits = Limits(read_bytes_per_s=1_000.0, int8_macs_per_s=100_000.0)
    told = report(speeds(0, (10.0, 30.0, 20.0), (1.0, 2.0)), speeds(9, (5.0,), ()), limits=limits).to_json()
    deep = told.pop("depths")
    assert told == {
        "model": "tiny",
        "kernels": {"rope": "torch"},
        "threads": 2,
        "context": 64,
        "cache_type": "q8",
        "prompt": 8,
        "generate": 4,
        "load_s": 1.0,
        "first_token_s": 2.0,
        "peak_rss_bytes": 3,
        "read_limit_bytes_per_s": 1_000.0,
        "int8_limit_macs_per_s": 100_000.0,
        "prefill_tps": 20.0,
        "prefill_all": [10.0, 30.0, 20.0],
        "decode_tps": 1.5,
        "decode_all": [1.0, 2.0],
        "bytes_per_token": 100,
        "macs_per_token": 2_000,
        "prefill_fraction": 0.4,
        "decode_fraction": 0.15,
    }
    assert deep.keys() == {"9"}
    assert (deep["9"]["prefill_tps"], deep["9"]["decode_tps"], deep["9"]["decode_fraction"]) == (5.0, None, None)


def test_what_was_not_measured_is_null() -> None:
    told = report(speeds(9, (5.0,), (6.0,)), limits=None).to_json()
    assert (told["prefill_tps"], told["decode_all"], told["read_limit_bytes_per_s"]) == (None, None, None)
    assert (told["depths"]["9"]["decode_tps"], told["depths"]["9"]["decode_fraction"]) == (6.0, None)


# -------------------------------------------------------------------- a model without files


def test_random_weights_pass_for_those_that_init_writes(tmp_path: Path) -> None:
    written = write_checkpoint(tmp_path / "m", CONFIG, RandomWeights(CONFIG, 4))
    made = bench.random_checkpoint("tiny", CONFIG, seed=4)
    assert (made.specs, made.num_bytes) == (written.specs, open_checkpoint(tmp_path / "m").num_bytes)
    for (name, ours), (same_name, theirs) in zip(made.tensors(), written.tensors(), strict=True):
        assert (name, ours.dtype) == (same_name, theirs.dtype)
        assert torch.equal(ours, theirs)


def test_the_embedding_is_mapped_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    embedding = bench.random_checkpoint("tiny", CONFIG)["embedding.weight"]
    assert list(tmp_path.iterdir()) == []
    if sys.platform == "linux":
        address = embedding.data_ptr()
        spans = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
        inside = [
            words[5]
            for words in spans
            if int(words[0].split("-")[0], 16) <= address < int(words[0].split("-")[1], 16) and len(words) > 5
        ]
        assert [str(tmp_path) in path for path in inside] == [True]


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    with pytest.raises(StorageError, match=r"25,600 bytes cannot be written \(No space left on device\): free some"):
        bench.random_checkpoint("tiny", CONFIG)["embedding.weight"]
