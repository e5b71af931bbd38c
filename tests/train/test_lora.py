"""The recipe that trains adapters: what comes out serves, a run that was stopped goes on as if it had not been."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ossia
from ossia.config import ModelConfig
from ossia.engine.request import Sampling
from ossia.errors import CheckpointError, ConfigError, TrainingError
from ossia.kernels import cpu
from ossia.model.adapters import WEIGHTS, read_adapter
from ossia.model.checkpoint import open_checkpoint
from ossia.model.random_weights import RandomWeights
from ossia.model.write import write_checkpoint
from ossia.train.lora import LoraSettings, train

CONFIG = ModelConfig(
    num_hidden_layers=2,
    num_experts=4,
    experts_per_token=2,
    vocab_size=272,
    hidden_size=96,
    intermediate_size=64,
    head_dim=16,
    num_attention_heads=4,
    num_key_value_heads=2,
    initial_context_length=512,
    max_position_embeddings=1024,
    rope_scaling_factor=2.0,
)
QUESTIONS = [{"role": "user", "content": "Which colour?"}, {"role": "assistant", "content": "Blue."}]


def written(folder: Path, tokenizer: Path, seed: int) -> Path:
    write_checkpoint(folder, CONFIG, RandomWeights(CONFIG, seed), extra_files=[tokenizer])
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_file: Path) -> Path:
    return written(tmp_path_factory.mktemp("base") / "base", tiny_tokenizer_file, 3)


@pytest.fixture
def settings(tmp_path: Path, base: Path) -> LoraSettings:
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"messages": QUESTIONS}) + "\n")
    return LoraSettings(
        model=str(base),
        data=(str(data),),
        out=tmp_path / "out",
        steps=6,
        save_every=2,
        log_every=1,
        batch_tokens=512,
        learning_rate=1e-2,
        warmup_steps=0,
        decay_steps=0,
        rank=4,
        threads=1,
    )


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads, torch_threads = cpu.num_threads(), torch.get_num_threads()
    yield
    torch.set_num_threads(torch_threads)
    if cpu.available():
        cpu.configure(threads, cpu.best_isa())


def run(settings: LoraSettings) -> list[dict[str, Any]]:
    """The lines of the log that have a loss."""
    lines: list[dict[str, Any]] = []
    assert train(settings, lines.append) == settings.out
    return [line for line in lines if "loss" in line]


def test_it_learns_and_what_comes_out_serves(settings: LoraSettings, base: Path, tmp_path: Path) -> None:
    losses = [line["loss"] for line in run(replace(settings, steps=40, save_every=40))]
    assert losses[-1] < 0.2 < 3 < losses[0]
    llm = ossia.load(base, adapters={"blue": settings.out})
    greedy = Sampling(temperature=0, max_tokens=40)
    answers = {each: llm.chat(QUESTIONS[:1], sampling=greedy, adapter=each).final for each in (None, "blue")}
    assert answers["blue"] == "Blue." != answers[None]
    # It knows what it was trained on.
    other = written(tmp_path / "other", base / "tokenizer.json", 4)
    with pytest.raises(CheckpointError, match=r"out: the adapter was made for another model than .*other"):
        ossia.load(other, adapters={"blue": settings.out})


@pytest.mark.parametrize("targets", [("experts",), ("q", "o", "router")])
def test_only_what_was_named_learns(settings: LoraSettings, targets: tuple[str, ...]) -> None:
    run(replace(settings, targets=targets, steps=1))
    changes = read_adapter(settings.out, CONFIG).changes
    named = {"experts": {"mlp.experts.gate_up", "mlp.experts.down"}}
    expected = set[str]().union(*(named.get(each, set()) for each in targets))
    expected |= {f"attention.{each}.weight" for each in targets if each in "qkvo"}
    expected |= {f"mlp.{each}.weight" for each in targets if each == "router"}
    assert set(changes) == {f"layers.{n}.{each}" for n in range(2) for each in expected}
    assert all(change.rank == 4 and change.scale == 4 and change.b.any() for change in changes.values())


def test_a_run_that_was_stopped_goes_on(settings: LoraSettings, tmp_path: Path) -> None:
    unbroken = run(settings)
    broken = replace(settings, out=tmp_path / "broken")
    first = run(replace(broken, steps=4))
    second = run(replace(broken, resume=True))
    timeless = [
        [{key: value for key, value in line.items() if key not in ("tokens_per_second", "mfu")} for line in lines]
        for lines in (unbroken, first + second)
    ]
    assert timeless[0] == timeless[1]
    assert (settings.out / WEIGHTS).read_bytes() == (broken.out / WEIGHTS).read_bytes()


@pytest.mark.skipif(not cpu.available(), reason="the native kernels were not built")
def test_torch_learns_the_same(settings: LoraSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = run(settings)
    monkeypatch.setattr("ossia.train.lora.cpu.available", lambda: False)
    plain = run(replace(settings, out=tmp_path / "plain", precision="float32"))
    for one, other in zip(native, plain, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    assert native[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-5)


def test_experts_in_bf16_are_a_base_too(settings: LoraSettings, base: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(base)
    dense = tmp_path / "dense"
    write_checkpoint(dense, CONFIG, checkpoint, packed=False, extra_files=[base / "tokenizer.json"])
    packed_losses = [line["loss"] for line in run(settings)]
    dense_run = replace(settings, model=str(dense), out=tmp_path / "out2", precision="float32")
    assert [line["loss"] for line in run(dense_run)] == pytest.approx(packed_losses, rel=1e-3)
    ossia.load(dense, adapters={"a": settings.out})  # The same values: the same base.


# ---------------------------------------------------------------- what is refused


def test_another_model_on_resume(settings: LoraSettings, tmp_path: Path, base: Path) -> None:
    run(replace(settings, steps=2))
    other = written(tmp_path / "other", base / "tokenizer.json", 4)
    with pytest.raises(TrainingError, match=r"model was 'sha256 [0-9a-f]{16}' and is now"):
        run(replace(settings, resume=True, model=str(other)))
    with pytest.raises(TrainingError, match=r"rank was 4 and is now 5"):
        run(replace(settings, resume=True, rank=5))


def test_targets_that_there_are_not(settings: LoraSettings) -> None:
    with pytest.raises(ConfigError, match=r"unknown adapter target 'gate': choose among q, k, v, o, experts, router"):
        replace(settings, targets=("q", "gate"))
    with pytest.raises(ConfigError, match=r"adapters need a target: choose among q"):
        replace(settings, targets=())


def test_many_processes(settings: LoraSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossia.train.lora.World.from_environment", lambda **_: SimpleNamespace(size=2))
    with pytest.raises(ConfigError, match=r"adapters are trained by one process"):
        run(settings)
