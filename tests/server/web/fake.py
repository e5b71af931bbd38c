"""A server of the page alone: the built files under the page's policy, and an API that answers as a test says."""

import json
import mimetypes
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import ossia

WEB = Path(ossia.__file__).parent / "server" / "web"

# Stricter than a browser needs: without a policy of its own the page cannot turn any text into HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)

CONTEXT = 4096


# ---------------------------------------------------------------- what an answer is made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A chunk of the stream."""

    delta: dict[str, Any] = field(default_factory=dict)
    finish: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Goes on when the event is set."""

    event: threading.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """The connection ends here, in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """An error instead of an answer."""

    status: int
    message: str


Step = Delta | Wait | Drop | Refuse


def reasoning(text: str) -> Delta:
    return Delta(delta={"reasoning": text})


def text(text: str) -> Delta:
    return Delta(delta={"content": text})


def call(name: str, arguments: str, *, index: int = 0) -> Delta:
    """A whole call in one chunk."""
    function = {"name": name, "arguments": arguments}
    return Delta(
        delta={"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}
    )


def stop(reason: str = "stop") -> Delta:
    return Delta(finish=reason)


def echo(body: dict[str, Any]) -> Sequence[Step]:
    """What is answered when a test has written nothing else."""
    count = sum(message["role"] == "user" for message in body["messages"])
    return (
        reasoning("Let me think."),
        text(f"Answer {count} to: "),
        text(body["messages"][-1]["content"]),
        stop(),
    )


# ---------------------------------------------------------------- the server


class Fake(ThreadingHTTPServer):
    """Listens on a free port of this machine. `answer` makes the steps of an answer of a request's body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[dict[str, Any]], Sequence[Step]] = echo
        self.model = "ossia-demo"
        self.key: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.left = threading.Event()
        """Set when a client has gone before its answer was complete."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Fake

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/v1/models":
            if self._is_allowed():
                model = {"id": self.server.model, "object": "model", "created": 0, "owned_by": "ossia"}
                self._json(200, {"object": "list", "data": [model | {"max_model_len": CONTEXT}]})
            return
        file = (WEB / ("index.html" if path == "/" else path.lstrip("/"))).resolve()
        if WEB not in file.parents or not file.is_file():
            self._json(404, {"error": {"message": f"there is nothing at {path}"}})
            return
        kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        self._send(200, file.read_bytes(), kind)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_allowed():
            return
        self.server.bodies.append(body)
        steps = iter(self.server.answer(body))
        first = next(steps, stop())
        if isinstance(first, Refuse):
            self._json(first.status, {"error": {"message": first.message, "type": "error"}})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            self._stream(first, steps)
        except OSError:
            self.server.left.set()

    def _stream(self, first: Step, steps: Iterator[Step]) -> None:
        num_tokens = 0
        for step in (first, *steps):
            match step:
                case Delta():
                    num_tokens += 1
                    self._event({"choices": [{"index": 0, "delta": step.delta, "finish_reason": step.finish}]})
                case Wait():
                    # Comments keep the connection known: a client that has gone is noticed at the next.
                    while not step.event.wait(0.05):
                        self._chunk(b": waiting\n\n")
                case Drop():
                    self.close_connection = True
                    return
                case Refuse():
                    self._event({"error": {"message": step.message, "type": "server_error"}})
                    break
        usage = {
            "prompt_tokens": 100,
            "completion_tokens": num_tokens,
            "total_tokens": 100 + num_tokens,
            "prompt_tokens_details": {"cached_tokens": 64},
            "completion_tokens_details": {"reasoning_tokens": 1},
        }
        self._event({"choices": [], "usage": usage})
        self._chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, content: dict[str, Any]) -> None:
        self._chunk(f"data: {json.dumps(content)}\n\n".encode())

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _is_allowed(self) -> bool:
        if self.server.key is None or self.headers["Authorization"] == f"Bearer {self.server.key}":
            return True
        self._json(401, {"error": {"message": "the API key is wrong", "type": "authentication_error"}})
        return False

    def _json(self, status: int, content: dict[str, Any]) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(content)
