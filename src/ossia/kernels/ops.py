"""The operations of the model, their signatures, and the one table of their implementations.

Every op has a complete, slow implementation in `reference.py` that is the definition; tests and benchmarks loop over
the table. To add an implementation, write the function and add its place to the table.

Shapes: T tokens (all sequences one after another), S keys, D hidden, N query heads, G key/value heads, H head size,
E experts, K experts a token, I intermediate; S rows sorted by expert, R rows and C columns of a matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Literal, Protocol, cast, get_args

from torch import Tensor

from ossia.errors import KernelError
from ossia.kernels.mxfp4 import ScaleRule
from ossia.kernels.packed import Q8, Bf16, Mxfp4, Split
from ossia.kernels.pages import Pages

Choice = Literal["auto", "reference", "torch", "cpu"]
CHOICES: tuple[str, ...] = get_args(Choice)


class RmsNorm(Protocol):
    def __call__(self, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        """x [T, D] over its root mean square, times scale [D]; in float32 whatever the type of x, which is returned."""
        ...


class Rope(Protocol):
    def __call__(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [T, N, H] with its halves rotated by the angles of cos and sin [T, H/2], float32."""
        ...


class Attention(Protocol):
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor,
        q_lengths: tuple[int, ...],
        k_lengths: tuple[int, ...],
        window: int | None,
    ) -> Tensor:
        """Causal attention with a sink logit a head, one call for many sequences laid end to end.

        q [T, N, H]; k, v [S, G, H]; sinks [N]; lengths of each sequence, which sum to T and S. The last query of a
        sequence stands at its last key. A query at position p sees keys p-window < j <= p, or all j <= p where window
        is None. Scores are scaled by 1/sqrt(H); the sink takes part in the softmax and has no value. Returns [T, N, H].
        """
        ...


class AttentionPaged(Protocol):
    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sinks: Tensor,
        pages: Pages,
        tables: Tensor,
        starts: Tensor,
        lengths: Tensor,
        window: int | None,
    ) -> Tensor:
        """As `Attention` for tokens that follow what is in the pages; their keys and values are written there first.

        q float32 [T, N, H]; the new k, v float32 [T, G, H]; sinks float32 [N]; tables int32 [B, M], the pages of each
        sequence; starts int64 [B], the position of its first new token; lengths int64 [B], which sum to T. Keys and
        values are read from the pages alone, rounded to their type, so how a sequence is cut into calls changes
        nothing. Returns [T, N, H].
        """
        ...


class Experts(Protocol):
    def __call__(
        self,
        x: Tensor,
        gate_up: Tensor,
        gate_up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        expert_ids: Tensor,
        expert_weights: Tensor,
        limit: float,
    ) -> Tensor:
        """Weighted sum of the chosen experts' outputs.

        x [T, D]; gate_up [E, 2I, D] with gate rows even and linear rows odd, its bias [E, 2I]; down [E, D, I], its bias
        [E, D]; expert_ids int64 [T, K]; expert_weights [T, K]. SwiGLU: gate at most `limit`, linear within it both
        ways, gate * sigmoid(1.702 gate) * (linear + 1). Returns [T, D].
        """
        ...


class ExpertsMxfp4(Protocol):
    def __call__(
        self,
        x: Tensor,
        gate_up_blocks: Tensor,
        gate_up_scales: Tensor,
        gate_up_bias: Tensor,
        down_blocks: Tensor,
        down_scales: Tensor,
        down_bias: Tensor,
        expert_ids: Tensor,
        expert_weights: Tensor,
        limit: float,
    ) -> Tensor:
        """As `Experts`, from packed weights.

        gate_up_blocks uint8 [E, 2I, D/32, 16], gate_up_scales uint8 [E, 2I, D/32]; down_blocks uint8 [E, D, I/32, 16],
        down_scales uint8 [E, D, I/32].
        """
        ...


class LinearBf16(Protocol):
    def __call__(self, x: Tensor, weight: Bf16, bias: Tensor | None, rows: int) -> Tensor:
        """x float32 [T, C] times a matrix [rows, C], plus bias float32 [rows]; float32 [T, rows], sums in float32."""
        ...


class LinearQ8(Protocol):
    def __call__(self, x: Tensor, weight: Q8, bias: Tensor | None, rows: int) -> Tensor:
        """As `LinearBf16`, with x rounded to 8 bits in blocks of 32 (see `docs/numerics.md`)."""
        ...


