"""What is wrong is refused with a status of its own and a message that names it, at once, and harms nobody else."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest
from tests.server.malformed import CHAT, GOOD, RESPONSES, USER, Bad, by_hand, mutations
from tests.server.serving import PATIENCE_SECONDS, Reply, Served, serving

BAD = [*by_hand(), *mutations(100, seed=0)]
MAX_BODY = 4_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("malformed")
    with serving(folder, "--no-store", "--max-body", str(MAX_BODY), key="the-right-key") as served:
        yield served


def error_of(reply: Reply) -> dict[str, str | None]:
    """The error, which has one shape whatever went wrong."""
    assert reply.headers["content-type"].startswith("application/json")
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 1000
    assert len(error["param"] or "") < 1000
    return error


def test_there_are_enough() -> None:
    assert len(BAD) >= 200
    assert len({bad.name for bad in BAD}) == len(BAD)


@pytest.mark.parametrize("path", GOOD)
def test_the_good_ones_are_good(server: Served, path: str) -> None:
    reply = server.request("POST", path, GOOD[path])
    assert reply.status == 200, reply.body


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_a_bad_one_is_refused(server: Served, bad: Bad) -> None:
    reply = server.request("POST", bad.path, bad.body)
    assert reply.status == bad.status, reply.body[:1000]
    error = error_of(reply)
    assert bad.names in f"{error['message']} {error['param']}", error


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer the-wrong-key"},
        {"Authorization": "the-right-key"},
        {"Authorization": "Basic eDp5"},
    ],
)
@pytest.mark.parametrize("path", [*GOOD, "/v1/models", "/tokenize", "/v1/no-such-path"])
def test_without_the_right_key_nothing_is_done(server: Served, path: str, headers: dict[str, str]) -> None:
    method = "GET" if path.endswith("models") else "POST"
    body = None if method == "GET" else json.dumps(GOOD.get(path, {})).encode()
    reply = server.request(method, path, body, headers={"Content-Type": "application/json", **headers})
    assert reply.status == 401
    assert "key" in str(error_of(reply)["message"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/no-such-path", 404),
        ("DELETE", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/v1/models/no-such-model", 404),
        ("GET", "/v1/responses/resp_nothing", 404),
        ("DELETE", "/v1/responses/resp_nothing", 404),
        ("POST", "/v1/responses/resp_nothing/cancel", 404),
        ("GET", "/v1/models/%00", 404),
        ("GET", "/v1/../../etc/passwd", 404),
        ("GET", "/" + "a" * 5000, 404),
    ],
)
def test_what_is_not_there(server: Served, method: str, path: str, status: int) -> None:
    reply = server.request(method, path)
    assert reply.status == status
    error_of(reply)


def test_a_body_that_is_too_large_is_refused(server: Served) -> None:
    reply = server.request("POST", CHAT, {**GOOD[CHAT], "messages": [{**USER, "content": "a" * (MAX_BODY + 1)}]})
    assert reply.status == 413
    assert str(MAX_BODY) in str(error_of(reply)["message"]).replace(",", "")


def test_a_body_that_is_too_large_is_refused_without_its_length(server: Served) -> None:
    """In chunks, which never end."""
    with connected(server) as client:
        client.sendall(head(server, "Transfer-Encoding: chunked"))
        part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        with suppress(OSError):  # The server may have stopped listening.
            for _ in range(2 * MAX_BODY // 0x10000):
                client.sendall(part)
        assert status_of(client) in (413, None)
    assert_served(server)


# -------------------------------------------------------------------- raw connections


def connected(server: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_SECONDS)


def head(server: Served, *lines: str, path: str = CHAT) -> bytes:
    """The beginning of a request whose body is to follow."""
    fixed = (f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json")
    return "\r\n".join([*fixed, f"Authorization: Bearer {server.key}", *lines, "", ""]).encode()


def status_of(client: socket.socket) -> int | None:
    """The status of the answer; None where the connection ended without one."""
    try:
        line = client.makefile("rb").readline()
    except ConnectionResetError:
        return None
    return int(line.split()[1]) if line else None


def assert_served(server: Served) -> None:
    """Another client gets its answer."""
    body = {"model": "demo", "messages": [USER], "max_tokens": 4, "reasoning_effort": "low"}
    reply = server.request("POST", CHAT, body)
    assert reply.status == 200
    assert reply.json()["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
        b"POST /v1/chat/completions HTTP/9.9\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 20_000 + b"\r\n",
    ],
    ids=lambda sent: repr(sent[:50]),
)
def test_what_is_no_http(server: Served, sent: bytes) -> None:
    with connected(server) as client:
        with suppress(OSError):  # Refused before the end.
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
        status = status_of(client)
        assert status is None or 400 <= status < 500
    assert_served(server)


def test_slow_and_silent_clients_harm_nobody(server: Served) -> None:
    """Clients that send a byte a second, that send nothing, that leave midway, and that never read."""
    body = json.dumps({**GOOD[CHAT], "stop": None, "max_completion_tokens": 400, "reasoning_effort": "high"}).encode()
    whole = head(server, f"Content-Length: {len(body)}") + body
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(server)) for _ in range(20)]
        slow = [stack.enter_context(connected(server)) for _ in range(10)]
        deaf = [stack.enter_context(connected(server)) for _ in range(5)]
        for client in slow:
            client.sendall(whole[:-50])
        for client in deaf:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.sendall(whole)
        for byte in range(3):
            for client in slow:
                client.sendall(whole[len(whole) - 50 + byte :][:1])
            assert_served(server)
            time.sleep(0.2)
        assert silent
    assert_served(server)
    wait_until_idle(server)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 1_000_000},
        {"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000},
        {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
        {"type": "array", "items": {"type": "string", "pattern": "^([a-z]{1,300} ){1,300}$"}, "minItems": 3000},
        {"enum": [f"value {n}" for n in range(15_000)]},
    ],
    ids=lambda schema: json.dumps(schema)[:60],
)
def test_costly_schemas_harm_nobody(server: Served, schema: dict[str, object]) -> None:
    """They are answered or refused, and meanwhile others are answered."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    body = {"model": "demo", "messages": [USER], "max_tokens": 60, "response_format": form}
    with ThreadPoolExecutor(3) as pool:
        costly = [pool.submit(server.request, "POST", CHAT, body) for _ in range(3)]
        assert_served(server)
        assert {each.result().status for each in costly} <= {200, 400}


def test_those_who_leave_free_their_place(server: Served) -> None:
    """More than the batch and the queue hold begin a long answer and hang up at once."""
    body = json.dumps({"model": "demo", "messages": [USER], "stream": True, "reasoning_effort": "high"}).encode()

    def leave() -> None:
        with connected(server) as client:
            client.sendall(head(server, f"Content-Length: {len(body)}") + body)
            client.recv(100)

    threads = [threading.Thread(target=leave) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()
    assert_served(server)
    wait_until_idle(server)


def wait_until_idle(server: Served) -> None:
    """Nothing runs and no block is held."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while server.metric("ossia_running_requests") or server.metric("ossia_queue_requests"):
        assert time.monotonic() < deadline, "requests of clients that left are still there"
        time.sleep(0.05)


def test_the_server_is_still_there(server: Served) -> None:
    """After all that, with no traceback in its log."""
    assert_served(server)
    assert server.request("POST", RESPONSES, GOOD[RESPONSES]).status == 200
    assert server.process.poll() is None
    log = server.log.read_text(encoding="utf-8", errors="replace")
    assert "Traceback" not in log, log[-4000:]
