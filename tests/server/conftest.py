"""Servers on free ports of this machine, with a scripted engine behind them."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from tests.server.fake import FakeWorker, fake_llm, turn_ids

from ossia.harmony.messages import Message
from ossia.llm import LLM
from ossia.server.bridge import Bridge
from ossia.server.run import Server, listen
from ossia.server.settings import Settings

Answer = tuple[int, dict[str, str], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scripted:
    """A running server whose engine follows a script."""

    port: int
    worker: FakeWorker
    server: Server
    bridge: Bridge
    clients: list[openai.OpenAI] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def client(self, **options: Any) -> openai.OpenAI:
        client = openai.OpenAI(base_url=self.url, **{"api_key": "none", "max_retries": 0, "timeout": 30, **options})
        self.clients.append(client)
        return client

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """Status, headers with small names, and body of one request; `body` is JSON unless it is bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        try:
            connection.request(method, path, sent, {"content-type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def script(self, *messages: Message, per_step: int = 1) -> None:
        """Have the model say these messages."""
        ids = turn_ids(self.bridge.tokenizer, *messages)
        self.worker.script = lambda _: ids
        self.worker.per_step = per_step

    def error(self, path: str, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Status and error of a POST that must fail."""
        status, _, content = self.ask("POST", path, body, headers)
        assert status >= 400, content
        assert set(json.loads(content)) == {"error"}
        return status, json.loads(content)["error"]


@contextmanager
def running(llm: LLM, worker: FakeWorker, settings: Settings, **bridge_options: Any) -> Iterator[Scripted]:
    """A server in a thread, until the end of the block."""
    bridge = Bridge(llm, worker, **bridge_options)  # type: ignore[arg-type]
    server = Server(bridge, settings, grace=0.1)
    bound = listen("127.0.0.1", 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)  # So that what nobody reads soon fills it.
    worker.start()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started:
            assert thread.is_alive() and time.monotonic() < end, "the server does not start"
            time.sleep(0.005)
        scripted = Scripted(port=bound.getsockname()[1], worker=worker, server=server, bridge=bridge)
        yield scripted
        for client in scripted.clients:
            client.close()
    finally:
        server.should_exit = True
        thread.join(30)
        worker.close()
        bridge.close()
        bound.close()
        assert not thread.is_alive(), "the server does not end"


Serve = Callable[..., Scripted]


@pytest.fixture(scope="session")
def llm() -> LLM:
    """The bundled model's vocabulary, without a model."""
    return fake_llm()


@pytest.fixture(scope="session")
def shared(llm: LLM) -> Iterator[Scripted]:
    with running(llm, FakeWorker(lambda _: ()), Settings(model_name="demo", page=False)) as scripted:
        yield scripted


@pytest.fixture
def served(shared: Scripted) -> Scripted:
    """A server that tests share; its worker is as new, and to be given a script."""
    shared.worker.reset()
    return shared


@pytest.fixture
def serve(llm: LLM) -> Iterator[Serve]:
    """Starts servers that end with the test; the worker comes first, then settings, then `bridge` for its options."""
    with ExitStack() as stack:

        def start(worker: FakeWorker, *, bridge: dict[str, Any] | None = None, **settings: Any) -> Scripted:
            chosen = Settings(**{"model_name": "demo", "page": False, **settings})
            return stack.enter_context(running(llm, worker, chosen, **(bridge or {})))

        yield start
