"""From either layout to tiles: the same function as before, piece by piece, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.oracles import small
from tests.model.packed_ops import packed_kernels, random_ids
from torch import Tensor

from ossia.config import ModelConfig
from ossia.errors import CheckpointError
from ossia.kernels import packed, select
from ossia.kernels.packed import gate_up_order
from ossia.model import adapt, pack
from ossia.model.attention import Packed
from ossia.model.checkpoint import Checkpoint
from ossia.model.linear import Bf16Linear, SplitUnembedding
from ossia.model.mapping import MappedFile
from ossia.model.random_weights import RandomWeights
from ossia.model.transformer import Transformer
from ossia.model.write import write_checkpoint

CONFIG = small(num_hidden_layers=2, mxfp4_experts=True)
IDS = random_ids(CONFIG.vocab_size, 40)


@pytest.fixture(scope="module", params=["hf", "original"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param) / "m"
    return write_checkpoint(folder, CONFIG, RandomWeights(CONFIG, 3), layout=request.param)


def logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor(IDS), torch.arange(len(IDS)), Packed(model.kernels, (len(IDS),)))


def packed_model(checkpoint: Checkpoint, dense: str) -> Transformer:
    model = adapt.build_packed(checkpoint.config, packed_kernels(), dense=dense)
    tensors = pack.assembled(pack.packed_specs(model), pack.pieces(checkpoint, model))
    return adapt.fill(model, {**tensors, pack.EMBEDDING: checkpoint[pack.EMBEDDING]}.items())


def torch_model(checkpoint: Checkpoint) -> Transformer:
    model = adapt.build(checkpoint.config, select("torch"), experts="mxfp4")
    return adapt.fill(model, checkpoint.tensors(), dtype=torch.float32)


def typical_error(got: Tensor, expected: Tensor) -> float:
    """Relative, of the median token: one that a router sends elsewhere is none."""
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).median())


def test_bf16_changes_nothing(checkpoint: Checkpoint) -> None:
    exact = logits(packed_model(checkpoint, "bf16"))
    assert exact.dtype == torch.float32
    assert (exact - logits(torch_model(checkpoint))).abs().max() < 1e-5


def test_q8_costs_what_8_bits_cost(checkpoint: Checkpoint) -> None:
    expected = logits(torch_model(checkpoint))
    assert 1e-3 < typical_error(logits(packed_model(checkpoint, "q8")), expected) < 0.02


def test_the_packed_parts_are_those_of_the_packers(checkpoint: Checkpoint) -> None:
    tensors = adapt.tensors_of(packed_model(checkpoint, "q8"))
    name = "layers.1.mlp.experts.gate_up"
    order = gate_up_order(2 * CONFIG.intermediate_size)
    expected = packed.pack_mxfp4(checkpoint[f"{name}_blocks"][:, order], checkpoint[f"{name}_scales"][:, order])
    assert torch.equal(tensors[f"{name}.codes"], expected.codes)
    assert torch.equal(tensors[f"{name}.scales"], expected.scales)
    assert torch.equal(tensors[f"{name}_bias"], checkpoint[f"{name}_bias"][:, order].float())
    assert torch.equal(
        tensors["layers.0.attention.k.weight.codes"], packed.pack_q8(checkpoint["layers.0.attention.k.weight"]).codes
    )
    router = checkpoint["layers.0.mlp.router.weight"]
    assert torch.equal(tensors["layers.0.mlp.router.weight.weight"], packed.pack_bf16(router).weight)
    assert tensors["embedding.weight"].data_ptr() == checkpoint["embedding.weight"].data_ptr()
    floats = {name: tensor.dtype for name, tensor in tensors.items() if name.endswith(("bias", "norm.scale", "sinks"))}
    assert len(floats) == CONFIG.num_hidden_layers * 10 + 1
    assert set(floats.values()) == {torch.float32}


def test_a_matrix_cut_in_pieces_is_the_same_matrix(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = adapt.tensors_of(packed_model(checkpoint, "q8"))
    monkeypatch.setattr(pack, "_ROWS", 32)
    model = adapt.build_packed(CONFIG, packed_kernels())
    names = [name for name, _ in pack.pieces(checkpoint, model)]
    assert names.count("unembedding.weight.low") == 10  # 300 rows
    assert names.count("unembedding.weight.dither") == 1
    for name, tensor in adapt.tensors_of(packed_model(checkpoint, "q8")).items():
        assert torch.equal(tensor, whole[name]), name


def test_the_meta_model_knows_every_shape(checkpoint: Checkpoint) -> None:
    for dense in ("q8", "bf16"):
        model = adapt.build_packed(CONFIG, packed_kernels(), dense=dense)
        assert all(tensor.is_meta for tensor in adapt.tensors_of(model).values())
        filled = adapt.tensors_of(packed_model(checkpoint, dense))
        for name, tensor in adapt.tensors_of(model).items():
            assert (tensor.shape, tensor.dtype) == (filled[name].shape, filled[name].dtype), name


def test_the_router_is_exact_whatever_the_rest(checkpoint: Checkpoint) -> None:
    model = packed_model(checkpoint, "q8")
    assert {type(block.mlp.router) for block in model.layers} == {Bf16Linear}
    assert isinstance(model.unembedding, SplitUnembedding)


@pytest.mark.parametrize("dense", ["q8", "bf16", "unpacked"])
def test_the_best_token_is_that_of_the_largest_logit(checkpoint: Checkpoint, dense: str) -> None:
    model = torch_model(checkpoint) if dense == "unpacked" else packed_model(checkpoint, dense)
    x = torch.randn(7, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    logits_TV = model.unembedding(x)
    ids, values = model.unembedding.best(x)
    assert ids.dtype == torch.int64
    assert torch.equal(ids, logits_TV.argmax(-1))
    assert torch.equal(values, logits_TV.amax(-1))


def test_what_was_packed_is_let_go_of(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[str] = []
    monkeypatch.setattr(Checkpoint, "forget", lambda _, name: forgotten.append(name))
    packed_model(checkpoint, "q8")
    large = {name for name in checkpoint.specs if name.endswith((".weight", "_blocks", "_scales"))}
    assert set(forgotten) == large - {"embedding.weight"}
    assert len(forgotten) == len(set(forgotten))


def test_forgetting_changes_no_value(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    real = MappedFile.forget

    def spy(self: MappedFile, offset: int, num_bytes: int) -> None:
        told.append((offset, num_bytes))
        real(self, offset, num_bytes)

    monkeypatch.setattr(MappedFile, "forget", spy)
    name = "layers.1.attention.v.weight"
    values = checkpoint[name]
    before = values.clone()
    checkpoint.forget(name)
    assert torch.equal(values, before)
    path = checkpoint.files[checkpoint.sources[name][0].name]
    (begin, size) = told[0]
    assert path.read_bytes()[begin : begin + size] == before.view(torch.uint8).numpy().tobytes()


# -------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "layers.1.attention.o.weight",
            torch.nan,
            r"tensor layers\.1\.attention\.o\.weight .*NaN or infinity",
        ),
        ("unembedding.weight", torch.inf, r"tensor unembedding\.weight .*NaN or infinity"),
        ("layers.0.mlp.experts.down_scales", 255, r"layers\.0\.mlp\.experts\.down_scales holds the scale byte 255"),
    ],
)
def test_damaged_weights_are_named(tmp_path: Path, name: str, value: float, message: str) -> None:
    weights = RandomWeights(CONFIG, 3)
    tensors = {each: weights[each] for each in weights.keys()}  # noqa: SIM118
    tensors[name].view(-1)[-7] = value
    checkpoint = write_checkpoint(tmp_path / "m", CONFIG, tensors)
    with pytest.raises(CheckpointError, match=message):
        packed_model(checkpoint, "q8")


def test_pieces_that_do_not_fit_are_refused(checkpoint: Checkpoint) -> None:
    model = adapt.build_packed(CONFIG, packed_kernels())
    specs = pack.packed_specs(model)
    made = list(pack.pieces(checkpoint, model))
    with pytest.raises(CheckpointError, match=r"not make every tensor: 1 missing \(norm\.scale\)"):
        pack.assembled(specs, [piece for piece in made if piece[0] != "norm.scale"])
    with pytest.raises(CheckpointError, match=r"packing norm\.scale: torch\.float32 \[96\] is no piece of F32 \[96\]"):
        pack.assembled(specs, [*made, ("norm.scale", torch.ones(96))])
    with pytest.raises(CheckpointError, match=r"packing norm\.scale: torch\.bfloat16 \[96\] is no piece"):
        pack.assembled(specs, [("norm.scale", torch.ones(96).bfloat16())])


def test_rows_and_columns_that_fill_no_tile(tmp_path: Path) -> None:
    config: ModelConfig = replace(CONFIG, vocab_size=301, num_experts=5, head_dim=6, num_attention_heads=2)
    checkpoint = write_checkpoint(tmp_path / "m", config, RandomWeights(config, 1))
    exact = logits(torch_model(checkpoint))
    assert (logits(packed_model(checkpoint, "bf16")) - exact).abs().max() < 1e-5
    assert typical_error(logits(packed_model(checkpoint, "q8")), exact) < 0.02
