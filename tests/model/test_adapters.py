"""Adapters as files: what PEFT writes is read, what is written PEFT reads, and nothing foreign is taken for either."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.model.oracles import packed, random_tensors, small, transformers_model
from torch import Tensor

from ossia.errors import CheckpointError, StorageError
from ossia.kernels import select
from ossia.model.adapt import LORA_TARGETS, add_lora, build, dequantized, fill
from ossia.model.adapted import with_adapter
from ossia.model.adapters import (
    CONFIG,
    WEIGHTS,
    Adapter,
    LowRank,
    adapter_of,
    base_digest,
    check_base,
    read_adapter,
    write_adapter,
)
from ossia.model.attention import Packed
from ossia.model.layouts import parameter_shapes
from ossia.model.transformer import Transformer
from ossia.model.write import write_checkpoint

SHAPE = small()
IDS = torch.randint(SHAPE.vocab_size, (40,), generator=torch.Generator().manual_seed(0))
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj"]
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ATTENTION = [f"attention.{each}.weight" for each in "qkvo"]
EXPERTS = ["mlp.experts.gate_up", "mlp.experts.down"]


def random_adapter(weights: list[str], *, rank: int = 3, scale: float = 1.5, layers: int = 3, seed: int = 0) -> Adapter:
    """Of this rank, with both halves random, for these weights of the first layers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(SHAPE, packed=False)
    changes: dict[str, LowRank] = {}
    for n in range(layers):
        for each in weights:
            *experts, rows, columns = shapes[f"layers.{n}.{each}"]
            a = torch.randn(*experts, rank, columns, generator=generator) * columns**-0.5
            b = torch.randn(*experts, rows, rank, generator=generator) * 0.3
            changes[f"layers.{n}.{each}"] = LowRank(a=a, b=b, scale=scale)
    return Adapter(changes=changes)


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return random_tensors(SHAPE)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_adapter(tmp_path / "adapter", random_adapter(ATTENTION + EXPERTS), SHAPE, base_name="the/base")
    return tmp_path / "adapter"


def filled(tensors: dict[str, Tensor]) -> Transformer:
    return fill(build(SHAPE, select("torch")), tensors.items())


@torch.no_grad()
def logits(model: Transformer) -> Tensor:
    return model(IDS, torch.arange(len(IDS)), Packed(model.kernels, (len(IDS),)))


