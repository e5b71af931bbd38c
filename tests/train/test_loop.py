import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch
from tests.train.small import SMALL, ToyFeed, batch_of, loop_of

from ossia.errors import StorageError, TrainingError
from ossia.train.loop import read_log
from ossia.train.loss import cross_entropy
from ossia.train.optim import Schedule


def weights_of(loop):
    return {name: tensor.clone() for name, tensor in loop.masters.tensors().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert not [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)]


def test_the_log_of_a_run(tmp_path):
    lines = []
    loop = loop_of(
        tmp_path,
        report=lines.append,
        validate=lambda _model: {"validation_loss": 1.5},
        also=lambda: {"reward": 0.5},
        flops=lambda lengths, learnt: sum(lengths) * 10 + learnt,
        peak=1e6,
    )
    loop.run()
    assert lines == read_log(tmp_path)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 4, 6]
    assert lines[-1]["accounting"] == {"batches": 6}
    first = steps[0]
    assert first["loss"] == pytest.approx(math.log(SMALL.vocab_size), rel=0.05)
    assert first["learnt_tokens"] == 25
    assert first["rate"] == pytest.approx(0.5e-2)
    assert 1 <= first["balance"] < 2 and 0 < first["router_entropy"] <= math.log(4)
    assert len(first["load/0"]) == 4 and sum(first["load/1"]) == pytest.approx(4, abs=1e-3)
    assert first["flips"] > 0 and first["reward"] == 0.5
    assert first["mfu"] == pytest.approx(first["tokens_per_second"] * (10 + 25 / 28) / 1e6, rel=0.01)
    assert sorted(path.name for path in (tmp_path / "run" / "states").iterdir()) == ["step-00000004", "step-00000006"]


class Divided(ToyFeed):
    """The same documents in one batch, or each in a batch of its own."""

    def next(self, step):
        lengths = self.lengths
        whole = batch_of(lengths, step)
        if self.micro_batches == 1:
            return [whole]
        begins = [sum(lengths[:i]) for i in range(len(lengths))]
        return [part_of(whole, begin, begin + length) for begin, length in zip(begins, lengths, strict=True)]


def part_of(batch, begin, end):
    inside = (batch.rows >= begin) & (batch.rows < end)
    return replace(
        batch,
        token_ids=batch.token_ids[begin:end],
        positions=batch.positions[begin:end],
        lengths=(end - begin,),
        rows=batch.rows[inside] - begin,
        targets=batch.targets[inside],
    )


def test_accumulation_changes_nothing(tmp_path):
    """Documents of unlike length, so a mean of means would differ. Only the balance loss is of each batch."""
    found = []
    for micro_batches in (1, 3):
        lines = []
        loop = loop_of(
            tmp_path / str(micro_batches),
            steps=3,
            feed=Divided(micro_batches=micro_batches),
            balance_coefficient=0.0,
            stored=torch.float32,
            qat=False,
            report=lines.append,
        )
        loop.run()
        found.append(([line for line in lines if "loss" in line], weights_of(loop)))
    (whole_lines, whole), (parts_lines, parts) = found
    for one, other in zip(whole_lines, parts_lines, strict=True):
        for name in ("loss", "z", "gradient_norm", "learnt_tokens", "router_entropy", "largest_load"):
            assert one[name] == pytest.approx(other[name], rel=1e-5), name
    for name, tensor in whole.items():  # AdamW makes a step of any gradient, so of roundings too.
        assert float((tensor - parts[name]).norm()) <= 1e-4 * float(tensor.norm()), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_resumed_run_is_the_unbroken_one_bit_for_bit(optimizer, tmp_path):
    unbroken = loop_of(tmp_path / "unbroken", optimizer=optimizer)
    unbroken.run()
    broken = loop_of(tmp_path / "broken", optimizer=optimizer, steps=3, schedule=Schedule(steps=3, warmup_steps=2))
    broken.run()
    again = loop_of(tmp_path / "broken", optimizer=optimizer)
    again.resume()
    assert again.step == 3
    again.run()
    assert_same(weights_of(again), weights_of(unbroken))
    losses = [
        [(line["step"], line["loss"]) for line in read_log(tmp_path / name) if "loss" in line]
        for name in ("unbroken", "broken")
    ]
    assert losses[0] == losses[1]


def test_lines_after_the_saved_step_are_dropped_and_a_cut_one_too(tmp_path):
    loop = loop_of(tmp_path, steps=2)
    loop.run()
    log = tmp_path / "run" / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + json.dumps({"step": 3, "loss": 9.0}) + '\n{"step": 4, "lo')
    again = loop_of(tmp_path, steps=2)
    again.resume()
    assert log.read_text() == whole


def test_killed_before_anything_was_saved(tmp_path, caplog):
    loop = loop_of(tmp_path)
    loop.record({"step": 1, "loss": 3.0})
    loop.resume()
    assert loop.step == 0 and read_log(tmp_path) == []
    assert "no state was saved yet" in caplog.text


