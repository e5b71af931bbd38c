"""A real server on the bundled model, in a process of its own."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_SECONDS = 120
PATIENCE_SECONDS = 60
"""No answer may take longer; a wait of this length is a hang."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer of the server."""

    status: int
    headers: Mapping[str, str]
    """Names in small letters."""
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True, kw_only=True)
class Served:
    """The running server; `log` is where it writes."""

    port: int
    key: str | None
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def request(
        self,
        method: str,
        path: str,
        body: bytes | Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = PATIENCE_SECONDS,
    ) -> Reply:
        """One request and its whole answer, on a connection of its own. `headers` replace those that are usual."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        usual = {"Content-Type": "application/json"} if body is not None else {}
        if self.key:
            usual["Authorization"] = f"Bearer {self.key}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, body, headers=usual if headers is None else dict(headers))
            answer = connection.getresponse()
            named = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(status=answer.status, headers=named, body=answer.read())
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        """The value of one metric: the sum over its labels."""
        lines = self.request("GET", "/metrics").body.decode().splitlines()
        values = [float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{"))]
        assert values, f"/metrics has no {name}"
        return sum(values)

    def kill(self) -> None:
        """End it as power failures do."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(folder: Path, *options: str, key: str | None = None, port: int | None = None) -> Iterator[Served]:
    """`ossia serve` with these options, ready; it writes its log to `folder`, and is gone at the end."""
    port = port or free_port()
    command = [
        sys.executable,
        "-m",
        "ossia",
        "serve",
        "--model",
        "demo",
        "--port",
        str(port),
        "--threads",
        "1",
        *options,
    ]
    environment = {name: value for name, value in os.environ.items() if name != "OSSIA_API_KEY"}
    environment |= {"OMP_NUM_THREADS": "1", **({"OSSIA_API_KEY": key} if key else {})}
    log = folder / "server.log"
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    served = Served(port=port, key=key, process=process, log=log)
    try:
        _await_ready(served)
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_ready(served: Served) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if served.process.poll() is not None:
            raise AssertionError(
                f"the server ended with {served.process.returncode}:\n{served.log.read_text()[-4000:]}"
            )
        try:
            if served.request("GET", "/ready", timeout=5).status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"the server was not ready after {START_SECONDS} s:\n{served.log.read_text()[-4000:]}")


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
