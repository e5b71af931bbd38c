"""Building on the meta device, and filling strictly both ways."""

import pytest
import torch
from tests.model.oracles import packed, random_tensors, small
from torch import Tensor

from ossia.config import ModelConfig
from ossia.errors import CheckpointError
from ossia.kernels import select
from ossia.model.adapt import build, dequantized, fill
from ossia.model.attention import Packed
from ossia.model.experts import DenseExperts, Mxfp4Experts
from ossia.model.transformer import Transformer

CONFIG = small(num_hidden_layers=2)


def tensors_of(kind: str) -> dict[str, Tensor]:
    tensors = random_tensors(CONFIG)
    return tensors if kind == "dense" else packed(tensors)


def filled(tensors: dict[str, Tensor], kind: str, dtype: torch.dtype = torch.float32) -> Transformer:
    return fill(build(CONFIG, select("torch"), experts=kind), tensors.items(), dtype=dtype)


@pytest.mark.parametrize(("kind", "leaf"), [("dense", DenseExperts), ("mxfp4", Mxfp4Experts)])
def test_builds_without_storage_and_with_the_leaf_that_was_asked_for(kind: str, leaf: type) -> None:
    model = build(CONFIG, select("torch"), experts=kind)
    assert {type(block.mlp.experts) for block in model.layers} == {leaf}
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert model.state_dict().keys() == tensors_of(kind).keys()


def test_a_model_of_published_size_can_be_built_anywhere() -> None:
    config = ModelConfig(num_hidden_layers=2, num_experts=32)
    model = build(config, select("torch"))
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters()


@pytest.mark.parametrize("kind", ["dense", "mxfp4"])
def test_fills_every_parameter_and_keeps_storage(kind: str) -> None:
    tensors = tensors_of(kind)
    model = filled(tensors, kind)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    state = model.state_dict()
    assert state.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert state[name].data_ptr() == tensor.data_ptr(), name


def test_floating_tensors_are_converted_and_packed_ones_are_not() -> None:
    state = filled(tensors_of("mxfp4"), "mxfp4", torch.bfloat16).state_dict()
    for name, tensor in state.items():
        assert tensor.dtype == (torch.uint8 if name.endswith(("_blocks", "_scales")) else torch.bfloat16), name


def test_names_what_is_missing_and_what_is_too_much() -> None:
    tensors = tensors_of("dense")
    tensors["layers.1.attention.sink"] = tensors.pop("layers.1.attention.sinks")
    with pytest.raises(CheckpointError) as caught:
        filled(tensors, "dense")
    assert str(caught.value) == (
        "the tensors are not those that the model needs: 1 missing (layers.1.attention.sinks); "
        "1 unexpected (layers.1.attention.sink)"
    )


def test_names_what_is_missing_alone() -> None:
    tensors = tensors_of("dense")
    del tensors["norm.scale"]
    with pytest.raises(CheckpointError, match=r": 1 missing \(norm\.scale\)$"):
        filled(tensors, "dense")


def test_a_long_list_is_cut_short() -> None:
    with pytest.raises(CheckpointError, match=r": \d+ missing \(embedding\.weight, layers\.0[^;]*, …\)$") as caught:
        filled({}, "dense")
    assert "\n" not in str(caught.value)


def test_a_tensor_given_twice_has_no_second_place() -> None:
    tensors = tensors_of("dense")
    twice = [*tensors.items(), ("norm.scale", tensors["norm.scale"])]
    with pytest.raises(CheckpointError, match=r"needs: 1 unexpected \(norm\.scale\)$"):
        fill(build(CONFIG, select("torch")), twice, dtype=torch.float32)


def test_packed_tensors_do_not_fit_a_dense_model() -> None:
    with pytest.raises(
        CheckpointError, match=r"missing \(layers\.0\.mlp\.experts\.gate_up, .*unexpected \(.*down_blocks"
    ):
        filled(tensors_of("mxfp4"), "dense")


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("norm.scale", torch.zeros(97), r"tensor norm.scale is torch.float32 \[97\], the model needs .* \[96\]"),
        ("norm.scale", torch.zeros(96, dtype=torch.int32), r"tensor norm.scale is torch.int32 \[96\], the model needs"),
        (
            "layers.1.mlp.experts.down",  # Turned, as one published layout has it.
            torch.zeros(8, 64, 96),
            r"tensor layers.1.mlp.experts.down is torch.float32 \[8, 64, 96\], the model needs .* \[8, 96, 64\]",
        ),
    ],
    ids=["shape", "type", "turned"],
)
def test_names_a_tensor_that_does_not_fit(name: str, tensor: Tensor, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        filled(tensors_of("dense") | {name: tensor}, "dense")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32, torch.int8], ids=str)
def test_packed_tensors_must_be_bytes(dtype: torch.dtype) -> None:
    tensor = torch.zeros(8, 128, 3, dtype=dtype)
    with pytest.raises(CheckpointError, match=f"gate_up_scales is {dtype} .* the model needs torch.uint8"):
        filled(tensors_of("mxfp4") | {"layers.0.mlp.experts.gate_up_scales": tensor}, "mxfp4")


@pytest.mark.parametrize("which", ["gate_up", "down"])
def test_a_scale_that_is_nan_is_refused_by_name(which: str) -> None:
    tensors = tensors_of("mxfp4")
    scales = tensors[f"layers.1.mlp.experts.{which}_scales"]
    scales[3, 5, 1] = 255
    with pytest.raises(CheckpointError, match=f"tensor layers.1.mlp.experts.{which}_scales holds the scale byte 255"):
        filled(tensors, "mxfp4")


def test_dequantized_tensors_give_the_same_logits() -> None:
    tensors = tensors_of("mxfp4")
    ids = torch.arange(20)
    with torch.no_grad():
        one, other = (
            model(ids, ids, Packed(model.kernels, (20,)))
            for model in (filled(tensors, "mxfp4"), filled(dequantized(tensors, torch.float32), "dense"))
        )
    assert torch.equal(one, other)