def test_what_was_changed_since_is_named(tmp_path):
    loop_of(tmp_path, steps=2).run()
    with pytest.raises(TrainingError, match="seed was 0 and is now 7: resume with the same"):
        loop_of(tmp_path, settings={"seed": 7}).resume()
    with pytest.raises(TrainingError, match="the data changed"):
        loop_of(tmp_path, feed=ToyFeed(digest="another")).resume()
    with pytest.raises(TrainingError, match="holds the weights of another model or optimiser"):
        loop_of(tmp_path, optimizer="muon").resume()


def test_a_damaged_newest_state_falls_back_to_the_one_before(tmp_path, caplog):
    unbroken = loop_of(tmp_path / "unbroken")
    unbroken.run()
    loop_of(tmp_path / "broken", schedule=Schedule(steps=4, warmup_steps=2)).run()
    tensors = tmp_path / "broken" / "run" / "states" / "step-00000004" / "__0_0.distcp"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    again = loop_of(tmp_path / "broken")
    again.resume()
    assert again.step == 2 and "is damaged: this state is passed over" in caplog.text
    again.run()
    assert_same(weights_of(again), weights_of(unbroken))


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_state_kept(tmp_path):
    calls = []

    def breaks(model, batch, routers):
        total, told = cross_entropy(model, batch, routers)
        calls.append(1)
        return (total * math.nan, {"loss": math.nan}) if len(calls) == 4 else (total, told)

    with pytest.raises(TrainingError, match=r"the loss is nan at step 4: --resume from the last state, with a lower"):
        loop_of(tmp_path, objective=breaks).run()
    again = loop_of(tmp_path)
    again.resume()
    assert again.step == 2


def test_a_rate_that_explodes_stops_and_the_lost_state_is_set_aside(tmp_path):
    def explodes(model, batch, routers):
        if loop.step == 3:
            loop.masters.learning_rate = 1e3
        return cross_entropy(model, batch, routers)

    loop = loop_of(tmp_path, objective=explodes, largest_loss=2 * math.log(SMALL.vocab_size), save_every=1)
    with pytest.raises(
        TrainingError,
        match=r"the loss is \S+ at step 5, far worse than guessing: --resume .* lower --learning-rate "
        r"\(the state of step 4 had diverged and was set aside\)",
    ):
        loop.run()
    again = loop_of(tmp_path)
    again.resume()
    assert again.step == 3


def test_a_router_that_collapses_stops_the_run(tmp_path):
    loop = loop_of(tmp_path, collapse_patience=2, feed=ToyFeed(lengths=(40, 40)))
    with torch.no_grad():
        loop.masters.weights["layers.1.mlp.router.bias"].copy_(torch.tensor([50.0, 50.0, -50.0, -50.0]))
    loop.masters.publish()
    with pytest.raises(TrainingError, match=r"layer 1: the router collapsed: 2 steps in a row"):
        loop.run()


def test_nothing_to_learn_is_an_error(tmp_path):
    class Nothing(ToyFeed):
        def next(self, step):
            return [batch_of((5,), 0, learn=0.0)]

    with pytest.raises(TrainingError, match="step 1 has nothing to learn"):
        loop_of(tmp_path, feed=Nothing()).run()


def test_an_interrupt_finishes_the_step_and_saves(tmp_path, caplog):
    def report(metrics):
        if metrics.get("loss") and metrics["step"] == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        loop_of(tmp_path, report=report, save_every=100).run()
    assert signal.getsignal(signal.SIGINT) is before
    assert "stopping when this step is done and saved; press again to stop at once" in caplog.text
    unbroken = loop_of(tmp_path / "unbroken", save_every=100)
    unbroken.run()
    again = loop_of(tmp_path, save_every=100)
    again.resume()
    assert again.step in (3, 4)
    again.run()
    assert_same(weights_of(again), weights_of(unbroken))


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    loop = loop_of(tmp_path)
    (tmp_path / "run" / "log.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"log.jsonl: cannot be written \(Is a directory\)"):
        loop.run()
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot be made a folder \(Not a directory\): choose another --out"):
        loop_of(tmp_path / "file")


def test_fewer_steps_than_are_done_are_refused_and_as_many_are_said_to_be_done(tmp_path, caplog):
    loop_of(tmp_path, steps=4).run()
    with pytest.raises(TrainingError, match="step-00000004: 4 steps are done, which is more than --steps 3: give as"):
        loop_of(tmp_path, steps=3).resume()
    loop_of(tmp_path, steps=4).resume()
    assert "all 4 steps were done already" in caplog.text


@pytest.mark.parametrize("line", ["[]", "7", "{}", '{"step": "x"}', '{"step": 1'])
def test_a_log_ends_where_a_line_is_none(tmp_path, line):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    assert read_log(tmp_path) == [{"step": 1}]
