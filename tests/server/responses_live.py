"""A real server on a scripted engine: in a thread of the test, or in a process of its own, to be killed.

python -m tests.server.responses_live PORT STORE PACE
"""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from openai import OpenAI
from tests.server.fake import DEMO, FakeWorker, Script, fake_llm, said, turn_ids

from ossia.engine.request import Request
from ossia.harmony.messages import Message
from ossia.harmony.tokenizer import Tokenizer
from ossia.server.app import create_app
from ossia.server.bridge import Bridge
from ossia.server.settings import Settings

TOKENIZER = Tokenizer.load(DEMO)
PATIENCE_SECONDS = 30.0

THOUGHT, ANSWER = "The user greets me.", "Hello, and good morning to you."
GREETING = (said("analysis", THOUGHT), said("final", ANSWER))
CALL = (
    said("analysis", "I need the weather."),
    said("commentary", "Let me see."),
    said("commentary", '{"city": "Oslo"}', "functions.get_weather"),
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}


def says(*turns: tuple[Message, ...]) -> Script:
    """Answers with these turns one after the other, the last again and again."""
    waiting = list(turns)

    def script(_: Request) -> list[int]:
        return turn_ids(TOKENIZER, *(waiting.pop(0) if len(waiting) > 1 else waiting[0]))

    return script


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A running server, its engine and the official client to it."""

    client: OpenAI
    http: httpx2.Client
    worker: FakeWorker
    app: FastAPI
    server: uvicorn.Server

    def prompt(self, index: int = -1) -> str:
        """What the model was shown."""
        return "".join(
            TOKENIZER.special_names.get(token) or TOKENIZER.decode([token])
            for token in self.worker.requests[index].prompt
        )


@contextmanager
def live(script: Script, *, store: Path | None, **engine: Any) -> Iterator[Live]:
    """The server, ready; it closes as servers do when they are asked to."""
    worker = FakeWorker(script, **engine)
    bridge: Bridge = Bridge(fake_llm(), worker)  # pyright: ignore[reportArgumentType]
    app = create_app(bridge, Settings(model_name="demo", store=store, page=False))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, name="server")
    worker.start()
    thread.start()
    end = time.monotonic() + PATIENCE_SECONDS
    while not server.started:
        assert thread.is_alive() and time.monotonic() < end, "the server does not start"
        time.sleep(0.01)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    try:
        with (
            OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_SECONDS) as client,
            httpx2.Client(base_url=url, timeout=PATIENCE_SECONDS) as http,
        ):
            yield Live(client=client, http=http, worker=worker, app=app, server=server)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_SECONDS)
        worker.close()
        bridge.close()
    assert not thread.is_alive(), "the server does not end"


def _serve(port: int, store: Path, pace: float) -> None:
    """Serve until killed."""
    worker = FakeWorker(says(GREETING), pace=pace)
    bridge: Bridge = Bridge(fake_llm(), worker)  # pyright: ignore[reportArgumentType]
    worker.start()
    uvicorn.run(create_app(bridge, Settings(model_name="demo", store=store, page=False)), port=port, log_config=None)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
