"""LoRA adapters as files, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

An adapter adds scale · B A to some weights of a model: to those of attention, and for each expert to `gate_up` and
`down`. PEFT keeps the pairs of all experts of a layer stacked in two matrices, [E r, C] expert by expert and [R, r E]
rank by rank, under the name of the module that holds the experts; where both weights are adapted, those of `gate_up`
one `base_layer` deeper. Format: peft.tuners.lora.layer.ParamWrapper of https://github.com/huggingface/peft.

Beside the tensors lies a digest of the model that the adapter was made for, among the metadata of the safetensors file.

Shapes: R rows and C columns of a weight, r rank, E experts.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.errors import CheckpointError, StorageError
from ossia.files import read_json, write_whole
from ossia.kernels.mxfp4 import BLOCK, dequantize
from ossia.model.checkpoint import Checkpoint, compare_names
from ossia.model.layouts import parameter_shapes
from ossia.model.lora import LoraExperts, LoraLinear
from ossia.model.mapping import MappedFile
from ossia.model.safetensors_header import TensorSpec, encode_header, read_header
from ossia.model.transformer import Transformer

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_BASE = "base_digest"
"""Key of the metadata that says for which model an adapter was made."""
_PREFIX = "base_model.model."
_MODULES = {f"attention.{each}.weight": f"self_attn.{each}_proj" for each in "qkvo"}
_PARAMETERS = {
    "mlp.experts.gate_up": "mlp.experts.gate_up_proj",
    "mlp.experts.down": "mlp.experts.down_proj",
    "mlp.router.weight": "mlp.router.weight",
}
_THEIRS = _MODULES | _PARAMETERS
"""What of a layer may be adapted, and transformers' name for it: of a linear module, or of a parameter."""
_SILENT = frozenset(
    "auto_mapping base_model_name_or_path ensure_weight_tying exclude_modules inference_mode layers_pattern "
    "layers_to_transform loftq_config lora_dropout megatron_core peft_type peft_version qalora_group_size r revision "
    "target_modules target_parameters task_type lora_alpha use_rslora rank_pattern alpha_pattern init_lora_weights "
    "bias".split()
)
"""Keys that are read here, or change nothing about what a finished adapter computes."""
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the weights beneath as they are."""

_ROWS = 16
"""Of each dense weight, and next to one another of each expert, for the digest of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """What is added to one weight [R, C], or to those of all experts [E, R, C]: scale · b a."""

    a: Tensor
    """float32 [r, C] or [E, r, C]."""
    b: Tensor
    """float32 [R, r] or [E, R, r]."""
    scale: float

    @property
    def rank(self) -> int:
        """r, of each expert where there are several."""
        return self.a.shape[-2]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it changes."""
        return (*self.b.shape[:-1], self.a.shape[-1])

    def changes(self, expert: int) -> bool:
        """Whether it adds anything to the weight of this expert."""
        return bool(self.a[expert].any()) and bool(self.b[expert].any())


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """The changes to a model by the names of its dense weights: "layers.0.attention.q.weight", "….experts.gate_up"."""

    changes: Mapping[str, LowRank]
    base: str | None = None
    """`base_digest` of the model it is for; None where that is not known."""
    digest: bytes = field(init=False)
    """Of all it computes: adapters with the same digest are the same."""

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for name, change in sorted(self.changes.items()):
            digest.update(f"{name} {list(change.a.shape)} {list(change.b.shape)} {change.scale!r}".encode())
            digest.update(_bytes(change.a))
            digest.update(_bytes(change.b))
        object.__setattr__(self, "digest", digest.digest())


# -------------------------------------------------------------------- the model beneath


def base_digest(checkpoint: Checkpoint) -> str:
    """A digest of a model's weights as values: the same in either layout, with experts packed or not.

    It covers the name and shape of every parameter and values from all over it, from every expert too, but not all of
    them: to know a model again its 13 GB need not be read.
    """
    digest = hashlib.sha256()
    for name, shape in parameter_shapes(checkpoint.config, packed=False).items():
        digest.update(f"{name} {list(shape)}".encode())
        for values in _experts_samples(checkpoint, name, shape) if len(shape) == 3 else _samples(checkpoint[name]):
            digest.update(_bytes(values.float()))
    return digest.hexdigest()


def _samples(tensor: Tensor) -> Iterator[Tensor]:
    yield from (tensor,) if tensor.ndim == 1 else tensor[:: max(1, len(tensor) // _ROWS)]


def _experts_samples(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
    """A few rows of one block of columns, elsewhere in each expert: whole rows of a transposed file are all over it."""
    num_experts, rows, columns = shape
    for expert in range(num_experts):
        first, block = expert * 1009 % max(1, rows - _ROWS), expert * 7 % (columns // BLOCK)
        if checkpoint.packed:
            place = expert, slice(first, first + _ROWS), block
            yield dequantize(checkpoint[f"{name}_blocks"][place], checkpoint[f"{name}_scales"][place])
        else:
            yield checkpoint[name][expert, first : first + _ROWS, block * BLOCK : (block + 1) * BLOCK]


def check_base(adapter: Adapter, checkpoint: Checkpoint, name: str) -> None:
    """Raise CheckpointError where the adapter, called `name`, is for another model than this one."""
    if adapter.base is not None and adapter.base != base_digest(checkpoint):
        raise CheckpointError(
            f"{name}: the adapter was made for another model than {checkpoint.folder}: name the one it was trained on"
        )


def adapter_of(model: Transformer, *, base: str | None = None) -> Adapter:
    """What the adapters that `adapt.add_lora` put beside the leaves of a model have learnt. base: see `Adapter`."""
    changes: dict[str, LowRank] = {}
    for name, leaf in model.named_modules():
        if isinstance(leaf, LoraLinear):
            changes[f"{name}.weight"] = LowRank(a=leaf.lora_a.detach(), b=leaf.lora_b.detach(), scale=leaf.scale)
        elif isinstance(leaf, LoraExperts):
            up, down = (leaf.gate_up_a, leaf.gate_up_b), (leaf.down_a, leaf.down_b)
            for weight, (a, b) in (("gate_up", up), ("down", down)):
                changes[f"{name}.{weight}"] = LowRank(a=a.detach(), b=b.detach(), scale=leaf.scale)
    return Adapter(changes=changes, base=base)


# -------------------------------------------------------------------- reading


def read_adapter(folder: str | Path, config: ModelConfig) -> Adapter:
    """The adapter in `folder`, for a model of this configuration; made by ossia or by PEFT.

    Raises CheckpointError, one line that names the file, where something is missing or damaged, where the adapter does
    not fit the model, and where it asks for what a plain LoRA of attention and experts is not.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}: name the folder of an adapter")
    settings = _settings(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: an adapter has its weights there")
    header = read_header(path)
    mapped = MappedFile(path)

    def tensor(name: str) -> Tensor:
        spec = header.specs[name]
        if not spec.dtype.is_floating_point:
            raise CheckpointError(f"{path}: tensor {name} is {spec}: an adapter holds floating-point values")
        value = mapped.tensor(spec, header.offsets[name]).to(torch.float32, copy=True)
        if not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"{path}: tensor {name} holds NaN or infinity: the adapter is broken")
        return value

    places = _places(_adapted(settings, config, header.specs))
    compare_names(
        f"{path}: the tensors are not those of a LoRA of this model's attention and experts",
        [name for pair in places.values() for name in pair],
        header.specs,
    )
    if not places:
        raise CheckpointError(f"{path}: holds no weights: this is no adapter")
    shapes = parameter_shapes(config, packed=False)
    changes: dict[str, LowRank] = {}
    for weight, (name_a, name_b) in places.items():
        rank = _number(settings, "r", "rank_pattern", weight)
        alpha = _number(settings, "lora_alpha", "alpha_pattern", weight)
        change = _unstacked(
            tensor(name_a),
            tensor(name_b),
            shapes[weight],
            scale=alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank),
            what=f"{path}: tensor {name_a}",
        )
        if change.rank != rank:
            raise CheckpointError(f"{path}: {name_a} has rank {change.rank} and {CONFIG} says {rank:g}: mend that")
        changes[weight] = change
    return Adapter(changes=changes, base=header.metadata.get(_BASE))


