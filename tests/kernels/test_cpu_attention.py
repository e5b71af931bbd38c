"""Attention over pages: native code against the reference in float64, and against itself bit for bit.

Shapes: T tokens, N query heads, G key/value heads, H head size, P pages, M pages of a table.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kernels.paged_cases import CASES, Case, Operands, fresh, operands, same_pages
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import cpu, ops, reference
from ossia.kernels.pages import CACHE_TYPES, PAGE, empty_pages, page_bytes, ring_pages

if not cpu.available():
    pytest.skip(str(cpu.why_not()), allow_module_level=True)

from ossia.kernels import _native
from ossia.kernels.cpu_attention import attention_paged
from ossia.kernels.reference_paged import attention_paged as reference_paged
from ossia.kernels.verify import verified

ISAS = ("plain", "avx2", "avx512")


@pytest.fixture(autouse=True)
def settings_restored() -> Iterator[None]:
    isa, threads = _native.isa(), _native.num_threads()
    yield
    _native.set_isa(isa)
    _native.set_num_threads(threads)


def use(isa: str) -> None:
    try:
        _native.set_isa(isa)
    except ValueError as error:
        pytest.skip(str(error))


# ---------------------------------------------------------------- against the reference


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("name", CASES)
def test_is_the_reference(name: str, cache_type: str) -> None:
    given = operands(CASES[name], cache_type)
    exact = fresh(given)
    expected = reference_paged(exact.q.double(), exact.k, exact.v, exact.sinks.double(), *exact.all()[4:])
    out = attention_paged(*given.all())
    assert out.dtype == torch.float32
    # Scores of a size round by as much, and the exponential passes that on.
    assert (out.double() - expected).abs().max() <= 3e-6 * max(1.0, CASES[name].spread)
    assert same_pages(given.pages, exact.pages, CASES[name].head_dim)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["ragged", "ragged, window", "head size 40", "heads that fill no tile"])
def test_every_isa_is_the_reference(name: str, isa: str) -> None:
    use(isa)
    test_is_the_reference(name, "bf16")
    test_is_the_reference(name, "q8")


@pytest.mark.parametrize("window", [None, 1, 7, 128])
def test_the_reference_is_attention_to_rounded_keys_and_values(window: int | None) -> None:
    case = Case(new=(150, 3, 70), seen=(0, 0, 0), window=window)
    given = operands(case, "bf16")
    q, k, v, sinks = (x.double() for x in (given.q, given.k.bfloat16(), given.v.bfloat16(), given.sinks))
    expected = reference.attention(q, k, v, sinks, case.new, case.new, window)
    out = reference_paged(q, given.k, given.v, sinks, *given.all()[4:])
    assert (out - expected).abs().max() <= 1e-12


def test_eight_bits_are_within_half_a_step() -> None:
    given = operands(Case(new=(70,), seen=(0,)), "q8")
    given.k[3, 1] = 0
    attention_paged(*given.all())
    pages = given.pages
    assert pages.key_scales is not None
    page = pages.keys[given.tables[0, 0]].float() * pages.key_scales[given.tables[0, 0]].unsqueeze(1)
    step = given.k[:PAGE].abs().amax(-1, keepdim=True) / 127
    assert ((page.permute(2, 0, 1) - given.k[:PAGE]).abs() <= step / 2 * 1.0001).all()
    assert not page[1, :, 3].any()


# ---------------------------------------------------------------- bit for bit


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("name", CASES)
def test_instructions_and_threads_change_nothing(name: str, cache_type: str) -> None:
    given = operands(CASES[name], cache_type)
    use("plain")
    _native.set_num_threads(1)
    first = fresh(given)
    expected = attention_paged(*first.all())
    for isa, threads in (("avx2", 1), ("avx512", 1), ("avx512", 2), ("avx2", 3), ("plain", 3)):
        if _native.best_isa() == "plain" or (isa, _native.best_isa()) == ("avx512", "avx2"):
            continue
        _native.set_isa(isa)
        _native.set_num_threads(threads)
        again = fresh(given)
        assert torch.equal(attention_paged(*again.all()), expected), (isa, threads)
        assert same_pages(first.pages, again.pages, CASES[name].head_dim)


CHUNKED = {
    "full": Case(new=(140,), seen=(0,)),
    "full, far on": Case(new=(70,), seen=(1000,)),
    "window": Case(new=(300,), seen=(0,), window=128),
    "window, far on": Case(new=(140,), seen=(1000,), window=100),
}


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("chunk", [1, 7, 64, 128])
@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_nothing(name: str, chunk: int, cache_type: str) -> None:
    given = operands(CHUNKED[name], cache_type)
    pieces = fresh(given)
    expected = attention_paged(*given.all())
    tokens, start = len(given.q), int(given.starts[0])
    out = [
        attention_paged(
            pieces.q[i : i + chunk],
            pieces.k[i : i + chunk],
            pieces.v[i : i + chunk],
            pieces.sinks,
            pieces.pages,
            pieces.tables,
            torch.tensor([start + i]),
            torch.tensor([min(chunk, tokens - i)]),
            pieces.window,
        )
        for i in range(0, tokens, chunk)
    ]
    assert torch.equal(torch.cat(out), expected)
    assert same_pages(given.pages, pieces.pages, CHUNKED[name].head_dim)


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
@pytest.mark.parametrize("window", [None, 128])
def test_alone_or_beside_seven_others(window: int | None, cache_type: str) -> None:
    case = Case(new=(1, 5, 70, 1, 1, 130, 2, 1), seen=(0, 3, 600, 513, 1030, 0, 127, 63), window=window)
    given = operands(case, cache_type)
    lonely = fresh(given)
    together = attention_paged(*given.all())
    first = 0
    for b, new in enumerate(case.new):
        rows = slice(first, first + new)
        alone = attention_paged(
            lonely.q[rows],
            lonely.k[rows],
            lonely.v[rows],
            lonely.sinks,
            lonely.pages,
            lonely.tables[b : b + 1],
            lonely.starts[b : b + 1],
            lonely.lengths[b : b + 1],
            window,
        )
        assert torch.equal(alone, together[rows])
        first += new


@pytest.mark.parametrize("cache_type", CACHE_TYPES)
def test_the_size_of_a_ring_changes_nothing(cache_type: str) -> None:
    """With room for one token at once, for many, and for all of them."""
    outs: list[Tensor] = []
    for width in (2, ring_pages(128), ring_pages(128) + 2, 20):
        given = operands(Case(new=(400,), seen=(0,), window=128), cache_type)
        pages = empty_pages(width, 2, 16, cache_type)
        given = replace(given, pages=pages, tables=torch.arange(width, dtype=torch.int32).view(1, -1))
        outs.append(attention_paged(*given.all()))
    assert all(torch.equal(out, outs[-1]) for out in outs)


@pytest.mark.parametrize("window", [None, 128])
@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_seen_may_be_anything(isa: str, window: int | None) -> None:
    """NaN in memory that was never written, in keys that the window hides, and in tokens that come later."""
    use(isa)
    for cache_type in CACHE_TYPES:
        given = operands(Case(new=(340,), seen=(0,), window=window, head_dim=24), cache_type)
        for memory in (given.pages.keys, given.pages.values, given.pages.key_scales, given.pages.value_scales):
            if memory is not None:
                memory.view(torch.uint8).fill_(0xFF)
        clean = attention_paged(*given.all())
        assert clean.isfinite().all()
        given.v[200] = torch.nan
        given.k[201] = torch.inf
        dirty = attention_paged(*given.all())
        assert torch.equal(dirty[:200], clean[:200])
        assert dirty[201].isnan().all()
        if window is not None:
            assert dirty[200 + 127].isnan().all()
            assert torch.equal(dirty[201 + 128 :], clean[201 + 128 :])


def test_checking_mode_runs_the_reference_on_pages_of_its_own() -> None:
    given = operands(CASES["a ring that comes round"], "q8")
    apart = fresh(given)
    checked = verified("attention_paged", attention_paged)(*given.all())
    assert torch.equal(checked, attention_paged(*apart.all()))
    assert same_pages(given.pages, apart.pages, 16)
    with pytest.raises(KernelError, match="attention_paged strays from the reference"):
        verified("attention_paged", lambda *o: attention_paged(*o) * 1.01)(*given.all())


# ---------------------------------------------------------------- the door

WRONG: dict[str, tuple[Callable[[Operands], dict[str, Any]], str]] = {
    "q of another type": (lambda o: {"q": o.q.double()}, "q is not of type float32"),
    "q without heads": (lambda o: {"q": o.q[0]}, "q has 2 axes, not 3"),
    "k of another length": (lambda o: {"k": o.k[:-1]}, r"k does not have shape \[4, 2, 16\]"),
    "v of other heads": (lambda o: {"v": o.v[:, :1]}, r"v does not have shape \[4, 2, 16\]"),
    "heads that do not divide": (lambda o: {"q": o.q[:, :3]}, "q has 3 heads, not a multiple of the 2 of k"),
    "no heads in k": (lambda o: {"k": o.k[:, :0], "v": o.v[:, :0]}, "not a multiple of the 0 of k"),
    "heads of size 0": (lambda o: {"q": o.q[..., :0]}, "q has heads of size 0"),
    "too few sinks": (lambda o: {"sinks": o.sinks[1:]}, r"sinks does not have shape \[4\]"),
    "tables of another type": (lambda o: {"tables": o.tables.long()}, "tables is not of type int32"),
    "tables of no sequence": (lambda o: {"tables": o.tables[:0]}, r"starts does not have shape \[0\]"),
    "tables without pages": (lambda o: {"tables": o.tables[:, :0]}, "tables have 0 pages of 64 tokens a sequence"),
    "a page that is not there": (lambda o: {"tables": o.tables + 100}, r"tables\[0\] names page 10\d of"),
    "a page before the first": (lambda o: {"tables": -1 - o.tables}, r"tables\[0\] names page -\d+ of"),
    "a start before the first": (lambda o: {"starts": o.starts - 1000}, r"starts\[0\] is -398"),
    "a start beyond all": (lambda o: {"starts": o.starts + 2**62}, r"starts\[0\] is 4611686018427388506"),
    "more than the tables hold": (lambda o: {"starts": o.starts + 100}, "too few for position 705"),
    "lengths below zero": (lambda o: {"lengths": -o.lengths}, r"lengths\[0\] is -4"),
    "lengths that miss a token": (lambda o: {"lengths": o.lengths - 1}, "lengths add up to 3, and q has 4 tokens"),
    "a window below zero": (lambda o: {"window": -1}, "window is -1"),
    "a ring too short": (
        lambda o: {"tables": o.tables[:, :1].contiguous(), "window": 128},
        "tables have 1 pages of 64 tokens a sequence, too few for position 605",
    ),
    "pages of other heads": (
        lambda o: {"pages": replace(o.pages, keys=o.pages.keys[:, :1].contiguous())},
        r"keys does not have shape \[11, 2, 16, 64\]",
    ),
    "values narrower than their lanes": (
        lambda o: {"pages": replace(o.pages, values=o.pages.values[..., :8].contiguous())},
        r"values does not have shape \[11, 2, 64, 16\]",
    ),
    "pages with gaps": (lambda o: {"pages": replace(o.pages, keys=o.pages.keys[..., ::2])}, "keys does not have shape"),
    "8 bits without scales": (
        lambda o: {"pages": replace(o.pages, keys=o.pages.keys.view(torch.int8)[..., :64].contiguous())},
        "keys is not of type uint16",
    ),
    "one kind of scales": (
        lambda o: {"pages": replace(o.pages, key_scales=torch.ones(11, 2, 64))},
        "key_scales and value_scales come both or not at all",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_call_names_the_operand_and_writes_nothing(name: str) -> None:
    change, message = WRONG[name]
    given = operands(Case(new=(4,), seen=(602,)), "bf16")
    before = fresh(given)
    with pytest.raises(KernelError, match=f"^attention_paged: .*{message}"):
        attention_paged(*replace(given, **change(given)).all())
    assert same_pages(given.pages, before.pages, 16)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_call_gets_past_the_door_to_crash(data: st.DataObject) -> None:
    """Any operand may be replaced by anything; what is let in stays inside its memory, and is finite."""
    given = operands(Case(new=(3, 1), seen=(62, 5), window=data.draw(st.sampled_from([None, 5, 128]))), "bf16")
    arrays: list[Any] = [given.q, given.k, given.v, given.sinks]
    arrays = [*(a.numpy() for a in arrays), *given.pages.arrays]
    arrays += [a.numpy() for a in (given.tables, given.starts, given.lengths)]
    arrays += [given.window or 0, np.zeros_like(arrays[0])]
    sizes = st.integers(0, 5) | st.sampled_from([16, 64])
    dtypes = st.sampled_from([np.float32, np.float64, np.uint16, np.int8, np.int32, np.int64])
    numbers = st.integers(-3, 3) | st.sampled_from([2**31 - 1, 2**62, -(2**62)])
    anything = (
        st.builds(lambda shape, dtype: np.zeros(shape, dtype), st.lists(sizes, max_size=4), dtypes)
        | st.builds(lambda values: np.array(values, np.int64), st.lists(numbers, min_size=2, max_size=2))
        | st.builds(
            lambda values: np.array(values, np.int32).reshape(2, 2),
            st.lists(st.integers(-9, 9), min_size=4, max_size=4),
        )
        | numbers
        | st.none()
        | st.just("text")
    )
    for index in data.draw(st.lists(st.integers(0, len(arrays) - 1), min_size=1, max_size=3)):
        arrays[index] = data.draw(anything)
    try:
        _native.attention_paged(*arrays)
    except (ValueError, TypeError) as error:
        assert str(error)


# ---------------------------------------------------------------- pages


def test_pages_say_what_they_take() -> None:
    for cache_type in CACHE_TYPES:
        pages = empty_pages(3, 2, 40, cache_type)
        tensors = (pages.keys, pages.values, pages.key_scales, pages.value_scales)
        assert sum(t.nbytes for t in tensors if t is not None) == 3 * page_bytes(2, 40, cache_type)


def test_a_ring_holds_the_window_and_a_page_of_new_tokens() -> None:
    assert [ring_pages(window) for window in (1, 2, 65, 66, 128, 129, 130)] == [1, 2, 2, 3, 3, 3, 4]


def test_an_unknown_type_and_too_much_memory_are_refused() -> None:
    with pytest.raises(KernelError, match="unknown cache type 'q4': choose one of bf16, q8"):
        empty_pages(1, 1, 16, "q4")
    with pytest.raises(KernelError, match=r"this machine refuses the memory of .* tokens of keys and values"):
        empty_pages(2**40, 8, 64)


def test_the_table_knows_both() -> None:
    assert ops.load("attention_paged", "cpu") is attention_paged
    assert ops.load("attention_paged", "reference") is reference_paged
