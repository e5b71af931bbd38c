"""The named cases that every implementation of an op is held to, and the operands they stand for.

One literal table an op; tests and benchmarks loop over it. Shapes as in `ossia.kernels.ops`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ossia.kernels import mxfp4


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """x [tokens, hidden], multiplied by `spread`."""

    tokens: int
    hidden: int
    spread: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """x [tokens, heads, head_dim]."""

    tokens: int
    heads: int
    head_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attending:
    """Lengths of each sequence (all keys are queries where `k` is empty), and what the heads look like."""

    q: tuple[int, ...]
    k: tuple[int, ...] = ()
    window: int | None = None
    heads: int = 4
    groups: int = 2
    head_dim: int = 16
    sink: float = 0.0
    """Added to random sinks of unit spread."""
    spread: float = 1.0
    """Of the queries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """Tokens and experts; the experts of each token are written out, or drawn where empty."""

    tokens: int = 6
    experts: int = 4
    active: int = 2
    hidden: int = 64
    intermediate: int = 96
    ids: tuple[tuple[int, ...], ...] = ()
    spread: float = 1.0
    """Of x: beyond 3 or so the clamps of SwiGLU are met often."""
    scale_byte: int | None = None
    """For packed experts: this scale everywhere in gate_up, with x scaled against it."""


RMS_NORM = {
    "one token": Norm(tokens=1, hidden=64),
    "several": Norm(tokens=5, hidden=96),
    "no token": Norm(tokens=0, hidden=32),
    "large": Norm(tokens=3, hidden=64, spread=1e4),
    "so small that eps decides": Norm(tokens=3, hidden=64, spread=1e-4),
}

ROPE = {
    "one token": Rotation(tokens=1, heads=2, head_dim=16),
    "several": Rotation(tokens=9, heads=3, head_dim=64),
    "smallest head": Rotation(tokens=4, heads=1, head_dim=2),
    "no token": Rotation(tokens=0, heads=2, head_dim=16),
}

ATTENTION = {
    "single token": Attending(q=(1,)),
    "single token, window": Attending(q=(1,), window=128),
    "full": Attending(q=(40,)),
    "one below the window": Attending(q=(127,), window=128),
    "as long as the window": Attending(q=(128,), window=128),
    "one beyond the window": Attending(q=(129,), window=128),
    "far beyond the window": Attending(q=(300,), window=128),
    "window of one": Attending(q=(5,), window=1),
    "ragged": Attending(q=(1, 7, 130, 3, 64), window=128),
    "ragged, full": Attending(q=(33, 2, 1, 50)),
    "decode in a long cache": Attending(q=(1,), k=(1000,)),
    "decode in a long cache, window": Attending(q=(1,), k=(1000,), window=128),
    "decode in a very long cache": Attending(q=(1,), k=(1100,)),
    "a chunk in a very long cache, window": Attending(q=(6,), k=(1100,), window=128),
    "ragged and very long": Attending(q=(2, 1, 3), k=(1050, 1100, 1040), heads=6),
    "very long, sink that dominates": Attending(q=(2,), k=(1100,), sink=20.0),
    "a chunk that crosses the window": Attending(q=(7,), k=(131,), window=128),
    "prefill and decode together": Attending(q=(20, 1, 1, 5), k=(20, 300, 7, 140), window=128),
    "many sequences": Attending(q=(1,) * 40, k=tuple(range(1, 400, 10))),
    "many sequences, window": Attending(q=(2,) * 40, k=tuple(range(2, 402, 10)), window=128),
    "many equal sequences": Attending(q=(3,) * 16, k=(9,) * 16),
    "no token": Attending(q=()),
    "one group a head": Attending(q=(20,), heads=4, groups=4),
    "one group for all": Attending(q=(20,), heads=8, groups=1),
    "head size not a power of two": Attending(q=(20,), heads=3, groups=3, head_dim=24),
    "sink that dominates": Attending(q=(20,), window=8, sink=20.0),
    "sink that dominates, head size not a power of two": Attending(q=(20,), sink=20.0, head_dim=24),
    "sink that vanishes": Attending(q=(20,), sink=-40.0),
    "scores that saturate": Attending(q=(20,), spread=30.0),
}

