"""The options that chat, eval and bench share: what reaches the library, what is told, and what is refused."""

import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result

from ossia.cli import cli
from ossia.cli.loading import CACHE_TYPES, DENSE, ISAS, tell
from ossia.errors import KernelError
from ossia.kernels import cpu, pages
from ossia.model import adapt

GIVEN = (
    "--kernels cpu --device cpu --threads 3 --isa avx2 --context 500 --cache-type q8 --dense bf16 --no-cache".split()
)
LOADED = {
    "kernels": "cpu",
    "device": "cpu",
    "threads": 3,
    "isa": "avx2",
    "context": 500,
    "cache_type": "q8",
    "dense": "bf16",
    "packed_cache": False,
}
SILENT = {
    "kernels": "auto",
    "device": "cpu",
    "threads": None,
    "isa": None,
    "context": None,
    "cache_type": "bf16",
    "dense": "q8",
    "packed_cache": True,
}
COMMANDS = [["chat", "?"], ["eval", "--count", "1"], ["bench", "--prompt", "2", "--generate", "2"]]


native = pytest.mark.skipif(not cpu.available(), reason="the native kernels were not built")


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(("options", "expected"), [([*GIVEN, "--no-cache"], LOADED), ([], SILENT)])
def test_options_reach_the_library(
    command: list[str], options: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def load(_model: str, **loading: Any) -> None:
        seen.update(loading)
        raise KernelError("enough")

    monkeypatch.setattr("ossia.load", load, raising=False)
    monkeypatch.setattr("ossia.cli.extras.need", lambda *_: None)
    assert run(*command, *options).stderr.splitlines()[-1] == "ossia: enough"
    assert callable(seen.pop("report"))
    if command[0] == "bench" and not options:
        expected = {**expected, "context": 2}  # As much as it needs.
    if command[0] == "chat":
        expected = {**expected, "adapters": None}
    assert seen == expected


def test_the_choices_are_those_of_the_library() -> None:
    """They are spelt again for the sake of a quick --help."""
    assert CACHE_TYPES == pages.CACHE_TYPES
    assert get_args(adapt.Dense) == DENSE
    if cpu.available():
        for isa in ISAS[ISAS.index(cpu._native().best_isa()) :]:
            cpu.configure(isa=isa)
        cpu.configure(isa=cpu._native().best_isa())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--threads 0", "threads is 0: give 1 to 1024"),
        ("--threads 10000", "threads is 10000: give 1 to 1024"),
        ("--threads many", "Invalid value for '--threads'"),
        ("--isa sse9", "Invalid value for '--isa'"),
        ("--cache-type q4", "Invalid value for '--cache-type'"),
        ("--dense q4", "Invalid value for '--dense'"),
        ("--context 0", "context 0 is not to be had: this model takes 1 to 1,024 tokens"),
        ("--context 1025", "context 1,025 is not to be had: this model takes 1 to 1,024 tokens"),
        ("--kernels torch --cache-type q8", "these kernels have no cache of type 'q8': leave it out, or use kernels"),
        ("--kernels torch --isa avx2", "isa 'avx2' is for the native CPU kernels, which are not used here: leave it"),
    ],
)
@pytest.mark.parametrize("command", ["chat", "bench"])
def test_bad_values_are_one_line_and_exit_code_2(command: str, options: str, says: str, tiny_model: Path) -> None:
    args = ["chat", "?"] if command == "chat" else ["bench", "--prompt", "0", "--generate", "1"]
    if command == "bench" and options == "--context 0":
        says = "depth 0 and 1 tokens more exceed the context of 0"
    result = run(*args, "--model", str(tiny_model), *options.split())
    lines = [line for line in result.stderr.splitlines() if not line.startswith("loading ")]
    assert (result.exit_code, result.stdout, len(lines)) == (2, "", 1)
    assert lines[0].startswith(f"ossia: {says}")


@native
def test_a_context_larger_than_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ossia.model.memory.available_memory", lambda: 400_100_000)
    result = run("chat", "?", "--model", str(tiny_model), "--context", "1024")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert result.stderr.startswith("ossia: not enough memory: 0.40 GB needed")


# -------------------------------------------------------------------- the file of packed weights


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every packed model is worth a file, which is kept here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("ossia.model.packed_cache.SMALL_BYTES", 0)
    return tmp_path


@native
def test_place_and_size_are_told(tiny_model: Path, kept: Path) -> None:
    result = run("chat", "?", "--model", str(tiny_model))
    (file,) = kept.rglob("*.safetensors")
    told = result.stderr.splitlines()
    assert (result.stdout, len(told)) == ("42\n", 2)
    assert str(file) in told[0] and "bytes)" in told[0]


@native
def test_a_cache_that_cannot_be_had_is_told(tiny_model: Path, kept: Path) -> None:
    (kept / "ossia").write_text("in the way")
    result = run("chat", "?", "--model", str(tiny_model))
    assert (result.exit_code, result.stdout) == (0, "42\n")
    assert result.stderr.startswith("packed weights are not kept: ")
    assert result.stderr.count("\n") == 2


@pytest.mark.parametrize("options", [["--no-cache"], ["--kernels", "torch"]])
def test_nothing_is_kept_or_told_without_a_cache(tiny_model: Path, kept: Path, options: list[str]) -> None:
    result = run("chat", "?", "--model", str(tiny_model), *options)
    assert (result.stdout, result.stderr.count("\n")) == ("42\n", 1)
    assert not list(kept.iterdir())


def test_small_models_need_no_file(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = run("chat", "?", "--model", str(tiny_model))
    assert (result.stdout, result.stderr.count("\n")) == ("42\n", 1)
    assert not list(tmp_path.iterdir())


def test_it_is_told_dim(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tell("plain")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    tell("dim\x1b")
    assert capsys.readouterr().err == "plain\n\x1b[2mdim␛\n\x1b[0m"
