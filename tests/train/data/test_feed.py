import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ossia.errors import ConfigError, DataError, TrainingError
from ossia.train.data import Rendering, Source, account, batches_of, packed_feed, source_of
from ossia.train.data.records import GeneratedRecords
from ossia.train.data.sources import after

SIZES = {"batch_tokens": 1200, "micro_batches": 2, "max_length": 300, "too_long": "drop"}
TURN = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Good day."}]


def split(batch):
    """The documents of a batch, each as its ids and its targets by place."""
    learnt = dict(zip(batch.rows.tolist(), batch.targets.tolist(), strict=True))
    out, start = [], 0
    for length in batch.lengths:
        end = start + length
        assert batch.positions[start:end].tolist() == list(range(length))
        told = tuple((row - start, token) for row, token in learnt.items() if start <= row < end)
        out.append((tuple(batch.token_ids[start:end].tolist()), told))
        start = end
    assert start == len(batch.token_ids)
    return out


def flat(batches):
    return [split(batch) for batch in batches]


@pytest.fixture
def mixed(tmp_path):
    """Three sources: turns of a file, texts to be divided, and exercises."""
    (tmp_path / "turns.jsonl").write_text(
        "".join(json.dumps({"messages": TURN * turns, "date": f"2025-01-{turns:02d}"}) + "\n" for turns in range(1, 8))
    )
    (tmp_path / "texts.txt").write_text("\n\n\n".join("word " * (150 * number) for number in range(1, 5)))
    return [str(tmp_path / "turns.jsonl"), f"{tmp_path / 'texts.txt'}*0.5", "demo"]


def feed_of(specs, tokenizer, *, seed=3, **changes):
    return packed_feed(source_of(specs, seed=seed), tokenizer, **(SIZES | changes))


def test_batches_are_full_and_ranks_see_together_what_one_sees(mixed, tokenizer):
    alone = feed_of(mixed, tokenizer)
    worlds = {world: [feed_of(mixed, tokenizer, rank=rank, world=world) for rank in range(world)] for world in (2, 4)}
    for step in range(4):
        steps = alone.next(step)
        assert len(steps) == 2 and all(900 < len(batch.token_ids) <= 1200 for batch in steps)
        for world, feeds in worlds.items():
            shares = [feed.next(step) for feed in feeds]
            for whole, *parts in zip(steps, *shares, strict=True):
                assert sorted(split(whole)) == sorted(document for part in parts for document in split(part))
                assert len(parts) == world and all(len(part.targets) for part in parts)
            assert all(feed.state() == alone.state() for feed in feeds)


def test_a_run_goes_on_from_any_state_in_any_world(mixed, tokenizer):
    whole = feed_of(mixed, tokenizer)
    states, seen = [], []
    for step in range(6):
        states.append(json.loads(json.dumps(whole.state())))
        seen.append(flat(whole.next(step)))
    assert any(state["pieces"] for state in states)  # One of them stands within a record.
    for step, state in enumerate(states):
        again = feed_of(mixed, tokenizer)
        again.next(0)  # The batch that it drew ahead is forgotten.
        again.restore(state)
        assert again.state() == state
        assert [flat(again.next(step)) for step in range(step, 6)] == seen[step:]
    ranks = [feed_of(mixed, tokenizer, rank=rank, world=2) for rank in range(2)]
    for rank in ranks:
        rank.restore(states[3])
    first, second = (rank.next(3)[0] for rank in ranks)
    assert sorted(split(first) + split(second)) == sorted(seen[3][0])


def test_another_seed_is_another_order(mixed, tokenizer):
    assert flat(feed_of(mixed, tokenizer).next(0)) == flat(feed_of(mixed, tokenizer).next(0))
    assert flat(feed_of(mixed, tokenizer).next(0)) != flat(feed_of(mixed, tokenizer, seed=4).next(0))


