"""`ossia bench`: what is passed on, what is printed, and what is refused."""

import json
import threading
import time
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ossia import bench as measuring
from ossia.bench import Limits, RandomCheckpoint, Report, Speeds
from ossia.cli.bench import bench, progress_line
from ossia.config import GPT_OSS_20B
from ossia.errors import KernelError, RequestError

LOADING = ("model", "kernels", "isa", "threads", "context", "cache_type", "dense", "packed_cache")
LIMITS = Limits(read_bytes_per_s=32e9, int8_macs_per_s=460e9)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(bench, arguments)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command asks of the library, which measures nothing and reports what is under `limits` and `depths`."""
    seen: dict[str, Any] = {"limits": LIMITS}

    def load(model: Any, **options: Any) -> str:
        seen.update(model=model, **options)
        options["report"]("packing")
        return "loaded"

    def first_token(llm: str) -> int:
        assert llm == "loaded"
        return 0

    def measure(llm: str, *, depths: tuple[int, ...], **options: Any) -> Report:
        assert llm == "loaded"
        seen.update(depths=depths, **options)
        options["progress"]("measuring")
        return Report(
            model=options["name"],
            kernels={"rope": "torch"},
            threads=2,
            context=4_608,
            cache_type="bf16",
            prompt=options["prompt"],
            generate=options["generate"],
            load_s=options["load_s"],
            first_token_s=options["first_token_s"],
            peak_rss_bytes=12_000_000_000,
            speeds=tuple(
                Speeds(
                    depth=depth,
                    prefill_tps=(60.0, 64.0, 62.0) if options["prompt"] else (),
                    decode_tps=(12.0, 12.5, 13.0),
                    bytes_per_token=1_920_000_000,
                    macs_per_token=3_000_000_000,
                )
                for depth in depths
            ),
            limits=seen["limits"],
        )

    monkeypatch.setattr("ossia.load", load, raising=False)
    monkeypatch.setattr("ossia.llm.from_checkpoint", load, raising=False)
    monkeypatch.setattr(measuring, "first_token", first_token)
    monkeypatch.setattr(measuring, "measure", measure)
    return seen


def test_json(asked: dict[str, Any]) -> None:
    result = run("--depth", "0,4096", "--json")
    told = json.loads(result.stdout)
    assert {"prefill_tps", "decode_tps", "peak_rss_bytes", "load_s", "first_token_s"} <= told.keys()
    assert (told["prefill_tps"], told["decode_tps"]) == (62.0, 12.5)
    assert told["depths"]["4096"]["decode_fraction"] == 0.75
    assert 0 <= told["load_s"] <= told["first_token_s"] <= time.perf_counter()
    assert result.stderr.splitlines() == ["loading demo", "packing", "measuring"]


def test_what_is_passed_on(asked: dict[str, Any]) -> None:
    loading = "--model somewhere --kernels cpu --isa avx2 --threads 3 --context 5000 --cache-type q8 --dense bf16"
    measured = "--prompt 99 --generate 7 --repeat 4"
    assert run("--depth", "5, 0,5", "--no-cache", *loading.split(), *measured.split()).exit_code == 0
    assert tuple(asked[key] for key in LOADING) == ("somewhere", "cpu", "avx2", 3, 5000, "q8", "bf16", False)
    assert tuple(asked[key] for key in ("depths", "prompt", "generate", "repeat")) == ((5, 0), 99, 7, 4)


def test_what_is_not_said(asked: dict[str, Any]) -> None:
    assert run("--depth", "0,4096").exit_code == 0
    assert tuple(asked[key] for key in LOADING) == ("demo", "auto", None, None, 4096 + 512, "bf16", "q8", True)


def test_a_preset_needs_no_files(asked: dict[str, Any]) -> None:
    result = run("--preset", "gpt-oss-20b", "--json")
    assert isinstance(asked["model"], RandomCheckpoint)
    assert (asked["model"].config, asked["packed_cache"]) == (GPT_OSS_20B, False)
    assert json.loads(result.stdout)["model"] == "random gpt-oss-20b"


def test_plain_lines(asked: dict[str, Any]) -> None:
    lines = run("--depth", "0,4096").stdout.splitlines()
    assert lines[0] == "model       demo"
    assert lines[6:] == [
        "peak memory 12.00 GB resident",
        "reads       32.00 GB/s at most",
        "8-bit       460.0 G multiply-adds/s at most",
        "prefill at depth 0: 62.0 tokens/s (60.0, 64.0, 62.0), 40% of the limit, 3,000.0 M multiply-adds a token",
        "decode at depth 0: 12.5 tokens/s (12.0, 12.5, 13.0), 75% of the limit, 1.92 GB read a token",
        "prefill at depth 4,096: 62.0 tokens/s (60.0, 64.0, 62.0), 40% of the limit, 3,000.0 M multiply-adds a token",
        "decode at depth 4,096: 12.5 tokens/s (12.0, 12.5, 13.0), 75% of the limit, 1.92 GB read a token",
    ]


def test_a_table_on_a_terminal(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    text = run("--depth", "4096").stdout
    assert all(word in text for word in ("tokens/s", "reached", "4,096", "60.0, 64.0, 62.0", "75% of the limit"))
    assert "decode at depth" not in text


def test_nothing_moves_on_a_terminal_while_time_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    before = threading.active_count()
    with progress_line() as report:
        report("measuring")
        assert threading.active_count() == before


def test_without_limits_and_prompt(asked: dict[str, Any]) -> None:
    asked["limits"] = None
    lines = run("--depth", "4096", "--prompt", "0").stdout.splitlines()
    assert lines[7:] == [
        "reads       not measured",
        "8-bit       not measured",
        "decode at depth 4,096: 12.5 tokens/s (12.0, 12.5, 13.0), limit not measured, 1.92 GB read a token",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model demo --preset gpt-oss-20b", "--model and --preset exclude each other."),
        ("--prompt 0 --generate 0", "leave nothing to measure"),
        ("--depth 1,x", "'1,x' is not a list of whole numbers such as 0,4096."),
        ("--depth -1", "'-1' is not a list of whole numbers"),
        ("--depth ²", "'²' is not a list of whole numbers"),
        ("--preset gpt-5", "'gpt-5' is not one of"),
        ("--repeat 0", "0 is not in the range"),
    ],
)
def test_bad_options(asked: dict[str, Any], arguments: str, message: str) -> None:
    result = run(*arguments.split())
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "model" not in asked


@pytest.mark.parametrize(("context", "depth"), [("4000", "4096"), ("-1", "0"), ("4607", "4096")])
def test_a_context_too_short_is_refused_before_loading(asked: dict[str, Any], context: str, depth: str) -> None:
    error = run("--context", context, "--depth", depth).exception
    assert isinstance(error, RequestError)
    assert str(error).startswith(f"depth {int(depth):,} and 512 tokens more exceed the context of {int(context):,}: ")
    assert "model" not in asked


def test_what_loading_refuses_passes_through(asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise KernelError("threads is 0: give 1 to 1024")

    monkeypatch.setattr("ossia.load", refuse, raising=False)
    assert str(run("--threads", "0").exception) == "threads is 0: give 1 to 1024"
