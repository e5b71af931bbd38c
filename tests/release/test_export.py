"""Exported models, read by independent software and compared tensor by tensor with the checkpoint."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from safetensors.torch import load_file, save_file

from ossia.config import ModelConfig
from ossia.errors import CheckpointError, ConfigError, OssiaError, StorageError
from ossia.kernels import mxfp4
from ossia.llm import load
from ossia.model.checkpoint import Checkpoint, open_checkpoint
from ossia.model.locate import demo_folder
from ossia.release import export
from ossia.release.export import export_gguf, export_layout

LLAMA_NAMES = {
    "attn_norm.weight": "attention_norm.scale",
    "attn_q.weight": "attention.q.weight",
    "attn_q.bias": "attention.q.bias",
    "attn_k.weight": "attention.k.weight",
    "attn_k.bias": "attention.k.bias",
    "attn_v.weight": "attention.v.weight",
    "attn_v.bias": "attention.v.bias",
    "attn_output.weight": "attention.o.weight",
    "attn_output.bias": "attention.o.bias",
    "attn_sinks.weight": "attention.sinks",
    "post_attention_norm.weight": "mlp_norm.scale",
    "ffn_gate_inp.weight": "mlp.router.weight",
    "ffn_gate_inp.bias": "mlp.router.bias",
    "ffn_gate_exps.weight": "mlp.experts.gate_up",
    "ffn_gate_exps.bias": "mlp.experts.gate_up_bias",
    "ffn_up_exps.weight": "mlp.experts.gate_up",
    "ffn_up_exps.bias": "mlp.experts.gate_up_bias",
    "ffn_down_exps.weight": "mlp.experts.down",
    "ffn_down_exps.bias": "mlp.experts.down_bias",
}
OUTSIDE = {
    "token_embd.weight": "embedding.weight",
    "output_norm.weight": "norm.scale",
    "output.weight": "unembedding.weight",
}


def expected(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """What a tensor of the file should say, in float32: gate rows are the even ones of each expert, up rows the odd."""
    if name in OUTSIDE:
        return checkpoint.tensor(OUTSIDE[name]).float()
    _, layer, leaf = name.split(".", 2)
    parameter = f"layers.{layer}.{LLAMA_NAMES[leaf]}"
    if checkpoint.packed and leaf.endswith("exps.weight"):
        values = mxfp4.dequantize(checkpoint.tensor(f"{parameter}_blocks"), checkpoint.tensor(f"{parameter}_scales"))
    else:
        values = checkpoint.tensor(parameter).float()
    if leaf.startswith("ffn_gate_exps"):
        return values[:, 0::2]
    return values[:, 1::2] if leaf.startswith("ffn_up_exps") else values


def is_dense(name: str) -> bool:
    return name.endswith(("embd.weight", "output.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight"))


@pytest.mark.parametrize("dense", ["q8_0", "bf16", "f16"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("layout", ["hf", "original"])
def test_every_tensor_of_a_gguf(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dense: Any, packed: bool, layout: str
) -> None:
    monkeypatch.setattr(export, "_CHUNK_VALUES", 1000)  # Weights come in several pieces.
    checkpoint = make(layout=layout, packed=packed)
    written = export_gguf(checkpoint, tmp_path / "m.gguf", name="small", dense=dense)
    assert written.num_bytes == (tmp_path / "m.gguf").stat().st_size
    reader = GGUFReader(tmp_path / "m.gguf")
    assert len(reader.tensors) == written.num_tensors == 3 + 2 * len(LLAMA_NAMES)
    experts = "MXFP4" if packed else "F16" if dense == "f16" else "BF16"
    for tensor in reader.tensors:
        want = expected(checkpoint, tensor.name).numpy()
        kind = experts if tensor.name.endswith("exps.weight") else dense.upper() if is_dense(tensor.name) else "F32"
        assert tensor.tensor_type.name == kind, tensor.name
        assert tensor.shape.tolist() == list(reversed(want.shape)), tensor.name
        got = quants.dequantize(tensor.data, tensor.tensor_type)
        if kind == "Q8_0":
            rounded = quants.dequantize(quants.quantize(want, tensor.tensor_type), tensor.tensor_type)
            np.testing.assert_array_equal(got, rounded, err_msg=tensor.name)
        elif kind == "F16":
            np.testing.assert_array_equal(got, want.astype(np.float16).astype(np.float32), err_msg=tensor.name)
        else:
            np.testing.assert_array_equal(got, want, err_msg=tensor.name)


def test_metadata(make: Any, tmp_path: Path) -> None:
    written = export_gguf(make(), tmp_path / "m.gguf", name="small")
    fields = {key: field.contents() for key, field in GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert {key.removeprefix("gpt-oss."): value for key, value in fields.items() if key.startswith("gpt-oss.")} == {
        "block_count": 2,
        "context_length": 256,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "expert_feed_forward_length": 96,
        "expert_count": 4,
        "expert_used_count": 2,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": np.float32(1e-5),
        "attention.sliding_window": 16,
        "rope.dimension_count": 16,
        "rope.freq_base": 150_000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.yarn_beta_fast": 32.0,
        "rope.scaling.yarn_beta_slow": 1.0,
        "vocab_size": 272,
    }
    assert (fields["general.architecture"], fields["general.name"]) == ("gpt-oss", "small")
    assert fields["general.file_type"] == 38
    assert fields["tokenizer.ggml.model"] == "none"
    assert written.notes == (
        "the model has no vocabulary beside it, so the file has none: it takes and gives token ids only",
    )


def test_the_keys_are_those_of_the_gguf_package(make: Any, tmp_path: Path) -> None:
    from gguf import constants

    known = {
        value.replace("{arch}", "gpt-oss")
        for group in vars(constants.Keys).values()
        if isinstance(group, type)
        for value in vars(group).values()
        if isinstance(value, str)
    }
    config = ModelConfig(num_hidden_layers=2, num_experts=4)
    assert set(export.gguf_metadata(config, name="x", experts=export.GgufType.MXFP4)) <= known
    names = {
        *(pattern.format(bid=bid) for pattern in constants.TENSOR_NAMES.values() for bid in range(2)),
    }
    export_gguf(make(), tmp_path / "m.gguf", name="small")
    assert {tensor.name.rpartition(".")[0] for tensor in GGUFReader(tmp_path / "m.gguf").tensors} <= names


def test_a_vocabulary_goes_along(make: Any, tmp_path: Path, tiny_tokenizer_file: Path) -> None:
    checkpoint = make(extra_files=[tiny_tokenizer_file])
    written = export_gguf(checkpoint, tmp_path / "m.gguf", name="small")
    fields = {key: field.contents() for key, field in GGUFReader(tmp_path / "m.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert len(fields["tokenizer.ggml.tokens"]) == 272
    assert "<|start|>assistant" in fields["tokenizer.chat_template"]
    assert "gpt-oss.vocab_size" not in fields
    assert len(written.notes) == 1


@pytest.mark.parametrize(
    ("changes", "dense", "error", "says"),
    [
        ({"swiglu_limit": 6.0}, "q8_0", ConfigError, "swiglu_limit is 6.0: llama.cpp runs gpt-oss with 7.0 only"),
        ({"rope_beta_fast": 16.0}, "q8_0", ConfigError, "rope_beta_fast is 16.0: llama.cpp runs gpt-oss with 32.0"),
        ({"layer_types": ("full_attention",) * 2}, "q8_0", ConfigError, "layer_types is not the published alternation"),
        (
            {"num_attention_heads": 2, "head_dim": 8},
            "q8_0",
            ConfigError,
            "layers.0.attention.o.weight has rows of 16 values and Q8_0 packs blocks of 32: use --dense bf16",
        ),
    ],
)
def test_what_llama_cpp_cannot_run(
    make: Any, tmp_path: Path, changes: dict[str, Any], dense: Any, error: type[OssiaError], says: str
) -> None:
    with pytest.raises(error) as raised:
        export_gguf(make(changes=changes), tmp_path / "m.gguf", name="x", dense=dense)
    assert says in str(raised.value)
    assert not list(tmp_path.glob("*m.gguf*"))


@pytest.mark.parametrize(
    ("tensor", "value", "dense", "says"),
    [
        (
            "model.layers.1.mlp.experts.down_proj_scales",
            255,
            "q8_0",
            "layers.1.mlp.experts.down (expert 2) holds the sc",
        ),
        (
            "model.layers.1.self_attn.q_proj.weight",
            torch.nan,
            "q8_0",
            "layers.1.attention.q.weight holds NaN or infini",
        ),
        ("model.layers.1.mlp.router.bias", torch.inf, "q8_0", "layers.1.mlp.router.bias holds NaN or infinity"),
        ("lm_head.weight", 1e6, "f16", "unembedding.weight has values that F16 cannot hold: use --dense bf16"),
    ],
)
def test_values_that_cannot_be_stored(
    make: Any, tmp_path: Path, tensor: str, value: float, dense: Any, says: str
) -> None:
    path = make().folder / "model.safetensors"
    tensors = load_file(path)
    tensors[tensor][2] = value
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as raised:
        export_gguf(open_checkpoint(path.parent), tmp_path / "m.gguf", name="x", dense=dense)
    assert says in str(raised.value)
    assert not list(tmp_path.glob("*m.gguf*"))


# -------------------------------------------------------------------- the published layouts


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("layout", ["hf", "original"])
@pytest.mark.parametrize("to", ["hf", "original"])
def test_either_layout_keeps_every_byte(make: Any, tmp_path: Path, packed: bool, layout: str, to: Any) -> None:
    checkpoint = make(layout=layout, packed=packed)
    written = export_layout(checkpoint, tmp_path / "out", to)
    again = open_checkpoint(tmp_path / "out")
    assert (again.layout, again.packed, again.config) == (to, packed, replace(checkpoint.config, mxfp4_experts=packed))
    assert (written.num_tensors, written.num_bytes) == (len(again.stored), again.num_bytes)
    for name, tensor in checkpoint.tensors():
        assert torch.equal(tensor, again.tensor(name)), name


def test_what_lies_beside_goes_along(make: Any, tmp_path: Path, tiny_tokenizer_file: Path) -> None:
    checkpoint = make(extra_files=[tiny_tokenizer_file], generation_config={"do_sample": False})
    (checkpoint.folder / "LICENSE").write_text("free")
    assert export_layout(checkpoint, tmp_path / "hf", "hf").notes == ()
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {
        *"config.json model.safetensors generation_config.json tokenizer.json chat_template.jinja LICENSE".split()
    }
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text()) == {"do_sample": False}
    (checkpoint.folder / "chat_template.jinja").write_text("mine")
    export_layout(checkpoint, tmp_path / "hf", "hf", overwrite=True)
    assert (tmp_path / "hf" / "chat_template.jinja").read_text() == "mine"
    export_layout(checkpoint, tmp_path / "original", "original")
    assert {path.name for path in (tmp_path / "original").iterdir()} == {
        *"config.json model.safetensors tokenizer.json chat_template.jinja LICENSE".split()
    }


def test_what_does_not_go_along_is_told(make: Any, tmp_path: Path, o200k_path: Path) -> None:
    (note,) = export_layout(make(), tmp_path / "a", "hf").notes
    assert note.startswith("the model has no vocabulary beside it")
    checkpoint = make("big", changes={"vocab_size": 201_088, "hidden_size": 32}, extra_files=[o200k_path])
    (note,) = export_layout(checkpoint, tmp_path / "b", "hf").notes
    assert note == "the vocabulary is o200k_base.tiktoken, which transformers does not read: add a tokenizer.json"


def test_the_folder_of_original_borrows_from_the_one_above(
    make: Any, tmp_path: Path, tiny_tokenizer_file: Path
) -> None:
    (tmp_path / "hub").mkdir()
    make("hub/original", layout="original")
    shutil.copy(tiny_tokenizer_file, tmp_path / "hub")
    (tmp_path / "hub" / "LICENSE").write_text("free")
    export_layout(open_checkpoint(tmp_path / "hub"), tmp_path / "out", "hf")
    assert (tmp_path / "out" / "LICENSE").read_text() == "free"
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_a_model_is_not_written_onto_itself(make: Any) -> None:
    checkpoint = make()
    with pytest.raises(StorageError, match="is the model itself: name another folder"):
        export_layout(checkpoint, checkpoint.folder, "hf", overwrite=True)
    assert open_checkpoint(checkpoint.folder).stored == checkpoint.stored


def test_transformers_reads_the_export(tmp_path: Path) -> None:
    """Weights, vocabulary and template of the bundled model, through the library's own loaders."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Mxfp4Config

    llm = load("demo", kernels="reference", dtype=torch.float32)
    export_layout(open_checkpoint(demo_folder()), tmp_path / "hf", "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    messages = [{"role": "user", "content": "What is 4213 + 2789?"}]
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, current_date="2025-06-28"
    )
    ids = tokenizer.encode(text, add_special_tokens=False)
    from ossia import render

    assert ids == render(messages, tokenizer=llm.tokenizer, date="2025-06-28")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf",
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
    )
    with torch.no_grad():
        logits = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, llm.logits(ids), rtol=0, atol=2e-3)