def _settings(path: Path) -> dict[str, Any]:
    """What the configuration says, where we know what all of it means."""
    settings: dict[str, Any] = read_json(path, CheckpointError)
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(f"{path}: peft_type is {settings.get('peft_type')!r}: only LORA adapters are read")
    foreign = [key for key, value in settings.items() if value and key not in _SILENT]
    if settings.get("bias", "none") != "none":
        foreign.append("bias")
    if settings.get("init_lora_weights", True) not in _PLAIN_STARTS:
        foreign.append("init_lora_weights")
    if foreign:
        told = ", ".join(f"{key} = {settings[key]!r}" for key in foreign)
        raise CheckpointError(f"{path}: {told[:200]}: only plain LoRA is read, so merge this adapter with PEFT instead")
    numbers: list[tuple[str, Any]] = [(key, settings.get(key)) for key in ("r", "lora_alpha")]
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(key) or {}
        if not isinstance(patterns, dict):
            raise CheckpointError(f"{path}: {key} is {patterns!r}: expected an object of numbers")
        numbers += [(f"{key}[{name!r}]", value) for name, value in cast("dict[str, Any]", patterns).items()]
    for key, value in numbers:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise CheckpointError(f"{path}: {key} is {value!r}: expected a number above 0")
    targets = settings.get("target_parameters") or []
    if not isinstance(targets, list) or not all(isinstance(each, str) for each in cast("list[Any]", targets)):
        raise CheckpointError(f"{path}: target_parameters is {targets!r}: expected a list of names")
    return settings


