"""`ossia serve` from its start to its end: what it says, what it refuses, and how signals end it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

import ossia
from ossia.cli import cli
from ossia.harmony.tokenizer import Tokenizer

OPTIONS = ("--no-store", "--threads", "1", "--kernels", "torch")


@contextmanager
def started(*options: str) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """The command, the port it listens on, and the lines it says before it listens."""
    command = [sys.executable, "-m", "ossia", "serve", "--port", "0", *OPTIONS, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("OSSIA_API_KEY", None)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            lines: list[str] = []
            while not any("API" in line for line in lines):
                line = process.stderr.readline()
                assert line, lines
                lines.append(line)
            found = re.search(r":(\d+)/v1", lines[-1])
            assert found
            port = int(found[1])
            _wait_for(port)
            yield process, port, lines
        finally:
            process.kill()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if _get(port, "/ready") == 200:
                return
        except OSError:
            time.sleep(0.02)
    raise AssertionError("the server does not answer")


def _get(port: int, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


@contextmanager
def _stream(port: int) -> Iterator[http.client.HTTPResponse]:
    """An answer that takes some seconds, once it has begun."""
    stops = Tokenizer.load(Path(ossia.__file__).parent / "demo").stop_ids
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "logit_bias": {str(token): -100 for token in stops},
    }
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        with connection.getresponse() as answer:
            assert answer.readline()
            yield answer


def test_it_says_what_it_serves_and_ends_at_an_interrupt() -> None:
    with started() as (process, port, lines):
        said = "".join(lines)
        assert "demo" in said and "4,096 tokens" in said and f"http://127.0.0.1:{port}/v1" in said
        assert "no API key" in said
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_it_tells_those_who_wait_and_ends_when_it_is_terminated() -> None:
    with started("--grace", "0.2") as (process, port, _), _stream(port) as answer:
        process.send_signal(signal.SIGTERM)
        assert "the server closes before this answer is complete" in answer.read().decode()
        assert process.wait(30) == 0


def test_a_second_signal_ends_it_at_once() -> None:
    with started("--grace", "600") as (process, port, _), _stream(port):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def refused(*options: str) -> str:
    """The one line with which the command refuses these options."""
    result = CliRunner().invoke(cli, ["serve", *options], env={"OSSIA_API_KEY": ""})
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_other_machines_need_a_key() -> None:
    assert "0.0.0.0 is reached from other machines: give --api-key, or --open-to-all" in refused("--host", "0.0.0.0")


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        # Refused before the model is looked for.
        line = refused("--port", str(port), "--model", str(tmp_path / "none"))
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use): choose another with --port" in line


def test_a_store_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"not a database, whatever its name says " * 100)
    options = ["serve", "--port", "0", "--store", str(tmp_path / "store"), "--threads", "1"]
    result = CliRunner().invoke(cli, options, env={"OSSIA_API_KEY": ""})
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("ossia: ")
    assert str(tmp_path / "store") in result.stderr.splitlines()[-1]


def test_prefixes_survive_a_restart(tmp_path: Path) -> None:
    cached: list[int] = []
    body = {"model": "demo", "messages": [{"role": "user", "content": "word " * 300}], "max_tokens": 1}
    for _ in range(2):
        with started("--prefix-cache", str(tmp_path)) as (process, port, _):
            with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                sent = {"content-type": "application/json"}
                connection.request("POST", "/v1/chat/completions", json.dumps(body), sent)
                usage = json.load(connection.getresponse())["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
    assert cached[0] == 0
    assert cached[1] > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--host", "no.such.host.invalid", "--open-to-all"), "is no address of this machine"),
        (("--store", "x", "--no-store"), "--store and --no-store exclude each other"),
        (("--port", "70000"), "70000 is not in the range"),
        (("--max-batch", "0"), "0 is not in the range"),
        (("--timeout", "0"), "0.0 is not in the range"),
        (("--port", "0", "--model", "/no/such/folder"), "/no/such/folder"),
    ],
)
def test_what_cannot_be_served(options: tuple[str, ...], message: str) -> None:
    assert message in refused(*options)
