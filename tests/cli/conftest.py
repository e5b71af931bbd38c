"""A small model, and a stand-in for the hub on this machine."""

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

_SMALL = (
    "--layers 3 --experts 4 --experts-per-token 2 --hidden 64 --intermediate 96 --heads 8 --kv-heads 2 --head-dim 16 "
    "--vocab 200 --window 16"
).split()


@dataclass
class Hub:
    """What the stand-in serves, what it was asked, and how it is to fail."""

    endpoint: str
    repositories: dict[str, Path] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path, Range header."""
    gated: bool = False
    revision: str = "0123456789abcdef0123456789abcdef01234567"
    dies_after: dict[str, int] = field(default_factory=dict)
    """File name → byte before which every connection drops."""
    damages: set[str] = field(default_factory=set)
    """Names of files whose last byte is sent wrong."""

    def fetched(self) -> set[str]:
        """The files of which bytes were asked for."""
        return {
            path.split("/resolve/")[1].split("/", 1)[1]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/models/"):
            repository = "/".join(path.split("/")[3:5])
        else:
            repository = "/".join(path.split("/")[1:3])
        folder = self.hub.repositories.get(repository)
        if folder is None:
            self._error(404, "RepoNotFound")
        elif self.hub.gated:
            self._error(403, "GatedRepo")
        elif "/tree/" in path:
            self._json(
                [{"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in _files(folder)]
            )
        elif path.startswith("/api/"):
            if path.rsplit("/", 1)[1] not in ("main", self.hub.revision):
                self._error(404, "RevisionNotFound")
                return
            siblings = [{"rfilename": name} for name, _ in _files(folder)]
            self._json({"id": repository, "sha": self.hub.revision, "siblings": siblings})
        else:
            name = path.split("/resolve/")[1].split("/", 1)[1]
            self._file(name, (folder / name).read_bytes(), body)

    def _file(self, name: str, data: bytes, body: bool) -> None:
        begin = 0
        if asked := self.headers.get("Range"):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("ETag", f'"{_oid(data)}"')
        self.send_header("X-Repo-Commit", self.hub.revision)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if not body:
            return
        if name in self.hub.damages:
            data = data[:-1] + bytes([data[-1] ^ 1])
        dies = self.hub.dies_after.get(name)
        self.wfile.write(data[begin:dies])
        self.close_connection = dies is not None

    def _json(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _files(folder: Path) -> list[tuple[str, bytes]]:
    return [(str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]


def _oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A server on 127.0.0.1 that speaks as much of the hub's protocol as a download needs."""
    handler = type("Handler", (_Handler,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    handler.hub = Hub(endpoint=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield handler.hub
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Options of `ossia init` for a model of a few hundred kilobytes."""
    return list(_SMALL)
