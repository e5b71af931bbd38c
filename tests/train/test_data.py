import json

import pytest
import torch

from ossia.errors import DataError
from ossia.train.data import Batches, Example, collate, curriculum, examples, jsonl

RECORD = {
    "messages": [
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "reasoning": "2+2=4", "content": "2 + 2 = 4"},
        {"role": "user", "content": "And 3 + 3?"},
        {"role": "assistant", "reasoning": "3+3=6", "content": "3 + 3 = 6"},
    ],
    "effort": "low",
}


def test_each_assistant_turn_is_an_example_without_earlier_reasoning(tokenizer):
    first, second = examples(RECORD, tokenizer)
    learnt = tokenizer.decode([t for t, keep in zip(second.token_ids, second.learn, strict=True) if keep])
    assert learnt == (
        "<|channel|>analysis<|message|>3+3=6<|end|><|start|>assistant<|channel|>final<|message|>3 + 3 = 6<|return|>"
    )
    whole = tokenizer.decode(second.token_ids)
    assert "2 + 2 = 4" in whole and "2+2=4" not in whole
    assert "2+2=4" in tokenizer.decode(first.token_ids)


def test_collate_lays_examples_end_to_end_and_shifts_targets():
    batch = collate(
        [Example([5, 6, 7, 8], [False, False, True, True]), Example([1, 2, 3], [False, True, False])],
    )
    assert batch.lengths == (3, 4)
    assert batch.token_ids.tolist() == [1, 2, 3, 5, 6, 7, 8]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert batch.rows.tolist() == [0, 4, 5]
    assert batch.targets.tolist() == [2, 7, 8]


def test_batches_are_a_function_of_the_index(tokenizer):
    batches = Batches(source=curriculum(3), tokenizer=tokenizer, batch_tokens=600, max_length=1024)
    first, after_first = batches.at(0)
    second, _ = batches.at(after_first)
    again, _ = Batches(source=curriculum(3), tokenizer=tokenizer, batch_tokens=600, max_length=1024).at(after_first)
    assert torch.equal(second.token_ids, again.token_ids)
    assert not torch.equal(first.token_ids, second.token_ids)
    assert sum(first.lengths) == len(first.token_ids) >= 600


def test_an_example_too_long_is_refused_and_named(tokenizer):
    batches = Batches(source=lambda _index: RECORD, tokenizer=tokenizer, batch_tokens=600, max_length=20)
    with pytest.raises(DataError, match=r"record 0 has \d+ tokens, more than --max-length 20"):
        batches.at(0)


def test_jsonl_goes_through_every_record_each_time(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(RECORD | {"date": f"2025-01-0{day}"}) + "\n" for day in range(1, 6)))
    source = jsonl(path, 1, tokenizer, 1024)
    first, second = ([source(5 * epoch + place)["date"] for place in range(5)] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == [f"2025-01-0{day}" for day in range(1, 6)]
    assert first != second


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"data.jsonl:2: not JSON"),
        ("[]", r"data.jsonl:2: field messages"),
        (json.dumps({"messages": RECORD["messages"], "efort": "low"}), r"data.jsonl:2: unknown field efort"),
        (
            json.dumps({"messages": [{"role": "user", "content": "hello"}]}),
            r"data.jsonl:2: .*no finished assistant turn",
        ),
        (json.dumps(RECORD | {"tools": 5}), r"data.jsonl:2: field tools is int; give list"),
        (json.dumps(RECORD | {"date": {"a": 1}}), r"data.jsonl:2: field date is dict; give str"),
        ("[" * 100_000, r"data.jsonl:2: not JSON"),
        (
            json.dumps({"messages": [{"role": "user", "content": "9 " * 2000}, *RECORD["messages"][1:]]}),
            r"data.jsonl:2: \d+ tokens, more than --max-length 1024",
        ),
        (json.dumps({"messages": [{"role": "wizard", "content": "hello"}]}), r"data.jsonl:2: .*wizard"),
        (json.dumps(RECORD | {"effort": "huge"}), r"data.jsonl:2: .*huge"),
    ],
)
def test_a_bad_line_is_named_by_file_line_and_field(tmp_path, tokenizer, line, message):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(RECORD) + "\n" + line + "\n")
    with pytest.raises(DataError, match=message):
        jsonl(path, 0, tokenizer, 1024)


def test_a_line_separator_inside_a_text_is_no_new_line(tmp_path, tokenizer):
    path = tmp_path / "data.jsonl"
    record = {"messages": [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c"}]}
    path.write_text(json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8")
    assert jsonl(path, 0, tokenizer, 1024)(7)["messages"] == record["messages"]


def test_an_empty_or_missing_file_is_refused(tmp_path, tokenizer):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no record"):
        jsonl(tmp_path / "empty.jsonl", 0, tokenizer, 1024)
    with pytest.raises(DataError, match="cannot be read"):
        jsonl(tmp_path / "missing.jsonl", 0, tokenizer, 1024)
