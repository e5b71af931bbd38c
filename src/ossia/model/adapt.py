"""Build a model and swap its leaves: the only file that does.

A model is built on the meta device, where parameters have shapes and no storage; its leaves are replaced by the kind
that is wanted; then it is filled strictly, each parameter from one tensor and each tensor into one parameter.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ossia.config import ModelConfig
from ossia.errors import CheckpointError, ConfigError
from ossia.kernels import Kernels
from ossia.kernels.mxfp4 import NAN_SCALE, dequantize
from ossia.kernels.packed import Q8, Bf16, Mxfp4, Split
from ossia.model.checkpoint import compare_names
from ossia.model.experts import DenseExperts, Experts, Mxfp4Experts, PackedExperts
from ossia.model.linear import Bf16Linear, Bf16Unembedding, MappedEmbedding, QuantLinear, SplitUnembedding
from ossia.model.lora import LoraExperts, LoraLinear
from ossia.model.transformer import MixtureOfExperts, Transformer

ExpertsKind = Callable[[ModelConfig, Kernels], Experts]

EXPERTS: dict[str, ExpertsKind] = {
    "dense": DenseExperts,
    "mxfp4": Mxfp4Experts,
}
"""The kinds of experts a model can be built with."""

Dense = Literal["q8", "bf16"]
"""How the dense layers of a packed model are held: in 8 bits, or exactly; experts then round no activations either."""
LORA_TARGETS = ("q", "k", "v", "o", "experts", "router")
"""What adapters can stand beside, in every layer: the projections of attention, the experts, and what chooses them."""
DEFAULT_LORA_TARGETS = ("q", "k", "v", "o", "experts")
Form = Bf16 | Mxfp4 | Q8 | Split


def build(config: ModelConfig, kernels: Kernels, *, experts: str = "dense") -> Transformer:
    """A model on the meta device with this kind of experts."""
    with torch.device("meta"):
        model = Transformer(config, kernels)
        for module in list(model.modules()):
            if isinstance(module, MixtureOfExperts):
                module.experts = EXPERTS[experts](config, kernels)
    return model


def build_packed(config: ModelConfig, kernels: Kernels, *, dense: str = "q8") -> Transformer:
    """A model on the meta device whose weights are in the tiles of `kernels.packed`, for inference on a CPU.

    dense: one of `Dense`. The router, which is small and decides for the rest, is exact in either.
    """
    with torch.device("meta"):
        model = Transformer(config, kernels)
        for name, leaf in _packed_leaves(config, kernels, dense):
            model.set_submodule(name, leaf)
    return model


def _packed_leaves(config: ModelConfig, kernels: Kernels, dense: str) -> Iterator[tuple[str, nn.Module]]:
    hidden, vocabulary = config.hidden_size, config.vocab_size
    linear, unembedding = (QuantLinear, SplitUnembedding) if dense == "q8" else (Bf16Linear, Bf16Unembedding)
    yield "embedding", MappedEmbedding(vocabulary, hidden)
    for n in range(config.num_hidden_layers):
        for name, rows in (("q", config.q_dim), ("k", config.kv_dim), ("v", config.kv_dim)):
            yield f"layers.{n}.attention.{name}", linear(hidden, rows, kernels)
        yield f"layers.{n}.attention.o", linear(config.q_dim, hidden, kernels)
        yield f"layers.{n}.mlp.router", Bf16Linear(hidden, config.num_experts, kernels)
        yield f"layers.{n}.mlp.experts", PackedExperts(config, kernels, exact=dense == "bf16")
    yield "unembedding", unembedding(hidden, vocabulary, kernels)


def add_lora(
    model: Transformer,
    *,
    rank: int,
    alpha: float,
    targets: Collection[str] = DEFAULT_LORA_TARGETS,
    seed: int = 0,
) -> Transformer:
    """Put new adapters, which change nothing yet, beside these leaves of every layer; they alone train from now on.

    rank: of each matrix, and of each expert's; alpha: adapters are scaled by alpha / rank; targets: of `LORA_TARGETS`.
    The model is filled. Raises ConfigError for an unknown target, none, or a rank or alpha that is not positive.
    """
    check_lora_targets(targets)
    if rank < 1 or not alpha > 0:
        raise ConfigError(f"adapters of rank {rank} and alpha {alpha}: both must be positive")
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, leaf in _adapted_leaves(model, rank, alpha, targets):
        leaf.reset(generator)
        model.set_submodule(name, leaf)
    return model


def check_lora_targets(targets: Collection[str]) -> None:
    """Raises ConfigError where there is none, or one that is not of `LORA_TARGETS`."""
    if unknown := sorted(set(targets) - set(LORA_TARGETS)):
        raise ConfigError(f"unknown adapter target {unknown[0]!r}: choose among {', '.join(LORA_TARGETS)}")
    if not targets:
        raise ConfigError(f"adapters need a target: choose among {', '.join(LORA_TARGETS)}")


def _adapted_leaves(
    model: Transformer, rank: int, alpha: float, targets: Collection[str]
) -> Iterator[tuple[str, LoraLinear | LoraExperts]]:
    config = model.config
    hidden = config.hidden_size
    shapes = {
        "attention.q": (hidden, config.q_dim),
        "attention.k": (hidden, config.kv_dim),
        "attention.v": (hidden, config.kv_dim),
        "attention.o": (config.q_dim, hidden),
        "mlp.router": (hidden, config.num_experts),
    }
    for n in range(config.num_hidden_layers):
        for leaf, (columns, rows) in shapes.items():
            if leaf.partition(".")[2] in targets:
                name = f"layers.{n}.{leaf}"
                yield name, LoraLinear(model.get_submodule(name), columns, rows, rank=rank, alpha=alpha)
        if "experts" in targets:
            name = f"layers.{n}.mlp.experts"
            base = model.get_submodule(name)
            assert isinstance(base, Experts)
            yield name, LoraExperts(base, hidden, config.intermediate_size, rank=rank, alpha=alpha)


def fill(
    model: Transformer,
    tensors: Iterable[tuple[str, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Transformer:
    """Give every parameter its tensor, and return the model in evaluation mode.

    Floating tensors become `dtype`, or where None what they are in the model. They keep the storage they come in where
    type and device already fit, so a memory-mapped file stays mapped. Raises CheckpointError that lists both sides
    where a parameter stays empty, a tensor finds no parameter, or a shape or kind of type differs, and where a packed
    scale is NaN.
    """
    slots = dict(_slots(model))
    unused: list[str] = []
    for name, tensor in tensors:
        if name not in slots:
            unused.append(name)
            continue
        slot = slots.pop(name)
        empty = slot.tensor
        same_type = empty.dtype == tensor.dtype or (empty.is_floating_point() and tensor.is_floating_point())
        if empty.shape != tensor.shape or not same_type:
            raise CheckpointError(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, "
                f"the model needs {empty.dtype} {list(empty.shape)}"
            )
        if isinstance(slot.owner, Mxfp4Experts) and name.endswith("_scales"):
            refuse_nan(name, tensor)
        slot.put(tensor.to(device, dtype or empty.dtype) if tensor.is_floating_point() else tensor.to(device))
    compare_names("the tensors are not those that the model needs", slots, unused)
    return model.eval()


def dequantized(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The same tensors with every pair of blocks and scales made into one dense weight of `dtype`."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            stem = name.removesuffix("_blocks")
            out[stem] = dequantize(tensor, tensors[f"{stem}_scales"], dtype)
        elif not name.endswith("_scales"):
            out[name] = tensor
    return out


def refuse_nan(name: str, scales: Tensor) -> None:
    """Raises CheckpointError where one of these scale bytes of MXFP4 means NaN."""
    if bool((scales == NAN_SCALE).any()):
        raise CheckpointError(f"tensor {name} holds the scale byte 255, which means NaN: the file is damaged")


def tensors_of(model: Transformer) -> dict[str, Tensor]:
    """Every tensor that `fill` asks for, by name; on the meta device while it is empty."""
    return {name: slot.tensor for name, slot in _slots(model)}


def packed_weights(model: Transformer) -> Iterator[tuple[str, Form]]:
    """Every weight of a packed model: under the name of the parameter it is made of, less "_blocks" and "_scales"."""
    for prefix, module in model.named_modules():
        for attribute, form in vars(module).items():
            if isinstance(form, Form):
                yield f"{prefix}.{attribute}", form


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slot:
    """A place for a tensor: a parameter or buffer of a module, or one part of its packed weight."""

    tensor: Tensor
    owner: nn.Module
    attribute: str
    part: str | None = None

    def put(self, value: Tensor) -> None:
        """Fill it."""
        if self.part is not None:
            setattr(self.owner, self.attribute, replace(getattr(self.owner, self.attribute), **{self.part: value}))
        elif isinstance(self.tensor, nn.Parameter):
            setattr(self.owner, self.attribute, nn.Parameter(value, requires_grad=False))
        else:
            setattr(self.owner, self.attribute, value)


def _slots(model: nn.Module) -> Iterator[tuple[str, _Slot]]:
    for prefix, module in model.named_modules():
        stem = f"{prefix}." if prefix else ""
        for attribute, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            yield f"{stem}{attribute}", _Slot(tensor=value, owner=module, attribute=attribute)
        for attribute, form in list(vars(module).items()):
            if isinstance(form, Form):
                for part, value in parts(form):
                    slot = _Slot(tensor=value, owner=module, attribute=attribute, part=part)
                    yield f"{stem}{attribute}.{part}", slot


def parts(form: Form) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a packed weight is made of, by name."""
    return ((each.name, getattr(form, each.name)) for each in fields(form))


def twin(model: Transformer, leaves: Mapping[str, nn.Module]) -> Transformer:
    """A model that shares every tensor with this one and has these leaves, by name, in place of its own."""
    forms = (form for _, form in packed_weights(model))
    shared = (model.config, model.kernels, *model.parameters(), *model.buffers(), *forms)
    other = deepcopy(model, {id(each): each for each in shared})
    for name, leaf in leaves.items():
        other.set_submodule(name, leaf)
    return other
