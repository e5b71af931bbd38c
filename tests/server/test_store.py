"""The store of responses: what it keeps, across restarts and kills, and what it refuses."""

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ossia.errors import StorageError
from ossia.server.store import LOST, ResponseStore


def response(
    response_id: str, *, status: str = "in_progress", previous: str | None = None, **more: Any
) -> dict[str, Any]:
    return {"id": response_id, "status": status, "previous_response_id": previous, "output": [], **more}


def said(item_id: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"id": item_id, "type": "message", "text": text, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "responses.db"


@pytest.fixture
def store(path: Path) -> Iterator[ResponseStore]:
    opened = ResponseStore.open(path)
    yield opened
    opened.close()


def test_a_response_comes_back_as_it_was_stored(store: ResponseStore) -> None:
    async def run() -> None:
        await store.begin(response("resp_1", note="é\ud800"), [said("msg_in")])
        begun = await store.get("resp_1")
        assert begun is not None and not begun.finished and begun.response == response("resp_1", note="é\ud800")
        ended = response("resp_1", status="completed", usage={"total_tokens": 3})
        ended["output"] = [said("msg_out"), {"id": "fc_1", "type": "function_call", "call_id": "call_1"}]
        await store.finish(ended, events=b"\x00recorded")
        stored = await store.get("resp_1")
        assert stored is not None and stored.finished
        assert stored.response == ended and stored.events == b"\x00recorded"
        assert await store.input_items("resp_1") == [said("msg_in")]
        assert await store.get("resp_2") is None and await store.input_items("resp_2") is None

    asyncio.run(run())


def test_a_chain_joins_what_was_said_oldest_first(store: ResponseStore) -> None:
    async def run() -> None:
        previous = None
        for turn in range(3):
            mine = response(f"resp_{turn}", previous=previous)
            await store.begin(mine, [said(f"in_{turn}")])
            await store.finish({**mine, "status": "completed", "output": [said(f"out_{turn}")]})
            previous = mine["id"]
        chain = await store.chain("resp_2")
        assert chain is not None and chain.finished and chain.missing is None
        assert [item["id"] for item in chain.items] == ["in_0", "out_0", "in_1", "out_1", "in_2", "out_2"]
        items = await store.input_items("resp_2")
        assert items is not None and [item["id"] for item in items] == ["in_0", "out_0", "in_1", "out_1", "in_2"]
        assert await store.delete("resp_0") and not await store.delete("resp_0")
        broken = await store.chain("resp_2")
        assert broken is not None and broken.missing == "resp_0"
        assert await store.item("out_0") is None and await store.item("out_1") == said("out_1")

    asyncio.run(run())


def test_the_end_of_a_deleted_response_brings_it_not_back(store: ResponseStore) -> None:
    async def run() -> None:
        await store.begin(response("resp_1"), [said("in")])
        await store.delete("resp_1")
        await store.finish({**response("resp_1", status="completed"), "output": [said("out")]})
        assert await store.get("resp_1") is None and await store.item("out") is None

    asyncio.run(run())


def test_reasoning_is_found_by_the_call_after_it(store: ResponseStore) -> None:
    async def run() -> None:
        thoughts = [{"id": f"rs_{n}", "type": "reasoning", "summary": []} for n in range(3)]
        calls = [{"id": f"fc_{n}", "type": "function_call", "call_id": f"call_{n}"} for n in range(2)]
        await store.begin(response("resp_1"), [thoughts[2]])
        output = [thoughts[0], calls[0], thoughts[1], calls[1]]
        await store.finish({**response("resp_1", status="completed"), "output": output})
        # A client that sends the call back in another request does not hide where it came from.
        await store.begin(response("resp_2"), [calls[0]])
        assert await store.reasoning_before("call_0") == [thoughts[0]]
        assert await store.reasoning_before("call_1") == thoughts[:2]
        assert await store.reasoning_before("call_2") == []

    asyncio.run(run())


def test_a_failed_write_leaves_nothing_half_done(store: ResponseStore) -> None:
    async def run() -> None:
        with pytest.raises(KeyError):
            await store.begin(response("resp_1"), [said("in"), {"type": "message"}])
        assert await store.get("resp_1") is None and await store.item("in") is None
        await store.begin(response("resp_1"), [said("in")])
        with pytest.raises(StorageError, match=r"responses\.db: cannot be read or written \(UNIQUE"):
            await store.begin(response("resp_1"), [])

    asyncio.run(run())


def test_a_full_disk_is_told_and_the_store_goes_on(store: ResponseStore) -> None:
    async def run() -> None:
        await store.begin(response("resp_1"), [said("in")])
        store._connection.execute("PRAGMA max_page_count = 20")  # The least harmful way to fill a disk.
        with pytest.raises(StorageError, match=r"responses\.db: the disk is full: free some space"):
            await store.finish({**response("resp_1", status="completed"), "output": [said("out", "x" * 500_000)]})
        begun = await store.get("resp_1")
        assert begun is not None and not begun.finished
        store._connection.execute("PRAGMA max_page_count = 10000")
        await store.finish({**response("resp_1", status="completed"), "output": [said("out", "x" * 500_000)]})
        ended = await store.get("resp_1")
        assert ended is not None and ended.finished and len(ended.response["output"]) == 1

    asyncio.run(run())


def test_what_was_under_way_has_failed_at_the_next_start(path: Path) -> None:
    async def fill(store: ResponseStore) -> None:
        await store.begin(response("resp_1", status="queued"), [said("in")])
        await store.begin(response("resp_2"), [])
        await store.finish({**response("resp_2", status="completed"), "output": [said("out")]})

    store = ResponseStore.open(path)
    asyncio.run(fill(store))
    store.close()
    store.close()
    store = ResponseStore.open(path)
    found = [asyncio.run(store.get(f"resp_{n}")) for n in (1, 2)]
    store.close()
    assert [one.response["status"] for one in found if one is not None] == ["failed", "completed"]
    assert found[0] is not None and found[0].response["error"] == LOST
    assert path.stat().st_mode & 0o077 == 0, "others may read the conversations"


WRITER = """
import asyncio, sys
from pathlib import Path
from ossia.server.store import ResponseStore

async def write(store):
    for n in range(1000000):
        one = {"id": f"resp_{n}", "status": "in_progress", "previous_response_id": None, "output": []}
        await store.begin(one, [{"id": f"in_{n}", "type": "message"}])
        print("begun", n, flush=True)
        output = [{"id": f"out_{n}", "type": "message", "text": "x" * 3000}]
        await store.finish({**one, "status": "completed", "output": output})
        print("ended", n, flush=True)

asyncio.run(write(ResponseStore.open(Path(sys.argv[1]))))
"""


def test_a_killed_writer_loses_nothing_of_what_it_told(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told: list[str] = []
        for line in writer.stdout:
            told.append(line)
            if len(told) == 41:
                writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
    store = ResponseStore.open(path)
    try:
        for line in told:
            word, number = line.split()
            stored = asyncio.run(store.get(f"resp_{number}"))
            assert stored is not None and stored.finished, f"{line} was told, and is lost"
            assert (stored.response["status"] == "completed") == bool(stored.response["output"])
            if word == "ended":
                assert stored.response["status"] == "completed"
    finally:
        store.close()


def test_a_second_server_on_the_same_file_is_refused(store: ResponseStore, path: Path) -> None:
    with pytest.raises(StorageError, match=r"responses\.db: another server has it open: stop that one, or give"):
        ResponseStore.open(path)


def test_foreign_newer_and_damaged_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = foreign.read_bytes()
    with pytest.raises(StorageError, match=r"foreign\.db: is another program's database, not ossia's responses"):
        ResponseStore.open(foreign)
    assert foreign.read_bytes() == before

    newer = tmp_path / "newer.db"
    ResponseStore.open(newer).close()
    connection = sqlite3.connect(newer)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(
        StorageError, match=r"newer\.db: was written by a newer ossia \(tables 99, here 1\): update ossia"
    ):
        ResponseStore.open(newer)

    text = tmp_path / "notes.txt"
    text.write_text("not a database, but long enough to be one. " * 100)
    with pytest.raises(StorageError, match=r"notes\.txt: is no database of responses, or a damaged one"):
        ResponseStore.open(text)

    with pytest.raises(StorageError, match=r"cannot be opened \(Is a directory\): choose another place"):
        ResponseStore.open(tmp_path)
    with pytest.raises(StorageError, match=r"cannot be opened \((Not a directory|File exists)\)"):
        ResponseStore.open(text / "responses.db")


def test_the_file_is_plain_json_in_two_tables(path: Path) -> None:
    """Other programs may read what is the user's."""
    store = ResponseStore.open(path)
    asyncio.run(store.begin(response("resp_1"), [said("in")]))
    store.close()
    connection = sqlite3.connect(path)
    rows = connection.execute("SELECT items.body FROM responses JOIN items ON response_id = id").fetchall()
    connection.close()
    assert [json.loads(body) for (body,) in rows] == [said("in")]
