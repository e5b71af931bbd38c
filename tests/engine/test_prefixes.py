"""Beginnings that outlive the process: kept, found again, and never taken for what they are not."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.small import CONFIG, random_model, random_prompt

from ossia.engine.engine import Engine
from ossia.engine.loop import generate
from ossia.engine.prefixes import PrefixStore, fingerprint
from ossia.engine.request import Request, Sampling
from ossia.errors import StorageError
from ossia.kernels import cpu
from ossia.model.transformer import Transformer

GREEDY = Sampling(temperature=0, max_tokens=12)


@pytest.fixture(scope="module", params=["auto", "torch"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(CONFIG, request.param)


def answer(engine: Engine, prompt: list[int]) -> tuple[list[int], int]:
    """The tokens, and how many of the prompt were found."""
    engine.submit(Request(prompt=tuple(prompt), sampling=GREEDY))
    tokens: list[int] = []
    cached = 0
    while engine.has_work:
        for _, output in engine.step():
            tokens += [drawn.token for drawn in output.drawn]
            cached = output.cached_tokens
        engine.check_integrity()
    assert engine.stats().used_blocks == 0
    return tokens, cached


def fresh(model: Transformer, folder: Path, prompt: list[int], **options: int) -> tuple[list[int], int]:
    """In an engine that has just begun."""
    store = PrefixStore(folder, model, **options)
    try:
        return answer(Engine(model, prefixes=store), prompt)
    finally:
        store.close()


@pytest.mark.parametrize("cache_type", ["bf16", "q8"])
def test_a_beginning_is_found_again_after_a_restart(tmp_path: Path, cache_type: str) -> None:
    if not cpu.available():
        pytest.skip(str(cpu.why_not()))
    model, prompt = random_model(CONFIG, "cpu"), random_prompt(300)
    for cached in (0, 256):
        store = PrefixStore(tmp_path, model, cache_type=cache_type)
        given = answer(Engine(model, cache_type=cache_type, prefixes=store), prompt)
        store.close()
        assert given == (list(generate(model, prompt, GREEDY, cache_type=cache_type)), cached)


def test_a_part_of_it_and_what_goes_beyond_are_found_too(model: Transformer, tmp_path: Path) -> None:
    prompt = random_prompt(300)
    fresh(model, tmp_path, prompt)
    for length in (70, 128, 129, 200, 300):
        other = [*prompt[:length], 3, 5]
        assert fresh(model, tmp_path, other) == (list(generate(model, other, GREEDY)), length // 64 * 64)
    longer = prompt + random_prompt(300, seed=1)
    assert fresh(model, tmp_path, longer) == (list(generate(model, longer, GREEDY)), 256)
    assert fresh(model, tmp_path, longer)[1] == 576


def test_requests_together_find_it_once_each(model: Transformer, tmp_path: Path) -> None:
    prompt = random_prompt(300)
    fresh(model, tmp_path, prompt)
    store = PrefixStore(tmp_path, model)
    engine = Engine(model, prefixes=store)
    for tail in range(3):
        engine.submit(Request(prompt=(*prompt, tail), sampling=GREEDY))
    while engine.has_work:
        engine.step()
        engine.check_integrity()
    store.close()
    assert engine.stats().cached_tokens == 3 * 256


def test_what_does_not_fit_into_the_pages_is_left(model: Transformer, tmp_path: Path) -> None:
    prompt = random_prompt(600)
    fresh(model, tmp_path, prompt)
    store = PrefixStore(tmp_path, model)
    engine = Engine(model, prefixes=store, cache_tokens=640, chunk=64, max_batch=2)
    engine.submit(Request(prompt=tuple(random_prompt(400, seed=4)), sampling=GREEDY))
    engine.step()
    tokens, _ = answer(engine, prompt)
    store.close()
    assert tokens[-12:] == list(generate(model, prompt, GREEDY))


def spoil_header(path: Path, **changes: object) -> None:
    header, _, body = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(header) | changes).encode() + b"\n" + body)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(b""), "it has no header"),
        (lambda path: path.write_bytes(b"x" * 9999), "it has no header"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it is damaged, or of another model"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "it is damaged, or of another model"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xaa"), "it is damaged, or of another model"),
        (lambda path: spoil_header(path, model="other"), "it is damaged, or of another model"),
        (lambda path: spoil_header(path, version=0), "it is damaged, or of another model"),
        (lambda path: spoil_header(path, key="00" * 16), "it is damaged, or of another model"),
        (lambda path: spoil_header(path, sizes=[5, 5]), "a part has 5 bytes"),
        (lambda path: spoil_header(path, sizes=[0]), "how long its parts are"),
        (lambda path: spoil_header(path, sizes="no"), "how long its parts are"),
        (lambda path: path.write_bytes(b"[]\n"), "how long its parts are"),
        (lambda path: path.write_bytes(b"{\n"), "Expecting"),
        (lambda path: path.unlink(), "No such file"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], object], says: str
) -> None:
    model, prompt = random_model(CONFIG, "torch"), random_prompt(200)
    expected, _ = fresh(model, tmp_path, prompt)
    store = PrefixStore(tmp_path, model)
    (folder,) = tmp_path.iterdir()
    first = min(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    spoil(first)
    engine = Engine(model, prefixes=store)
    assert answer(engine, prompt) == (expected, 0)
    store.close()
    assert f"{first} is not used" in caplog.text
    assert says in caplog.text


def test_what_is_no_page_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = random_model(CONFIG, "torch")
    PrefixStore(tmp_path, model).close()
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    (folder / "notes.pages").write_text("mine")
    PrefixStore(tmp_path, model).close()
    assert "notes.pages is no page of a prefix" in caplog.text
    assert (folder / "notes.pages").read_text() == "mine"


def test_no_more_is_kept_than_may_be_and_what_was_of_use_stays(tmp_path: Path) -> None:
    model, prompt = random_model(CONFIG, "torch"), random_prompt(65)
    fresh(model, tmp_path, prompt)
    (folder,) = tmp_path.iterdir()
    (path,) = folder.iterdir()
    room = 3 * path.stat().st_size + 100
    os.utime(path, (1, 1))
    others = [random_prompt(65, seed=seed) for seed in range(1, 4)]
    for other in others[:2]:
        fresh(model, tmp_path, other, max_bytes=room)
    assert fresh(model, tmp_path, prompt, max_bytes=room)[1] == 64
    fresh(model, tmp_path, others[2], max_bytes=room)
    assert len(list(folder.iterdir())) == 3
    found = [fresh(model, tmp_path, each, max_bytes=room)[1] for each in (prompt, others[1], others[2])]
    assert found == [64, 64, 64]
    assert fresh(model, tmp_path, others[0], max_bytes=100) == (list(generate(model, others[0], GREEDY)), 0)


def test_a_model_is_known_by_what_its_keys_and_values_depend_on() -> None:
    model = random_model(CONFIG, "torch")
    same, other = random_model(CONFIG, "torch"), random_model(CONFIG, "torch")
    assert fingerprint(model, "bf16") == fingerprint(same, "bf16") != fingerprint(model, "q8")
    assert fingerprint(random_model(CONFIG, "reference"), "bf16") != fingerprint(model, "bf16")
    assert fingerprint(random_model(CONFIG, "torch").bfloat16(), "bf16") != fingerprint(model, "bf16")
    with torch.no_grad():
        other.layers[1].attention.k.weight[3, 5] += 1
    assert fingerprint(other, "bf16") != fingerprint(model, "bf16")


def test_a_folder_that_cannot_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/.*: cannot be used .*choose another place"):
        PrefixStore(tmp_path / "file", random_model(CONFIG, "torch"))


def test_a_disk_that_refuses_is_told_and_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, content: bytes) -> None:
        raise StorageError(f"{path}: cannot be written (no space)")

    monkeypatch.setattr("ossia.engine.prefixes.write_whole", refused)
    model, prompt = random_model(CONFIG, "torch"), random_prompt(100)
    assert fresh(model, tmp_path, prompt) == (list(generate(model, prompt, GREEDY)), 0)
    assert "cannot be written (no space)" in caplog.text
    (folder,) = tmp_path.iterdir()
    assert list(folder.iterdir()) == []