class ExpertsPacked(Protocol):
    def __call__(
        self,
        x: Tensor,
        gate_up: Mxfp4,
        gate_up_bias: Tensor,
        down: Mxfp4,
        down_bias: Tensor,
        expert_ids: Tensor,
        expert_weights: Tensor,
        limit: float,
    ) -> Tensor:
        """As `Experts`, from tiles: with activations in 8 bits (`experts_packed`) or in float32 (`experts_exact`).

        x float32 [T, D]; gate_up [E, 2I, D] and gate_up_bias float32 [E, 2I] in the order of `packed.gate_up_order`;
        down [E, D, I], down_bias float32 [E, D]; expert_ids int64 [T, K], expert_weights float32 [T, K]. Returns
        float32 [T, D].
        """
        ...


class LinearBf16Transposed(Protocol):
    def __call__(self, grad: Tensor, weight: Bf16) -> Tensor:
        """What reaches x through `LinearBf16`: grad float32 [T, rows] times a matrix [rows, C]; float32 [T, C]."""
        ...


class GroupedMxfp4(Protocol):
    def __call__(self, x: Tensor, weight: Mxfp4, bias: Tensor | None, offsets: Tensor) -> Tensor:
        """Each expert's matrix times its own rows of x, plus its bias, in float32.

        x float32 [S, C], sorted by expert: rows offsets[e] up to offsets[e + 1] are those of expert e; offsets int64
        [E + 1], from 0 up to S, never falling; weight [E, R, C]; bias float32 [E, R]. Returns float32 [S, R].
        """
        ...


class GroupedMxfp4Transposed(Protocol):
    def __call__(self, grad: Tensor, weight: Mxfp4, offsets: Tensor) -> Tensor:
        """What reaches x through `GroupedMxfp4`: grad float32 [S, R] → float32 [S, C]."""
        ...


