"""The operations of the model, their signatures, and the one table of their implementations.

Every op has a complete, slow implementation in `reference.py` that is the definition; tests and benchmarks loop over
the table. To add an implementation, write the function and add its place to the table.

Shapes: T tokens (all sequences one after another), S keys, D hidden, N query heads, G key/value heads, H head size,
E experts, K experts a token, I intermediate.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Literal, Protocol, cast, get_args

from torch import Tensor

from ossia.errors import KernelError

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernels:
    """One implementation of each op, as chosen at load; `sources` says which, for people to read."""

    rms_norm: RmsNorm
    rope: Rope
    attention: Attention
    experts: Experts
    experts_mxfp4: ExpertsMxfp4
    sources: dict[str, str]


IMPLEMENTATIONS: dict[str, dict[str, str]] = {
    "rms_norm": {"reference": "reference:rms_norm", "torch": "torch_ops:rms_norm"},
    "rope": {"reference": "reference:rope", "torch": "torch_ops:rope"},
    "attention": {"reference": "reference:attention", "torch": "torch_ops:attention"},
    "experts": {"reference": "reference:experts", "torch": "torch_ops:experts"},
    "experts_mxfp4": {
        "reference": "reference:experts_mxfp4",
        "torch": "torch_ops:experts_mxfp4",
        "cpu": "cpu:experts_mxfp4",
    },
}
"""Op → choice → module under `ossia.kernels` and function. A choice without an entry falls back along `_FALLBACKS`."""

_FALLBACKS = {"reference": ("reference",), "torch": ("torch",), "cpu": ("cpu", "torch")}


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
    return Kernels(**cast("dict[str, Experts]", picked), sources=sources)  # pyright: ignore[reportArgumentType]


def load(op: str, source: str) -> Callable[..., Tensor]:
    """The function that the table names for this op and source."""
    module, function = IMPLEMENTATIONS[op][source].split(":")
    return getattr(import_module(f"ossia.kernels.{module}"), function)


assert set(IMPLEMENTATIONS) == {f.name for f in fields(Kernels)} - {"sources"}
