"""Build a model and swap its leaves: the only file that does.

A model is built on the meta device, where parameters have shapes and no storage; its leaves are replaced by the kind
that is wanted; then it is filled strictly, each parameter from one tensor and each tensor into one parameter.
"""

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ossia.config import ModelConfig
from ossia.errors import CheckpointError
from ossia.kernels import Kernels
from ossia.kernels.mxfp4 import NAN_SCALE, dequantize
from ossia.model.checkpoint import compare_names
from ossia.model.experts import DenseExperts, Experts, Mxfp4Experts
from ossia.model.transformer import MixtureOfExperts, Transformer

ExpertsKind = Callable[[ModelConfig, Kernels], Experts]

EXPERTS: dict[str, ExpertsKind] = {
    "dense": DenseExperts,
    "mxfp4": Mxfp4Experts,
}
"""The kinds of experts a model can be built with."""


def build(config: ModelConfig, kernels: Kernels, *, experts: str = "dense") -> Transformer:
    """A model on the meta device with this kind of experts."""
    with torch.device("meta"):
        model = Transformer(config, kernels)
        for module in list(model.modules()):
            if isinstance(module, MixtureOfExperts):
                module.experts = EXPERTS[experts](config, kernels)
    return model


def fill(
    model: Transformer, tensors: Iterable[tuple[str, Tensor]], *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Transformer:
    """Give every parameter its tensor, floating ones as `dtype`, and return the model in evaluation mode.

    Tensors keep the storage they come in where type and device already fit, so a memory-mapped file stays mapped.
    Raises CheckpointError that lists both sides where a parameter stays empty, a tensor finds no parameter, or a shape
    or kind of type differs, and where a packed scale is NaN.
    """
    slots = dict(_slots(model))
    unused: list[str] = []
    for name, tensor in tensors:
        if name not in slots:
            unused.append(name)
            continue
        slot, owner, attribute = slots.pop(name)
        same_type = slot.dtype == tensor.dtype or (slot.is_floating_point() and tensor.is_floating_point())
        if slot.shape != tensor.shape or not same_type:
            raise CheckpointError(
                f"tensor {name} is {tensor.dtype} {list(tensor.shape)}, the model needs {slot.dtype} {list(slot.shape)}"
            )
        if name.endswith("_scales") and bool((tensor == NAN_SCALE).any()):
            raise CheckpointError(f"tensor {name} holds the scale byte 255, which means NaN: the file is damaged")
        value = tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
        if isinstance(slot, nn.Parameter):
            value = nn.Parameter(value, requires_grad=False)
        setattr(owner, attribute, value)
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


def _slots(model: nn.Module) -> Iterable[tuple[str, tuple[Tensor, nn.Module, str]]]:
    """Every parameter and buffer with the module that owns it."""
    for prefix, module in model.named_modules():
        for attribute, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            yield (f"{prefix}.{attribute}" if prefix else attribute), (value, module, attribute)
