import json
import sys

import pytest

from ossia.errors import DataError
from ossia.train.data.records import GeneratedRecords, dataset_records, demo_records, demo_texts, file_records

MESSAGES = [{"role": "user", "content": "a\u2028b"}, {"role": "assistant", "content": "c"}]


def test_lines_are_read_where_they_lie(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"text": f"n{number}", "messages": MESSAGES}, ensure_ascii=False) for number in range(4)]
    path.write_text(f"{lines[0]}\n\n{lines[1]}\r\n{lines[2]}\n \n{lines[3]}", encoding="utf-8")
    records = file_records(path)
    assert records.count == 4
    assert [records.read(index)["text"] for index in (3, 0, 2, 1)] == ["n3", "n0", "n2", "n1"]
    assert [records.where(index) for index in range(4)] == [f"{path}:{line}" for line in (1, 3, 4, 6)]
    assert records.read(1)["messages"] == MESSAGES  # A line separator inside a text is no new line.


def test_two_blank_lines_part_documents(tmp_path):
    path = tmp_path / "data.txt"
    path.write_text("\n\n\nfirst\n\nstill first\n  \n\n\nsecond\nthé end", encoding="utf-8")
    records = file_records(path)
    assert [records.read(index)["text"] for index in range(2)] == ["first\n\nstill first", "second\nthé end"]
    assert records.count == 2 and records.where(1) == f"{path}:10"


def test_the_digest_is_of_the_content(tmp_path):
    for name, text in (("a.jsonl", '{"text":"a"}\n'), ("b.jsonl", '{"text":"a"}\n'), ("c.jsonl", '{"text":"b"}\n')):
        (tmp_path / name).write_text(text)
    a, b, c = (file_records(tmp_path / f"{name}.jsonl").digest for name in "abc")
    assert a == b != c and len(a) == 64
    assert demo_records(0, "train").digest == demo_records(0, "train").digest
    assert (
        len({demo_records(0, "train").digest, demo_records(1, "train").digest, demo_records(0, "heldout").digest}) == 3
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"\n \n", "a.jsonl: holds no record; give one JSON object a line"),
        ("a.txt", b"", "a.txt: holds no record; give documents"),
        ("a.csv", b"x", r"a.csv: name a .jsonl or a .txt file, or hf:.*a.csv"),
    ],
)
def test_a_file_without_records_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        file_records(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"{", "a.jsonl:1: not valid JSON"),
        ("a.jsonl", b"[]", "a.jsonl:1: expected a JSON object, found list"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"text":"\xff"}', "a.jsonl:1: not valid JSON"),
        ("a.jsonl", b'{"text":"a","text":"b"}', "a.jsonl:1: .*'text' stands twice"),
        ("a.txt", b"\n\xff\xfe", "a.txt:2: not UTF-8 text"),
    ],
)
def test_a_record_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        file_records(tmp_path / name).read(0)


def test_a_file_that_is_missing_or_goes_away_is_named(tmp_path):
    path = tmp_path / "data.jsonl"
    with pytest.raises(DataError, match=r"data.jsonl: cannot be read"):
        file_records(path)
    path.write_text('{"text":"a"}\n')
    records = file_records(path)
    path.unlink()
    with pytest.raises(DataError, match=r"data.jsonl: cannot be read"):
        records.read(0)


def test_generators_are_functions_of_the_index():
    for made in (demo_records(3, "train"), demo_texts(3, "train")):
        assert made.count is None
        assert made.read(5) == made.read(5) != made.read(6)
    assert demo_texts(3, "heldout").read(5) != demo_texts(3, "train").read(5)
    assert GeneratedRecords(name="mine", make=lambda index: {"text": str(index)}).where(4) == "mine[4]"


# -------------------------------------------------------------------- datasets


def test_datasets_are_read_by_their_columns(tmp_path, caplog):
    datasets = pytest.importorskip("datasets")
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a":null}'}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "b", "tool_call_id": "1"},
    ]
    rows = datasets.Dataset.from_list([{"messages": messages, "effort": "low", "id": 5}] * 3)
    rows.to_parquet(tmp_path / "data.parquet")
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows, "other": rows.select([0])}).save_to_disk(tmp_path / "both")
    with caplog.at_level("INFO", logger="ossia.train.data.records"):
        parquet = dataset_records(f"{tmp_path}/data.parquet")
    assert "columns not read: id" in caplog.text
    assert parquet.count == 3 and parquet.where(2) == f"hf:{tmp_path}/data.parquet[2]"
    read = parquet.read(2)
    assert set(read) == {"messages", "effort"}
    assert read["messages"][0] == messages[0]  # What Arrow filled with null is gone,
    assert read["messages"][1]["tool_calls"] == [call]  # and JSON text stays what it was.
    assert dataset_records(f"{tmp_path}/saved").digest == parquet.digest
    assert dataset_records(f"{tmp_path}/both:other").count == 1


def test_folders_and_tables_of_text(tmp_path):
    datasets = pytest.importorskip("datasets")
    folder = tmp_path / "folder"
    folder.mkdir()
    datasets.Dataset.from_dict({"text": ["one", "two"]}).to_csv(folder / "train.csv", index=False)
    assert dataset_records(f"{folder}/train.csv").read(1) == {"text": "two"}
    assert dataset_records(str(folder)).read(0) == {"text": "one"}
    pairs = datasets.Dataset.from_dict({"prompt": ["p"], "completion": ["c"], "text": ["t"]})
    pairs.to_parquet(tmp_path / "pairs.parquet")
    assert dataset_records(f"{tmp_path}/pairs.parquet").read(0) == {"prompt": "p", "completion": "c"}


def test_a_dataset_that_will_not_do_is_refused(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"body": ["one"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a.parquet: has columns body; give messages, prompt and completion, or text"):
        dataset_records(f"{tmp_path}/a.parquet")
    with pytest.raises(DataError, match=r"hf:.*a.parquet:nowhere: cannot be loaded"):
        dataset_records(f"{tmp_path}/a.parquet:nowhere")
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(DataError, match=r"a .xml file; give one of .parquet"):
        dataset_records(f"{tmp_path}/a.xml")


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"hf:some/set needs datasets: install the extra with pip install 'ossia"):
        dataset_records("some/set")