class Surprise(Protocol):
    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihoods in nats of targets int64 [R] under logits [R, V], in float32 or wider: [R]."""
        ...


class StoreMxfp4(Protocol):
    def __call__(self, weight: Tensor, stored: Tensor, scale_rule: ScaleRule) -> Tensor:
        """Write `mxfp4.fake_quantize(weight)` into `stored`; returns how many of its values that changed, int64 [].

        weight float32 [..., N], N a multiple of 32; stored float32 or bfloat16 of the same shape; both contiguous.
        """
        ...


class LogitsSplit(Protocol):
    def __call__(self, x: Tensor, weight: Split, rows: int) -> Tensor:
        """x float32 [T, D] → float32 [T, rows], from both planes."""
        ...


class BestSplit(Protocol):
    def __call__(self, x: Tensor, weight: Split, rows: int, count: int) -> tuple[Tensor, Tensor]:
        """The `count` largest of `LogitsSplit`: their rows int64 [T, count] and values, largest first, lower rows first
        among equals, NaN before all. The second plane is read only where a row could still matter."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """One implementation of each op, as chosen at load; `sources` says which, for people to read."""

    rms_norm: RmsNorm
    rope: Rope
    attention: Attention
    attention_paged: AttentionPaged
    experts: Experts
    experts_mxfp4: ExpertsMxfp4
    linear_bf16: LinearBf16
    linear_q8: LinearQ8
    experts_packed: ExpertsPacked
    experts_exact: ExpertsPacked
    linear_bf16_transposed: LinearBf16Transposed
    grouped_mxfp4: GroupedMxfp4
    grouped_mxfp4_transposed: GroupedMxfp4Transposed
    surprise: Surprise
    store_mxfp4: StoreMxfp4
    logits_split: LogitsSplit
    best_split: BestSplit
    native: bool
    """Whether these are the native CPU kernels, for which weights are packed and keys and values held in pages."""
    sources: dict[str, str]


IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "rms_norm": {
        "reference": "reference:rms_norm",
        "torch": "torch_ops:rms_norm",
        "cpu": "cpu_packed:rms_norm",
        "training": "cpu_training:rms_norm",
    },
    "rope": {
        "reference": "reference:rope",
        "torch": "torch_ops:rope",
        "cpu": "cpu_packed:rope",
        "training": "cpu_training:rope",
    },
    "attention": {
        "reference": "reference:attention",
        "torch": "torch_ops:attention",
        "training": "cpu_training:attention",
    },
    "attention_paged": {
        "reference": "reference_paged:attention_paged",
        "torch": "torch_paged:attention_paged",
        "cpu": "cpu_attention:attention_paged",
    },
    "experts": {"reference": "reference:experts", "torch": "torch_ops:experts", "training": "cpu_training:experts"},
    "experts_mxfp4": {
        "reference": "reference:experts_mxfp4",
        "torch": "torch_packed:experts_mxfp4",
        "cpu": "cpu:experts_mxfp4",
    },
    "linear_bf16": {"reference": "reference_packed:linear_bf16", "cpu": "cpu_packed:linear_bf16"},
    "linear_q8": {"reference": "reference_packed:linear_q8", "cpu": "cpu_packed:linear_q8"},
    "experts_packed": {"reference": "reference_packed:experts_packed", "cpu": "cpu_packed:experts_packed"},
    "experts_exact": {"reference": "reference_packed:experts_exact", "cpu": "cpu_packed:experts_exact"},
    "linear_bf16_transposed": {
        "reference": "reference_packed:linear_bf16_transposed",
        "torch": "torch_packed:linear_bf16_transposed",
        "cpu": "cpu_grouped:linear_bf16_transposed",
    },
    "grouped_mxfp4": {
        "reference": "reference_packed:grouped_mxfp4",
        "torch": "torch_packed:grouped_mxfp4",
        "cpu": "cpu_grouped:grouped_mxfp4",
    },
    "grouped_mxfp4_transposed": {
        "reference": "reference_packed:grouped_mxfp4_transposed",
        "torch": "torch_packed:grouped_mxfp4_transposed",
        "cpu": "cpu_grouped:grouped_mxfp4_transposed",
    },
    "surprise": {
        "reference": "reference:surprise",
        "torch": "torch_ops:surprise",
        "training": "cpu_training:surprise",
    },
    "store_mxfp4": {
        "reference": "reference:store_mxfp4",
        "torch": "reference:store_mxfp4",
        "training": "cpu_training:store_mxfp4",
    },
    "logits_split": {"reference": "reference_unembedding:logits_split", "cpu": "cpu_unembedding:logits_split"},
    "best_split": {"reference": "reference_unembedding:best_split", "cpu": "cpu_unembedding:best_split"},
}
"""Op → choice → module under `ossia.kernels` and function. A choice without an entry falls back along `_FALLBACKS`."""

_FALLBACKS = {
    "reference": ("reference",),
    "torch": ("torch", "reference"),
    "cpu": ("cpu", "torch", "reference"),
    "training": ("training", "torch", "reference"),
}


def select(choice: str = "auto", *, device: str = "cpu", verify: tuple[str, ...] = ()) -> Kernels:
    """Pick an implementation of every op for a device type.

    "auto" takes the native CPU kernels where they were built and the device is a CPU, else torch. Ops named in `verify`
    are compared with the reference on every call. Raises KernelError for an unknown choice or op, or where the native
    kernels are asked for and cannot be had.
    """
    from ossia.kernels import cpu  # the only import that may find native code; here so that `ops` loads without it

    if choice not in CHOICES:
        raise KernelError(f"unknown kernels {choice!r}: choose one of {', '.join(CHOICES)}")
    for op in verify:
        if op not in IMPLEMENTATIONS:
            raise KernelError(f"cannot verify unknown op {op!r}: known are {', '.join(IMPLEMENTATIONS)}")
    native = device == "cpu" and cpu.available()
    if choice == "cpu" and not native:
        raise KernelError(f"the cpu kernels cannot be used: {cpu.why_not() or f'the device is {device}'}")
    if choice == "auto":
        choice = "cpu" if native else "torch"
    return _pick(choice, verify)


def select_for_training(*, device: str = "cpu") -> Kernels:
    """The differentiable implementations: native on a CPU for which they were built, else torch's."""
    from ossia.kernels import cpu

    return _pick("training" if device == "cpu" and cpu.available() else "torch", ())


def _pick(choice: str, verify: tuple[str, ...]) -> Kernels:
    picked: dict[str, Callable[..., Tensor]] = {}
    sources: dict[str, str] = {}
    for op, table in IMPLEMENTATIONS.items():
        source = next(name for name in _FALLBACKS[choice] if name in table)
        picked[op] = load(op, source)
        sources[op] = source
        if op in verify:
            from ossia.kernels.verify import verified

            picked[op] = verified(op, picked[op])
            sources[op] += " (verified)"
    return Kernels(**cast("dict[str, Experts]", picked), native=choice == "cpu", sources=sources)  # pyright: ignore[reportArgumentType]


def load(op: str, source: str) -> Callable[..., Tensor]:
    """The function that the table names for this op and source."""
    module, function = IMPLEMENTATIONS[op][source].split(":")
    return getattr(import_module(f"ossia.kernels.{module}"), function)


assert set(IMPLEMENTATIONS) == {f.name for f in fields(Kernels)} - {"native", "sources"}