def test_an_epoch_holds_every_record_once(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": TURN, "date": f"day {day}"}) + "\n" for day in range(50)))
    feed = feed_of([str(path)], tokenizer, micro_batches=1, batch_tokens=2)  # One document each.
    seen = []
    while len(seen) < 100:
        seen += split(feed.next(0)[0])
    assert len(set(seen[:50])) == 50 and sorted(seen[:50]) == sorted(seen[50:100]) and seen[:50] != seen[50:100]


def test_batches_of_any_size_hold_the_same_documents_in_order(mixed, tokenizer):
    source, rendering = source_of(mixed, seed=3), Rendering(tokenizer=tokenizer, max_length=300, too_long="drop")
    counts, expected = (0, 0, 0), []
    while len(expected) < 120:
        part = source.turn(counts)
        fitted = rendering.fitted(source.parts[part], source.index(part, counts[part]))
        expected += [tuple(document.token_ids) for document, _ in fitted if document is not None]
        counts = after(counts, part)
    for batch_tokens in (2, 400, 1200):  # The first gives one document at a time.
        feed = feed_of(mixed, tokenizer, batch_tokens=batch_tokens)
        start = 0
        while start < 80:
            for batch in feed.next(0):
                end = start + len(batch.lengths)
                assert sorted(ids for ids, _ in split(batch)) == sorted(expected[start:end])
                start = end


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 90), min_size=8, max_size=12),
    batch_tokens=st.integers(2, 120),
    max_length=st.integers(2, 60),
    steps=st.integers(1, 6),
)
def test_accounts_are_of_what_was_given_out(tokenizer, lengths, batch_tokens, max_length, steps):
    made = GeneratedRecords(name="made", make=lambda index: {"text": "9 " * lengths[index % len(lengths)]})
    feed = packed_feed(
        Source(parts=(made,), weights=(1.0,), seed=0),
        tokenizer,
        batch_tokens=batch_tokens,
        micro_batches=2,
        max_length=max_length,
    )
    batches = [batch for step in range(steps) for batch in feed.next(step)]
    became = feed.accounting()
    assert became["kept"] == sum(len(batch.token_ids) for batch in batches)
    assert became["learnt"] == sum(len(batch.targets) for batch in batches) == became["kept"] - became["masked"]
    assert became["documents"] == sum(len(batch.lengths) for batch in batches)
    assert became["rendered"] + became["repeated"] == became["kept"]
    assert [became["records"]] == feed.state()["counts"]
    assert all(len(batch.token_ids) <= batch_tokens or len(batch.lengths) == 1 for batch in batches)
    assert max(length for batch in batches for length in batch.lengths) <= max_length


def test_dropped_and_cut_tokens_are_counted(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    long = [TURN[0], {"role": "assistant", "content": "one " * 500}]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in (TURN, long)))
    (part,) = source_of(str(path), seed=0).parts
    for too_long in ("cut", "drop"):
        became = account(part, Rendering(tokenizer=tokenizer, max_length=200, too_long=too_long), 2)
        assert became.records == 2 and became.rendered == became.kept + became.cut + became.dropped
        assert bool(became.cut) == (too_long == "cut") and bool(became.dropped) == (too_long == "drop")
        assert became.documents == (2 if too_long == "cut" else 1)


