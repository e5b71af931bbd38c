"""The recipes as their settings ask for them: what they ship, what they refuse, and a run that is killed."""

import json
import math
import random
import subprocess
import sys

import pytest
import torch
from tests.train.kill import command, compare, killed
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from ossia.errors import CheckpointError, ConfigError, DataError, StorageError, TrainingError
from ossia.kernels.mxfp4 import dequantize, fake_quantize
from ossia.model.checkpoint import open_checkpoint
from ossia.model.locate import demo_folder
from ossia.train import pretrain, sft
from ossia.train.distributed import World
from ossia.train.loop import read_log
from ossia.train.pretrain import PretrainSettings
from ossia.train.recipe import LOCK, open_run
from ossia.train.sft import SftSettings

FLAGS = {
    "steps": 3,
    "batch_tokens": 300,
    "warmup_steps": 1,
    "decay_steps": 1,
    "save_every": 2,
    "log_every": 1,
    "validation_records": 2,
    "samples": 1,
    "threads": 1,
}


def quiet(_metrics):
    pass


def tune(out, **more):
    return sft.train(SftSettings(out=out, **({"model": "demo"} | FLAGS | more)), quiet)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The bundled model, three steps further."""
    return tune(tmp_path_factory.mktemp("runs") / "tuned")


def masters_of(out):
    newest = max((out / "run" / "states").glob("step-*"))
    dcp_to_torch_save(newest, out.parent / f"{out.name}.pt")
    saved = torch.load(out.parent / f"{out.name}.pt", weights_only=True)
    return {name.removeprefix("weights."): tensor for name, tensor in saved.items() if name.startswith("weights.")}


def test_what_is_shipped_is_what_was_trained(tuned):
    """Everything rounded once from its master, experts to the very values that the training forward pass saw."""
    checkpoint, before = open_checkpoint(tuned), open_checkpoint(demo_folder())
    assert checkpoint.packed and checkpoint.layout == "hf" and checkpoint.config == before.config
    masters = masters_of(tuned)
    moved = 0
    for name, master in masters.items():
        if f"{name}_blocks" in checkpoint.specs:
            shipped = dequantize(checkpoint[f"{name}_blocks"], checkpoint[f"{name}_scales"])
            assert torch.equal(shipped, fake_quantize(master, scale_rule="even")), name
        else:
            assert torch.equal(checkpoint[name], master.bfloat16()), name
            moved += int(not torch.equal(checkpoint[name], before[name]))
    assert moved > 10
    assert (tuned / "tokenizer.json").read_bytes() == (demo_folder() / "tokenizer.json").read_bytes()
    generation = json.loads((tuned / "generation_config.json").read_text())
    assert generation == json.loads((demo_folder() / "generation_config.json").read_text())
    assert not (tuned / "run" / "export").exists()


def test_the_log_begins_and_ends_with_a_validation_and_a_sample(tuned):
    lines = read_log(tuned)
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 3, 3]
    assert [line["step"] for line in lines if "validation_loss" in line] == [0, 2, 3]
    first, last = lines[0]["samples"], lines[-1]["samples"]
    assert first[0]["prompt"] == last[0]["prompt"]
    assert first[0]["prompt"].endswith("<|start|>assistant") and first[0]["answer"].startswith("<|channel|>")
    assert lines[1]["loss"] < 3  # It goes on from what was learnt.


def test_a_run_that_is_there_is_neither_overwritten_nor_resumed_otherwise(tuned, tmp_path):
    with pytest.raises(StorageError, match="holds a run already; go on with --resume, or choose another --out"):
        tune(tuned)
    settings = (tuned / "run" / "settings.toml").read_bytes()
    with pytest.raises(TrainingError, match="seed was 0 and is now 7"):
        tune(tuned, resume=True, seed=7)
    with pytest.raises(TrainingError, match="3 steps are done, which is more than --steps 2"):
        tune(tuned, resume=True, steps=2)
    assert (tuned / "run" / "settings.toml").read_bytes() == settings
    with pytest.raises(TrainingError, match="holds no run to resume: start without --resume"):
        tune(tmp_path, resume=True)
    before = (tuned / "model.safetensors").read_bytes()
    assert tune(tuned, resume=True) == tuned  # Nothing is left to do but the export.
    assert (tuned / "model.safetensors").read_bytes() == before


HOLD = """
import fcntl, sys, time
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


