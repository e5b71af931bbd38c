"""The policy as it acts: the weights of a model in training, in the form that generates fastest."""

from collections.abc import Callable

from torch import Tensor

from ossia.kernels import cpu, mxfp4, select
from ossia.model import adapt, pack
from ossia.model.transformer import Transformer
from ossia.train.optim import is_expert_matrix

Acting = Callable[[Transformer], Transformer]
"""The model in training → one that answers as it does, valid until that moves."""


def acting(model: Transformer, *, qat: bool) -> Acting:
    """How this model acts.

    On a CPU, where a checkpoint stores experts in MXFP4, they are packed anew for each round of rollouts, and all else
    in BF16, as it is published: the same weights, several times faster; only keys and values are rounded, to BF16.
    Elsewhere it acts as it is.
    """
    return packed if qat and model.norm.scale.device.type == "cpu" and cpu.available() else lambda same: same


def packed(model: Transformer) -> Transformer:
    """A copy for the native kernels; its values are those of `model` wherever these fit MXFP4 and BF16."""
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if is_expert_matrix(name):
            blocks, scales = mxfp4.quantize(parameter.detach(), name=name)
            weights[f"{name}_blocks"], weights[f"{name}_scales"] = blocks, scales
        else:
            weights[name] = parameter.detach().bfloat16()
    copy = adapt.build_packed(model.config, select("cpu"), dense="bf16")
    tensors = pack.assembled(pack.packed_specs(copy), pack.pieces(_InMemory(weights), copy))
    return adapt.fill(copy, {**tensors, pack.EMBEDDING: weights[pack.EMBEDDING]}.items())


class _InMemory(dict[str, Tensor]):
    """Weights to be packed that come from no file."""

    def forget(self, name: str) -> None:
        """Nothing was read for it."""
