"""Responses on disk: one SQLite file, written by one thread, a transaction a step, so that a killed server loses none.

    responses   one row a response: what it continues, its status, the object without its items, a recorded stream
    items       what was given to a response and what came out of it, in order; found by the item's or the call's id

A response is stored before its first word is sent, and its end before the end is told. Whatever was under way when the
server stopped is found so at the next start, and marked failed.
"""

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from ossia.errors import StorageError

T = TypeVar("T")
Item: TypeAlias = Mapping[str, Any]
"""An input or output item as the API has it."""

APPLICATION_ID = 0x6F737369
"""Marks the file as ours; the letters are "ossi"."""
VERSION = 1
"""Of the tables below, kept as the file's user_version."""

LOST = {"code": "server_error", "message": "the server stopped before this response was finished: ask again"}

_UNFINISHED = ("queued", "in_progress")
_TABLES = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    previous_id TEXT,
    status TEXT NOT NULL,
    body TEXT NOT NULL,
    events BLOB
) WITHOUT ROWID;
CREATE INDEX responses_by_status ON responses (status) WHERE status IN ('queued', 'in_progress');
CREATE TABLE items (
    response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    is_output INTEGER NOT NULL,
    item_id TEXT NOT NULL,
    call_id TEXT,
    body TEXT NOT NULL,
    PRIMARY KEY (response_id, position)
) WITHOUT ROWID;
CREATE INDEX items_by_id ON items (item_id);
CREATE INDEX items_by_call ON items (call_id) WHERE call_id IS NOT NULL;
"""
_CHAIN = """
WITH RECURSIVE chain (id, previous_id, depth) AS (
    SELECT id, previous_id, 0 FROM responses WHERE id = ?
    UNION ALL
    SELECT r.id, r.previous_id, depth + 1 FROM responses AS r JOIN chain ON r.id = chain.previous_id
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A response as it was stored: the API's object, and its recorded stream where one was kept."""

    response: dict[str, Any]
    events: bytes | None

    @property
    def finished(self) -> bool:
        return self.response["status"] not in _UNFINISHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A response and all that it continues, oldest first."""

    items: tuple[dict[str, Any], ...]
    """Input and output of each response."""
    finished: bool
    """Whether the last response has ended."""
    missing: str | None
    """The deleted response at which the chain breaks off, None where it is whole."""


class ResponseStore:
    """The file. Its methods are for the event loop, but for `open` and `close`; each raises StorageError."""

    def __init__(self, path: Path, connection: sqlite3.Connection, thread: ThreadPoolExecutor) -> None:
        self.path = path
        self._connection = connection
        self._thread = thread

    @classmethod
    def open(cls, path: Path) -> "ResponseStore":
        """Open or make the file, its owner's alone, and mark what an earlier server left unfinished as failed.

        Raises StorageError, one line, where the disk refuses, where the file is another program's or a newer ossia's,
        and where another server has it open.
        """
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ossia-store")
        try:
            connection = thread.submit(_connect, path).result()
        except BaseException:
            thread.shutdown()
            raise
        return cls(path, connection, thread)

    def close(self) -> None:
        """Finish what was asked, then close the file. Closing again changes nothing."""
        self._thread.shutdown()
        self._connection.close()

    async def begin(self, response: Mapping[str, Any], given: Sequence[Item]) -> None:
        """Store a response that begins, with its own input items."""

        def work(connection: sqlite3.Connection) -> None:
            row = (response["id"], response["previous_response_id"], response["status"], _body(response))
            connection.execute("INSERT INTO responses (id, previous_id, status, body) VALUES (?, ?, ?, ?)", row)
            _add_items(connection, response["id"], 0, given, is_output=False)

        await self._do(work)

    async def finish(self, response: Mapping[str, Any], *, events: bytes | None = None) -> None:
        """Store the end of a response that began, its output items with it; a deleted one stays deleted."""

        def work(connection: sqlite3.Connection) -> None:
            row = (response["status"], _body(response), events, response["id"])
            cursor = connection.execute("UPDATE responses SET status = ?, body = ?, events = ? WHERE id = ?", row)
            if cursor.rowcount:
                count = "SELECT count(*) FROM items WHERE response_id = ?"
                (given,) = connection.execute(count, (response["id"],)).fetchone()
                _add_items(connection, response["id"], given, response["output"], is_output=True)

        await self._do(work)

    async def get(self, response_id: str) -> Stored | None:
        """The response of this id, None where there is none."""

        def work(connection: sqlite3.Connection) -> Stored | None:
            row = connection.execute("SELECT body, events FROM responses WHERE id = ?", (response_id,)).fetchone()
            if row is None:
                return None
            query = "SELECT body FROM items WHERE response_id = ? AND is_output ORDER BY position"
            output = [json.loads(body) for (body,) in connection.execute(query, (response_id,))]
            return Stored(response={**json.loads(row[0]), "output": output}, events=row[1])

        return await self._do(work)

    async def delete(self, response_id: str) -> bool:
        """Forget a response and its items; whether there was one."""

        def work(connection: sqlite3.Connection) -> bool:
            return connection.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount > 0

        return await self._do(work)

    async def chain(self, response_id: str) -> Chain | None:
        """The conversation that ends with this response, None where there is none of this id."""

        def work(connection: sqlite3.Connection) -> Chain | None:
            links = f"{_CHAIN} SELECT chain.previous_id, status FROM chain JOIN responses USING (id) ORDER BY depth"
            rows = connection.execute(links, (response_id,)).fetchall()
            if not rows:
                return None
            query = f"{_CHAIN} SELECT body FROM chain JOIN items ON response_id = id ORDER BY depth DESC, position"
            items = tuple(json.loads(body) for (body,) in connection.execute(query, (response_id,)))
            return Chain(items=items, finished=rows[0][1] not in _UNFINISHED, missing=rows[-1][0])

        return await self._do(work)

    async def input_items(self, response_id: str) -> list[dict[str, Any]] | None:
        """What a response was made from, earlier turns included, oldest first; None where there is none of this id."""

        def work(connection: sqlite3.Connection) -> list[dict[str, Any]] | None:
            if connection.execute("SELECT 1 FROM responses WHERE id = ?", (response_id,)).fetchone() is None:
                return None
            query = (
                f"{_CHAIN} SELECT body FROM chain JOIN items ON response_id = id "
                "WHERE depth > 0 OR NOT is_output ORDER BY depth DESC, position"
            )
            return [json.loads(body) for (body,) in connection.execute(query, (response_id,))]

        return await self._do(work)

    async def item(self, item_id: str) -> dict[str, Any] | None:
        """The item of this id, None where there is none."""

        def work(connection: sqlite3.Connection) -> dict[str, Any] | None:
            query = "SELECT body FROM items WHERE item_id = ? ORDER BY is_output DESC LIMIT 1"
            row = connection.execute(query, (item_id,)).fetchone()
            return None if row is None else json.loads(row[0])

        return await self._do(work)

    async def reasoning_before(self, call_id: str) -> list[dict[str, Any]]:
        """The reasoning items that the model wrote before this call; none where the call is not known."""

        def work(connection: sqlite3.Connection) -> list[dict[str, Any]]:
            query = "SELECT response_id, position FROM items WHERE call_id = ? AND is_output LIMIT 1"
            row = connection.execute(query, (call_id,)).fetchone()
            if row is None:
                return []
            query = "SELECT body FROM items WHERE response_id = ? AND is_output AND position < ? ORDER BY position"
            items = [json.loads(body) for (body,) in connection.execute(query, row)]
            return [item for item in items if item["type"] == "reasoning"]

        return await self._do(work)

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def guarded() -> T:
            with _explained(self.path), _transaction(self._connection):
                return work(self._connection)

        return await asyncio.get_running_loop().run_in_executor(self._thread, guarded)


def lost(response: Mapping[str, Any]) -> dict[str, Any]:
    """A response that was under way when its server stopped, as failed."""
    return {**response, "status": "failed", "error": LOST}


def _connect(path: Path) -> sqlite3.Connection:
    """The file, open, with its tables, held by this process alone."""
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = sqlite3.connect(path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            _prepare(path, connection)
        except BaseException:
            connection.close()
            raise
        return connection


def _prepare(path: Path, connection: sqlite3.Connection) -> None:
    # One server a file: another would take what is under way here for lost. A killed process holds no lock.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("PRAGMA foreign_keys = ON")
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if application != APPLICATION_ID and (application or version or tables):
        raise StorageError(f"{path}: is another program's database, not ossia's responses: choose another file")
    if version > VERSION:
        raise StorageError(f"{path}: was written by a newer ossia (tables {version}, here {VERSION}): update ossia")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    with _transaction(connection):
        if application != APPLICATION_ID:
            for statement in _TABLES.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        unfinished = "SELECT id, body FROM responses WHERE status IN ('queued', 'in_progress')"
        for response_id, body in connection.execute(unfinished).fetchall():
            row = (_body(lost(json.loads(body))), response_id)
            connection.execute("UPDATE responses SET status = 'failed', body = ? WHERE id = ?", row)


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Generator[None]:
    """All or nothing of what is done inside."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:  # An error on the way; a full disk has rolled back by itself.
            connection.execute("ROLLBACK")


@contextmanager
def _explained(path: Path) -> Generator[None]:
    """Whatever SQLite or the disk has against it, as one line."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{path}: cannot be opened ({error.strerror}): choose another place") from None
    except sqlite3.Error as error:
        match getattr(error, "sqlite_errorcode", None):
            case sqlite3.SQLITE_BUSY:
                line = "another server has it open: stop that one, or give another file with --store"
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                line = f"is no database of responses, or a damaged one ({error}): choose another file"
            case sqlite3.SQLITE_FULL:
                line = "the disk is full: free some space"
            case _:
                line = f"cannot be read or written ({error})"
        raise StorageError(f"{path}: {line}") from None


def _add_items(
    connection: sqlite3.Connection, response_id: str, first: int, items: Sequence[Item], *, is_output: bool
) -> None:
    rows = [
        (response_id, first + index, is_output, item["id"], item.get("call_id"), json.dumps(item))
        for index, item in enumerate(items)
    ]
    connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows)


def _body(response: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in response.items() if name != "output"})