def _adapted(settings: Mapping[str, Any], config: ModelConfig, stored: Collection[str]) -> list[str]:
    """The weights that an adapter changes: of attention those that are stored, of experts those that it says."""
    targets: list[str] = settings.get("target_parameters") or []
    weights = [f"layers.{layer}.{each}" for layer in range(config.num_hidden_layers) for each in _THEIRS]
    return [
        weight
        for weight in weights
        if any(f".{_theirs(weight)}".endswith(f".{target}") for target in targets)
        or any(f"{_PREFIX}{_theirs(weight)}.lora_{each}.weight" in stored for each in "AB")
    ]


def _theirs(weight: str) -> str:
    """transformers' name of what is adapted: see `_THEIRS`."""
    _, layer, rest = weight.split(".", 2)
    return f"model.layers.{layer}.{_THEIRS[rest]}"


def _places(weights: Collection[str]) -> dict[str, tuple[str, str]]:
    """The names in the file of both halves of each pair, where these weights are adapted."""
    places: dict[str, tuple[str, str]] = {}
    for weight in weights:
        place = _theirs(weight)
        if ".mlp." in weight:  # A parameter: the pair stands with its module.
            place = place.rpartition(".")[0]
            if weight.endswith(".gate_up") and f"{weight.removesuffix('gate_up')}down" in weights:
                place = f"{place}.base_layer"
        places[weight] = (f"{_PREFIX}{place}.lora_A.weight", f"{_PREFIX}{place}.lora_B.weight")
    return places


def _number(settings: Mapping[str, Any], key: str, pattern_key: str, weight: str) -> float:
    """A number of one weight: that of the first pattern which the end of its name matches, else the one for all."""
    patterns: dict[str, float] = settings.get(pattern_key) or {}
    found = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", _theirs(weight)))
    return next(found, settings[key])