EXPERTS = {
    "single token": Routing(tokens=1),
    "several": Routing(tokens=17),
    "published activity": Routing(tokens=9, experts=32, active=4, hidden=32, intermediate=64),
    "empty expert": Routing(tokens=4, ids=((0, 1), (1, 3), (3, 0), (1, 0))),
    "all tokens to one expert": Routing(tokens=5, active=1, ids=((2,),) * 5),
    "all tokens to the same experts": Routing(tokens=5, ids=((3, 1),) * 5),
    "every expert active": Routing(tokens=3, active=4),
    "clamped": Routing(spread=6.0),
    "no token": Routing(tokens=0),
}

EXPERTS_MXFP4 = EXPERTS | {
    "scale byte 0": Routing(scale_byte=0),
    "scale byte 1": Routing(scale_byte=1),
    "scale byte 254": Routing(scale_byte=254),
}

CASES = {
    "rms_norm": RMS_NORM,
    "rope": ROPE,
    "attention": ATTENTION,
    "experts": EXPERTS,
    "experts_mxfp4": EXPERTS_MXFP4,
}
"""Op → name → case."""


def operands(op: str, name: str, dtype: torch.dtype) -> tuple[object, ...]:
    """What to call the op with: the same values on every call, floating ones rounded to `dtype`."""
    generator = torch.Generator().manual_seed(0)
    case = CASES[op][name]

    def normal(*shape: int, spread: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)

    match case:
        case Norm(tokens=t, hidden=d):
            return normal(t, d, spread=case.spread), normal(d), 1e-5
        case Rotation(tokens=t, heads=n, head_dim=h):
            angle = torch.randn(t, h // 2, generator=generator, dtype=torch.float64) * 100
            return normal(t, n, h), angle.cos().float() * 1.3, angle.sin().float() * 1.3
        case Attending():
            lengths = case.k or case.q
            q = normal(sum(case.q), case.heads, case.head_dim, spread=case.spread)
            k = normal(sum(lengths), case.groups, case.head_dim)
            v = normal(sum(lengths), case.groups, case.head_dim)
            sinks = (torch.randn(case.heads, generator=generator) + case.sink).to(dtype)
            return q, k, v, sinks, case.q, lengths, case.window
        case Routing(tokens=t, experts=e, active=a, hidden=d, intermediate=i):
            gate_up, down = normal(e, 2 * i, d, spread=d**-0.5), normal(e, d, i, spread=i**-0.5)
            biases = normal(e, 2 * i, spread=0.3), normal(e, d, spread=0.3)
            drawn = torch.rand(t, e, generator=generator).topk(a).indices
            ids = torch.tensor(case.ids) if case.ids else drawn
            weights = torch.rand(t, a, generator=generator).softmax(-1).to(dtype)
            x = normal(t, d, spread=3 * case.spread)
            if op == "experts":
                return x, gate_up, biases[0], down, biases[1], ids, weights, 7.0
            packed_up, packed_down = mxfp4.quantize(gate_up), mxfp4.quantize(down)
            if case.scale_byte is not None:
                x, packed_up = _extreme(x, packed_up, case.scale_byte)
            return x, *packed_up, biases[0], *packed_down, biases[1], ids, weights, 7.0


def _extreme(x: Tensor, packed: tuple[Tensor, Tensor], scale_byte: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """One scale everywhere, with x as large or small as it takes for products of about unit size.

    Codes are cut to magnitudes of 0 and one half, whose largest multiples float32 holds too. Weights below 2^-126 are
    subnormal, which some bfloat16 products take for zero, so there x stays as it is and they do not matter.
    """
    blocks, scales = packed
    if scale_byte > 127:
        x = x.sign() * 2.0 ** (129 - scale_byte)  # Not less than 2^-125, which is normal.
    elif x.dtype != torch.bfloat16:
        x = x * 2.0 ** (124 - scale_byte)
    return x, (blocks & 0b1001_1001, torch.full_like(scales, scale_byte))
