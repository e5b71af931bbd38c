"""Requests with different adapters answered together: each as if it were alone."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.model.test_adapted import CONFIG, random_adapter

import ossia
from ossia.engine.engine import Engine
from ossia.engine.prefixes import PrefixStore
from ossia.engine.request import Drawn, Request, Sampling
from ossia.errors import RequestError
from ossia.kernels import cpu
from ossia.llm import LLM
from ossia.model.adapted import with_adapter
from ossia.model.random_weights import RandomWeights
from ossia.model.write import write_checkpoint

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the native kernels were not built")

SAMPLING = Sampling(temperature=1, seed=5, max_tokens=12, logprobs=2)
NAMES = (None, "one", "two")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random"
    write_checkpoint(path, CONFIG, RandomWeights(CONFIG, 3))
    return path


@pytest.fixture(params=["q8", "bf16"])
def llm(folder: Path, request: pytest.FixtureRequest) -> Iterator[LLM]:
    threads, torch_threads = cpu.num_threads(), torch.get_num_threads()
    llm = ossia.load(folder, dense=request.param)
    variants = {name: with_adapter(llm.model, random_adapter(8, seed)) for seed, name in enumerate(NAMES[1:])}
    yield replace(llm, adapters=variants)
    cpu.configure(threads, cpu.best_isa())
    torch.set_num_threads(torch_threads)


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple((7919 * i + 13 * (seed + 1)) % CONFIG.vocab_size for i in range(length))


def engine(llm: LLM, **options: object) -> Engine:
    return Engine(llm.model, adapters=llm.adapters, context=512, **options)  # type: ignore[arg-type]


def answers(engine: Engine, requests: list[Request]) -> list[list[Drawn]]:
    """What was drawn for each, log-probabilities included; all are submitted at once."""
    ids = [engine.submit(request) for request in requests]
    drawn: dict[int, list[Drawn]] = {each: [] for each in ids}
    while engine.has_work:
        for each, output in engine.step():
            assert output.finish != "error", output.error
            drawn[each] += output.drawn
    engine.check_integrity()
    return [drawn[each] for each in ids]


def test_together_as_alone(llm: LLM) -> None:
    requests = [
        Request(prompt=prompt(length), sampling=SAMPLING, adapter=NAMES[index % 3])
        for index, length in enumerate((40, 40, 40, 150, 7, 150, 65, 130, 1))
    ]
    together = answers(engine(llm), requests)
    assert together == [answers(engine(llm), [each])[0] for each in requests]
    # The adapters do something, and without one the model is what it was.
    assert len({tuple(map(str, each)) for each in together[:3]}) == 3
    bare = Engine(llm.model, context=512)
    assert answers(bare, [replace(requests[0], adapter=None)])[0] == together[0]


def test_the_loop_gives_the_same(llm: LLM) -> None:
    greedy = Sampling(temperature=0, max_tokens=5)
    for name in NAMES:
        drawn = answers(engine(llm), [Request(prompt=prompt(70), sampling=greedy, adapter=name)])[0]
        assert list(llm.generate(prompt(70), greedy, adapter=name)) == [each.token for each in drawn]


def test_what_one_has_computed_does_not_serve_another(llm: LLM, tmp_path: Path) -> None:
    """A beginning in common is remembered for each by itself, in memory and on disk."""
    store = PrefixStore(tmp_path, llm.model, cache_type=llm.cache_type)
    requests = [Request(prompt=prompt(200), sampling=SAMPLING, adapter=name) for name in NAMES]
    first = engine(llm, prefixes=store)
    one_by_one = [answers(first, [each])[0] for each in requests]
    assert first.stats().cached_tokens == 0
    assert [answers(first, [each])[0] for each in requests] == one_by_one
    assert first.stats().cached_tokens == 3 * 192
    store.close()
    assert len(list(tmp_path.rglob("*.pages"))) == 3 * 3
    store = PrefixStore(tmp_path, llm.model, cache_type=llm.cache_type)
    again = engine(llm, prefixes=store)
    assert [answers(again, [each])[0] for each in requests] == one_by_one
    assert again.stats().cached_tokens == 3 * 192
    store.close()


def test_an_adapter_that_is_not_there(llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"there is no adapter 'three' here"):
        engine(llm).submit(Request(prompt=(1,), adapter="three"))
    with pytest.raises(RequestError, match=r"there is no adapter 'three': loaded are one, two"):
        llm.generate([1], adapter="three")
