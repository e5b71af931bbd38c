"""Every implementation of every op, on every named case, against the reference; and the reference against numpy.

What is expected is always the reference in float64 on the very operands that the op gets. Differences are measured as a
part of the largest expected magnitude.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.kernels.cases import CASES, operands
from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels import cpu, ops, reference, select, torch_ops

TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,  # A few dozen roundings of 2^-24, some of them amplified by the exponential.
    torch.bfloat16: 2e-2,  # Intermediate results are stored with 2^-9.
}

PACKED = {
    "linear_bf16", "linear_q8", "experts_packed", "experts_exact", "attention_paged", "logits_split", "best_split",
    "linear_bf16_transposed", "grouped_mxfp4", "grouped_mxfp4_transposed",
}  # fmt: skip
"""Ops on operands of their own: in test_cpu_packed.py, test_cpu_attention.py, test_cpu_unembedding.py and
test_cpu_grouped.py beside this."""

TRAINING = {"surprise", "store_mxfp4"}
"""Ops that only training needs: in test_cpu_training.py."""

TABLE = [
    pytest.param(op, source, name, id=f"{op}, {source}: {name}")
    for op in CASES
    for source in ops.IMPLEMENTATIONS[op]
    for name in CASES[op]
]


def widened(operand: object) -> object:
    return operand.double() if isinstance(operand, Tensor) and operand.is_floating_point() else operand


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest difference, as a part of the largest expected magnitude; NaN where anything is not finite."""
    if not expected.numel():
        return 0.0
    assert expected.isfinite().all()
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize(("op", "source", "name"), TABLE)
def test_is_the_reference(op: str, source: str, name: str, dtype: torch.dtype) -> None:
    if source in ("cpu", "training") and not cpu.available():
        pytest.skip(str(cpu.why_not()))
    given = operands(op, name, dtype)
    expected = ops.load(op, "reference")(*map(widened, given))
    result = ops.load(op, source)(*given)
    assert result.dtype == dtype
    assert result.shape == expected.shape
    assert difference(result, expected) <= TOLERANCES[dtype]


def test_every_op_has_a_reference_and_cases() -> None:
    assert set(CASES) | PACKED | TRAINING == set(ops.IMPLEMENTATIONS)
    for op, sources in ops.IMPLEMENTATIONS.items():
        assert {"reference", "cpu" if op in PACKED else "training" if op in TRAINING else "torch"} <= set(sources), op


# ---------------------------------------------------------------- the reference against numpy, written another way


def numpy_rms_norm(x, scale, eps):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) / x.shape[-1] + eps) * scale