def _unstacked(a: Tensor, b: Tensor, shape: tuple[int, ...], *, scale: float, what: str) -> LowRank:
    """The pair of a weight of this shape out of PEFT's two matrices."""
    *experts, rows, columns = shape
    count = math.prod(experts)
    rank = a.shape[0] // count if a.ndim == 2 else 0
    if rank == 0 or a.shape != (rank * count, columns) or b.shape != (rows, rank * count):
        raise CheckpointError(
            f"{what} {list(a.shape)} and its other half {list(b.shape)} do not fit a weight {list(shape)}: the adapter "
            "is for another model"
        )
    if experts:
        a, b = a.unflatten(0, (count, rank)), b.unflatten(1, (rank, count)).permute(2, 0, 1).contiguous()
    return LowRank(a=a, b=b, scale=scale)


# -------------------------------------------------------------------- writing


def write_adapter(folder: str | Path, adapter: Adapter, config: ModelConfig, *, base_name: str | None = None) -> None:
    """Write an adapter of a model of this configuration into `folder`, for ossia, PEFT and vLLM.

    base_name: a path or hub id of the model beneath, for those who look there. The folder is made if missing, and what
    else is in it stays. The weights come first, each file whole or not at all. Raises StorageError where the disk
    refuses, CheckpointError where the adapter does not fit.
    """
    folder, changes = Path(folder), adapter.changes
    shapes = parameter_shapes(config, packed=False)
    for weight, change in changes.items():
        if shapes.get(weight) != change.shape or weight.split(".", 2)[-1] not in _THEIRS:
            raise CheckpointError(f"{weight} {list(change.shape)} is nothing that an adapter of this model can change")
    places = _places(changes.keys())
    tensors: dict[str, Tensor] = {}
    for weight, (name_a, name_b) in places.items():
        tensors[name_a], tensors[name_b] = _stacked(changes[weight])
    header = encode_header(
        [(name, TensorSpec(dtype=torch.float32, shape=tuple(tensor.shape))) for name, tensor in tensors.items()],
        metadata={"format": "pt"} | ({_BASE: adapter.base} if adapter.base else {}),
    )
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror}): name another folder") from None
    write_whole(folder / WEIGHTS, (header, *(_bytes(tensor) for tensor in tensors.values())))
    write_whole(folder / CONFIG, json.dumps(_described(changes, config, base_name), indent=2) + "\n")


def _stacked(change: LowRank) -> tuple[Tensor, Tensor]:
    """The inverse of `_unstacked`."""
    if change.a.ndim == 2:
        return change.a, change.b
    return change.a.flatten(0, 1), change.b.permute(1, 2, 0).flatten(1)


def _described(changes: Mapping[str, LowRank], config: ModelConfig, base_name: str | None) -> dict[str, Any]:
    """What adapter_config.json says: numbers that most weights share once, the others by the names of their weights."""
    ranks = {_theirs(weight): change.rank for weight, change in changes.items()}
    alphas = {_theirs(weight): _whole(change.scale * change.rank) for weight, change in changes.items()}
    (rank, _), (alpha, _) = (Counter(each.values()).most_common(1)[0] for each in (ranks, alphas))

    def targets(names: Mapping[str, str]) -> list[str]:
        """Those of these that are adapted: by a short name where that is so in every layer."""
        out: list[str] = []
        for ours, theirs in names.items():
            layers = [n for n in range(config.num_hidden_layers) if f"layers.{n}.{ours}" in changes]
            everywhere = len(layers) == config.num_hidden_layers
            out += (
                [theirs.removeprefix("self_attn.")] if everywhere else [_theirs(f"layers.{n}.{ours}") for n in layers]
            )
        return out

    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: value for name, value in ranks.items() if value != rank},
        "alpha_pattern": {name: value for name, value in alphas.items() if value != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets(_MODULES),
        "target_parameters": targets(_PARAMETERS),
    }


def _whole(value: float) -> float:
    """A whole number as such, which some readers expect."""
    return int(value) if value == int(value) else value


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
