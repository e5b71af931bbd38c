"""What ossia writes is read alike by independent code; a write that fails leaves nothing behind."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from gpt_oss.torch.model import Transformer as OfficialTransformer
from gpt_oss.torch.weights import Checkpoint as OfficialCheckpoint
from safetensors.torch import load_file
from transformers import GptOssForCausalLM, Mxfp4Config
from transformers.utils import logging as transformers_logging

from ossia.config import ModelConfig
from ossia.errors import CheckpointError, ConfigError, KernelError, StorageError
from ossia.kernels import mxfp4
from ossia.model.checkpoint import open_checkpoint
from ossia.model.layouts import parameter_shapes
from ossia.model.random_weights import RandomWeights
from ossia.model.write import write_checkpoint

CONFIG = ModelConfig(
    num_hidden_layers=3,
    num_experts=4,
    experts_per_token=2,
    vocab_size=160,
    hidden_size=64,
    intermediate_size=96,
    head_dim=16,
    num_attention_heads=6,
    num_key_value_heads=2,
    sliding_window=16,
)
SHARD = 60_000
"""Bytes; cuts a checkpoint of CONFIG in several files."""


@pytest.fixture(scope="module")
def weights() -> RandomWeights:
    return RandomWeights(CONFIG, seed=1)


@pytest.fixture(scope="module")
def dense(weights: RandomWeights) -> dict[str, torch.Tensor]:
    """The same with experts in BF16."""
    out: dict[str, torch.Tensor] = {}
    for name in weights.keys():  # noqa: SIM118 - not a dictionary
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            out[stem] = mxfp4.dequantize(weights[name], weights[f"{stem}_scales"], torch.bfloat16)
        elif not name.endswith("_scales"):
            out[name] = weights[name]
    return out


def all_stored(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


# -------------------------------------------------------------------- read by others


@pytest.fixture
def quiet_transformers() -> Iterator[None]:
    transformers_logging.disable_progress_bar()
    yield
    transformers_logging.enable_progress_bar()


@pytest.mark.usefixtures("quiet_transformers")
@pytest.mark.parametrize("packed", [True, False])
def test_transformers_loads_the_hf_layout(
    tmp_path: Path, weights: RandomWeights, dense: dict[str, torch.Tensor], packed: bool
) -> None:
    write_checkpoint(tmp_path / "m", CONFIG, weights, packed=packed, max_shard_bytes=SHARD)
    model, report = GptOssForCausalLM.from_pretrained(
        tmp_path / "m",
        dtype=torch.bfloat16,
        output_loading_info=True,
        **({"quantization_config": Mxfp4Config(dequantize=True)} if packed else {}),
    )
    assert not any(report.values()), report
    theirs = model.state_dict()
    assert len(theirs) == 3 * 17 + 3
    assert torch.equal(theirs["model.embed_tokens.weight"], dense["embedding.weight"])
    assert torch.equal(theirs["lm_head.weight"], dense["unembedding.weight"])
    assert torch.equal(theirs["model.norm.weight"], dense["norm.scale"])
    for n in range(3):
        layer, ours = f"model.layers.{n}", f"layers.{n}"
        for which in "qkvo":
            for leaf in ("weight", "bias"):
                found = theirs[f"{layer}.self_attn.{which}_proj.{leaf}"]
                assert torch.equal(found, dense[f"{ours}.attention.{which}.{leaf}"])
        for name, mine in (
            ("input_layernorm.weight", "attention_norm.scale"),
            ("post_attention_layernorm.weight", "mlp_norm.scale"),
            ("self_attn.sinks", "attention.sinks"),
            ("mlp.router.weight", "mlp.router.weight"),
            ("mlp.router.bias", "mlp.router.bias"),
            ("mlp.experts.gate_up_proj_bias", "mlp.experts.gate_up_bias"),
            ("mlp.experts.down_proj_bias", "mlp.experts.down_bias"),
        ):
            assert torch.equal(theirs[f"{layer}.{name}"], dense[f"{ours}.{mine}"]), name
        for which in ("gate_up", "down"):
            experts = theirs[f"{layer}.mlp.experts.{which}_proj"]
            assert torch.equal(experts.transpose(1, 2), dense[f"{ours}.mlp.experts.{which}"])


def test_the_reference_code_loads_the_original_layout(
    tmp_path: Path, weights: RandomWeights, dense: dict[str, torch.Tensor]
) -> None:
    write_checkpoint(tmp_path / "m", CONFIG, weights, layout="original")
    model = OfficialTransformer.from_checkpoint(str(tmp_path / "m"), device="cpu")
    theirs = dict(model.named_parameters())
    assert len(theirs) == 3 * 13 + 3
    assert all(
        torch.equal(theirs[name], dense[name]) for name in ("embedding.weight", "norm.scale", "unembedding.weight")
    )
    for n in range(3):
        block, ours = f"block.{n}", f"layers.{n}"
        for leaf in ("weight", "bias"):
            qkv = torch.cat([dense[f"{ours}.attention.{which}.{leaf}"] for which in "qkv"])
            assert torch.equal(theirs[f"{block}.attn.qkv.{leaf}"], qkv)
        for name, mine in (
            ("attn.norm.scale", "attention_norm.scale"),
            ("attn.sinks", "attention.sinks"),
            ("attn.out.weight", "attention.o.weight"),
            ("attn.out.bias", "attention.o.bias"),
            ("mlp.norm.scale", "mlp_norm.scale"),
            ("mlp.gate.weight", "mlp.router.weight"),
            ("mlp.gate.bias", "mlp.router.bias"),
            ("mlp.mlp1_weight", "mlp.experts.gate_up"),
            ("mlp.mlp1_bias", "mlp.experts.gate_up_bias"),
            ("mlp.mlp2_weight", "mlp.experts.down"),
            ("mlp.mlp2_bias", "mlp.experts.down_bias"),
        ):
            assert torch.equal(theirs[f"{block}.{name}"], dense[f"{ours}.{mine}"]), name


def test_the_reference_reader_agrees_on_packed_experts(tmp_path: Path, dense: dict[str, torch.Tensor]) -> None:
    """Packed by us, unpacked by them: what an independent reader sees is what our own unpacking gives."""
    checkpoint = write_checkpoint(tmp_path / "m", CONFIG, dense, layout="original", packed=True)
    theirs = OfficialCheckpoint(str(tmp_path / "m"), torch.device("cpu"))
    for n in range(3):
        for which, number in (("gate_up", 1), ("down", 2)):
            stem = f"layers.{n}.mlp.experts.{which}"
            ours = mxfp4.dequantize(checkpoint[f"{stem}_blocks"], checkpoint[f"{stem}_scales"], torch.bfloat16)
            assert torch.equal(theirs.get(f"block.{n}.mlp.mlp{number}_weight"), ours)
            assert torch.equal(ours, dense[stem])


# -------------------------------------------------------------------- forms


class Form(NamedTuple):
    layout: Any
    packed: bool
    shard: int


FORMS = [
    Form("hf", True, SHARD),
    Form("hf", False, SHARD),
    Form("original", True, SHARD),
    Form("original", False, SHARD),
]


@pytest.mark.parametrize("before", FORMS)
@pytest.mark.parametrize("after", FORMS)
def test_every_form_becomes_every_other(
    tmp_path: Path, weights: RandomWeights, dense: dict[str, torch.Tensor], before: Form, after: Form
) -> None:
    first = write_checkpoint(
        tmp_path / "a", CONFIG, weights, layout=before.layout, packed=before.packed, max_shard_bytes=before.shard
    )
    second = write_checkpoint(
        tmp_path / "b", first.config, first, layout=after.layout, packed=after.packed, max_shard_bytes=after.shard
    )
    assert (second.layout, second.packed, second.config.mxfp4_experts) == (after.layout, after.packed, after.packed)
    for name in second.keys():  # noqa: SIM118
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            values = mxfp4.dequantize(second[name], second[f"{stem}_scales"], torch.bfloat16)
            assert torch.equal(values, dense[stem]), name
            if before.packed:
                assert torch.equal(second[name], weights[name]), "packed bytes are copied, not made anew"
        elif not name.endswith("_scales"):
            assert torch.equal(second[name], dense[name]), name


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_shards_and_index(tmp_path: Path, weights: RandomWeights, layout: Any) -> None:
    checkpoint = write_checkpoint(tmp_path / "m", CONFIG, weights, layout=layout, max_shard_bytes=SHARD)
    shards = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert checkpoint.num_bytes == CONFIG.checkpoint_bytes()
    if layout == "original":
        assert {path.name for path in (tmp_path / "m").iterdir()} == {"model.safetensors", "config.json"}
        return
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": CONFIG.checkpoint_bytes()}
    assert sorted(set(index["weight_map"].values())) == shards
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    assert len(shards) > 3
    for name in shards:
        held = load_file(tmp_path / "m" / name)
        assert set(held) == {tensor for tensor, file in index["weight_map"].items() if file == name}
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= SHARD


def test_one_shard_needs_no_index(tmp_path: Path, weights: RandomWeights) -> None:
    write_checkpoint(tmp_path / "m", CONFIG, weights)
    assert {path.name for path in (tmp_path / "m").iterdir()} == {"model.safetensors", "config.json"}


def test_generation_config(tmp_path: Path, weights: RandomWeights) -> None:
    """Its published ids go with the published vocabulary only; another vocabulary brings its own."""
    write_checkpoint(tmp_path / "own", CONFIG, weights, generation_config={"eos_token_id": [3, 5]})
    assert json.loads((tmp_path / "own" / "generation_config.json").read_text()) == {"eos_token_id": [3, 5]}
    published = replace(CONFIG, num_hidden_layers=1, layer_types=(), vocab_size=201_088, hidden_size=32)
    write_checkpoint(tmp_path / "pub", published, RandomWeights(published, 0))
    generation = json.loads((tmp_path / "pub" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [200002, 199999, 200012]


def test_types(tmp_path: Path, dense: dict[str, torch.Tensor]) -> None:
    """Masters in float32 are stored in BF16, but for norms and sinks, which the layout lets stay."""
    masters = {name: tensor.float() for name, tensor in dense.items()}
    masters["layers.0.mlp.router.bias"] += 1e-6
    checkpoint = write_checkpoint(tmp_path / "m", CONFIG, masters, packed=True)
    assert checkpoint["layers.0.attention.sinks"].dtype == torch.float32
    assert checkpoint["layers.2.mlp_norm.scale"].dtype == torch.float32
    assert torch.equal(checkpoint["layers.0.mlp.router.bias"], masters["layers.0.mlp.router.bias"].bfloat16())
    assert not list(tmp_path.glob(".*"))


def test_extra_files_may_get_another_name(tmp_path: Path, weights: RandomWeights) -> None:
    (tmp_path / "mine.json").write_text("{}")
    write_checkpoint(tmp_path / "m", CONFIG, weights, extra_files={"tokenizer.json": tmp_path / "mine.json"})
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"
    assert not (tmp_path / "m" / "mine.json").exists()


def test_extra_files_go_along(tmp_path: Path, weights: RandomWeights) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    write_checkpoint(tmp_path / "m", CONFIG, weights, extra_files=[tmp_path / "tokenizer.json"])
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StorageError, match=r"a checkpoint has a config\.json of its own"):
        write_checkpoint(tmp_path / "n", CONFIG, weights, extra_files=[tmp_path / "config.json"])
    with pytest.raises(StorageError, match=r"none\.json: is no file to copy"):
        write_checkpoint(tmp_path / "n", CONFIG, weights, extra_files=[tmp_path / "none.json"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "m", "tokenizer.json"]


def test_progress_counts_every_byte(tmp_path: Path, weights: RandomWeights) -> None:
    seen: list[tuple[int, int]] = []
    write_checkpoint(tmp_path / "m", CONFIG, weights, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (CONFIG.checkpoint_bytes(), CONFIG.checkpoint_bytes())


# -------------------------------------------------------------------- nothing half-written


def files_under(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("existing", [True, False])
def test_a_disk_that_fills_leaves_nothing(
    tmp_path: Path, weights: RandomWeights, monkeypatch: pytest.MonkeyPatch, number: int, existing: bool
) -> None:
    if existing:
        write_checkpoint(tmp_path / "m", CONFIG, weights)
    before = files_under(tmp_path)
    sync, syncs = os.fsync, iter(range(100))

    def full(descriptor: int) -> None:
        if next(syncs) == 2:
            raise OSError(number, os.strerror(number))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StorageError, match=rf"m: the disk refused \({os.strerror(number)}\): {CONFIG.checkpoint_bytes():,} bytes"
    ):
        write_checkpoint(tmp_path / "m", CONFIG, RandomWeights(CONFIG, 2), max_shard_bytes=SHARD, overwrite=existing)
    assert files_under(tmp_path) == before
    assert existing or not list(tmp_path.iterdir())


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 100,000 bytes: the kernel itself refuses, in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
def test_a_write_that_the_kernel_refuses_leaves_nothing(tmp_path: Path, weights: RandomWeights) -> None:
    with pytest.raises(StorageError, match=r"m: the disk refused \(File too large\)"):
        write_checkpoint(tmp_path / "m", CONFIG, weights)
    assert not list(tmp_path.iterdir())


def test_too_little_space_is_seen_before_anything_is_written(
    tmp_path: Path, weights: RandomWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"m: needs 1,\d{3},\d{3} bytes and 1,000 are free"):
        write_checkpoint(tmp_path / "m", CONFIG, weights)
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_named(tmp_path: Path, weights: RandomWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StorageError, match=r"m: the disk refused \(Read-only file system\)"):
        write_checkpoint(tmp_path / "m", CONFIG, weights)


def test_an_interruption_leaves_nothing(tmp_path: Path, weights: RandomWeights) -> None:
    def interrupt(done: int, _: int) -> None:
        if done > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "m", CONFIG, weights, max_shard_bytes=SHARD, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_a_byte_that_reads_back_differently_is_found(tmp_path: Path, weights: RandomWeights) -> None:
    """The last byte is changed on the disk between writing and reading back."""

    def corrupt(done: int, total: int) -> None:
        if 2 * done >= total and (path := next(tmp_path.glob(".m.*/model.safetensors"), None)):
            with path.open("r+b") as file:
                file.seek(-1, os.SEEK_END)
                last = file.read(1)
                file.seek(-1, os.SEEK_END)
                file.write(bytes([last[0] ^ 1]) if 2 * done == total else last)

    with pytest.raises(StorageError, match=r"tensor lm_head\.weight reads back differently"):
        write_checkpoint(tmp_path / "m", CONFIG, weights, progress=corrupt)
    assert not list(tmp_path.iterdir())


def test_a_target_in_use_is_left_alone(tmp_path: Path, weights: RandomWeights) -> None:
    target = tmp_path / "m"
    target.mkdir()
    write_checkpoint(target, CONFIG, weights)
    before = files_under(tmp_path)
    with pytest.raises(StorageError, match="m already exists and is not empty"):
        write_checkpoint(target, CONFIG, weights)
    (target / "notes").mkdir()
    with pytest.raises(StorageError, match="m holds more than a checkpoint: it is not overwritten"):
        write_checkpoint(target, CONFIG, weights, overwrite=True)
    (target / "notes").rmdir()
    assert files_under(tmp_path) == before
    write_checkpoint(target, CONFIG, RandomWeights(CONFIG, 2), layout="original", overwrite=True)
    assert open_checkpoint(target).layout == "original"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that ran and is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("number", ["dead", "own"])
def test_what_a_killed_run_left_is_removed(tmp_path: Path, weights: RandomWeights, dead: int, number: str) -> None:
    gone = tmp_path / f".m.partial-{dead if number == 'dead' else os.getpid()}"
    kept = [tmp_path / name for name in (f".m.partial-{os.getppid()}", f".n.partial-{dead}", ".m.partial-mine")]
    for folder in (gone, *kept):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    write_checkpoint(tmp_path / "m", CONFIG, weights)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "m"])


def test_a_run_killed_between_its_two_renames_loses_nothing(tmp_path: Path, weights: RandomWeights, dead: int) -> None:
    target, moved = tmp_path / "m", tmp_path / f".m.replaced-{dead}"
    write_checkpoint(target, CONFIG, weights)
    before = files_under(target)
    target.rename(moved)
    with pytest.raises(StorageError, match="m already exists and is not empty"):
        write_checkpoint(target, CONFIG, RandomWeights(CONFIG, 2))
    assert files_under(target) == before
    assert list(tmp_path.iterdir()) == [target]
    shutil.copytree(target, moved)
    write_checkpoint(target, CONFIG, RandomWeights(CONFIG, 2), overwrite=True)
    assert list(tmp_path.iterdir()) == [target]


def test_targets_that_cannot_be(tmp_path: Path, weights: RandomWeights) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file is a file: name a folder"):
        write_checkpoint(tmp_path / "file", CONFIG, weights)
    with pytest.raises(StorageError, match="none does not exist: create it first"):
        write_checkpoint(tmp_path / "none" / "m", CONFIG, weights)


# -------------------------------------------------------------------- tensors that do not fit

Change = Callable[[dict[str, torch.Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda t: t.pop("norm.scale"), CheckpointError, r"1 missing \(norm\.scale\)$"),
        (lambda t: t.update(more=t["norm.scale"]), CheckpointError, r"1 unexpected \(more\)$"),
        (
            lambda t: t.update({"norm.scale": torch.ones(63)}),
            CheckpointError,
            r"norm\.scale to write is \[63\].*\[64\]",
        ),
        (
            lambda t: t.update({"norm.scale": torch.ones(64, dtype=torch.int32)}),
            CheckpointError,
            r"norm\.scale to write is torch\.int32",
        ),
        (
            lambda t: t["layers.1.mlp.experts.down"][2, 0].fill_(torch.nan),
            KernelError,
            r"layers\.1\.mlp\.experts\.down \(expert 2\) holds NaN",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, dense: dict[str, torch.Tensor], change: Change, error: type[Exception], says: str
) -> None:
    tensors = {name: tensor.clone() for name, tensor in dense.items()}
    change(tensors)
    with pytest.raises(error, match=says):
        write_checkpoint(tmp_path / "m", CONFIG, tensors, packed=True)
    assert not list(tmp_path.iterdir())


def test_what_bf16_cannot_hold_is_refused(tmp_path: Path, weights: RandomWeights) -> None:
    tensors = {name: weights[name] for name in weights.keys()}  # noqa: SIM118
    tensors["layers.0.mlp.experts.down_scales"][1] = 254
    with pytest.raises(
        CheckpointError, match=r"layers\.0\.mlp\.experts\.down \(expert 1\) has values that BF16 cannot"
    ):
        write_checkpoint(tmp_path / "m", CONFIG, tensors, packed=False)
    write_checkpoint(tmp_path / "m", CONFIG, tensors, packed=True)


def test_a_configuration_that_the_layout_cannot_say(tmp_path: Path) -> None:
    config = replace(CONFIG, max_position_embeddings=2048)
    with pytest.raises(ConfigError, match="max_position_embeddings 2048"):
        write_checkpoint(tmp_path / "m", config, RandomWeights(config, 0), layout="original")
    assert not list(tmp_path.iterdir())


def test_memory_stays_at_one_tensor(tmp_path: Path, weights: RandomWeights) -> None:
    """The writer lets go of each parameter before it asks for the next."""

    class Watched:
        def __init__(self) -> None:
            self.alive = self.most = 0

        def keys(self) -> list[str]:
            return list(parameter_shapes(CONFIG, packed=True))

        def __getitem__(self, name: str, /) -> torch.Tensor:
            tensor = weights[name]
            self.alive += 1
            self.most = max(self.most, self.alive)
            weakref.finalize(tensor.untyped_storage(), self.release)
            return tensor

        def release(self) -> None:
            self.alive -= 1

    watched = Watched()
    write_checkpoint(tmp_path / "m", CONFIG, watched)
    assert watched.alive == 0
    assert watched.most <= 2
