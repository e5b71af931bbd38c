"""Whatever a native function is given, it works or raises: a fuzz of every door, which `make asan` runs with checks."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ossia.kernels import cpu

_native = pytest.importorskip("ossia.kernels._native", reason="the native kernels were not built")

Operands = dict[str, Any]

FILLING = (0.0, 1.0, -1e-30, 3e38, float("nan"), float("-inf"))
ISAS = ("plain", "avx2", "avx512")


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    yield
    cpu.configure(isa=_native.best_isa())


class Random:
    """Sizes and contents of operands."""

    def __init__(self, seed: int) -> None:
        self.numpy = np.random.default_rng(seed)

    def size(self, *sizes: int) -> int:
        return int(self.numpy.choice(sizes))

    def floats(self, *shape: int) -> np.ndarray:
        out = self.numpy.standard_normal(shape, dtype=np.float32)
        if out.size and self.numpy.random() < 0.3:
            out.flat[self.numpy.integers(out.size)] = self.numpy.choice(FILLING)
        return out

    def bytes(self, *shape: int) -> np.ndarray:
        return self.numpy.integers(0, 256, shape, dtype=np.uint8)

    def words(self, *shape: int) -> np.ndarray:
        """bfloat16, NaN among them."""
        return self.numpy.integers(0, 1 << 16, shape, dtype=np.uint16)

    def ids(self, most: int, *shape: int) -> np.ndarray:
        """Below `most`, or a little beyond."""
        beyond = int(self.numpy.random() < 0.2)
        return self.numpy.integers(-beyond, max(most + beyond, 1 - beyond), shape, dtype=np.int64)

    def dense(self) -> tuple[int, int, int, int, int]:
        """Tokens, rows, columns, tiles, blocks."""
        tokens, rows = self.size(0, 1, 2, 5, 13, 100), self.size(1, 15, 16, 17, 70)
        columns = self.size(1, 31, 32, 33, 70, 600)
        return tokens, rows, columns, -(-rows // 16), -(-columns // 32)


def linear_q8(r: Random) -> Operands:
    tokens, rows, columns, tiles, blocks = r.dense()
    return {
        "x": r.floats(tokens, columns),
        "codes": r.bytes(tiles, blocks, 512),
        "multipliers": r.bytes(tiles, blocks, 16),
        "row_scales": r.floats(tiles * 16),
        "bias": r.floats(rows) if r.size(0, 1) else None,
        "out": r.floats(tokens, rows),
    }


def linear_bf16(r: Random) -> Operands:
    tokens, rows, columns, tiles, _ = r.dense()
    return {
        "x": r.floats(tokens, columns),
        "weight": r.words(tiles, columns, 16),
        "bias": r.floats(rows) if r.size(0, 1) else None,
        "out": r.floats(tokens, rows),
    }


def experts_packed(r: Random) -> Operands:
    tokens, experts, active = r.size(0, 1, 2, 14, 100), r.size(0, 1, 3), r.size(0, 1, 2)
    d, i = r.size(1, 2, 17), r.size(0, 1, 3)
    return {
        "x": r.floats(tokens, 32 * d),
        "gate_up_codes": r.bytes(experts, 4 * i, d, 256),
        "gate_up_scales": r.bytes(experts, 4 * i, d, 16),
        "gate_up_bias": r.floats(experts, 64 * i),
        "down_codes": r.bytes(experts, 2 * d, i, 256),
        "down_scales": r.bytes(experts, 2 * d, i, 16),
        "down_bias": r.floats(experts, 32 * d),
        "expert_ids": r.ids(experts, tokens, active),
        "expert_weights": r.floats(tokens, active),
        "limit": 7.0,
        "out": r.floats(tokens, 32 * d),
    }


def experts_exact(r: Random) -> Operands:
    return experts_packed(r)


def linear_bf16_transposed(r: Random) -> Operands:
    tokens, rows, columns, tiles, _ = r.dense()
    out = r.floats(tokens, columns)
    return {"grad": r.floats(tokens, rows), "weight": r.words(tiles, columns, 16), "out": out}


def grouped(r: Random) -> tuple[int, int, int, Operands]:
    """Rows sorted by expert, and those and the columns of the experts' matrices."""
    experts, tiles, blocks = r.size(0, 1, 3), r.size(0, 1, 2, 9), r.size(0, 1, 2, 17)
    sizes = r.numpy.integers(0, r.size(1, 2, 30, 500), experts)
    offsets = np.concatenate([[0], sizes.cumsum()]).astype(np.int64)
    if r.numpy.random() < 0.2:
        offsets[r.numpy.integers(len(offsets))] += r.size(-1, 1, 2**40)
    tiled = {"codes": r.bytes(experts, tiles, blocks, 256), "scales": r.bytes(experts, tiles, blocks, 16)}
    return int(sizes.sum()), 16 * tiles, 32 * blocks, {**tiled, "offsets": offsets}


