"""Checkpoints that independent code made are read with equal tensors; every damage is named before a tensor is used."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ossia.config import ModelConfig
from ossia.errors import CheckpointError, ConfigError
from ossia.model.checkpoint import open_checkpoint

CONFIG = ModelConfig(
    num_hidden_layers=2,
    num_experts=4,
    experts_per_token=2,
    vocab_size=50,
    hidden_size=64,
    intermediate_size=96,
    head_dim=16,
    num_attention_heads=6,
    num_key_value_heads=2,
    sliding_window=16,
)
D, INTER, E, V, Q, KV, NH = 64, 96, 4, 50, 96, 32, 6

Tensors = dict[str, torch.Tensor]


def random_parameters(*, packed: bool) -> Tensors:
    """Every parameter of CONFIG under the names of the model, spelled out by hand."""
    torch.manual_seed(0)

    def bf16(*shape: int) -> torch.Tensor:
        return torch.randn(shape).bfloat16()

    def byte(*shape: int) -> torch.Tensor:
        return torch.randint(0, 255, shape, dtype=torch.uint8)

    out = {"embedding.weight": bf16(V, D), "norm.scale": bf16(D), "unembedding.weight": bf16(V, D)}
    for n in range(2):
        layer = f"layers.{n}"
        out |= {
            f"{layer}.attention_norm.scale": bf16(D),
            f"{layer}.attention.q.weight": bf16(Q, D),
            f"{layer}.attention.q.bias": bf16(Q),
            f"{layer}.attention.k.weight": bf16(KV, D),
            f"{layer}.attention.k.bias": bf16(KV),
            f"{layer}.attention.v.weight": bf16(KV, D),
            f"{layer}.attention.v.bias": bf16(KV),
            f"{layer}.attention.o.weight": bf16(D, Q),
            f"{layer}.attention.o.bias": bf16(D),
            f"{layer}.attention.sinks": bf16(NH),
            f"{layer}.mlp_norm.scale": bf16(D),
            f"{layer}.mlp.router.weight": bf16(E, D),
            f"{layer}.mlp.router.bias": bf16(E),
            f"{layer}.mlp.experts.gate_up_bias": bf16(E, 2 * INTER),
            f"{layer}.mlp.experts.down_bias": bf16(E, D),
        }
        if packed:
            out |= {
                f"{layer}.mlp.experts.gate_up_blocks": byte(E, 2 * INTER, D // 32, 16),
                f"{layer}.mlp.experts.gate_up_scales": byte(E, 2 * INTER, D // 32),
                f"{layer}.mlp.experts.down_blocks": byte(E, D, INTER // 32, 16),
                f"{layer}.mlp.experts.down_scales": byte(E, D, INTER // 32),
            }
        else:
            out |= {
                f"{layer}.mlp.experts.gate_up": bf16(E, 2 * INTER, D),
                f"{layer}.mlp.experts.down": bf16(E, D, INTER),
            }
    return out


def as_hf(ours: Tensors) -> Tensors:
    """The same under the published names of the HF layout, spelled out by hand."""
    out = {
        "model.embed_tokens.weight": ours["embedding.weight"],
        "model.norm.weight": ours["norm.scale"],
        "lm_head.weight": ours["unembedding.weight"],
    }
    for n in range(2):
        a, b = f"layers.{n}", f"model.layers.{n}"
        out[f"{b}.input_layernorm.weight"] = ours[f"{a}.attention_norm.scale"]
        out[f"{b}.post_attention_layernorm.weight"] = ours[f"{a}.mlp_norm.scale"]
        out[f"{b}.self_attn.sinks"] = ours[f"{a}.attention.sinks"]
        for which in "qkvo":
            out[f"{b}.self_attn.{which}_proj.weight"] = ours[f"{a}.attention.{which}.weight"]
            out[f"{b}.self_attn.{which}_proj.bias"] = ours[f"{a}.attention.{which}.bias"]
        out[f"{b}.mlp.router.weight"] = ours[f"{a}.mlp.router.weight"]
        out[f"{b}.mlp.router.bias"] = ours[f"{a}.mlp.router.bias"]
        for which in ("gate_up", "down"):
            out[f"{b}.mlp.experts.{which}_proj_bias"] = ours[f"{a}.mlp.experts.{which}_bias"]
            if f"{a}.mlp.experts.{which}" in ours:
                dense = ours[f"{a}.mlp.experts.{which}"]
                out[f"{b}.mlp.experts.{which}_proj"] = dense.transpose(1, 2).contiguous()
            else:
                out[f"{b}.mlp.experts.{which}_proj_blocks"] = ours[f"{a}.mlp.experts.{which}_blocks"]
                out[f"{b}.mlp.experts.{which}_proj_scales"] = ours[f"{a}.mlp.experts.{which}_scales"]
    return out


def as_original(ours: Tensors) -> Tensors:
    """The same under the published names of `original/`, spelled out by hand."""
    out = {name: ours[name] for name in ("embedding.weight", "norm.scale", "unembedding.weight")}
    for n in range(2):
        a, b = f"layers.{n}", f"block.{n}"
        out[f"{b}.attn.norm.scale"] = ours[f"{a}.attention_norm.scale"]
        out[f"{b}.attn.sinks"] = ours[f"{a}.attention.sinks"]
        out[f"{b}.mlp.norm.scale"] = ours[f"{a}.mlp_norm.scale"]
        for leaf in ("weight", "bias"):
            out[f"{b}.attn.qkv.{leaf}"] = torch.cat([ours[f"{a}.attention.{which}.{leaf}"] for which in "qkv"])
            out[f"{b}.attn.out.{leaf}"] = ours[f"{a}.attention.o.{leaf}"]
            out[f"{b}.mlp.gate.{leaf}"] = ours[f"{a}.mlp.router.{leaf}"]
        for which, number in (("gate_up", 1), ("down", 2)):
            out[f"{b}.mlp.mlp{number}_bias"] = ours[f"{a}.mlp.experts.{which}_bias"]
            if f"{a}.mlp.experts.{which}" in ours:
                out[f"{b}.mlp.mlp{number}_weight"] = ours[f"{a}.mlp.experts.{which}"]
            else:
                out[f"{b}.mlp.mlp{number}_weight.blocks"] = ours[f"{a}.mlp.experts.{which}_blocks"]
                out[f"{b}.mlp.mlp{number}_weight.scales"] = ours[f"{a}.mlp.experts.{which}_scales"]
    return out


def save(folder: Path, layout: str, tensors: Tensors, *, packed: bool = True, shards: int = 1) -> Path:
    """Write published files with no code of ours but for config.json; `shards` numbered as the published ones are."""
    folder.mkdir(exist_ok=True)
    config = replace(CONFIG, mxfp4_experts=packed)
    (folder / "config.json").write_text(json.dumps(config.to_json("hf" if layout == "hf" else "original")))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map: dict[str, str] = {}
    names = sorted(tensors)
    for shard in range(shards):
        file = f"model-{shard:05d}-of-{shards - 1:05d}.safetensors"
        weight_map |= dict.fromkeys(names[shard::shards], file)
        save_file({name: tensors[name] for name in names[shard::shards]}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


# -------------------------------------------------------------------- reading


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("layout", "shards"), [("hf", 1), ("hf", 3), ("original", 1), ("original", 3)])
def test_every_published_form_is_read(tmp_path: Path, layout: str, shards: int, packed: bool) -> None:
    ours = random_parameters(packed=packed)
    stored = as_hf(ours) if layout == "hf" else as_original(ours)
    checkpoint = open_checkpoint(save(tmp_path / "m", layout, stored, packed=packed, shards=shards))
    assert (checkpoint.layout, checkpoint.packed) == (layout, packed)
    assert checkpoint.config == replace(CONFIG, mxfp4_experts=packed)
    assert set(checkpoint.keys()) == set(ours)
    for name, tensor in checkpoint.tensors():
        assert torch.equal(tensor, ours[name]), name
        assert (tensor.dtype, tuple(tensor.shape)) == (checkpoint.specs[name].dtype, checkpoint.specs[name].shape)
    assert checkpoint.num_bytes == sum(tensor.nbytes for tensor in stored.values())
    if packed:
        assert checkpoint.num_bytes == CONFIG.checkpoint_bytes()


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_the_header_says_the_type_of_norms_and_sinks(tmp_path: Path, layout: str) -> None:
    ours = {
        name: tensor.float() if name.endswith(("norm.scale", "sinks")) else tensor
        for name, tensor in random_parameters(packed=True).items()
    }
    stored = as_hf(ours) if layout == "hf" else as_original(ours)
    checkpoint = open_checkpoint(save(tmp_path / "m", layout, stored))
    assert checkpoint.tensor("layers.1.attention.sinks").dtype == torch.float32
    assert torch.equal(checkpoint.tensor("layers.1.mlp_norm.scale"), ours["layers.1.mlp_norm.scale"])
    assert checkpoint.tensor("layers.1.mlp.router.bias").dtype == torch.bfloat16


def test_tensors_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    """Nothing is copied: the parts of one stored tensor, and the same tensor twice, share memory."""
    ours = random_parameters(packed=True)
    checkpoint = open_checkpoint(save(tmp_path / "m", "original", as_original(ours)))
    q, k = checkpoint["layers.0.attention.q.weight"], checkpoint["layers.0.attention.k.weight"]
    assert k.data_ptr() - q.data_ptr() == Q * D * 2
    assert checkpoint["layers.0.attention.q.weight"].data_ptr() == q.data_ptr()


def test_a_repository_is_loaded_once_from_its_root(tmp_path: Path) -> None:
    ours = random_parameters(packed=True)
    root = save(tmp_path / "m", "hf", as_hf(ours), shards=3)
    save(root / "original", "original", as_original(ours))
    (root / "metal").mkdir()
    (root / "metal" / "model.bin").write_bytes(b"metal")
    assert open_checkpoint(root).layout == "hf"
    assert len(open_checkpoint(root).stored) == len(as_hf(ours))
    assert open_checkpoint(root / "original").layout == "original"
    for path in root.glob("*.*"):
        path.unlink()
    assert open_checkpoint(root).folder == root / "original"


def test_symbolic_links_of_a_download_cache_are_followed(tmp_path: Path) -> None:
    real = save(tmp_path / "blobs", "hf", as_hf(random_parameters(packed=True)), shards=3)
    (tmp_path / "snapshot").mkdir()
    for path in real.iterdir():
        (tmp_path / "snapshot" / path.name).symlink_to(path)
    assert open_checkpoint(tmp_path / "snapshot").layout == "hf"


def test_an_unknown_parameter_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "m", "hf", as_hf(random_parameters(packed=True))))
    with pytest.raises(CheckpointError, match=r"has no parameter layers\.7\.mlp"):
        checkpoint.tensor("layers.7.mlp")


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "m", "hf", as_hf(random_parameters(packed=True))))
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: tensor model\.norm\.weight cannot be read"):
        checkpoint.tensor("norm.scale")


def test_a_file_that_became_another_is_not_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(save(tmp_path / "m", "hf", as_hf(random_parameters(packed=True))))
    save_file({"model.norm.weight": torch.ones(4)}, tmp_path / "m" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: holds other tensors than when it was opened"):
        checkpoint.tensor("norm.scale")


# -------------------------------------------------------------------- bad input

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("good") / "m", "hf", as_hf(random_parameters(packed=True)), shards=3)


def edit_tensors(edit: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    """Change the shard that holds NORM, and list in the index what it then holds."""

    def damage(folder: Path) -> None:
        index_path = folder / "model.safetensors.index.json"
        index = json.loads(index_path.read_text())
        file = index["weight_map"][NORM]
        tensors = {name: tensor.clone() for name, tensor in load_file(folder / file).items()}
        edit(tensors)
        save_file(tensors, folder / file)
        kept = {name: where for name, where in index["weight_map"].items() if where != file}
        index["weight_map"] = kept | dict.fromkeys(tensors, file)
        index_path.write_text(json.dumps(index))

    return damage


def edit_index(edit: Callable[[dict[str, str]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors.index.json"
        index = json.loads(path.read_text())
        edit(index["weight_map"])
        path.write_text(json.dumps(index))

    return damage


def edit_config(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        edit(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def missing_and_extra(tensors: Tensors) -> None:
    tensors["model.layers.9.mystery"] = tensors.pop(NORM)


def truncate(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def add(name: str, text: str = "") -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def second_copy(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model.safetensors")


def stray_shard(folder: Path) -> None:
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00003-of-00003.safetensors")


def second_model(name: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copy(folder / "model-00001-of-00002.safetensors", folder / name) and None


def two_families(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "weights.safetensors")


def one_tensor_in_two_shards(folder: Path) -> None:
    (folder / "model.safetensors.index.json").unlink()
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder / "model-00000-of-00002.safetensors")


def no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        (truncate, CheckpointError, r"model-00001-of-00002\.safetensors: tensor \S+ ends past the file.*truncated"),
        (edit_tensors(lambda t: t.pop(NORM)), CheckpointError, rf"1 missing \({NORM}\)$"),
        (edit_tensors(lambda t: t.update(more=t[NORM].clone())), CheckpointError, r": 1 unexpected \(more\)$"),
        (
            edit_tensors(missing_and_extra),
            CheckpointError,
            rf"1 missing \({NORM}\); 1 unexpected \(model\.layers\.9\.my",
        ),
        (
            edit_tensors(lambda t: t.update({NORM: torch.ones(65).bfloat16()})),
            CheckpointError,
            rf"1 of another shape \({NORM} \[65\] instead of \[64\]\)",
        ),
        (
            edit_tensors(lambda t: t.update({NORM: t[NORM].half()})),
            CheckpointError,
            rf"1 of another type \({NORM} F16 instead of BF16 or F32\)",
        ),
        (edit_index(lambda m: m.update({NORM: "../x.safetensors"})), CheckpointError, rf"{NORM} points to '\.\./x\.s"),
        (
            edit_index(lambda m: m.update({NORM: "/etc/x.safetensors"})),
            CheckpointError,
            rf"{NORM} points to '/etc/x\.s",
        ),
        (edit_index(lambda m: m.update({NORM: ".."})), CheckpointError, rf"{NORM} points to '\.\.'"),
        (edit_index(lambda m: m.update({NORM: 3})), CheckpointError, rf"{NORM} points to 3"),
        (
            edit_index(lambda m: m.update({NORM: "b.safetensors"})),
            CheckpointError,
            r"names b\.safetensors, which is not",
        ),
        (
            edit_index(lambda m: m.update({"model.extra": m[NORM]})),
            CheckpointError,
            r"shards hold other tensors than the index lists: 1 missing \(model\.extra in model-",
        ),
        (
            edit_index(lambda m: m.pop(NORM)),
            CheckpointError,
            rf"shards hold other tensors than the index lists: 1 unexpected \({NORM} in model-",
        ),
        (add("model.safetensors.index.json", "{"), CheckpointError, r"index\.json: not valid JSON"),
        (add("model.safetensors.index.json", "[]"), CheckpointError, r"index\.json: expected a JSON object"),
        (add("model.safetensors.index.json", "{}"), CheckpointError, r"index\.json: has no weight_map"),
        (add("model.safetensors.index.json", "[" * 100_000), CheckpointError, r"index\.json: not valid JSON"),
        (
            remove("model-00002-of-00002.safetensors"),
            CheckpointError,
            r"names model-00002-of-00002\.safetensors, which",
        ),
        (remove("config.json"), CheckpointError, r"config\.json is missing"),
        (no_weights, CheckpointError, r"holds no model: expected model\.safetensors"),
        (second_copy, CheckpointError, r"holds two models: model\.safetensors beside model-00000"),
        (stray_shard, CheckpointError, r"holds two models: model-00003-of-00003\.safetensors beside model-00000"),
        (second_model("adapter.safetensors"), CheckpointError, r"two models: adapter\.safetensors beside model-00000"),
        (two_families, CheckpointError, r"holds 2 models \(model, weights\)"),
        (
            one_tensor_in_two_shards,
            CheckpointError,
            r"00001-of-00002\.safetensors: tensor \S+ is in model-00000\S+ too",
        ),
        (edit_config(lambda c: c.update(flavour=1)), ConfigError, r"config\.json: unknown key flavour"),
        (edit_config(lambda c: c.update(hidden_size=65)), ConfigError, r"config\.json: hidden_size is 65"),
        (edit_config(lambda c: c.update(num_hidden_layers=3)), ConfigError, r"layer_types has 2 entries"),
        (edit_config(lambda c: c.update(vocab_size=51)), CheckpointError, r"2 of another shape \(model\.embed_tokens"),
        (
            edit_config(lambda c: c.pop("quantization_config")),
            CheckpointError,
            r"config\.json: has no quantization_config, but the experts in the files are packed in MXFP4",
        ),
    ],
)
def test_damage_is_named_in_one_line(
    good: Path, tmp_path: Path, damage: Callable[[Path], None], error: type[Exception], says: str
) -> None:
    folder = Path(shutil.copytree(good, tmp_path / "m"))
    open_checkpoint(folder)
    damage(folder)
    with pytest.raises(error, match=says) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_file_beside_the_single_one_is_a_second_model(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "hf", as_hf(random_parameters(packed=True)))
    open_checkpoint(folder)
    shutil.copy(folder / "model.safetensors", folder / "merged.safetensors")
    with pytest.raises(CheckpointError, match=r"two models: merged\.safetensors beside model\.safetensors: remove one"):
        open_checkpoint(folder)


def test_a_configuration_that_promises_mxfp4_is_held_to_it(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "hf", as_hf(random_parameters(packed=False)), packed=True)
    with pytest.raises(CheckpointError, match="has a quantization_config, but the experts in the files are not packed"):
        open_checkpoint(folder)


def test_many_mismatches_are_counted_and_a_few_shown(tmp_path: Path) -> None:
    folder = save(tmp_path / "m", "original", as_original(random_parameters(packed=True)))
    edit_config(lambda config: config.update(num_hidden_layers=3))(folder)
    with pytest.raises(CheckpointError, match=r"15 missing \((block\.2\.\S+, ){3}block\.2\.\S+ …\)$"):
        open_checkpoint(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a folder"):
        open_checkpoint(tmp_path / "nowhere")
