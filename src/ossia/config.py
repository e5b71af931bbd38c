"""The shape of a gpt-oss model, its two published spellings, and the counts that follow from it.

`ModelConfig` is the only description of an architecture in ossia. `ModelConfig.from_json` reads either dialect of
`config.json` (the Hugging Face root layout, with old or new rope keys, and the layout of `original/`) and refuses
what it does not know; `to_json` writes either. The counts are methods with their unit in the name.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ossia.errors import ConfigError
from ossia.files import read_json

LayerType = Literal["sliding_attention", "full_attention"]
Layout = Literal["hf", "original"]

MXFP4_BLOCK = 32
"""Values that share one scale byte in MXFP4; every packed dimension is a multiple of it."""
_MXFP4_BYTES_PER_BLOCK = 17
_BF16_BYTES = 2

_PUBLISHED_EOS, _PUBLISHED_PAD = 200_002, 199_999


def alternating_layers(num_layers: int) -> tuple[LayerType, ...]:
    """Window on even layers counted from 0, full attention on odd ones: the pattern of both published models."""
    return tuple("full_attention" if layer % 2 else "sliding_attention" for layer in range(num_layers))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Everything that fixes the arithmetic of a gpt-oss model. Raises ConfigError on construction if contradictory."""

    num_hidden_layers: int
    num_experts: int
    experts_per_token: int = 4
    vocab_size: int = 201_088
    hidden_size: int = 2880
    intermediate_size: int = 2880
    head_dim: int = 64
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    sliding_window: int = 128
    layer_types: tuple[LayerType, ...] = ()
    """One entry a layer; empty means the published alternation."""
    initial_context_length: int = 4096
    """Tokens of context before YaRN stretches it."""
    max_position_embeddings: int = 131_072
    """Tokens of context a prompt and its answer may fill together."""
    rope_theta: float = 150_000.0
    rope_scaling_factor: float = 32.0
    rope_beta_slow: float = 1.0
    """`rope_ntk_alpha` in the original dialect."""
    rope_beta_fast: float = 32.0
    """`rope_ntk_beta` in the original dialect."""
    rms_norm_eps: float = 1e-5
    swiglu_limit: float = 7.0
    router_aux_loss_coef: float = 0.9
    """As published; a training recipe sets its own."""
    mxfp4_experts: bool = True
    """Whether the experts of the checkpoint are packed in MXFP4 (`quantization_config`)."""

    def __post_init__(self) -> None:
        _check_types(self)
        if not self.layer_types:
            object.__setattr__(self, "layer_types", alternating_layers(self.num_hidden_layers))
        _check_ranges(self)

    # ---------------------------------------------------------------- reading and writing

    @classmethod
    def from_json(cls, source: str | Path | dict[str, Any]) -> "ModelConfig":
        """Read a `config.json` of either dialect.

        `source` is a path, or the parsed object. Raises ConfigError that names the key when one is unknown, missing,
        contradictory, or describes an architecture other than gpt-oss.
        """
        where = "config.json"
        if isinstance(source, dict):
            raw = dict(source)
        else:
            where = str(source)
            raw = read_json(Path(source), ConfigError)
        try:
            return _from_hf(raw) if "model_type" in raw or "num_local_experts" in raw else _from_original(raw)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_json(self, layout: Layout = "hf") -> dict[str, Any]:
        """The object to write as `config.json`.

        The original dialect cannot say everything: raises ConfigError rather than write what reads back differently.
        """
        return _to_hf(self) if layout == "hf" else _to_original(self)

    # ---------------------------------------------------------------- derived shapes

    @property
    def q_dim(self) -> int:
        """Rows of the query projection."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_dim(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.num_key_value_heads * self.head_dim

    def window(self, layer: int) -> int | None:
        """Keys visible to a query of this layer, itself included; None where attention is full."""
        return self.sliding_window if self.layer_types[layer] == "sliding_attention" else None

    # ---------------------------------------------------------------- counts

    def _expert_weights(self) -> int:
        return 3 * self.hidden_size * self.intermediate_size

    def _expert_parameters(self) -> int:
        return self._expert_weights() + 2 * self.intermediate_size + self.hidden_size

    def _attention_parameters(self) -> int:
        qkv = (self.q_dim + 2 * self.kv_dim) * (self.hidden_size + 1)
        out = self.q_dim * self.hidden_size + self.hidden_size
        return qkv + out + self.num_attention_heads + self.hidden_size

    def _router_parameters(self) -> int:
        return self.num_experts * (self.hidden_size + 1) + self.hidden_size

    def num_parameters(self) -> int:
        """All parameters: embeddings, layers, norms, unembedding."""
        per_layer = (
            self._attention_parameters() + self._router_parameters() + self.num_experts * self._expert_parameters()
        )
        return self.num_hidden_layers * per_layer + self.hidden_size + 2 * self.vocab_size * self.hidden_size

    def num_active_parameters(self) -> int:
        """Parameters that take part in one token.

        Of the experts the chosen ones only; the unembedding counts, the embedding does not.
        """
        per_layer = (
            self._attention_parameters()
            + self._router_parameters()
            + self.experts_per_token * self._expert_parameters()
        )
        return self.num_hidden_layers * per_layer + self.hidden_size + self.vocab_size * self.hidden_size

    def checkpoint_bytes(self) -> int:
        """Bytes of tensors in a checkpoint: expert weights in MXFP4 (or BF16 if not packed), the rest in BF16."""
        expert_weights = self.num_hidden_layers * self.num_experts * self._expert_weights()
        rest = _BF16_BYTES * (self.num_parameters() - expert_weights)
        if not self.mxfp4_experts:
            return rest + _BF16_BYTES * expert_weights
        return rest + expert_weights // MXFP4_BLOCK * _MXFP4_BYTES_PER_BLOCK

    def kv_bytes_per_token(self, bytes_per_value: int = _BF16_BYTES) -> int:
        """Bytes of key/value cache that each token adds: full-attention layers only (windowed layers are fixed)."""
        num_full = sum(kind == "full_attention" for kind in self.layer_types)
        return num_full * 2 * self.kv_dim * bytes_per_value

    def kv_window_bytes(self, bytes_per_value: int = _BF16_BYTES) -> int:
        """Bytes of key/value cache of all windowed layers for one sequence, however long."""
        num_windowed = sum(kind == "sliding_attention" for kind in self.layer_types)
        return num_windowed * 2 * self.kv_dim * self.sliding_window * bytes_per_value

    def kv_bytes(self, num_tokens: int, bytes_per_value: int = _BF16_BYTES) -> int:
        """Bytes of key/value cache of one sequence of `num_tokens` tokens."""
        windowed = self.kv_window_bytes(bytes_per_value) * min(num_tokens, self.sliding_window) // self.sliding_window
        return num_tokens * self.kv_bytes_per_token(bytes_per_value) + windowed

    def flops_per_token(self, context: int = 0) -> int:
        """Floating-point operations of one forward pass for one token that sees `context` earlier ones.

        A multiply-add counts as two. Matrix products only: norms, biases, rotations and softmax are left out.
        """
        matrices = (
            self.num_hidden_layers
            * (
                2 * self.q_dim * self.hidden_size
                + 2 * self.kv_dim * self.hidden_size
                + self.num_experts * self.hidden_size
                + self.experts_per_token * self._expert_weights()
            )
            + self.vocab_size * self.hidden_size
        )
        visible = sum(
            min(context + 1, self.sliding_window) if kind == "sliding_attention" else context + 1
            for kind in self.layer_types
        )
        return 2 * matrices + 4 * self.q_dim * visible


# -------------------------------------------------------------------- checks

_COUNTS = (
    "num_hidden_layers num_experts experts_per_token vocab_size hidden_size intermediate_size head_dim "
    "num_attention_heads num_key_value_heads sliding_window initial_context_length max_position_embeddings"
).split()
_MOST = 2**31 - 1
_MOST_LAYERS = 10_000
"""Each layer costs memory here before a single file is looked at."""
_REALS = (
    "rope_theta rope_scaling_factor rope_beta_slow rope_beta_fast rms_norm_eps swiglu_limit router_aux_loss_coef"
).split()


def _check_types(config: ModelConfig) -> None:
    for name in _COUNTS:
        value = getattr(config, name)
        most = _MOST_LAYERS if name == "num_hidden_layers" else _MOST
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ConfigError(f"{name} is {value!r}: give a whole number from 1 to {most:,}")
    for name in _REALS:
        value = getattr(config, name)
        if not _is_finite(value) or value < 0:
            raise ConfigError(f"{name} is {value!r}: give a finite number that is not negative")
        object.__setattr__(config, name, float(value))


def _is_finite(value: object) -> bool:
    """Whether this is a number, not a truth value, that float64 can hold."""
    return not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) <= sys.float_info.max


def _check_ranges(config: ModelConfig) -> None:
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % MXFP4_BLOCK:
            raise ConfigError(
                f"{name} is {getattr(config, name)}: MXFP4 packs blocks of {MXFP4_BLOCK}, so give a multiple of it"
            )
    if config.head_dim % 2:
        raise ConfigError(f"head_dim is {config.head_dim}: rotary embeddings rotate halves, so give an even number")
    if config.num_attention_heads % config.num_key_value_heads:
        raise ConfigError(
            f"num_attention_heads {config.num_attention_heads} is not a multiple of "
            f"num_key_value_heads {config.num_key_value_heads}"
        )
    if config.experts_per_token > config.num_experts:
        raise ConfigError(f"experts_per_token {config.experts_per_token} is more than num_experts {config.num_experts}")
    if len(config.layer_types) != config.num_hidden_layers:
        raise ConfigError(
            f"layer_types has {len(config.layer_types)} entries for num_hidden_layers {config.num_hidden_layers}"
        )
    for kind in config.layer_types:
        if kind not in ("sliding_attention", "full_attention"):
            raise ConfigError(f"layer_types holds {kind!r}: known are sliding_attention and full_attention")
    if config.rope_theta <= 1:
        raise ConfigError(f"rope_theta is {config.rope_theta}: give more than 1")
    if not 1 <= config.rope_scaling_factor <= _MOST:
        raise ConfigError(f"rope_scaling_factor is {config.rope_scaling_factor}: give at least 1, at most {_MOST:,}")
    if not 0 < config.rope_beta_slow < config.rope_beta_fast:
        raise ConfigError(
            f"rope_beta_slow {config.rope_beta_slow} must be above 0 and below rope_beta_fast {config.rope_beta_fast}"
        )


# -------------------------------------------------------------------- the Hugging Face dialect


@dataclass(slots=True)
class _Reader:
    """Takes keys out of a configuration object, so that whatever is left at the end is unknown."""

    raw: dict[str, Any]
    prefix: str = ""

    def take(self, *names: str) -> Any:
        """The value under any of `names`, which must agree; ConfigError if none is there."""
        found = {name: self.raw.pop(name) for name in names if name in self.raw}
        if not found:
            raise ConfigError(f"key {self.prefix}{names[0]} is missing")
        values = list(found.values())
        if any(value != values[0] for value in values[1:]):
            said = ", ".join(f"{self.prefix}{name} = {value!r}" for name, value in found.items())
            raise ConfigError(f"keys contradict each other: {said}")
        return values[0]

    def optional(self, name: str, default: Any) -> Any:
        return self.raw.pop(name, default)

    def expect(self, name: str, *allowed: Any) -> None:
        """Drop a key whose other values would mean another architecture."""
        value = self.raw.pop(name, allowed[0])
        if value not in allowed:
            raise ConfigError(f"key {self.prefix}{name} is {value!r}: gpt-oss has {allowed[0]!r}")

    def finish(self) -> None:
        if self.raw:
            unknown = ", ".join(self.prefix + name for name in sorted(self.raw))
            raise ConfigError(f"unknown key {unknown}: remove it, or use a version of ossia that knows it")


_HF_BOOKKEEPING = (
    "_name_or_path architectures bos_token_id chunk_size_feed_forward dtype eos_token_id id2label initializer_range "
    "is_encoder_decoder label2id output_attentions output_hidden_states output_router_logits pad_token_id "
    "problem_type return_dict torch_dtype transformers_version use_cache"
).split()
"""Keys of the Hugging Face dialect that change no logit: read and dropped."""


def _from_hf(raw: dict[str, Any]) -> ModelConfig:
    keys = _Reader(raw)
    keys.expect("model_type", "gpt_oss")
    keys.expect("hidden_act", "silu")  # The published word for what is a clamped SwiGLU.
    keys.expect("attention_bias", True)
    keys.expect("attention_dropout", 0.0)
    keys.expect("swiglu_alpha", 1.702)
    keys.expect("tie_word_embeddings", False)
    for name in _HF_BOOKKEEPING:
        keys.optional(name, None)
    max_positions = keys.take("max_position_embeddings")
    rope = _hf_rope(keys)
    config = ModelConfig(
        num_hidden_layers=keys.take("num_hidden_layers"),
        num_experts=keys.take("num_local_experts"),
        experts_per_token=keys.take("num_experts_per_tok", "experts_per_token"),
        vocab_size=keys.take("vocab_size"),
        hidden_size=keys.take("hidden_size"),
        intermediate_size=keys.take("intermediate_size"),
        head_dim=keys.take("head_dim"),
        num_attention_heads=keys.take("num_attention_heads"),
        num_key_value_heads=keys.take("num_key_value_heads"),
        sliding_window=keys.take("sliding_window"),
        layer_types=_hf_layer_types(keys),
        max_position_embeddings=max_positions,
        rms_norm_eps=keys.take("rms_norm_eps"),
        swiglu_limit=keys.optional("swiglu_limit", 7.0),
        router_aux_loss_coef=keys.optional("router_aux_loss_coef", 0.9),
        mxfp4_experts=_hf_quantization(keys),
        **rope,
    )
    keys.finish()
    return config


def _hf_layer_types(keys: _Reader) -> tuple[LayerType, ...]:
    value = keys.optional("layer_types", None)
    if value is None:
        return ()
    if not isinstance(value, list) or not value:
        raise ConfigError(f"key layer_types is {value!r}: expected a list with one entry a layer")
    return tuple(cast("list[LayerType]", value))


def _hf_rope(keys: _Reader) -> dict[str, Any]:
    """Old spelling: `rope_theta` and `rope_scaling{}`; new spelling: `rope_parameters{}` with the theta inside."""
    old, new = keys.optional("rope_scaling", None), keys.optional("rope_parameters", None)
    if old is None and new is None:
        raise ConfigError("key rope_scaling (or rope_parameters) is missing")
    theta = keys.optional("rope_theta", None)
    initial = keys.optional("initial_context_length", None)
    read: list[dict[str, Any]] = []
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ConfigError(f"key {name} is {value!r}: expected an object")
        inner = _Reader(dict(value), f"{name}.")
        inner.expect("rope_type", "yarn")
        inner.expect("truncate", False)
        inner_theta = inner.optional("rope_theta", theta)
        if inner_theta is None:
            raise ConfigError("key rope_theta is missing")
        if theta is not None and inner_theta != theta:
            raise ConfigError(
                f"keys contradict each other: rope_theta = {theta!r}, {name}.rope_theta = {inner_theta!r}"
            )
        inner_initial = inner.take("original_max_position_embeddings")
        if initial is not None and inner_initial != initial:
            raise ConfigError(
                f"keys contradict each other: initial_context_length = {initial!r}, "
                f"{name}.original_max_position_embeddings = {inner_initial!r}"
            )
        read.append(
            {
                "rope_theta": inner_theta,
                "initial_context_length": inner_initial,
                "rope_scaling_factor": inner.take("factor"),
                "rope_beta_fast": inner.optional("beta_fast", 32.0),
                "rope_beta_slow": inner.optional("beta_slow", 1.0),
            }
        )
        inner.finish()
    for name, value in read[0].items():
        if read[-1][name] != value:
            raise ConfigError(
                f"keys contradict each other: rope_scaling gives {name} = {value!r}, rope_parameters {read[-1][name]!r}"
            )
    return read[0]


_NOT_CONVERTED = [
    "model.layers.*.self_attn",
    "model.layers.*.mlp.router",
    "model.embed_tokens",
    "lm_head",
]


def _hf_quantization(keys: _Reader) -> bool:
    value = keys.optional("quantization_config", None)
    if value is None:
        return False
    if not isinstance(value, dict):
        raise ConfigError(f"key quantization_config is {value!r}: expected an object")
    inner = _Reader(dict(value), "quantization_config.")
    inner.expect("quant_method", "mxfp4")
    not_converted = inner.optional("modules_to_not_convert", None)
    if not isinstance(not_converted, list | None) or any("expert" in str(name) for name in not_converted or ()):
        raise ConfigError(
            f"key quantization_config.modules_to_not_convert is {not_converted!r}: gpt-oss packs the experts"
        )
    inner.expect("dequantize", False)
    inner.finish()
    return True


def _to_hf(config: ModelConfig) -> dict[str, Any]:
    out: dict[str, Any] = {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": _PUBLISHED_EOS if config.vocab_size > _PUBLISHED_EOS else None,
        "experts_per_token": config.experts_per_token,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initial_context_length": config.initial_context_length,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "layer_types": list(config.layer_types),
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "gpt_oss",
        "num_attention_heads": config.num_attention_heads,
        "num_experts_per_tok": config.experts_per_token,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "num_local_experts": config.num_experts,
        "output_router_logits": False,
        "pad_token_id": _PUBLISHED_PAD if config.vocab_size > _PUBLISHED_PAD else None,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": {
            "beta_fast": config.rope_beta_fast,
            "beta_slow": config.rope_beta_slow,
            "factor": config.rope_scaling_factor,
            "original_max_position_embeddings": config.initial_context_length,
            "rope_type": "yarn",
            "truncate": False,
        },
        "rope_theta": config.rope_theta,
        "router_aux_loss_coef": config.router_aux_loss_coef,
        "sliding_window": config.sliding_window,
        "swiglu_limit": config.swiglu_limit,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    if config.mxfp4_experts:
        out["quantization_config"] = {"modules_to_not_convert": list(_NOT_CONVERTED), "quant_method": "mxfp4"}
    return out


# -------------------------------------------------------------------- the dialect of original/


def _from_original(raw: dict[str, Any]) -> ModelConfig:
    keys = _Reader(raw)
    initial, factor = keys.take("initial_context_length"), keys.take("rope_scaling_factor")
    if not _is_finite(initial) or not _is_finite(factor) or initial * factor > _MOST:
        raise ConfigError(
            f"initial_context_length is {initial!r} and rope_scaling_factor {factor!r}: give numbers, and at most "
            f"{_MOST:,} tokens of context as their product"
        )
    config = ModelConfig(
        num_hidden_layers=keys.take("num_hidden_layers"),
        num_experts=keys.take("num_experts"),
        experts_per_token=keys.take("experts_per_token"),
        vocab_size=keys.take("vocab_size"),
        hidden_size=keys.take("hidden_size"),
        intermediate_size=keys.take("intermediate_size"),
        head_dim=keys.take("head_dim"),
        num_attention_heads=keys.take("num_attention_heads"),
        num_key_value_heads=keys.take("num_key_value_heads"),
        sliding_window=keys.take("sliding_window"),
        initial_context_length=initial,
        max_position_embeddings=int(initial * factor),
        rope_theta=keys.take("rope_theta"),
        rope_scaling_factor=factor,
        rope_beta_slow=keys.optional("rope_ntk_alpha", 1.0),
        rope_beta_fast=keys.optional("rope_ntk_beta", 32.0),
        swiglu_limit=keys.optional("swiglu_limit", 7.0),
    )
    keys.finish()
    return config


def _to_original(config: ModelConfig) -> dict[str, Any]:
    if config.layer_types != alternating_layers(config.num_hidden_layers):
        raise ConfigError("layer_types is not the published alternation, and the original layout cannot say otherwise")
    if config.max_position_embeddings != int(config.initial_context_length * config.rope_scaling_factor):
        raise ConfigError(
            f"max_position_embeddings {config.max_position_embeddings} is not initial_context_length times "
            f"rope_scaling_factor, and the original layout cannot say otherwise"
        )
    if config.rms_norm_eps != 1e-5:
        raise ConfigError(f"rms_norm_eps is {config.rms_norm_eps}: the original layout fixes it at 1e-05")
    return {
        "num_hidden_layers": config.num_hidden_layers,
        "num_experts": config.num_experts,
        "experts_per_token": config.experts_per_token,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "swiglu_limit": config.swiglu_limit,
        "head_dim": config.head_dim,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "sliding_window": config.sliding_window,
        "initial_context_length": config.initial_context_length,
        "rope_theta": config.rope_theta,
        "rope_scaling_factor": config.rope_scaling_factor,
        "rope_ntk_alpha": config.rope_beta_slow,
        "rope_ntk_beta": config.rope_beta_fast,
    }


# -------------------------------------------------------------------- the published models

GPT_OSS_20B = ModelConfig(num_hidden_layers=24, num_experts=32)
GPT_OSS_120B = ModelConfig(num_hidden_layers=36, num_experts=128)
OSSIA_DEMO = ModelConfig(
    num_hidden_layers=6,
    num_experts=8,
    experts_per_token=2,
    vocab_size=4096,
    hidden_size=128,
    intermediate_size=192,
    head_dim=32,
    num_attention_heads=8,
    num_key_value_heads=2,
    initial_context_length=1024,
    max_position_embeddings=4096,
    rope_scaling_factor=4.0,
    router_aux_loss_coef=0.01,
)
"""The model that ships with this package and is trained by it: 5.1 M parameters, 1.9 M of them active per token."""
PRESETS = {"gpt-oss-20b": GPT_OSS_20B, "gpt-oss-120b": GPT_OSS_120B, "ossia-demo": OSSIA_DEMO}