def grouped_mxfp4(r: Random) -> Operands:
    slots, rows, columns, weight = grouped(r)
    bias = r.floats(len(weight["codes"]), rows) if r.size(0, 1) else None
    return {"x": r.floats(slots, columns), **weight, "bias": bias, "out": r.floats(slots, rows)}


def grouped_mxfp4_transposed(r: Random) -> Operands:
    slots, rows, columns, weight = grouped(r)
    return {"grad": r.floats(slots, rows), **weight, "out": r.floats(slots, columns)}


def rms_norm(r: Random) -> Operands:
    tokens, _, columns, _, _ = r.dense()
    return {"x": r.floats(tokens, columns), "scale": r.floats(columns), "eps": 1e-5, "out": r.floats(tokens, columns)}


def rope(r: Random) -> Operands:
    tokens, heads, half = r.size(0, 1, 3, 50), r.size(0, 1, 5), r.size(0, 1, 8, 20)
    wide = r.floats(tokens, heads + r.size(0, 2), 2 * half)
    return {
        "x": wide[:, :heads],
        "cos": r.floats(tokens, half),
        "sin": r.floats(tokens, half),
        "out": r.floats(tokens, heads, 2 * half),
    }


def mxfp4_dequantize(r: Random) -> Operands:
    count = r.size(0, 1, 7, 500)
    return {"blocks": r.bytes(count, 16), "scales": r.bytes(count), "out": r.floats(count, 32)}


def pack_mxfp4(r: Random) -> Operands:
    tiles, blocks = r.size(0, 1, 3), r.size(0, 1, 5)
    return {
        "blocks": r.bytes(16 * tiles, blocks, 16),
        "scales": r.bytes(16 * tiles, blocks),
        "order": r.ids(16 * tiles, 16 * tiles) if r.size(0, 1) else None,
        "codes": r.bytes(tiles, blocks, 256),
        "tile_scales": r.bytes(tiles, blocks, 16),
    }


def pack_q8(r: Random) -> Operands:
    _, rows, columns, tiles, blocks = r.dense()
    return {
        "weight": r.floats(rows, columns) if r.size(0, 1) else r.words(rows, columns),
        "codes": r.bytes(tiles, blocks, 512),
        "multipliers": r.bytes(tiles, blocks, 16),
        "row_scales": r.floats(tiles * 16),
    }


def pack_bf16(r: Random) -> Operands:
    _, rows, columns, tiles, _ = r.dense()
    return {"weight": r.words(rows, columns), "packed": r.words(tiles, columns, 16)}


def split(r: Random, tiles: int, blocks: int) -> Operands:
    return {
        "high": r.bytes(tiles, blocks, 256),
        "low": r.bytes(tiles, blocks, 256),
        "multipliers": r.bytes(tiles, blocks, 16),
        "row_scales": r.floats(tiles * 16),
        "dither": r.numpy.integers(-8, 8, 32 * blocks, dtype=np.int8),
    }


def logits_split(r: Random) -> Operands:
    tokens, rows, columns, tiles, blocks = r.dense()
    return {"x": r.floats(tokens, columns), **split(r, tiles, blocks), "out": r.floats(tokens, rows)}