# -------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data.jsonl:2: not valid JSON"),
        (json.dumps({"messages": TURN, "efort": "low"}), r"data.jsonl:2: unknown field efort"),
        (json.dumps({"messages": TURN[:1]}), r"data.jsonl:2: field messages has no finished assistant turn"),
        (json.dumps({"messages": TURN, "tools": 5}), r"data.jsonl:2: field tools is int; give list"),
        (json.dumps({"messages": TURN, "date": {"a": 1}}), r"data.jsonl:2: field date is dict; give str"),
        (json.dumps({"messages": [{"role": "wizard", "content": "x"}]}), r"data.jsonl:2: messages\[0\].role .*wizard"),
        (json.dumps({"messages": TURN, "effort": "huge"}), r"data.jsonl:2: effort is 'huge'"),
        (json.dumps({"messages": TURN * 50}), r"data.jsonl:2: \d+ tokens, more than --max-length 300: .* --too-long"),
    ],
)
def test_a_bad_line_is_refused_before_anything_is_learnt(tmp_path, tokenizer, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": TURN}) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        feed_of([str(path)], tokenizer, too_long="error")


def test_nothing_left_to_learn_is_refused(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"messages": TURN}) + "\n")
    with pytest.raises(DataError, match=r"data.jsonl: nothing is left to learn, all is longer than --max-length 5"):
        feed_of([str(path)], tokenizer, max_length=5)
    made = GeneratedRecords(name="made", make=lambda _index: {"messages": TURN})
    feed = packed_feed(Source(parts=(made,), weights=(1.0,), seed=0), tokenizer, **(SIZES | {"max_length": 5}))
    with pytest.raises(DataError, match="made: 10000 records in a row are longer than --max-length 5"):
        feed.next(0)


def test_tokens_outside_the_vocabulary_are_refused(tmp_path, tokenizer):
    path = tmp_path / "data.txt"
    path.write_text("hello")
    feed_of([str(path)], tokenizer, vocab_size=tokenizer.vocab_size)
    with pytest.raises(DataError, match=r"data.txt:1: token id \d+ is outside the model's vocabulary of 100: give"):
        feed_of([str(path)], tokenizer, vocab_size=100)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch_tokens": 0}, "--batch-tokens is 0: give 1 or more"),
        ({"micro_batches": 0}, "micro-batches is 0"),
        ({"max_length": 1}, "--max-length is 1: give 2 or more"),
        ({"world": 8}, "--batch-tokens 1200 might leave one of 8 ranks .* --max-length 300: give 2400 or more"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, message, tokenizer):
    with pytest.raises(ConfigError, match=message):
        feed_of(["demo"], tokenizer, **sizes)


def test_data_that_changed_are_refused_by_name(mixed, tmp_path, tokenizer):
    state = feed_of(mixed, tokenizer).state()
    with (tmp_path / "turns.jsonl").open("a") as file:
        file.write(json.dumps({"messages": TURN}) + "\n")
    with pytest.raises(
        TrainingError, match=r"turns.jsonl is not the data with which the run was begun .* another --out"
    ):
        feed_of(mixed, tokenizer).restore(state)
    with pytest.raises(TrainingError, match=r"begun with the data .*turns.jsonl, .*, demo: resume with the same"):
        feed_of(mixed[:2], tokenizer).restore(state)
    with pytest.raises(TrainingError, match=r"demo is not the data"):  # Another seed gives other exercises.
        feed_of(["demo"], tokenizer, seed=9).restore(feed_of(["demo"], tokenizer).state())
    with pytest.raises(TrainingError, match="cannot be read"):
        feed_of(["demo"], tokenizer).restore({"sources": []})


# -------------------------------------------------------------------- validation


def test_validation_batches_are_the_first_records_and_end_with_a_file(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": TURN, "date": f"day {day}"}) + "\n" for day in range(5)))
    rendering = Rendering(tokenizer=tokenizer, max_length=300)
    batches = batches_of(source_of(str(path), seed=0), rendering, records=100, batch_tokens=130)
    assert sum(len(batch.lengths) for batch in batches) == 5 and len(batches) > 1
    heldout = source_of("demo", seed=0, split="heldout")
    rendering = Rendering(tokenizer=tokenizer, max_length=2000)
    first, again = (batches_of(heldout, rendering, records=9, batch_tokens=2000) for _ in range(2))
    assert all(torch.equal(a.token_ids, b.token_ids) for a, b in zip(first, again, strict=True))
    assert sum(len(batch.lengths) for batch in first) >= 9