def test_a_folder_in_which_another_process_trains_is_left_alone_until_that_ends(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text("another's")
    other = subprocess.Popen([sys.executable, "-c", HOLD, run / LOCK], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        settings = SftSettings(out=tmp_path, model="demo", **FLAGS)
        with pytest.raises(StorageError, match="another process is training here; wait for it, or choose another --o"):
            open_run(settings, World.single())
        assert (run / "log.jsonl").read_text() == "another's"
    finally:
        other.kill()
        other.communicate()
    assert open_run(settings, World.single()) == run
    assert not (run / "log.jsonl").exists()


def test_killed_twice_and_resumed(tmp_path):
    subprocess.run(command(tmp_path / "unbroken", 6), check=True, capture_output=True)
    fell = killed(tmp_path / "killed", 2, 6, random.Random(1))
    assert fell[0] < 6
    compare(tmp_path / "unbroken", tmp_path / "killed")


def test_pretraining_a_new_model_on_text(vocabulary, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("\n\n\n".join(f"The {n} foxes jump over {n + 1} dogs, and none looks back." for n in range(40)))
    flags = FLAGS | {"steps": 4, "validation_data": (str(text),), "learning_rate": 3e-3}
    settings = PretrainSettings(
        out=tmp_path / "run", preset="ossia-demo", tokenizer=vocabulary, data=(str(text),), **flags
    )
    out = pretrain.train(settings, quiet)
    losses = [line["loss"] for line in read_log(out) if "loss" in line]
    assert losses[0] == pytest.approx(math.log(4096), rel=0.05)
    assert losses[-1] < losses[0]
    accounting = [line["accounting"] for line in read_log(out) if "accounting" in line][-1]
    assert accounting["learnt"] == accounting["kept"] - accounting["documents"] > 0  # All but each first token.
    assert open_checkpoint(out).packed


def test_experts_in_bf16_where_qat_is_off(tmp_path):
    out = tune(tmp_path / "run", qat=False, steps=1, samples=0, validation_records=0)
    checkpoint = open_checkpoint(out)
    assert not checkpoint.packed
    assert torch.equal(checkpoint["layers.0.mlp.experts.down"], masters_of(out)["layers.0.mlp.experts.down"].bfloat16())
    assert "flips" not in read_log(out)[1]


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        ({"model": None}, ConfigError, "give either --model, a checkpoint to start from, or --preset"),
        ({"preset": "ossia-demo"}, ConfigError, "give either --model, a checkpoint to start from, or --preset"),
        ({"model": None, "preset": "gpt-6"}, ConfigError, "preset is 'gpt-6': give one of gpt-oss-20b"),
        ({"tokenizer": "x"}, ConfigError, "tokenizer is for a new model"),
        ({"model": "nowhere"}, CheckpointError, "nowhere"),
        ({"precision": "int8"}, ConfigError, "precision is 'int8': give bfloat16 or float32"),
        ({"optimizer": "sgd"}, ConfigError, "optimizer is 'sgd': give adamw or muon"),
        ({"steps": 0}, ConfigError, "steps is 0"),
        ({"learning_rate": float("nan")}, ConfigError, "learning_rate is nan"),
        ({"data": ("nowhere.jsonl",)}, DataError, "nowhere.jsonl"),
        ({"device": "cuda"}, ConfigError, "device is 'cuda': torch finds no GPU here, so give cpu"),
        ({"device": "tpu"}, ConfigError, "device is 'tpu': give cpu or cuda"),
        ({"device": "cuda:x"}, ConfigError, "device is 'cuda:x': give cpu or cuda"),
        ({"max_length": 4097}, ConfigError, "max_length is 4097: the model's context has 4096 tokens"),
        (
            {"model": None, "preset": "ossia-demo", "max_length": 4097},
            ConfigError,
            "max_length is 4097: the model's context has 4096 tokens",
        ),
    ],
)
def test_bad_settings_are_named(tmp_path, flags, error, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(error, match=message):
        tune(tmp_path / "run", **flags)


def test_a_vocabulary_of_another_size_is_refused(vocabulary, tmp_path):
    with pytest.raises(ConfigError, match="has 4096 ids, gpt-oss-20b needs 201088"):
        tune(tmp_path / "run", model=None, preset="gpt-oss-20b", tokenizer=vocabulary)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be made a folder"):
        tune(tmp_path / "file" / "run")


def test_a_rate_that_explodes_stops_the_run_with_one_line(tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is \S+ at step \d+.*--resume from the last state, with a lower"):
        tune(tmp_path / "run", learning_rate=1e4, steps=20, samples=0, validation_records=0, save_every=1)