def best_split(r: Random) -> Operands:
    tokens, rows, columns, tiles, blocks = r.dense()
    count = r.size(0, 1, 1, 3, rows, rows + 1)
    return {
        "x": r.floats(tokens, columns),
        **split(r, tiles, blocks),
        "rows": rows,
        "deviations": r.numpy.choice([0.0, 7.4, -1.0, float("nan"), float("inf")], p=[0.1, 0.6, 0.1, 0.1, 0.1]),
        "ids": r.ids(rows, tokens, count),
        "values": r.floats(tokens, count),
        "completed": r.ids(rows, tokens),
    }


def bounds_split(r: Random) -> Operands:
    tokens, _, columns, tiles, blocks = r.dense()
    out = r.floats(tokens, 16 * tiles)
    return {"x": r.floats(tokens, columns), **split(r, tiles, blocks), "deviations": 7.4, "out": out}


def pack_split(r: Random) -> Operands:
    _, rows, columns, tiles, blocks = r.dense()
    planes = split(r, tiles, blocks)
    return {"weight": r.words(rows, columns), "dither": planes.pop("dither"), **planes}


def attention_paged(r: Random) -> Operands:
    sequences, groups, per_group, head = r.size(0, 1, 3), r.size(1, 2), r.size(1, 3, 8, 9), r.size(1, 16, 40)
    lengths, starts = r.numpy.integers(0, 20, sequences), r.numpy.integers(0, 700, sequences)
    tokens, heads, width, pages = int(lengths.sum()), groups * per_group, r.size(1, 3, 12), r.size(1, 3, 20)
    room, values = (pages, groups, head, 64), (pages, groups, 64, -(-head // 16) * 16)
    scaled = bool(r.size(0, 1))
    return {
        "q": r.floats(tokens, heads, head),
        "k": r.floats(tokens, groups, head),
        "v": r.floats(tokens, groups, head),
        "sinks": r.floats(heads),
        "keys": r.bytes(*room).view(np.int8) if scaled else r.words(*room),
        "values": r.bytes(*values).view(np.int8) if scaled else r.words(*values),
        "key_scales": r.floats(pages, groups, 64) if scaled else None,
        "value_scales": r.floats(pages, groups, 64) if scaled else None,
        "tables": r.ids(pages, sequences, width).astype(np.int32),
        "starts": starts,
        "lengths": lengths,
        "window": r.size(0, 1, 5, 128, 2**62, -1),
        "out": r.floats(tokens, heads, head),
    }


# ---------------------------------------------------------------- training


def numbers(r: Random) -> Callable[..., np.ndarray]:
    """What makes all the operands of a call, floats or bfloat16."""
    return r.floats if r.size(0, 1) else r.words


def rms_norm_training(r: Random) -> Operands:
    (rows, _, width, _, _), make = r.dense(), numbers(r)
    out = {"out": make(rows, width), "inverse": r.floats(rows)}
    return {"x": make(rows, width), "scale": make(width), "eps": 1e-5, **out}


def rms_norm_backward(r: Random) -> Operands:
    (rows, _, width, _, _), make = r.dense(), numbers(r)
    out = {"x_grad": make(rows, width), "scale_grad": make(width)}
    return {"x": make(rows, width), "scale": make(width), "inverse": r.floats(rows), "grad": make(rows, width), **out}


def rope_training(r: Random) -> Operands:
    tokens, heads, half, make = r.size(0, 1, 3, 50), r.size(0, 1, 5), r.size(0, 1, 8, 20), numbers(r)
    angles = {"cos": r.floats(tokens, half), "sin": r.floats(tokens, half), "back": bool(r.size(0, 1))}
    return {"x": make(tokens, heads, 2 * half), **angles, "out": make(tokens, heads, 2 * half)}


def swiglu(r: Random) -> Operands:
    (rows, _, width, _, _), make = r.dense(), numbers(r)
    return {"gate_up": make(rows, 2 * width), "limit": 7.0, "hidden": make(rows, width)}


def swiglu_backward(r: Random) -> Operands:
    (rows, _, width, _, _), make = r.dense(), numbers(r)
    out = {"gate_up_grad": make(rows, 2 * width), "hidden": make(rows, width)}
    return {"gate_up": make(rows, 2 * width), "grad": make(rows, width), "limit": 7.0, **out}


def combine_rows(r: Random) -> Operands:
    (rows, tokens, width, _, _), active, make = r.dense(), r.size(0, 1, 2), numbers(r)
    weights = make(tokens, active) if r.size(0, 1) else None
    out = make(tokens, width)
    return {"x": make(rows, width), "places": r.ids(rows, tokens, active), "weights": weights, "out": out}


def combine_rows_backward(r: Random) -> Operands:
    (rows, tokens, width, _, _), active, make = r.dense(), r.size(0, 1, 2), numbers(r)
    given = {"places": r.ids(rows, tokens, active), "weights": make(tokens, active), "grad": make(tokens, width)}
    return {"x": make(rows, width), **given, "x_grad": make(rows, width), "weights_grad": make(tokens, active)}


def sum_rows(r: Random) -> Operands:
    (_, _, width, _, _), sizes, make = r.dense(), r.numpy.integers(0, 200, r.size(0, 1, 4)), numbers(r)
    offsets = np.concatenate([[0], sizes.cumsum()]).astype(np.int64)
    if r.numpy.random() < 0.2:
        offsets[r.numpy.integers(len(offsets))] += r.size(-1, 1, 2**40)
    return {"x": make(int(sizes.sum()), width), "offsets": offsets, "out": make(len(sizes), width)}


def surprise(r: Random) -> Operands:
    (rows, _, width, _, _), make = r.dense(), numbers(r)
    out = {"surprise": r.floats(rows), "log_sums": r.floats(rows)}
    return {"logits": make(rows, width), "targets": r.ids(width, rows), **out}


def surprise_backward(r: Random) -> Operands:
    (rows, _, width, _, _), make = r.dense(), numbers(r)
    given = {"targets": r.ids(width, rows), "log_sums": r.floats(rows), "grad": r.floats(rows)}
    return {"logits": make(rows, width), **given, "logits_grad": make(rows, width)}


def store_mxfp4(r: Random) -> Operands:
    blocks, make = r.size(0, 1, 127, 128, 129, 300), numbers(r)
    changed = r.ids(1, -(-blocks // 128))
    return {"weight": r.floats(blocks, 32), "doubled": 0x400001, "stored": make(blocks, 32), "changed": changed}


def attention_training(r: Random) -> Operands:
    groups, per_group, head, make = r.size(1, 2), r.size(1, 3), r.size(16, 32, 64, 128, 40), numbers(r)
    lengths = r.numpy.integers(0, 70, r.size(0, 1, 3))
    starts = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    if r.numpy.random() < 0.2:
        starts[r.numpy.integers(len(starts))] += r.size(-1, 1, 2**40)
    tokens, heads = int(lengths.sum()), groups * per_group
    return {
        "q": make(tokens, heads, head),
        "k": make(tokens, groups, head),
        "v": make(tokens, groups, head),
        "sinks": r.floats(heads),
        "starts": starts,
        "window": r.size(0, 1, 5, 32, 128, 2**62, -1),
        "out": make(tokens, heads, head),
        "log_sums": r.floats(tokens, heads),
    }


def attention_training_backward(r: Random) -> Operands:
    given = attention_training(r)
    q, k = given["q"], given["k"]
    sink_grads = r.floats(len(given["starts"]) - 1, q.shape[1])
    return {
        **given,
        "out_grad": np.ones_like(q),
        "q_grad": np.zeros_like(q),
        "k_grad": np.zeros_like(k),
        "v_grad": np.zeros_like(k),
        "sink_grads": sink_grads,
    }


def measure_limits(r: Random) -> Operands:
    return {"threads": -1, "num_bytes": 0}


DOORS: dict[str, Callable[[Random], Operands]] = {
    door.__name__: door
    for door in (
        linear_q8, linear_bf16, experts_packed, experts_exact, linear_bf16_transposed, grouped_mxfp4,
        grouped_mxfp4_transposed, rms_norm, rope, mxfp4_dequantize, pack_mxfp4, pack_q8, pack_bf16,
        logits_split, best_split, bounds_split, pack_split, attention_paged, measure_limits, rms_norm_training,
        rms_norm_backward, rope_training, swiglu, swiglu_backward, combine_rows, combine_rows_backward,
        sum_rows, surprise, surprise_backward, store_mxfp4, attention_training, attention_training_backward,
    )
}  # fmt: skip
"""Native function → operands that go together, with something out of range among them now and then."""


def test_every_native_function_has_its_fuzz() -> None:
    functions = {name for name in dir(_native) if callable(getattr(_native, name)) and not name.startswith("_")}
    assert functions - set(DOORS) == {"isa", "best_isa", "set_isa", "num_threads", "set_num_threads"}


MOST_VALUES = 2**24
"""Of an operand made up: the fuzz is of what is wrong with it, not of the machine's memory."""


@st.composite
def anything(draw: st.DrawFn) -> Any:
    """What a caller might pass by mistake."""
    if draw(st.booleans()):
        return draw(st.sampled_from([None, "text", -1, 0, 3, 2**40, -(2**62), 2**80, 1.5, float("nan"), [1, 2], b"x"]))
    sizes = st.integers(0, 5) | st.sampled_from([16, 64, 256])
    shape = draw(st.lists(sizes, max_size=4).filter(lambda shape: math.prod(shape) <= MOST_VALUES))
    dtype = draw(st.sampled_from([np.float32, np.float64, np.uint8, np.int8, np.uint16, np.int32, np.int64, np.bool_]))
    return np.zeros(shape, dtype)


@st.composite
def spoilt(draw: st.DrawFn, value: Any) -> Any:
    """The value in another shape, type or order, or something else altogether."""
    if not isinstance(value, np.ndarray) or draw(st.booleans()):
        return draw(anything())
    changes: list[Callable[[np.ndarray], Any]] = [
        lambda a: a[None],
        lambda a: a[..., ::2],
        lambda a: a[..., ::-1],
        lambda a: a[:-1],
        lambda a: a[..., :-1],
        lambda a: a.T,
        lambda a: np.broadcast_to(a[..., :1], a.shape),
        lambda a: np.concatenate([a, a]),
        lambda a: a.astype(np.float64),
        lambda a: a.ravel(),
        lambda a: a.view() if a.flags.writeable and a.setflags(write=False) is None else a,
    ]
    return draw(st.sampled_from(changes))(value)


@pytest.mark.parametrize("name", DOORS)
@settings(max_examples=100)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), isa=st.sampled_from(ISAS), threads=st.integers(1, 3))
def test_a_call_works_or_raises(name: str, data: st.DataObject, seed: int, isa: str, threads: int) -> None:
    if ISAS.index(isa) <= ISAS.index(_native.best_isa()):
        cpu.configure(threads, isa)
    operands = DOORS[name](Random(seed))
    for operand in data.draw(st.lists(st.sampled_from(sorted(operands)), max_size=2, unique=True)):
        operands[operand] = data.draw(spoilt(operands[operand]))
    try:
        getattr(_native, name)(**operands)
    except (ValueError, TypeError) as error:
        assert str(error)


@pytest.mark.parametrize("name", sorted(set(DOORS) - {"measure_limits"}))
def test_most_of_what_goes_together_is_let_in(name: str) -> None:
    """A fuzz of calls that are all refused would prove nothing of what lies behind the door."""
    let_in = 0
    for seed in range(40):
        try:
            getattr(_native, name)(**DOORS[name](Random(seed)))
            let_in += 1
        except ValueError:
            pass
    assert let_in >= 10


@pytest.mark.parametrize("threads", [0, -1, 10_000, "two", None, 2**40])
def test_threads_that_cannot_be_had(threads: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        _native.set_num_threads(threads)


@pytest.mark.parametrize("isa", ["", "AVX2", None, 3, "x" * 100_000])
def test_instructions_that_cannot_be_had(isa: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        _native.set_isa(isa)
