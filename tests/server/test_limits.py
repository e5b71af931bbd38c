"""Who may ask, how much, how fast and how many at a time; and what becomes of those who leave or do not read."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import openai
import pytest
from tests.server.conftest import Scripted, Serve
from tests.server.fake import FakeWorker, said, turn_ids

from ossia.llm import LLM
from ossia.server import connection

CHAT = "/v1/chat/completions"
ASKED: Any = [{"role": "user", "content": "What is 6 times 7?"}]
BODY: dict[str, Any] = {"model": "demo", "messages": ASKED}
KEY = "the-right-key"


def endless(llm: LLM, **options: Any) -> FakeWorker:
    """An answer that takes as long as anybody waits."""
    ids = turn_ids(llm.tokenizer, said("final", "word"))[:-1] + llm.tokenizer.encode(" word") * 200_000
    return FakeWorker(lambda _: ids, context=10**8, **{"pace": 0.002, **options})


def short(llm: LLM, **options: Any) -> FakeWorker:
    ids = turn_ids(llm.tokenizer, said("final", "Hi"))
    return FakeWorker(lambda _: ids, **options)


@contextmanager
def connected(served: Scripted) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as plain:
        yield plain


def head(path: str, length: int, *more: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()


def read_all(plain: socket.socket) -> bytes:
    data = b""
    while piece := plain.recv(65536):
        data += piece
    return data


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# -------------------------------------------------------------------- who


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Bearer"}, "missing_api_key"),
        ({"authorization": f"Basic {KEY}"}, "missing_api_key"),
        ({"authorization": "Bearer wrong"}, "invalid_api_key"),
        ({"authorization": f"Bearer {KEY}x"}, "invalid_api_key"),
        ({"authorization": "Bearer caf\xe9"}, "invalid_api_key"),
    ],
)
def test_a_wrong_key(serve: Serve, llm: LLM, sent: dict[str, str], code: str) -> None:
    served = serve(short(llm), api_key=KEY)
    for path in (CHAT, "/v1/completions", "/v1/responses", "/tokenize"):
        status, error = served.error(path, BODY, sent)
        assert (status, error["type"], error["code"]) == (401, "authentication_error", code)
    assert served.ask("GET", "/metrics", headers=sent)[0] == served.ask("GET", "/v1/models", headers=sent)[0] == 401
    assert served.ask("GET", "/health")[0] == served.ask("GET", "/ready")[0] == 200
    assert served.worker.requests == []


def test_the_right_key(serve: Serve, llm: LLM) -> None:
    served = serve(short(llm), api_key=KEY)
    assert served.client(api_key=KEY).chat.completions.create(**BODY).choices[0].message.content == "Hi"
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        served.client(api_key="x").models.list()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", ""])
def test_foreign_names_do_not_lead_here(served: Scripted, host: str) -> None:
    """A page whose own name was made to point to this machine would else be of the same origin."""
    status, error = served.error(CHAT, BODY, {"host": host})
    assert (status, error["code"]) == (403, "unknown_host")


@pytest.mark.parametrize("host", ["localhost", "localhost:1234", "127.0.0.1", "[::1]:80", "LOCALHOST"])
def test_own_names_do(served: Scripted, host: str) -> None:
    assert served.ask("GET", "/health", headers={"host": host})[0] == 200


def test_pages_of_other_origins_may_not_ask(served: Scripted) -> None:
    status, error = served.error(CHAT, BODY, {"origin": "https://evil.example"})
    assert (status, error["code"]) == (403, "unknown_origin")
    status, headers, _ = served.ask("OPTIONS", CHAT, headers={"origin": "https://evil.example"})
    assert status == 403
    assert not any(name.startswith("access-control") for name in headers)


def test_the_own_page_may(served: Scripted) -> None:
    served.script(said("final", "Hi"))
    status, headers, _ = served.ask("POST", CHAT, BODY, {"origin": f"http://127.0.0.1:{served.port}"})
    assert status == 200
    assert not any(name.startswith("access-control") for name in headers)


def test_pages_that_were_named_may(serve: Serve, llm: LLM) -> None:
    origin = "https://friend.example"
    served = serve(short(llm), cors_origins=frozenset({origin}), api_key=KEY)
    asking = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x"}
    status, headers, _ = served.ask("OPTIONS", CHAT, headers=asking)
    assert (status, headers["access-control-allow-origin"]) == (204, origin)
    assert "authorization" in headers["access-control-allow-headers"]
    sent = {"origin": origin, "authorization": f"Bearer {KEY}"}
    status, headers, _ = served.ask("POST", CHAT, BODY, sent)
    assert (status, headers["access-control-allow-origin"], headers["vary"]) == (200, origin, "Origin")
    assert served.error(CHAT, BODY, {**sent, "origin": "https://evil.example"})[0] == 403


# -------------------------------------------------------------------- how much


def test_a_body_that_is_too_large(serve: Serve, llm: LLM) -> None:
    served = serve(short(llm), max_body=1000)
    status, error = served.error(CHAT, b"x" * 1001)
    assert (status, error["code"]) == (413, "body_too_large")
    assert error["message"] == "the body is larger than 1,000 bytes: send less"


def test_a_body_without_a_length_that_is_too_large(serve: Serve, llm: LLM) -> None:
    served = serve(short(llm), max_body=1000)
    with connected(served) as plain:
        lines = [f"POST {CHAT} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
        plain.sendall("\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode())
        for _ in range(11):
            plain.sendall(b"64\r\n" + b"x" * 100 + b"\r\n")
        answer = read_all(plain)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


def test_a_body_that_comes_a_byte_at_a_time(serve: Serve, llm: LLM) -> None:
    served = serve(short(llm), body_seconds=0.3)
    with connected(served) as plain:
        plain.sendall(head(CHAT, 100))
        plain.settimeout(0.02)
        answer = b""
        for _ in range(100):
            plain.sendall(b"[")
            try:
                answer = plain.recv(65536)
                break
            except TimeoutError:
                pass
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"the body was not complete after 0.3 seconds: send it faster" in answer
    # Others were not kept waiting.
    assert served.ask("POST", CHAT, BODY)[0] == 200


def test_a_head_that_never_ends(serve: Serve, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 0.2)
    served = serve(short(llm))
    with connected(served) as silent, connected(served) as slow:
        slow.sendall(b"POST /v1/models HTTP/1.1\r\nHost: local")
        for plain in (silent, slow):
            with suppress(ConnectionResetError):
                assert plain.recv(100) == b""
    assert served.ask("POST", CHAT, BODY)[0] == 200


def test_silent_connections_give_way(serve: Serve, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 5)
    served = serve(short(llm))
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(served)) for _ in range(8)]
        assert served.ask("POST", CHAT, BODY)[0] == 200
        with suppress(ConnectionResetError):
            assert silent[0].recv(100) == b""


def test_too_many_connections_that_ask(serve: Serve, llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MOST_CONNECTIONS", 2)
    served = serve(endless(llm))
    streams = [served.client().chat.completions.create(**BODY, stream=True) for _ in range(2)]
    status, headers, content = served.ask("GET", "/health")
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(content)["error"]["code"] == "too_many_connections"
    for stream in streams:
        stream.close()


def test_a_prompt_that_is_too_long(serve: Serve, llm: LLM) -> None:
    served = serve(short(llm), bridge={"max_prompt": 500})
    status, error = served.error(CHAT, {**BODY, "messages": [{"role": "user", "content": "word " * 600}]})
    assert (status, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    assert "may have 500" in error["message"]


# -------------------------------------------------------------------- how many


def test_a_full_queue(serve: Serve, llm: LLM) -> None:
    served = serve(short(llm, max_waiting=0))
    status, headers, content = served.ask("POST", CHAT, BODY)
    assert (status, headers["retry-after"]) == (429, "1")
    assert json.loads(content)["error"]["code"] == "queue_full"
    # The client tries again by itself, as the header says.
    threading.Timer(0.3, lambda: setattr(served.worker, "max_waiting", 1)).start()
    assert served.client(max_retries=3).chat.completions.create(**BODY).choices[0].message.content == "Hi"


def test_too_many_at_a_time(serve: Serve, llm: LLM) -> None:
    served = serve(endless(llm), max_concurrent=2)
    streams = [served.client().chat.completions.create(**BODY, stream=True) for _ in range(2)]
    status, error = served.error(CHAT, BODY)
    assert (status, error["code"]) == (429, "too_many_requests")
    assert served.ask("GET", "/health")[0] == served.ask("GET", "/metrics")[0] == 200
    for stream in streams:
        stream.close()
    wait_for(lambda: served.bridge.num_running == 0)
    assert served.ask("POST", "/tokenize", {"text": "a"})[0] == 200


def test_an_answer_that_takes_too_long(serve: Serve, llm: LLM) -> None:
    served = serve(endless(llm), bridge={"time_limit": 0.2})
    status, error = served.error(CHAT, BODY)
    assert (status, error["code"]) == (504, "timeout")
    with pytest.raises(openai.APIError, match=r"not complete after 0.2 seconds"):
        list(served.client().chat.completions.create(**BODY, stream=True))
    served.worker.wait_until_idle()
    assert len(served.worker.cancelled) == 2


@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_an_engine_that_fails(serve: Serve, llm: LLM, path: str) -> None:
    served = serve(endless(llm, fails_after=8))
    body = {"model": "demo", "max_tokens": 100, **({"messages": ASKED} if path == CHAT else {"prompt": "a"})}
    status, error = served.error(path, body)
    assert (status, error["type"], error["code"]) == (500, "server_error", "generation_failed")
    status, _, content = served.ask("POST", path, {**body, "stream": True})
    events = content.decode().strip().split("\n\n")
    assert status == 200
    assert json.loads(events[-1].removeprefix("data: "))["error"]["code"] == "generation_failed"


# -------------------------------------------------------------------- those who leave


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, "/v1/completions"])
def test_who_leaves_is_forgotten_at_once(serve: Serve, llm: LLM, stream: bool, path: str) -> None:
    served = serve(endless(llm))
    what = {"messages": ASKED, "n": 2} if path == CHAT else {"prompt": ["a", "b"], "max_tokens": 10**6}
    body = json.dumps({"model": "demo", "stream": stream, **what}).encode()
    with connected(served) as plain:
        plain.sendall(head(path, len(body)) + body)
        wait_for(lambda: served.bridge.num_running == 2)
        if stream:
            plain.recv(1000)
    served.worker.wait_until_idle()
    assert sorted(served.worker.cancelled) == [1, 2]
    wait_for(lambda: served.bridge.num_running == 0)


def test_who_does_not_read_is_cut_off(serve: Serve, llm: LLM) -> None:
    served = serve(endless(llm, per_step=100), patience=0.5)
    body = json.dumps({**BODY, "stream": True}).encode()
    with connected(served) as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.sendall(head(CHAT, len(body)) + body)
        wait_for(lambda: served.worker.requests)
        served.worker.wait_until_idle()
        assert served.worker.cancelled == [1]
        wait_for(lambda: not served.server.server_state.connections)
    assert served.ask("GET", "/health")[0] == 200


def test_who_reads_slowly_gets_all(serve: Serve, llm: LLM) -> None:
    ids = turn_ids(llm.tokenizer, said("final", "word " * 900))
    served = serve(FakeWorker(lambda _: ids, per_step=50))
    text = ""
    for chunk in served.client().chat.completions.create(**BODY, stream=True):
        time.sleep(0.002)
        text += chunk.choices[0].delta.content or ""
    assert text == "word " * 900


def test_many_at_a_time_get_their_own(serve: Serve, llm: LLM) -> None:
    tokenizer = llm.tokenizer

    def script(request: Any) -> list[int]:
        asked = tokenizer.decode(request.prompt).rpartition("<|message|>")[2].partition("<|end|>")[0]
        return turn_ids(tokenizer, said("final", f"You said: {asked}" * 20))

    served = serve(FakeWorker(script, pace=0.0005))

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:

            async def one(number: int) -> str:
                messages: Any = [{"role": "user", "content": f"number {number}"}]
                stream = await client.chat.completions.create(model="demo", messages=messages, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(number) for number in range(24)))

    assert asyncio.run(ask()) == [f"You said: number {number}" * 20 for number in range(24)]


# -------------------------------------------------------------------- what is told


def test_security_headers(served: Scripted) -> None:
    for path in ("/health", "/v1/models", "/nothing"):
        headers = served.ask("GET", path)[1]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers


def test_request_ids(served: Scripted) -> None:
    ids = {served.ask("GET", "/health")[1]["x-request-id"] for _ in range(2)}
    assert len(ids) == 2
    assert served.ask("GET", "/health", headers={"x-request-id": "mine-1"})[1]["x-request-id"] == "mine-1"
    assert served.ask("GET", "/health", headers={"x-request-id": "a b"})[1]["x-request-id"].startswith("req_")
    assert served.error(CHAT, {})[0] == 400


SECRET = "the secret of the prompt"


@pytest.mark.parametrize("log_prompts", [False, True])
def test_the_log_holds_no_prompts_unless_asked(
    serve: Serve, llm: LLM, caplog: pytest.LogCaptureFixture, log_prompts: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    served = serve(short(llm, fails_after=None), log_prompts=log_prompts)
    body = {"model": "demo", "messages": [{"role": "user", "content": SECRET}]}
    served.ask("POST", CHAT, body, {"x-request-id": "mine-1"})
    served.ask("POST", CHAT, {**body, "temperature": 9})
    served.ask("POST", CHAT, {**body, "messages": [{"role": SECRET, "content": ""}]})
    served.ask("POST", "/v1/completions", {"model": "demo", "prompt": SECRET})
    served.ask("POST", CHAT, f'{{"a": "{SECRET}'.encode())
    served.ask("GET", f"/{SECRET.replace(' ', '')}?q={SECRET.replace(' ', '')}")
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("ossia")]
    assert any(line.startswith(f"mine-1 POST {CHAT} 200") for line in lines)
    assert any(SECRET in line for line in lines) == log_prompts
    assert not any(SECRET.replace(" ", "") in line for line in lines)


# -------------------------------------------------------------------- the end


def test_closing_lets_what_runs_come_to_its_end(serve: Serve, llm: LLM) -> None:
    served = serve(short(llm))
    served.worker.gate.clear()
    answers: list[Any] = []
    client = served.client()
    asking = threading.Thread(target=lambda: answers.append(client.chat.completions.create(**BODY)))
    asking.start()
    wait_for(lambda: served.bridge.num_running == 1)
    served.server.should_exit = True
    wait_for(lambda: served.server.app.state.gate.closing)
    served.worker.gate.set()
    asking.join(30)
    assert answers[0].choices[0].message.content == "Hi"


def test_closing_tells_those_whose_answer_is_not_complete(serve: Serve, llm: LLM) -> None:
    served = serve(endless(llm))
    stream = served.client().chat.completions.create(**BODY, stream=True)
    next(iter(stream))
    served.server.should_exit = True
    with pytest.raises(openai.APIError, match="the server closes before this answer is complete"):
        list(stream)
