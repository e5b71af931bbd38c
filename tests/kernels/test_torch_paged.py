"""Attention over pages in torch, against the reference in float64."""

from dataclasses import replace

import pytest
import torch
from tests.kernels.paged_cases import CASES, Case, Operands, fresh, operands

from ossia.kernels.pages import CACHE_TYPES, Pages, plain_pages
from ossia.kernels.reference_paged import attention_paged as reference_paged
from ossia.kernels.torch_paged import attention_paged


def wide(given: Operands) -> Operands:
    floats = {name: getattr(given, name).double() for name in ("q", "k", "v", "sinks")}
    return replace(fresh(given), **floats)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if max(case.seen) < 5000])
def test_torch_agrees_with_the_reference(name: str, cache_type: str) -> None:
    given = operands(CASES[name], cache_type)
    ours, slow = fresh(given), wide(given)
    out, expected = attention_paged(*ours.all()), reference_paged(*slow.all())
    assert (out - expected).abs().max() < 3e-5
    # One key or value in some thousands lies on the edge between two roundings, and there the type of the sums decides.
    head_dim = given.q.shape[-1]
    assert torch.equal(ours.pages.keys, slow.pages.keys)
    assert torch.equal(ours.pages.values[..., :head_dim], slow.pages.values[..., :head_dim])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_plain_pages_keep_what_comes_in_its_own_type(dtype: torch.dtype) -> None:
    given = operands(Case(new=(3, 70), seen=(0, 0), window=40), "bf16")
    q, k, v = given.q.to(dtype), given.k.to(dtype), given.v.to(dtype)
    pages = plain_pages(given.pages.keys.shape[0], 2, 16, k)
    out = attention_paged(q, k, v, given.sinks.to(dtype), pages, *given.all()[5:])
    assert out.dtype == pages.keys.dtype == dtype
    page = int(given.tables[0, 0])
    assert torch.equal(pages.keys[page, :, :, 2], k[2])
    assert torch.equal(pages.values[page, :, 1, :16], v[1])
    slow = Pages(keys=torch.zeros_like(pages.keys).double(), values=torch.zeros_like(pages.values).double())
    expected = reference_paged(
        q.double(), k.double(), v.double(), given.sinks.to(dtype).double(), slow, *given.all()[5:]
    )
    assert (out - expected).abs().max() < {torch.float32: 3e-5, torch.float64: 1e-12, torch.bfloat16: 0.05}[dtype]
