"""Export: the same weights as a GGUF file for llama.cpp, or in either published layout for transformers and vLLM.

MXFP4 blocks are repacked, never unpacked: every value stays what it was. Memory holds a few megabytes of one tensor at
a time, and the model itself only as a mapped file.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ossia.config import Layout, ModelConfig, alternating_layers
from ossia.errors import CheckpointError, ConfigError, StorageError
from ossia.files import read_json
from ossia.kernels.mxfp4 import NAN_SCALE
from ossia.model.checkpoint import Checkpoint
from ossia.model.layouts import parameter_shapes
from ossia.model.locate import ORIGINAL, tokenizer_file
from ossia.model.write import GENERATION_CONFIG, TensorSource, write_checkpoint
from ossia.release.encodings import GgufType, encode, mxfp4_blocks
from ossia.release.gguf import GgufTensor, Value, check_target, write_gguf
from ossia.release.vocabulary import CHAT_TEMPLATE, tokenizer_metadata

Dense = Literal["q8_0", "bf16", "f16"]
"""How a GGUF file holds the weights of attention, embedding and unembedding."""

Progress = Callable[[int, int], None]

_DENSE = {"q8_0": GgufType.Q8_0, "bf16": GgufType.BF16, "f16": GgufType.F16}
_FILE_TYPES = {GgufType.F16: 1, GgufType.BF16: 32, GgufType.MXFP4: 38}
"""llama.cpp's number for a file whose experts are of this type."""
_QUANTIZATION_VERSION = 2
_FIXED = {"swiglu_limit": 7.0, "rope_beta_fast": 32.0, "rope_beta_slow": 1.0}
"""What llama.cpp takes for granted in a gpt-oss model, whatever its file says."""
_CHUNK_VALUES = 4 * 2**20
"""Values of a dense weight that are converted at a time."""

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
_PAPERS = ("LICENSE*", "NOTICE*", "USAGE_POLICY*")
_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was written."""

    path: Path
    num_tensors: int
    num_bytes: int
    """Of the file for GGUF, of the tensors for a layout."""
    notes: tuple[str, ...]
    """What the user should know about it, a line each."""


def export_gguf(
    checkpoint: Checkpoint,
    path: str | Path,
    *,
    name: str,
    dense: Dense = "q8_0",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write `checkpoint` as one GGUF file that llama.cpp runs, called `name` in its metadata.

    Experts in MXFP4 stay so; experts in BF16 are stored as `dense`, in BF16 where that is Q8_0. Norms, biases, sinks
    and routers are float32. The vocabulary that lies beside the weights goes along, with a chat template.

    Raises ConfigError where llama.cpp cannot run a model of this configuration, CheckpointError where a value cannot be
    stored, TokenizerError for an unsound vocabulary, and StorageError as `write_gguf`.
    """
    path, config = Path(path).absolute(), checkpoint.config
    check_target(path, overwrite=overwrite)
    _check_runs(config)
    kind = _DENSE[dense]
    experts = GgufType.MXFP4 if checkpoint.packed else GgufType.BF16 if kind is GgufType.Q8_0 else kind
    metadata = gguf_metadata(config, name=name, experts=experts)
    vocabulary = tokenizer_file(checkpoint.folder)
    if vocabulary is None:
        metadata |= {"tokenizer.ggml.model": "none", "gpt-oss.vocab_size": config.vocab_size}
        notes = ["the model has no vocabulary beside it, so the file has none: it takes and gives token ids only"]
    else:
        keys, notes = tokenizer_metadata(vocabulary, config.vocab_size)
        metadata |= keys
    tensors = list(gguf_tensors(checkpoint, dense=kind, experts=experts))
    num_bytes = write_gguf(path, metadata, tensors, overwrite=overwrite, progress=progress)
    return Exported(path=path, num_tensors=len(tensors), num_bytes=num_bytes, notes=tuple(notes))


