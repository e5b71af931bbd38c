"""Checkpoints of each layout between ossia and the independent implementations, both ways, judged by their logits.

Written by ossia and loaded by transformers or the official code; written by transformers, or by hand under the names of
the published files, and loaded by ossia. Both sides then run in float32 on the same bfloat16 and MXFP4 values.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.model.oracles import (
    official_name,
    official_state,
    packed,
    random_tensors,
    small,
    transformers_config,
    transformers_model,
    transformers_name,
)
from torch import Tensor

from ossia.config import ModelConfig
from ossia.kernels import select
from ossia.model.adapt import build, fill
from ossia.model.attention import Packed
from ossia.model.checkpoint import Checkpoint, open_checkpoint
from ossia.model.write import write_checkpoint

LIMIT = 1e-4
CONFIG = small(mxfp4_experts=True)
IDS = torch.randint(CONFIG.vocab_size, (140,), generator=torch.Generator().manual_seed(0))

Run = Callable[[Path], Tensor]
"""A model folder → logits [140, V] in float32."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    """Packed experts, everything else in bfloat16."""
    return {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in packed(random_tensors(CONFIG)).items()
    }


@torch.no_grad()
def run_ossia(checkpoint: Checkpoint) -> Tensor:
    kernels = select("torch")
    model = build(checkpoint.config, kernels, experts="mxfp4" if checkpoint.packed else "dense")
    fill(model, checkpoint.tensors(), dtype=torch.float32)
    return model(IDS, torch.arange(len(IDS)), Packed(kernels, (len(IDS),)))


@torch.no_grad()
def run_transformers(folder: Path) -> Tensor:
    from transformers import GptOssForCausalLM, Mxfp4Config

    is_packed = "quantization_config" in json.loads((folder / "config.json").read_text())
    model, report = GptOssForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
        **({"quantization_config": Mxfp4Config(dequantize=True)} if is_packed else {}),
    )
    assert not any(report.values()), report
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    return model.eval()(IDS[None], use_cache=False).logits[0]


@torch.no_grad()
def run_official(folder: Path) -> Tensor:
    from gpt_oss.torch.model import Transformer

    return Transformer.from_checkpoint(str(folder), device="cpu").float()(IDS)


def assert_same_logits(ours: Tensor, theirs: Tensor) -> None:
    assert 0.7 < float(theirs.std()) < 1.4
    difference = float((ours - theirs).abs().max())
    print(f"largest difference {difference:.2e}")
    assert difference <= LIMIT


# ---------------------------------------------------------------- written by ossia


@pytest.mark.parametrize(
    ("layout", "is_packed", "run_theirs"),
    [("hf", True, run_transformers), ("hf", False, run_transformers), ("original", True, run_official)],
    ids=["hf packed", "hf bfloat16", "original packed"],
)
@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000], ids=["whole", "shards"])
def test_written_by_ossia(
    tmp_path: Path, tensors: dict[str, Tensor], layout, is_packed: bool, run_theirs: Run, max_shard_bytes: int
) -> None:
    checkpoint = write_checkpoint(
        tmp_path / "model", CONFIG, tensors, layout=layout, packed=is_packed, max_shard_bytes=max_shard_bytes
    )
    assert checkpoint.packed == is_packed
    assert_same_logits(run_ossia(checkpoint), run_theirs(tmp_path / "model"))


# ---------------------------------------------------------------- written by others


def by_transformers(folder: Path, tensors: dict[str, Tensor]) -> None:
    """A dense model saved by transformers itself, its config.json too."""
    transformers_model(CONFIG, tensors, torch.bfloat16).save_pretrained(folder)


def in_the_hf_layout(folder: Path, tensors: dict[str, Tensor]) -> None:
    folder.mkdir()
    stored = {transformers_name(name): tensor for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    config = transformers_config(CONFIG).to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))


def in_the_original_layout(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Norm scales in float32, as the official code has them."""
    folder.mkdir()
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith(("_blocks", "_scales"))}
    stored = official_state(plain)
    for name, tensor in tensors.items():
        if name.endswith(("_blocks", "_scales")):
            stem, part = name.rsplit("_", 1)
            stored[f"{official_name(stem)}.{part}"] = tensor
    stored = {name: tensor.float() if "norm" in name else tensor for name, tensor in stored.items()}
    save_file(stored, folder / "model.safetensors")
    config = {name: getattr(CONFIG, name) for name in _ORIGINAL_FIELDS}
    (folder / "config.json").write_text(json.dumps(config | {"rope_ntk_alpha": 1.0, "rope_ntk_beta": 32.0}))


_ORIGINAL_FIELDS = (
    "num_hidden_layers num_experts experts_per_token vocab_size hidden_size intermediate_size swiglu_limit head_dim "
    "num_attention_heads num_key_value_heads sliding_window initial_context_length rope_theta rope_scaling_factor"
).split()


@pytest.mark.parametrize(
    ("write", "run_theirs", "layout", "is_packed"),
    [
        (by_transformers, run_transformers, "hf", False),
        (in_the_hf_layout, run_transformers, "hf", True),
        (in_the_original_layout, run_official, "original", True),
    ],
    ids=["saved by transformers", "hf packed", "original packed"],
)
def test_written_by_others(
    tmp_path: Path,
    tensors: dict[str, Tensor],
    write: Callable[[Path, dict[str, Tensor]], None],
    run_theirs: Run,
    layout: str,
    is_packed: bool,
) -> None:
    folder = tmp_path / "model"
    write(folder, tensors)
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.layout, checkpoint.packed) == (layout, is_packed)
    assert checkpoint.config == expected_config(layout, is_packed)
    assert_same_logits(run_ossia(checkpoint), run_theirs(folder))


def expected_config(layout: str, is_packed: bool) -> ModelConfig:
    """transformers has another default for the load-balancing loss, which changes no logit."""
    coefficient = 0.001 if layout == "hf" else CONFIG.router_aux_loss_coef
    return replace(CONFIG, mxfp4_experts=is_packed, router_aux_loss_coef=coefficient)


# ---------------------------------------------------------------- from one to the other by way of ossia


def test_from_original_to_hf(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    """What the official code reads from the one, transformers reads from the other."""
    in_the_original_layout(tmp_path / "original", tensors)
    write_checkpoint(tmp_path / "hf", CONFIG, open_checkpoint(tmp_path / "original"))
    assert_same_logits(run_transformers(tmp_path / "hf"), run_official(tmp_path / "original"))


def test_from_hf_to_original(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    in_the_hf_layout(tmp_path / "hf", tensors)
    write_checkpoint(tmp_path / "original", CONFIG, open_checkpoint(tmp_path / "hf"), layout="original")
    assert_same_logits(run_official(tmp_path / "original"), run_transformers(tmp_path / "hf"))