def numpy_rope(x, cos, sin):
    """Pairs of components, half a head apart, as complex numbers times a complex number."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)[:, None]
    return np.concatenate((turned.real, turned.imag), -1)


def numpy_attention(q, k, v, sinks, q_lengths, k_lengths, window):
    """One big matrix for all sequences at once; the sink as a factor on the softmax without it."""
    position_q = np.concatenate([np.arange(m - n, m) for n, m in zip(q_lengths, k_lengths, strict=True)] or [[]])
    position_k = np.concatenate([np.arange(m) for m in k_lengths] or [[]])
    owner_q, owner_k = np.repeat(np.arange(len(q_lengths)), q_lengths), np.repeat(np.arange(len(k_lengths)), k_lengths)
    past = position_q[:, None] - position_k[None]
    visible = (owner_q[:, None] == owner_k[None]) & (past >= 0) & (past < (window or np.inf))
    group = q.shape[1] // k.shape[1]
    scores = np.einsum("tnh,snh->nts", q, k.repeat(group, 1)) * q.shape[-1] ** -0.5
    weights = np.where(visible, np.exp(scores), 0.0)
    total = weights.sum(-1, keepdims=True)
    kept = 1 / (1 + np.exp(sinks[:, None, None] - np.log(total)))
    return np.einsum("nts,snh->tnh", weights / total * kept, v.repeat(group, 1))


def numpy_experts(x, gate_up, gate_up_bias, down, down_bias, ids, weights, limit):
    """All experts for all tokens, then a matrix of weights that is zero for those not chosen."""
    share = np.zeros((len(x), len(gate_up)))
    np.put_along_axis(share, ids, weights, 1)
    hidden = np.einsum("td,eid->tei", x, gate_up) + gate_up_bias
    gate, linear = np.minimum(hidden[..., ::2], limit), np.clip(hidden[..., 1::2], -limit, limit)
    active = gate / (1 + np.exp(-1.702 * gate)) * (1 + linear)
    return np.einsum("te,ted->td", share, np.einsum("tei,edi->ted", active, down) + down_bias)


def numpy_unpacked(blocks, scales):
    """Bit by bit: a sign, two bits of exponent with bias 1, one of mantissa; no leading one at exponent 0."""
    codes = np.stack((blocks % 16, blocks // 16), -1).reshape(*scales.shape, 32).astype(int)
    sign, exponent, mantissa = codes >> 3, codes >> 1 & 3, codes & 1
    magnitude = np.where(exponent == 0, mantissa / 2, (1 + mantissa / 2) * 2.0 ** (exponent - 1))
    values = (-1.0) ** sign * magnitude * 2.0 ** (scales.astype(float)[..., None] - 127)
    return values.reshape(*scales.shape[:-1], -1)


def numpy_experts_mxfp4(x, up, up_scales, up_bias, down, down_scales, down_bias, ids, weights, limit):
    return numpy_experts(
        x, numpy_unpacked(up, up_scales), up_bias, numpy_unpacked(down, down_scales), down_bias, ids, weights, limit
    )


NUMPY: dict[str, Callable] = {
    "rms_norm": numpy_rms_norm,
    "rope": numpy_rope,
    "attention": numpy_attention,
    "experts": numpy_experts,
    "experts_mxfp4": numpy_experts_mxfp4,
}


@pytest.mark.parametrize(
    ("op", "name"), [pytest.param(op, name, id=f"{op}: {name}") for op, names in CASES.items() for name in names]
)
def test_reference_is_what_numpy_says(op: str, name: str) -> None:
    given = [widened(operand) for operand in operands(op, name, torch.float64)]
    expected = NUMPY[op](*(operand.numpy() if isinstance(operand, Tensor) else operand for operand in given))
    result = ops.load(op, "reference")(*given)
    assert result.shape == expected.shape
    assert difference(result, torch.from_numpy(expected)) <= 1e-12


# ---------------------------------------------------------------- what a case is for


def test_a_key_one_too_far_is_not_seen() -> None:
    """128 keys, itself included: a query at 128 does not see the key at 0, and the one at 127 does."""
    q, k, v, sinks, lengths, _, window = operands("attention", "one beyond the window", torch.float64)
    v = v.clone()
    v[0] = 1e9
    for attend in (reference.attention, torch_ops.attention):
        out = attend(q, k, v, sinks, lengths, lengths, window)
        assert out[128].abs().max() < 10
        assert out[127].abs().max() > 1e3


def test_a_sink_that_dominates_takes_nearly_everything() -> None:
    given = operands("attention", "sink that dominates", torch.float64)
    assert reference.attention(*given).abs().max() < 1e-5


def test_an_expert_that_nobody_chose_is_not_read() -> None:
    x, gate_up, *rest = operands("experts", "empty expert", torch.float32)
    broken = gate_up.clone()
    broken[2] = torch.nan
    for source in ops.IMPLEMENTATIONS["experts"]:
        if source == "training" and not cpu.available():
            continue
        experts = ops.load("experts", source)
        assert torch.equal(experts(x, broken, *rest), experts(x, gate_up, *rest))


def test_a_sequence_does_not_see_its_neighbours() -> None:
    """Alone or beside others, in any order: the same values."""
    q, k, v, sinks, lengths, _, window = operands("attention", "ragged", torch.float64)
    together = torch_ops.attention(q, k, v, sinks, lengths, lengths, window)
    start = 0
    for length in lengths:
        rows = slice(start, start + length)
        alone = torch_ops.attention(q[rows], k[rows], v[rows], sinks, (length,), (length,), window)
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-12)
        start += length


# ---------------------------------------------------------------- gradients

DIFFERENTIABLE = {
    "rms_norm": ["several"],
    "rope": ["several"],
    "attention": [
        "single token",
        "one beyond the window",
        "ragged, full",
        "prefill and decode together",
        "ragged and very long",
        "one group for all",
        "sink that dominates",
        "sink that vanishes",
    ],
    "experts": [name for name in CASES["experts"] if name != "no token"],
    "experts_mxfp4": ["several", "empty expert", "clamped"],
}


def gradients(function: Callable[..., Tensor], given: tuple[object, ...]) -> list[Tensor]:
    """Of a fixed weighting of the result, in every floating operand."""
    given = tuple(
        o.detach().clone().requires_grad_(o.is_floating_point()) if isinstance(o, Tensor) else o for o in given
    )
    out = function(*given)
    out.backward(torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape))
    return [o.grad for o in given if isinstance(o, Tensor) and o.requires_grad and o.grad is not None]


@pytest.mark.parametrize(
    ("op", "name"),
    [pytest.param(op, name, id=f"{op}: {name}") for op, names in DIFFERENTIABLE.items() for name in names],
)
def test_gradients_of_torch_are_those_of_the_reference(op: str, name: str) -> None:
    """Sinks, router weights and biases included; float64, so only the order of sums may differ."""
    given = operands(op, name, torch.float64)
    expected, got = gradients(ops.load(op, "reference"), given), gradients(ops.load(op, "torch"), given)
    assert len(expected) == sum(isinstance(o, Tensor) and o.is_floating_point() for o in given)
    for one, other in zip(got, expected, strict=True):
        assert difference(one, other) <= 1e-11


@pytest.mark.parametrize("source", ["reference", "torch"])
def test_gradients_are_the_slopes(source: str) -> None:
    """By finite differences, on operands so small that it is cheap."""
    generator = torch.Generator().manual_seed(1)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    norm, rope = ops.load("rms_norm", source), ops.load("rope", source)
    attention, experts = ops.load("attention", source), ops.load("experts", source)
    assert torch.autograd.gradcheck(lambda x, scale: norm(x, scale, 1e-5), (leaf(2, 4), leaf(4)))
    assert torch.autograd.gradcheck(lambda x: rope(x, torch.ones(2, 2), torch.full((2, 2), 0.5)), (leaf(2, 1, 4),))
    assert torch.autograd.gradcheck(
        lambda q, k, v, sinks: attention(q, k, v, sinks, (2, 1), (2, 3), 2),
        (leaf(3, 2, 2), leaf(5, 1, 2), leaf(5, 1, 2), leaf(2)),
    )
    ids = torch.tensor([[0, 2], [2, 1]])
    assert torch.autograd.gradcheck(
        lambda x, up, up_bias, down, down_bias, weights: experts(x, up, up_bias, down, down_bias, ids, weights, 1.0),
        (leaf(2, 3), leaf(3, 4, 3), leaf(3, 4), leaf(3, 3, 2), leaf(3, 3), leaf(2, 2)),
    )


def test_the_slope_of_a_sink_is_what_the_derivation_says() -> None:
    """ds = -sum over queries of exp(s - lse') * <grad, out>, with lse' over the row and the sink."""
    q, k, v, sinks, lengths, _, _ = operands("attention", "full", torch.float64)
    sinks.requires_grad_()
    out = torch_ops.attention(q, k, v, sinks, lengths, lengths, None)
    grad = torch.ones_like(out)
    out.backward(grad)
    scores = torch.einsum("tnh,snh->nts", q, k.repeat_interleave(2, 1)) / 4
    lse = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).logsumexp(-1)
    share = (sinks[:, None] - torch.logaddexp(lse, sinks[:, None])).exp()
    assert difference(sinks.grad, -(share * (grad * out).sum(-1).T).sum(-1).detach()) <= 1e-12


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize("choice", ["auto", "reference", "torch"])
def test_a_choice_gives_every_op_and_says_from_where(choice: str) -> None:
    kernels = select(choice)
    assert set(kernels.sources) == set(ops.IMPLEMENTATIONS)
    if choice != "auto":
        assert {source for op, source in kernels.sources.items() if op in CASES} == {choice}
        assert kernels.attention is ops.load("attention", choice)


def test_the_native_kernels_fall_back_on_torch_op_by_op() -> None:
    if not cpu.available():
        pytest.skip(str(cpu.why_not()))
    assert select("cpu").sources == {
        op: "cpu" if "cpu" in sources else "torch" for op, sources in ops.IMPLEMENTATIONS.items()
    }
    assert select("auto").sources == select("cpu").sources


def test_another_device_gets_torch() -> None:
    sources = select("auto", device="cuda").sources
    assert {source for op, source in sources.items() if op in CASES} == {"torch"}
    with pytest.raises(KernelError, match="the cpu kernels cannot be used"):
        select("cpu", device="cuda")


def test_an_unknown_choice_is_named() -> None:
    with pytest.raises(KernelError, match="unknown kernels 'fast': choose one of auto, reference, torch, cpu"):
        select("fast")


@pytest.mark.parametrize("window", [None, 5])
def test_both_ways_of_torch_attention_agree_with_gradients(window):
    """Which one is taken depends on type and size, so each is held to the other where both are exact."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, heads, 9, 8, dtype=torch.float64, requires_grad=True) for heads in (6, 2, 2))
    visible = torch_ops._visible((9, 9, 7), (9, 9, 9), window, q.device)[..., 1:]
    outputs, gradients = [], []
    for attend in (torch_ops.plain_attention, torch_ops.fused_attention):
        out = attend(q, k, v, visible, 0.3)
        outputs.append(out.detach())
        gradients.append(torch.autograd.grad(out.sin().sum(), (q, k, v)))
    assert torch.allclose(outputs[0], outputs[1], rtol=0, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


def test_training_in_bfloat16_takes_the_plain_way_up_to_its_limit(monkeypatch):
    taken = []
    for name in ("plain_attention", "fused_attention"):
        original = getattr(torch_ops, name)

        def spy(*operands, name=name, original=original):
            taken.append(name)
            return original(*operands)

        monkeypatch.setattr(torch_ops, name, spy)
    monkeypatch.setattr(torch_ops, "PLAIN_UP_TO_KEYS", 10)
    for dtype, length, trained in (
        (torch.bfloat16, 9, True),
        (torch.bfloat16, 10, True),
        (torch.float32, 9, True),
        (torch.bfloat16, 9, False),
    ):
        q, k = torch.zeros(length, 2, 8, dtype=dtype), torch.zeros(length, 1, 8, dtype=dtype)
        q.requires_grad_(trained)
        torch_ops.attention(q, k, k, torch.zeros(2, dtype=dtype), (length,), (length,), None)
    assert taken == ["plain_attention", "fused_attention", "fused_attention", "fused_attention"]
