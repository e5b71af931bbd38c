"""An adapter merged: what the model then computes, which bytes change, and that the same comes out again."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.oracles import packed, random_tensors
from tests.model.test_adapters import ATTENTION, EXPERTS, SHAPE, logits, random_adapter
from torch import Tensor

from ossia.errors import CheckpointError
from ossia.kernels import mxfp4, select
from ossia.model.adapt import build, dequantized, fill
from ossia.model.adapted import with_adapter
from ossia.model.adapters import Adapter, LowRank
from ossia.model.checkpoint import Checkpoint
from ossia.model.merge import Merged
from ossia.model.random_weights import RandomWeights
from ossia.model.transformer import Transformer
from ossia.model.write import write_checkpoint

CONFIG = replace(SHAPE, mxfp4_experts=True)
ADAPTER = random_adapter(ATTENTION + EXPERTS)


def base_values(*, floor: bool = False) -> dict[str, Tensor]:
    """Packed experts, everything else in bfloat16. floor: packed by another rule than the one that packs them anew."""
    values = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in packed(random_tensors(CONFIG)).items()
    }
    if floor:
        for name, dense in random_tensors(CONFIG).items():
            if name.endswith((".gate_up", ".down")):
                values[f"{name}_blocks"], values[f"{name}_scales"] = mxfp4.quantize(dense, scale_rule="floor")
    return values


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", CONFIG, base_values(floor=True))


def dense_values(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return dequantized(dict(checkpoint.tensors()), dtype)


def model_of(checkpoint: Checkpoint) -> Transformer:
    return fill(build(SHAPE, select("torch")), dense_values(checkpoint).items(), dtype=torch.float32)


def test_in_bf16_it_computes_what_the_adapter_does(tmp_path: Path, base: Checkpoint) -> None:
    merged = Merged(base, ADAPTER, packed=False)
    written = write_checkpoint(tmp_path / "out", CONFIG, merged, packed=False)
    expected = logits(with_adapter(model_of(base), ADAPTER).model)
    ours = logits(model_of(written))
    assert float((ours - expected).abs().mean()) < 0.03 < 0.3 < float((expected - logits(model_of(base))).abs().mean())
    # In exact arithmetic it is the sum, rounded once.
    name = "layers.1.mlp.experts.down"
    change = ADAPTER.changes[name]
    dense = dense_values(base, torch.float64)[name] + change.scale * change.b.double() @ change.a.double()
    assert torch.allclose(written[name].double(), dense, rtol=2**-8, atol=1e-6)
    assert merged.repacked.codes == 0


def test_in_mxfp4_nothing_is_lost_along_the_adapter(tmp_path: Path, base: Checkpoint) -> None:
    merged = Merged(base, ADAPTER, packed=True)
    written = write_checkpoint(tmp_path / "out", CONFIG, merged)
    assert written.packed
    before, after, changed, made = dense_values(base), dense_values(written), 0, 0.0
    for name, change in ADAPTER.changes.items():
        if ".experts." in name:
            asked = change.scale * change.b @ change.a
            changed += int((after[name] != before[name]).sum())
            made += float((asked * (after[name] - before[name])).sum())
            # Every value is one of the two that are nearest, of which one is the nearest.
            unit = mxfp4.dequantize(*mxfp4.quantize(before[name] + asked, scale_rule="even"))
            error = (after[name] - before[name] - asked).abs().unflatten(-1, (-1, 32))
            largest = unit.abs().unflatten(-1, (-1, 32)).amax(-1, keepdim=True)
            assert bool((error <= largest / 2 + 1e-6).all())
    done = merged.repacked
    assert done.changed == changed and 0 < changed < done.codes
    assert (done.matrices, done.codes) == (2 * 3 * 8, 3 * 8 * 3 * 96 * 64)
    assert done.kept == pytest.approx(made / done.asked) and 0.98 < done.kept < 1.05
    expected = logits(with_adapter(model_of(base), ADAPTER).model)
    assert float((logits(model_of(written)) - expected).abs().mean()) < 0.5


@pytest.mark.parametrize(
    ("size", "by_nearest", "changed"), [(0.01, 0.05, 0.04), (0.03, 0.2, 0.13), (0.1, 0.8, 0.38), (1.0, 1.0, 0.9)]
)
def test_of_a_small_adapter_as_much_is_kept_as_of_a_large_one(
    tmp_path: Path, size: float, by_nearest: float, changed: float
) -> None:
    """Rounding to the nearest would leave nothing of the smallest ones; half a step is about a tenth of a weight."""
    config = replace(CONFIG, num_hidden_layers=1, layer_types=CONFIG.layer_types[:1], intermediate_size=1024)
    wide = write_checkpoint(tmp_path / "wide", config, RandomWeights(config, 0))
    before = dense_values(wide)["layers.0.mlp.experts.down"]
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, 4, 1024, generator=generator), torch.randn(8, 96, 4, generator=generator)
    change = LowRank(a=a, b=b, scale=size * float(before.std()) / 2)
    merged = Merged(wide, Adapter(changes={"layers.0.mlp.experts.down": change}), packed=True)
    blocks, scales = (merged[f"layers.0.mlp.experts.down_{half}"] for half in ("blocks", "scales"))
    asked, made = change.scale * b @ a, mxfp4.dequantize(blocks, scales) - before
    nearest = mxfp4.fake_quantize(before + asked, scale_rule="even") - before
    kept, kept_by_nearest = ((asked * each).sum(-1) / asked.square().sum(-1) for each in (made, nearest))
    assert float(kept.mean()) == pytest.approx(1, abs=0.02)
    assert float((kept - 1).abs().mean()) < 0.1
    assert float(kept_by_nearest.mean()) < by_nearest
    # Those that moved furthest go first, so that few have to.
    assert 0 < merged.repacked.changed < changed * merged.repacked.codes


def test_experts_that_are_not_touched_keep_their_bytes(tmp_path: Path, base: Checkpoint) -> None:
    """Those of other layers, those whose pair adds nothing, and blocks of others whose values come out the same."""
    adapter = random_adapter(EXPERTS, layers=1)
    up, down = (adapter.changes[f"layers.0.mlp.experts.{each}"] for each in ("gate_up", "down"))
    up.b[[0, 3]] = 0
    down.a[5] = 0
    down.b[6, 10:] = 0  # One expert of which a few rows change.
    merged = Merged(base, adapter, packed=True)
    written = write_checkpoint(tmp_path / "out", CONFIG, merged)
    assert merged.repacked.matrices == 6 + 7
    kept = 0
    for name in base.keys():  # noqa: SIM118
        if name.startswith("layers.0.mlp.experts.") and name.endswith(("_blocks", "_scales")):
            untouched = [0, 3] if "gate_up" in name else [5]
            for e in range(8):
                same = torch.equal(written[name][e], base[name][e])
                assert same == (e in untouched), (name, e)
                kept += same
        else:
            assert torch.equal(written[name], base[name]), name
    assert kept == 2 * 2 + 1 * 2
    for half in ("blocks", "scales"):
        rows = slice(10, None)
        ours, theirs = (each[f"layers.0.mlp.experts.down_{half}"][6, rows] for each in (written, base))
        assert torch.equal(ours, theirs)


def test_the_same_again(tmp_path: Path, base: Checkpoint) -> None:
    for packed_ in (True, False):
        folders = [tmp_path / f"{n}{packed_}" for n in range(2)]
        for folder in folders:
            write_checkpoint(folder, CONFIG, Merged(base, ADAPTER, packed=packed_), packed=packed_)
        one, other = ((folder / "model.safetensors").read_bytes() for folder in folders)
        assert one == other


def test_from_bf16(tmp_path: Path) -> None:
    values = random_tensors(SHAPE, dtype=torch.bfloat16)
    dense = write_checkpoint(tmp_path / "dense", SHAPE, values)
    wanted = {
        name: values[name].float() + change.scale * change.b @ change.a for name, change in ADAPTER.changes.items()
    }
    for to_packed in (False, True):
        merged = Merged(dense, ADAPTER, packed=to_packed)
        written = write_checkpoint(tmp_path / f"out{to_packed}", SHAPE, merged, packed=to_packed)
        for name, want in wanted.items():
            stored = dense_values(written, torch.bfloat16)[name]
            expert = to_packed and ".experts." in name
            assert torch.equal(stored, mxfp4.fake_quantize(want.bfloat16()) if expert else want.bfloat16())
        assert torch.equal(written["unembedding.weight"], values["unembedding.weight"])


def test_what_becomes_infinite(tmp_path: Path, base: Checkpoint) -> None:
    for name, message in (
        ("attention.q.weight", r"layers.0.attention.q.weight is not finite with the adapter merged in"),
        ("mlp.experts.down", r"layers.0.mlp.experts.down \(expert 0\) is not finite"),
    ):
        broken = random_adapter([name], scale=1e39)
        with pytest.raises(CheckpointError, match=message):
            write_checkpoint(tmp_path / "out", CONFIG, Merged(base, broken, packed=False), packed=False)
    assert not (tmp_path / "out").exists()


def test_an_empty_adapter_changes_nothing(tmp_path: Path, base: Checkpoint) -> None:
    written = write_checkpoint(tmp_path / "out", CONFIG, Merged(base, Adapter(changes={}), packed=True))
    assert all(torch.equal(written[name], base[name]) for name in base.keys())  # noqa: SIM118
