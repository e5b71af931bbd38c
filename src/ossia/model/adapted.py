"""A loaded model with an adapter on it, for inference: a model of its own that shares every tensor with the base.

So many adapters stand on one set of weights, and a token without one goes through exactly what it went through before.
On the native kernels what an adapter adds has a fixed order of addition, too: no token's result depends on those beside
it. The products there are of weights in bfloat16, so each matrix is held as the sum of two, to 16 bits.

Shapes: T tokens, S slots sorted by expert, E experts, R rows and C columns of a matrix, r rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ossia.kernels import Kernels
from ossia.kernels.mixture import groups
from ossia.kernels.packed import Bf16, pack_bf16
from ossia.model.adapt import twin
from ossia.model.adapters import Adapter
from ossia.model.experts import Experts
from ossia.model.transformer import Transformer

Product = Callable[[Tensor], Tensor]
"""x [S, C] → what an adapter adds to one matrix's product with it, [S, R]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A model and what tells its keys and values from another's: none is the base, else its adapter's digest."""

    model: Transformer
    key: bytes = b""


def with_adapter(model: Transformer, adapter: Adapter) -> Variant:
    """The model with this adapter, which fits it; the model itself stays as it is."""
    return Variant(model=twin(model, dict(_leaves(model, adapter))), key=adapter.digest)


def _leaves(model: Transformer, adapter: Adapter) -> Iterator[tuple[str, nn.Module]]:
    experts: dict[str, dict[str, list[Product | None]]] = {}
    for weight, change in adapter.changes.items():
        name, _, last = weight.rpartition(".")
        base = model.get_submodule(name)
        if isinstance(base, Experts):
            rows = base.in_own_order(change.b) if last == "gate_up" else change.b
            experts.setdefault(name, {})[last] = [
                _product(model, a_rC, b_Rr * change.scale) if change.changes(e) else None
                for e, (a_rC, b_Rr) in enumerate(zip(change.a, rows, strict=True))
            ]
        else:
            yield name, AdaptedLinear(base, _product(model, change.a, change.b * change.scale))
    for name, products in experts.items():
        base = model.get_submodule(name)
        assert isinstance(base, Experts)
        yield name, AdaptedExperts(base, products)


class AdaptedLinear(nn.Module):
    """A dense layer and what an adapter adds to it."""

    def __init__(self, base: nn.Module, product: Product) -> None:
        super().__init__()
        self.base = base
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        """[T, C] → [T, R]."""
        y_TR: Tensor = self.base(x)
        return y_TR.add_(self.product(x))


class AdaptedExperts(Experts):
    """Experts of any kind and what an adapter adds to `gate_up`, `down` or both. Activations are not rounded."""

    def __init__(self, base: Experts, products: Mapping[str, Sequence[Product | None]]) -> None:
        """products: of each matrix that is adapted one an expert, None where nothing is added."""
        nn.Module.__init__(self)  # The biases are the base's.
        self.base = base
        self.products = products
        self.num_experts = base.num_experts

    def forward(self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor) -> Tensor:
        """See `Experts`."""
        return self.by_product(x, expert_ids, expert_weights)

    def gate_up_product(self, x: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        return self._added("gate_up", self.base.gate_up_product(x, offsets), x, offsets)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """See `Experts`."""
        return self.base.swiglu(gate_up)

    def down_product(self, hidden: Tensor, offsets: Tensor) -> Tensor:
        """See `Experts`."""
        return self._added("down", self.base.down_product(hidden, offsets), hidden, offsets)

    def _added(self, which: str, y: Tensor, x: Tensor, offsets: Tensor) -> Tensor:
        if which in self.products:
            for e, slots in groups(offsets):
                if (product := self.products[which][e]) is not None:
                    y[slots].add_(product(x[slots]))
        return y


# -------------------------------------------------------------------- what is added


def _product(model: Transformer, a: Tensor, b: Tensor) -> Product:
    """x → b (a x) for a [r, C] and b [R, r]: on the native kernels, or by torch in float32."""
    if model.kernels.native:
        return _Tiles.of(model.kernels, a, b)
    device = model.embedding.weight.device
    a, b = a.to(device), b.to(device)
    return lambda x: F.linear(F.linear(x.to(a.dtype), a), b)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tiles:
    """A pair whose matrices are sums of two: those of A stand one above the other, those of B side by side."""

    kernels: Kernels
    a: Bf16
    b: Bf16
    rank: int
    rows: int

    @classmethod
    def of(cls, kernels: Kernels, a: Tensor, b: Tensor) -> "_Tiles":
        """a [r, C], b [R, r], float32."""
        rows_a, columns_b = torch.cat(_halves(a), dim=0), torch.cat(_halves(b), dim=1)
        return cls(kernels=kernels, a=pack_bf16(rows_a), b=pack_bf16(columns_b), rank=len(a), rows=len(b))

    def __call__(self, x: Tensor) -> Tensor:
        """x [S, C] → [S, R]."""
        high_Sr, low_Sr = self.kernels.linear_bf16(x, self.a, None, 2 * self.rank).split(self.rank, dim=1)
        sum_Sr = high_Sr + low_Sr
        return self.kernels.linear_bf16(torch.cat((sum_Sr, sum_Sr), dim=1), self.b, None, self.rows)


def _halves(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A float32 matrix in bfloat16, and the rest of it."""
    high = matrix.bfloat16()
    return high, (matrix - high.float()).bfloat16()
