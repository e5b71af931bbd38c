"""Imports point one way. The tables below are the whole rule; the rest of this file reads the sources and compares."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ossia

SOURCE = Path(ossia.__file__).parent

ANYTHING = frozenset({"*"})

COMMON = frozenset({"config", "errors", "files"})

# Part of the package → the parts it may import, besides itself and (but for the common parts themselves) COMMON.
ALLOWED: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "config": frozenset({"errors", "files"}),
    "files": frozenset({"errors"}),
    "harmony": frozenset(),
    "kernels": frozenset(),
    "model": frozenset({"kernels"}),
    "engine": frozenset({"model", "kernels"}),
    "train": frozenset({"model", "harmony", "kernels", "demo"}),  # demo: the curriculum, as a source of data.
    "train/rl": frozenset({"train", "engine", "reply", "model", "harmony", "kernels", "demo"}),
    "evals": frozenset({"llm", "reply", "engine", "harmony", "demo"}),
    "demo": frozenset({"harmony"}),
    "reply": frozenset({"harmony"}),
    "llm": frozenset({"engine", "model", "kernels", "harmony", "reply", "__init__"}),
    "bench": frozenset({"llm", "engine", "model", "kernels"}),
    "release": frozenset({"model", "harmony", "kernels"}),
    "server": frozenset({"llm", "engine", "harmony", "__init__"}),
    "cli": ANYTHING,
    "__init__": ANYTHING,
    "__main__": frozenset({"cli"}),
}

# Package or module → what it must not import from elsewhere.
FORBIDDEN: dict[str, frozenset[str]] = {
    "config": frozenset({"torch", "numpy"}),
    "errors": frozenset({"torch", "numpy"}),
    "harmony": frozenset(
        {"torch", "numpy", "http", "urllib.request", "requests", "httpx", "huggingface_hub", "llguidance"}
    ),
    "server": frozenset({"torch", "numpy"}),
    "engine/request": frozenset({"torch", "numpy"}),
    "engine/blocks": frozenset({"torch", "numpy"}),
    "engine/scheduler": frozenset({"torch", "numpy"}),
}

# What `import ossia` and `import ossia.cli` must leave alone: torch, web frameworks, training libraries, other parts.
NEVER_AT_IMPORT = (
    "torch triton aiohttp llguidance openai prometheus_client fastapi flask starlette uvicorn httpx httpx2 requests "
    "huggingface_hub transformers tokenizers datasets peft trl accelerate deepspeed reasoning_gym matplotlib pytest "
    "prompt_toolkit ossia.train ossia.cli ossia.evals ossia.bench ossia.release ossia.server"
).split()


def modules() -> list[str]:
    """Every module of the package by its path without the suffix: `harmony/parse`, `engine/__init__`."""
    return sorted(path.relative_to(SOURCE).with_suffix("").as_posix() for path in SOURCE.rglob("*.py"))


def part_of(module: str) -> str:
    """The part that a module belongs to: its first folder, or its first two where these have a row of their own."""
    inner = "/".join(module.split("/")[:2])
    return inner if inner in ALLOWED else module.split("/")[0]


def imports(source: str, module: str) -> Iterator[str]:
    """Dotted names of all that a module imports, wherever in the file; relative imports resolved."""
    package = ["ossia", *module.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def broken_rules(source: str, module: str) -> list[str]:
    """What this source text, as this module, breaks; one line each."""
    part = part_of(module)
    allowed = ALLOWED[part] | {part.split("/")[0]} | (frozenset() if part in COMMON else COMMON)
    forbidden = FORBIDDEN.get(part, frozenset()) | FORBIDDEN.get(module, frozenset())
    broken: list[str] = []
    for name in imports(source, module):
        top, _, rest = name.partition(".")
        foreign = any(f"{name}.".startswith(f"{other}.") for other in forbidden)
        target = rest.split(".")[0] if rest.split(".")[0] in ALLOWED else "__init__"
        upward = top == "ossia" and "*" not in allowed and target not in allowed
        if foreign or upward:
            broken.append(f"{module} imports {name}")
    return broken


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module: str) -> None:
    assert part_of(module) in ALLOWED, f"{part_of(module)} is new: give it a row in ALLOWED"
    assert broken_rules((SOURCE / f"{module}.py").read_text(encoding="utf-8"), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("harmony/parse", "import torch"),
        ("harmony/parse", "def f():\n    from torch import Tensor"),
        ("harmony/parse", "from urllib.request import urlopen"),
        ("harmony/parse", "from ossia.engine import Engine"),
        ("harmony/parse", "from ..engine import Engine"),
        ("harmony/parse", "from .. import engine"),
        ("harmony/parse", "import ossia"),
        ("model/transformer", "from ossia import engine"),
        ("kernels/torch_ops", "import ossia.model.rope"),
        ("engine/request", "import torch.nn"),
        ("train/loop", "from ossia.engine.request import Sampling"),
        ("train/rl/rollout", "import ossia.server"),
        ("engine/engine", "from ossia.harmony import Parser"),
        ("config", "from ossia.kernels import mxfp4"),
        ("errors", "from ossia.config import ModelConfig"),
    ],
)
def test_the_reader_sees_each_kind_of_breach(module: str, source: str) -> None:
    assert len(broken_rules(source, module)) == 1


def test_the_reader_lets_the_rest_pass() -> None:
    assert broken_rules("import torch\nfrom ossia.kernels.ops import Kernels", "model/attention") == []
    assert broken_rules("from . import rope\nfrom .rope import Rope", "model/attention") == []
    assert broken_rules("from ossia.errors import ConfigError", "config") == []
    assert broken_rules("from urllib.parse import unquote", "harmony/schema") == []
    assert broken_rules("def main():\n    import ossia.train.sft", "cli/train") == []


def test_the_tables_speak_of_what_exists() -> None:
    assert set(ALLOWED) == {part_of(module) for module in modules()}
    assert set(FORBIDDEN) <= {*ALLOWED, *modules()}


def test_the_command_line_is_lazy() -> None:
    """Its entry loads `ossia` and what the commands share, and no single command's libraries."""
    program = "import json, sys, ossia.cli; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(run.stdout))
    assert "ossia.cli" in loaded
    assert loaded & set(NEVER_AT_IMPORT) == {"ossia.cli"}
