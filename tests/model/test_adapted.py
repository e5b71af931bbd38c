"""A model with an adapter, on the native kernels: right to the last places, and of each token the same bits."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.model.test_adapters import ATTENTION, EXPERTS
from torch import Tensor

import ossia
from ossia.config import ModelConfig
from ossia.engine.loop import new_cache, score
from ossia.kernels import cpu
from ossia.llm import LLM
from ossia.model.adapted import with_adapter
from ossia.model.adapters import Adapter, LowRank
from ossia.model.attention import Packed
from ossia.model.layouts import parameter_shapes
from ossia.model.random_weights import RandomWeights
from ossia.model.write import write_checkpoint

pytestmark = pytest.mark.skipif(not cpu.available(), reason="the native kernels were not built")

CONFIG = ModelConfig(
    num_hidden_layers=3,
    num_experts=6,
    experts_per_token=3,
    vocab_size=400,
    hidden_size=160,
    intermediate_size=96,
    head_dim=24,
    num_attention_heads=6,
    num_key_value_heads=2,
    initial_context_length=512,
    max_position_embeddings=1024,
    rope_scaling_factor=2.0,
)
"""Heads of one and a half vectors, and last tiles that are not full."""
PROMPT = [(7919 * i + 13) % CONFIG.vocab_size for i in range(200)]


def random_adapter(rank: int, seed: int, weights: list[str] = ATTENTION + EXPERTS) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    shapes = parameter_shapes(CONFIG, packed=False)
    changes: dict[str, LowRank] = {}
    for name in (f"layers.{n}.{each}" for n in range(CONFIG.num_hidden_layers) for each in weights):
        *experts, rows, columns = shapes[name]
        a = torch.randn(*experts, rank, columns, generator=generator) * columns**-0.5
        b = torch.randn(*experts, rows, rank, generator=generator) * 0.3
        changes[name] = LowRank(a=a, b=b, scale=0.7)
    return Adapter(changes=changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random"
    write_checkpoint(path, CONFIG, RandomWeights(CONFIG, 3))
    return path


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    threads, torch_threads = cpu.num_threads(), torch.get_num_threads()
    yield
    cpu.configure(threads, cpu.best_isa())
    torch.set_num_threads(torch_threads)


def scores(llm: LLM, adapter: Adapter, chunk: int = 200) -> Tensor:
    model = with_adapter(llm.model, adapter).model
    return score(model, PROMPT, new_cache(model), chunk=chunk)


@torch.inference_mode()
def exact(llm: LLM, adapter: Adapter) -> Tensor:
    """Logits without a cache, so that keys and values are not rounded."""
    model = with_adapter(llm.model, adapter).model
    return model(torch.tensor(PROMPT), torch.arange(len(PROMPT)), Packed(model.kernels, (len(PROMPT),)))


@pytest.mark.parametrize(
    ("weights", "rank"),
    [
        (ATTENTION + EXPERTS, 1),
        (ATTENTION + EXPERTS, 21),
        (ATTENTION[:1], 4),
        (EXPERTS[:1], 8),
        (EXPERTS[1:], 8),
        (["mlp.router.weight"], 2),
    ],
)
def test_native_is_torch(folder: Path, weights: list[str], rank: int) -> None:
    adapter = random_adapter(rank, 1, weights)
    native = exact(ossia.load(folder, dense="bf16"), adapter)
    plain = ossia.load(folder, kernels="torch", dtype=torch.float32)
    expected = exact(plain, adapter)
    assert float((native - expected).abs().max()) < 2e-4
    assert float((expected - exact(plain, Adapter(changes={}))).abs().max()) > 0.1


@pytest.mark.parametrize("dense", ["q8", "bf16"])
def test_whatever_the_chunks_and_threads(folder: Path, dense: str) -> None:
    adapter = random_adapter(5, seed=1)
    whole = scores(ossia.load(folder, dense=dense, threads=1), adapter)
    for threads, chunk in ((1, 1), (2, 200), (3, 7)):
        assert torch.equal(scores(ossia.load(folder, dense=dense, threads=threads), adapter, chunk), whole)


def test_an_expert_that_is_not_changed_adds_nothing(folder: Path) -> None:
    adapter = random_adapter(4, seed=1, weights=EXPERTS)
    for change in adapter.changes.values():
        change.b.zero_()
    llm = ossia.load(folder, dense="bf16")
    assert float((exact(llm, adapter) - exact(llm, Adapter(changes={}))).abs().max()) < 1e-5