@pytest.fixture
def quiet() -> Iterator[None]:
    """PEFT asks transformers for what that deprecates."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", message="The following .*_pattern keys did not match")  # Of parameters.
        yield


# ---------------------------------------------------------------- beside PEFT


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize(
    ("modules", "parameters", "options"),
    [
        (MODULES, PARAMETERS, {}),
        (MODULES, [], {"use_rslora": True}),
        ([], PARAMETERS, {}),
        ([], PARAMETERS[:1], {}),
        ([], PARAMETERS[1:], {}),
        (["q_proj"], [*PARAMETERS, "mlp.router.weight"], {}),
        (
            ["q_proj", "v_proj"],
            PARAMETERS,
            {"rank_pattern": {"gate_up_proj": 5, "layers.1.self_attn.v_proj": 2}, "alpha_pattern": {"v_proj": 3}},
        ),
        (["model.layers.1.self_attn.k_proj"], ["layers.2.mlp.experts.down_proj"], {}),
    ],
    ids=["all", "attention", "experts", "gate_up", "down", "router", "patterns", "some layers"],
)
def test_peft_on_transformers_gives_the_same_logits(
    tmp_path: Path, tensors: dict[str, Tensor], modules: list[str], parameters: list[str], options: dict[str, object]
) -> None:
    """Made by PEFT and read by ossia, then written by ossia and loaded by PEFT."""
    from peft import LoraConfig, PeftModel, get_peft_model

    made = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=modules,
        target_parameters=parameters,
        init_lora_weights=False,
        task_type="CAUSAL_LM",
        **options,  # type: ignore[arg-type]
    )
    torch.manual_seed(0)
    theirs = get_peft_model(transformers_model(SHAPE, tensors), made)
    theirs.save_pretrained(tmp_path / "made")
    with torch.no_grad():
        expected = theirs(IDS[None], use_cache=False).logits[0]

    base = filled(tensors)
    adapter = read_adapter(tmp_path / "made", SHAPE)
    ours = logits(with_adapter(base, adapter).model)
    assert float((logits(base) - ours).abs().max()) > 1e-2
    assert float((ours - expected).abs().max()) <= 1e-4

    write_adapter(tmp_path / "written", adapter, SHAPE)
    again = PeftModel.from_pretrained(transformers_model(SHAPE, tensors), str(tmp_path / "written"))
    with torch.no_grad():
        assert torch.allclose(again(IDS[None], use_cache=False).logits[0], expected, atol=1e-5)
    assert read_adapter(tmp_path / "written", SHAPE).digest == adapter.digest


def test_the_names_in_the_file_are_those_that_vllm_looks_for(written: Path) -> None:
    """It stacks the experts as PEFT does, and takes `base_layer` for gate_up."""
    stored = load_file(written / WEIGHTS)
    place = "base_model.model.model.layers.2.mlp.experts"
    rank, experts = 3, SHAPE.num_experts
    assert stored[f"{place}.base_layer.lora_A.weight"].shape == (rank * experts, SHAPE.hidden_size)
    assert stored[f"{place}.base_layer.lora_B.weight"].shape == (2 * SHAPE.intermediate_size, rank * experts)
    change = read_adapter(written, SHAPE).changes["layers.2.mlp.experts.down"]
    a, b = (stored[f"{place}.lora_{each}.weight"] for each in "AB")
    assert torch.equal(a.reshape(experts, -1, a.shape[-1]), change.a)
    assert torch.equal(b.reshape(b.shape[0], -1, experts).permute(2, 0, 1), change.b)


def test_what_was_trained_is_what_is_written(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    model = add_lora(filled(tensors), rank=4, alpha=6, targets=LORA_TARGETS)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(generator=generator).mul_(0.1)
    write_adapter(tmp_path / "adapter", adapter_of(model, base="abc"), SHAPE)
    adapter = read_adapter(tmp_path / "adapter", SHAPE)
    assert adapter.base == "abc"
    assert torch.allclose(logits(with_adapter(filled(tensors), adapter).model), logits(model), atol=1e-5)


def test_the_model_beneath_stays_as_it_is(tensors: dict[str, Tensor]) -> None:
    base = filled(tensors)
    before = logits(base)
    variant = with_adapter(base, random_adapter(ATTENTION + EXPERTS)).model
    assert {id(each) for each in base.parameters()} == {id(each) for each in variant.parameters()}
    assert not torch.allclose(logits(variant), before)
    assert torch.equal(logits(base), before)


# ---------------------------------------------------------------- the model it is for


def test_the_digest_knows_a_model_in_whatever_form(tmp_path: Path) -> None:
    config = replace(SHAPE, mxfp4_experts=True)
    values = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in packed(random_tensors(config)).items()
    }
    forms = [
        write_checkpoint(tmp_path / "hf", config, values),
        write_checkpoint(tmp_path / "original", config, values, layout="original"),
        write_checkpoint(tmp_path / "bf16", config, values, packed=False),
        write_checkpoint(tmp_path / "shards", config, values, max_shard_bytes=100_000),
    ]
    assert len({base_digest(each) for each in forms}) == 1
    for name in ("layers.1.attention.k.bias", "layers.2.mlp.router.weight", "unembedding.weight"):
        other = dict(values)
        other[name] = other[name] * 1.5
        assert base_digest(write_checkpoint(tmp_path / name, config, other)) != base_digest(forms[0])
    # A fine-tune of the experts of one layer alone.
    dense = dequantized(values, torch.float32)
    dense["layers.1.mlp.experts.down"] += 0.1
    other = write_checkpoint(tmp_path / "tuned", config, dense, packed=True)
    adapter = Adapter(changes={}, base=base_digest(forms[0]))
    check_base(adapter, forms[2], "mine")
    check_base(Adapter(changes={}), other, "mine")
    with pytest.raises(CheckpointError, match=r"mine: the adapter was made for another model than .*tuned"):
        check_base(adapter, other, "mine")


# ---------------------------------------------------------------- what is refused


def changed(folder: Path, **settings: object) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type is 'IA3': only LORA"),
        ({"use_dora": True}, r"use_dora = True: only plain LoRA"),
        ({"bias": "all"}, r"bias = 'all': only plain LoRA"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights = 'pissa'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \['lm_head'\]"),
        ({"r": 4}, r"has rank 3 and adapter_config.json says 4"),
        ({"r": 0}, r"r is 0: expected a number above 0"),
        ({"lora_alpha": "8"}, r"lora_alpha is '8': expected a number"),
        ({"rank_pattern": {"q_proj": -1}}, r"rank_pattern\['q_proj'\] is -1"),
        ({"alpha_pattern": [1]}, r"alpha_pattern is \[1\]: expected an object"),
        ({"target_parameters": "down_proj"}, r"target_parameters is 'down_proj': expected a list"),
        ({"target_parameters": PARAMETERS[:1]}, r"unexpected \(base_model.model.model.layers.0.mlp.experts.base_layer"),
    ],
)
def test_settings_that_mean_something_else(written: Path, settings: dict[str, object], message: str) -> None:
    changed(written, **settings)
    with pytest.raises(CheckpointError, match=message):
        read_adapter(written, SHAPE)


def test_settings_that_change_nothing(written: Path) -> None:
    changed(written, revision="main", lora_dropout=0.1, use_dora=False, loftq_config={}, megatron_core="x", foo=None)
    assert read_adapter(written, SHAPE).digest == random_adapter(ATTENTION + EXPERTS).digest


def test_files_that_are_not_there(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere holds no adapter_config.json: name the folder of an adapter"):
        read_adapter(tmp_path / "nowhere", SHAPE)
    (written / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors is missing"):
        read_adapter(written, SHAPE)


def test_tensors_that_do_not_fit(written: Path) -> None:
    whole = load_file(written / WEIGHTS)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        save_file(tensors, written / WEIGHTS)
        with pytest.raises(CheckpointError, match=message):
            read_adapter(written, SHAPE)

    refused({key: value for key, value in whole.items() if key != name}, rf"1 missing \({name}\)")
    refused(whole | {"lm_head.lora_A.weight": torch.ones(3, 3)}, r"1 unexpected \(lm_head.lora_A.weight\)")
    refused(whole | {name: torch.ones(3, 95)}, r"do not fit a weight \[64, 96\]: the adapter is for another model")
    refused(whole | {name: torch.ones(3, 96, 1)}, r"do not fit a weight")
    refused(whole | {name: torch.full((3, 96), torch.nan)}, rf"{name} holds NaN or infinity")
    refused(whole | {name: torch.ones(3, 96, dtype=torch.int32)}, r"holds floating-point values")
    save_file(whole | {name: whole[name].half()}, written / WEIGHTS)
    assert torch.equal(
        read_adapter(written, SHAPE).changes["layers.0.attention.q.weight"].a, whole[name].half().float()
    )


def test_another_shape_of_model(written: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit a weight"):
        read_adapter(written, small(hidden_size=128))
    with pytest.raises(CheckpointError, match=r"unexpected"):
        read_adapter(written, small(num_hidden_layers=2))


def test_what_cannot_be_written(tmp_path: Path) -> None:
    strange = Adapter(changes={"unembedding.weight": LowRank(a=torch.ones(1, 96), b=torch.ones(300, 1), scale=1)})
    with pytest.raises(CheckpointError, match=r"unembedding.weight \[300, 96\] is nothing that an adapter"):
        write_adapter(tmp_path / "adapter", strange, SHAPE)
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(StorageError, match=r"cannot be made"):
        write_adapter(tmp_path / "no" / "adapter", random_adapter(ATTENTION), SHAPE)


def test_what_a_full_disk_leaves(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = read_adapter(written, SHAPE).digest

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"No space left on device"):
        write_adapter(written, random_adapter(ATTENTION, seed=1), SHAPE)
    assert read_adapter(written, SHAPE).digest == before
    assert {path.name for path in written.iterdir()} == {CONFIG, WEIGHTS}