def export_layout(
    checkpoint: Checkpoint,
    folder: str | Path,
    layout: Layout,
    *,
    tensors: TensorSource | None = None,
    packed: bool | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write `checkpoint` in a published layout in `folder`, experts as they are, with its vocabulary and licence.

    tensors: in place of the checkpoint's own; packed: whether experts are to be in MXFP4. Where the model has a
    vocabulary and no chat template, the hf layout gets one. Raises as `write_checkpoint`, and
    StorageError where `folder` is the model itself.
    """
    folder = Path(folder).absolute()
    if folder.resolve() in (checkpoint.folder.resolve(), _home(checkpoint).resolve()):
        raise StorageError(f"{folder} is the model itself: name another folder")
    home, vocabulary = _home(checkpoint), tokenizer_file(checkpoint.folder)
    extras = {path.name: path for pattern in _PAPERS for path in sorted(home.glob(pattern)) if path.is_file()}
    notes: list[str] = []
    if vocabulary is None:
        notes.append("the model has no vocabulary beside it, so none goes along: put tokenizer.json into the folder")
    else:
        beside = [vocabulary, *(home / each for each in (*_BESIDE, _TEMPLATE) if (home / each).is_file())]
        extras |= {path.name: path for path in beside}
        if layout == "hf":
            extras.setdefault(_TEMPLATE, CHAT_TEMPLATE)
        if vocabulary.suffix == ".tiktoken":
            notes.append(f"the vocabulary is {vocabulary.name}, which transformers does not read: add a tokenizer.json")
    generation = home / GENERATION_CONFIG
    written = write_checkpoint(
        folder,
        checkpoint.config,
        tensors or checkpoint,
        layout=layout,
        packed=checkpoint.packed if packed is None else packed,
        extra_files=extras,
        generation_config=read_json(generation, CheckpointError) if generation.is_file() else None,
        overwrite=overwrite,
        progress=progress,
    )
    return Exported(path=folder, num_tensors=len(written.stored), num_bytes=written.num_bytes, notes=tuple(notes))


def _home(checkpoint: Checkpoint) -> Path:
    """Where the files beside the weights lie; those of `original/` one folder up."""
    return checkpoint.folder.parent if checkpoint.folder.name == ORIGINAL else checkpoint.folder


# -------------------------------------------------------------------- gpt-oss in GGUF


def _check_runs(config: ModelConfig) -> None:
    """Raises ConfigError for what llama.cpp would compute otherwise without a word."""
    for field, value in _FIXED.items():
        if getattr(config, field) != value:
            raise ConfigError(f"{field} is {getattr(config, field)}: llama.cpp runs gpt-oss with {value} only")
    if config.layer_types != alternating_layers(config.num_hidden_layers):
        raise ConfigError("layer_types is not the published alternation: llama.cpp runs gpt-oss with that only")


def gguf_metadata(config: ModelConfig, *, name: str, experts: GgufType) -> dict[str, Value]:
    """The keys that describe the model, but for its vocabulary."""
    return {
        "general.architecture": "gpt-oss",
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[experts],
        "general.quantization_version": _QUANTIZATION_VERSION,
        "gpt-oss.block_count": config.num_hidden_layers,
        "gpt-oss.context_length": config.max_position_embeddings,
        "gpt-oss.embedding_length": config.hidden_size,
        "gpt-oss.feed_forward_length": config.intermediate_size,
        "gpt-oss.expert_feed_forward_length": config.intermediate_size,
        "gpt-oss.expert_count": config.num_experts,
        "gpt-oss.expert_used_count": config.experts_per_token,
        "gpt-oss.attention.head_count": config.num_attention_heads,
        "gpt-oss.attention.head_count_kv": config.num_key_value_heads,
        "gpt-oss.attention.key_length": config.head_dim,
        "gpt-oss.attention.value_length": config.head_dim,
        "gpt-oss.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "gpt-oss.attention.sliding_window": config.sliding_window,
        "gpt-oss.rope.dimension_count": config.head_dim,
        "gpt-oss.rope.freq_base": config.rope_theta,
        "gpt-oss.rope.scaling.type": "yarn",
        "gpt-oss.rope.scaling.factor": config.rope_scaling_factor,
        "gpt-oss.rope.scaling.original_context_length": config.initial_context_length,
        "gpt-oss.rope.scaling.yarn_beta_fast": config.rope_beta_fast,
        "gpt-oss.rope.scaling.yarn_beta_slow": config.rope_beta_slow,
    }


def gguf_tensors(checkpoint: Checkpoint, *, dense: GgufType, experts: GgufType) -> Iterator[GgufTensor]:
    """Every tensor of the file, in reading order."""
    kinds = {"dense": dense, "experts": experts, "f32": GgufType.F32}
    for parameter, shape in parameter_shapes(checkpoint.config, packed=False).items():
        prefix, leaf = _split(parameter)
        names, kind = _NAMES[leaf][0], kinds[_NAMES[leaf][1]]
        if len(names) > 1:
            shape = (shape[0], shape[1] // len(names), *shape[2:])
        if shape[-1] % kind.block[0]:
            raise ConfigError(
                f"{parameter} has rows of {shape[-1]} values and {kind.name} packs blocks of {kind.block[0]}: use "
                "--dense bf16"
            )
        for first, name in enumerate(names):
            rows = slice(first, None, len(names))
            if kind is GgufType.MXFP4:
                pieces = partial(_packed_pieces, checkpoint, parameter, rows)
            else:
                pieces = partial(_pieces, checkpoint, parameter, rows, kind)
            yield GgufTensor(name=prefix + name, kind=kind, shape=shape, pieces=pieces)


def _split(parameter: str) -> tuple[str, str]:
    """ "layers.3.mlp_norm.scale" as "blk.3." and "mlp_norm.scale"; what is in no layer after nothing."""
    if not parameter.startswith("layers."):
        return "", parameter
    _, layer, leaf = parameter.split(".", 2)
    return f"blk.{layer}.", leaf


_NAMES: dict[str, tuple[tuple[str, ...], Literal["dense", "experts", "f32"]]] = {
    "embedding.weight": (("token_embd.weight",), "dense"),
    "attention_norm.scale": (("attn_norm.weight",), "f32"),
    **{f"attention.{each}.weight": ((f"attn_{each}.weight",), "dense") for each in "qkv"},
    **{f"attention.{each}.bias": ((f"attn_{each}.bias",), "f32") for each in "qkv"},
    "attention.o.weight": (("attn_output.weight",), "dense"),
    "attention.o.bias": (("attn_output.bias",), "f32"),
    "attention.sinks": (("attn_sinks.weight",), "f32"),
    "mlp_norm.scale": (("post_attention_norm.weight",), "f32"),
    "mlp.router.weight": (("ffn_gate_inp.weight",), "f32"),
    "mlp.router.bias": (("ffn_gate_inp.bias",), "f32"),
    "mlp.experts.gate_up": (("ffn_gate_exps.weight", "ffn_up_exps.weight"), "experts"),
    "mlp.experts.gate_up_bias": (("ffn_gate_exps.bias", "ffn_up_exps.bias"), "f32"),
    "mlp.experts.down": (("ffn_down_exps.weight",), "experts"),
    "mlp.experts.down_bias": (("ffn_down_exps.bias",), "f32"),
    "norm.scale": (("output_norm.weight",), "f32"),
    "unembedding.weight": (("output.weight",), "dense"),
}
"""Parameter, without its layer → llama.cpp's names for what it holds, and how that is stored. Two names take the rows
of each expert in turn: gate has the even ones, up the odd ones."""


def _packed_pieces(checkpoint: Checkpoint, weight: str, rows: slice) -> Iterable[Tensor]:
    """The packed rows of one expert after another."""
    blocks_E, scales_E = checkpoint.tensor(f"{weight}_blocks"), checkpoint.tensor(f"{weight}_scales")
    for index, (blocks, scales) in enumerate(zip(blocks_E, scales_E, strict=True)):
        if bool((scales == NAN_SCALE).any()):
            raise CheckpointError(
                f"{weight} (expert {index}) holds the scale byte 255, which means NaN: fetch it again"
            )
        yield mxfp4_blocks(blocks[rows], scales[rows])


def _pieces(checkpoint: Checkpoint, parameter: str, rows: slice, kind: GgufType) -> Iterable[Tensor]:
    """A weight or bias, some rows at a time; of experts those that `rows` says."""
    tensor = checkpoint.tensor(parameter)
    parts = (expert[rows] for expert in tensor) if ".experts." in parameter else (tensor,)
    for part in parts:
        step = max(1, _CHUNK_VALUES // max(1, part[0].numel()))
        for chunk in part.split(step):
            if not bool(torch.isfinite(chunk).all()):
                raise CheckpointError(f"{parameter} holds NaN or infinity: find out where it came from")
            encoded = encode(chunk.contiguous(), kind)
            if kind is GgufType.F16 and not bool(torch.isfinite(encoded.view(torch.float16)).all()):
                raise CheckpointError(f"{parameter} has values that F16 cannot hold: use --dense bf16")
            yield encoded
