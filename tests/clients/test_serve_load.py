"""The load tool, on a real server and on one that answers badly."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmarks.load_client import Address, Answer, ask
from tests.server.serving import Served, serving

TOOL = Path(__file__).parents[2] / "benchmarks" / "serve_load.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("load"), "--no-store", key="a-key") as served:
        yield served


@pytest.mark.parametrize("how", [("--concurrency", "3"), ("--rate", "50"), ("--api", "completions")])
def test_it_measures_a_server(server: Served, how: tuple[str, str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    asked = ["--url", server.url, "--key", "a-key", "--requests", "6", "--max-tokens", "8", *how]
    plot = tmp_path / "load.png"
    run = subprocess.run(
        [sys.executable, str(TOOL), *asked, "--plot", str(plot)], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    (measured,) = json.loads(run.stdout.splitlines()[-1])["servers"].values()
    assert measured["answered"] == measured["requests"] == 6
    assert measured["errors"] == {}
    assert measured["completion_tokens"] == 48
    assert measured["first_piece_s"]["p50"] <= measured["whole_answer_s"]["p50"]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_it_counts_errors_by_kind(server: Served) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 4}
    here = Address.of(server.url, "a-key")
    answers = {
        None: ask(here, "chat/completions", body, timeout=60),
        "status 401": ask(Address.of(server.url, "another"), "chat/completions", body, timeout=60),
        "status 400": ask(here, "chat/completions", {**body, "n": 0}, timeout=60),
        "refused": ask(Address.of("http://127.0.0.1:9/v1"), "chat/completions", body, timeout=60),
    }
    for error, answer in answers.items():
        assert asyncio.run(answer).error == error


def test_it_reads_what_comes_in_any_pieces() -> None:
    """Chunks that cut lines, events and characters; an answer that does not end; one that is an error."""
    first = 'data: {"choices":[{"delta":{"content":"héllo"}}]}\r\n\r\n'.encode()
    last = (
        b'data: {"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
    )
    end = b"data: [DONE]\n\n"
    whole = served_with(first + last + end)
    assert (whole.text, whole.finish, whole.error) == ("héllo", "stop", None)
    assert (whole.prompt_tokens, whole.completion_tokens, len(whole.pieces)) == (5, 2, 1)
    assert served_with(first + last).error == "cut short"
    assert served_with(first + b'data: {"error":{"type":"server_error"}}\n\n').error == "error event (server_error)"
    assert served_with(first + b"data: {\n\n" + end).error == "event that is no JSON"


def served_with(body: bytes) -> Answer:
    """What the client makes of this body, which comes a byte a chunk."""

    async def main() -> Answer:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            writer.write(b"".join(b"1\r\n%b\r\n" % bytes([byte]) for byte in body) + b"0\r\n\r\n")
            await writer.drain()
            writer.close()

        server: Any = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await ask(Address.of(f"http://127.0.0.1:{port}/v1"), "chat/completions", {}, timeout=60)

    return asyncio.run(main())
