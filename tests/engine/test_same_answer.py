"""The same answer, bit for bit, however the work is cut: threads, chunks, companions, instructions."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import ossia
from ossia.config import ModelConfig
from ossia.engine.engine import generate_batch
from ossia.engine.loop import new_cache, prefill, score
from ossia.kernels import Kernels, cpu, select
from ossia.llm import LLM
from ossia.model.random_weights import RandomWeights
from ossia.model.write import write_checkpoint

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the native kernels were not built")

CONFIG = ModelConfig(
    num_hidden_layers=4,
    num_experts=6,
    experts_per_token=3,
    vocab_size=1000,
    hidden_size=160,
    intermediate_size=96,
    head_dim=24,
    num_attention_heads=6,
    num_key_value_heads=2,
    initial_context_length=512,
    max_position_embeddings=2048,
    rope_scaling_factor=4.0,
)
"""Nothing even: heads of one and a half vectors, a last tile that is not full, more than one segment of attention."""
PROMPT = [(7919 * i + 13) % CONFIG.vocab_size for i in range(700)]
GREEDY = ossia.Sampling(temperature=0, max_tokens=12)
ISAS = ("plain", "avx2", "avx512")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random"
    write_checkpoint(path, CONFIG, RandomWeights(CONFIG, 3))
    return path


@pytest.fixture(params=["q8", "bf16"])
def dense(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads, torch_threads = cpu.num_threads(), torch.get_num_threads()
    yield
    cpu.configure(threads, cpu.best_isa())
    torch.set_num_threads(torch_threads)


def loaded(folder: Path, dense: str, **options: object) -> LLM:
    return ossia.load(folder, dense=dense, **options)  # type: ignore[arg-type]


def test_whatever_the_number_of_threads(folder: Path, dense: str) -> None:
    one = loaded(folder, dense, threads=1).logits(PROMPT)
    for threads in (2, 3):
        assert torch.equal(loaded(folder, dense, threads=threads).logits(PROMPT), one)


@pytest.mark.parametrize("isa", ISAS)
def test_whatever_the_instructions(folder: Path, dense: str, isa: str) -> None:
    best = loaded(folder, dense, isa=cpu.best_isa()).logits(PROMPT[:300])
    if ISAS.index(isa) > ISAS.index(cpu.best_isa()):
        pytest.skip(f"this processor has no {isa}")
    assert torch.equal(loaded(folder, dense, isa=isa).logits(PROMPT[:300]), best)


@pytest.mark.parametrize("cache_type", ["bf16", "q8"])
@pytest.mark.parametrize("chunk", [1, 7, 128])
def test_whatever_the_chunks(folder: Path, dense: str, cache_type: str, chunk: int) -> None:
    model = loaded(folder, dense).model
    whole, cut = (new_cache(model, cache_type=cache_type) for _ in range(2))
    expected = score(model, PROMPT, whole, chunk=len(PROMPT))
    assert torch.equal(score(model, PROMPT, cut, chunk=chunk), expected)
    # What is left in the cache is the same, too.
    assert torch.equal(prefill(model, [5], cut), prefill(model, [5], whole))


def test_alone_or_beside_seven_others(folder: Path, dense: str) -> None:
    llm = loaded(folder, dense)
    prompts = [PROMPT[:length] for length in (1, 40, 127, 128, 129, 300, 513, 700)]
    together = dict(generate_batch(llm.model, prompts, GREEDY))
    for index, prompt in enumerate(prompts):
        assert together[index] == list(llm.generate(prompt, GREEDY))


def test_the_quick_way_to_the_best_token_is_the_long_way(folder: Path, dense: str) -> None:
    """Greedy generation reads but part of the unembedding; the scores of all tokens name the same ones."""
    llm = loaded(folder, dense)
    answer = list(llm.generate(PROMPT[:60], GREEDY))
    logits = llm.logits(PROMPT[:60] + answer)
    assert logits[59:-1].argmax(-1).tolist() == answer


def test_the_exact_path_is_the_reference_rounded_the_same_way(folder: Path) -> None:
    """Nothing is rounded but keys and values, of which one in some thousands lies on the edge and may fall either way.

    Those alone move logits: given the native ones, the reference agrees to the last places.
    """
    llm = loaded(folder, "bf16")
    native, slow = select("cpu"), replace(select("reference"), native=True)
    written: list[tuple[Tensor, Tensor]] = []

    def noted(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
        written.append((k.clone(), v.clone()))
        return native.attention_paged(q, k, v, *others)

    def repeated(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
        return slow.attention_paged(q, *written.pop(0), *others)

    def logits(kernels: Kernels) -> Tensor:
        for module in llm.model.modules():
            if hasattr(module, "kernels"):
                module.kernels = kernels
        return llm.logits(PROMPT[:200])

    exact = logits(replace(native, attention_paged=noted))
    assert (logits(slow) - exact).abs().max() < 5e-3 < exact.std()
    assert (logits(replace(slow, attention_paged=repeated)) - exact).abs().max() < 2e-5
    assert not written
