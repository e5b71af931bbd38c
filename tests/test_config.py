"""The shape of a model: published counts, both spellings of config.json, and every way in which one can be wrong."""

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path
from typing import Any

import pytest

from ossia.config import GPT_OSS_20B, GPT_OSS_120B, PRESETS, ModelConfig
from ossia.errors import ConfigError

# ---------------------------------------------------------------- the published models, as their files say it

PUBLISHED_HF: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}
PUBLISHED_ORIGINAL: dict[str, Any] = {
    "num_hidden_layers": 24,
    "num_experts": 32,
    "experts_per_token": 4,
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "swiglu_limit": 7.0,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "rope_theta": 150000,
    "rope_scaling_factor": 32.0,
    "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}


def new_rope(raw: dict[str, Any]) -> dict[str, Any]:
    """The same object with the newer spelling of the rope keys."""
    raw = dict(raw)
    raw["rope_parameters"] = raw.pop("rope_scaling") | {"rope_theta": raw.pop("rope_theta")}
    return raw


UNUSUAL = ModelConfig(
    num_hidden_layers=3,
    num_experts=6,
    experts_per_token=2,
    vocab_size=300,
    hidden_size=96,
    intermediate_size=64,
    head_dim=16,
    num_attention_heads=6,
    num_key_value_heads=2,
    sliding_window=17,
    initial_context_length=256,
    max_position_embeddings=1024,
    rope_theta=9_000.0,
    rope_scaling_factor=4.0,
    rope_beta_slow=2.0,
    rope_beta_fast=20.0,
    swiglu_limit=3.0,
)
"""Every field that both spellings can hold is away from its published value."""


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("config", "total", "active", "checkpoint_bytes", "kv_per_token", "kv_window"),
    [
        (GPT_OSS_20B, 20_914_757_184, 3_608_307_264, 13_761_264_768, 24_576, 3_145_728),
        (GPT_OSS_120B, 116_829_156_672, 5_132_849_472, 65_248_815_744, 36_864, 4_718_592),
    ],
    ids=["20b", "120b"],
)
def test_published_counts(
    config: ModelConfig, total: int, active: int, checkpoint_bytes: int, kv_per_token: int, kv_window: int
) -> None:
    assert config.num_parameters() == total
    assert config.num_active_parameters() == active
    assert config.checkpoint_bytes() == checkpoint_bytes
    assert config.kv_bytes_per_token() == kv_per_token
    assert config.kv_window_bytes() == kv_window


def test_active_parameters_round_to_the_published_figures() -> None:
    assert f"{GPT_OSS_20B.num_active_parameters() / 1e9:.2f} B" == "3.61 B"
    assert f"{GPT_OSS_120B.num_active_parameters() / 1e9:.2f} B" == "5.13 B"


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B, UNUSUAL], ids=["20b", "120b", "unusual"])
def test_parameters_are_those_of_the_tensors(config: ModelConfig) -> None:
    """Counted again from shapes written down here, tensor by tensor."""
    d, i, e, v = config.hidden_size, config.intermediate_size, config.num_experts, config.vocab_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    layer = [
        d,  # norm before attention
        (q + 2 * kv) * d,
        q + 2 * kv,
        config.num_attention_heads,  # sinks
        d * q,
        d,
        d,  # norm before the experts
        e * d,
        e,
        e * 2 * i * d,
        e * 2 * i,
        e * d * i,
        e * d,
    ]
    assert config.num_parameters() == 2 * v * d + d + config.num_hidden_layers * sum(layer)
    idle = config.num_hidden_layers * (e - config.experts_per_token) * (3 * d * i + 2 * i + d)
    assert config.num_active_parameters() == config.num_parameters() - idle - v * d


def test_parts_of_the_checkpoint_of_the_20b() -> None:
    """Blocks 9.555 GB, scales 0.597 GB, the rest 3.609 GB; one expert packed is 13,219,200 bytes."""
    weights = 24 * 32 * 3 * 2880 * 2880
    assert round(weights / 2 / 1e9, 3) == 9.555
    assert round(weights / 32 / 1e9, 3) == 0.597
    assert round((GPT_OSS_20B.checkpoint_bytes() - weights * 17 // 32) / 1e9, 3) == 3.609
    one_more = replace(GPT_OSS_20B, num_experts=33).checkpoint_bytes() - GPT_OSS_20B.checkpoint_bytes()
    router_and_biases = 2 * (2881 + 2 * 2880 + 2880)
    assert one_more == 24 * (13_219_200 + router_and_biases)


def test_checkpoint_bytes_without_packing_are_two_a_parameter() -> None:
    assert replace(GPT_OSS_20B, mxfp4_experts=False).checkpoint_bytes() == 2 * 20_914_757_184


def test_kv_cache_of_a_sequence() -> None:
    assert GPT_OSS_20B.kv_bytes(0) == 0
    assert GPT_OSS_20B.kv_bytes(1) == 2 * 24_576
    assert GPT_OSS_20B.kv_bytes(128) == 128 * 24_576 + 3_145_728
    assert GPT_OSS_20B.kv_bytes(131_072) == 131_072 * 24_576 + 3_145_728
    assert GPT_OSS_20B.kv_bytes(131_072, bytes_per_value=1) == (131_072 * 24_576 + 3_145_728) // 2


def test_flops_of_a_token() -> None:
    """Twice the multiply-adds: about 3.6 G of them for the 20b, which is nearly its active parameters."""
    assert GPT_OSS_20B.flops_per_token() == pytest.approx(2 * 3.6e9, rel=0.01)
    assert GPT_OSS_20B.flops_per_token() == pytest.approx(2 * GPT_OSS_20B.num_active_parameters(), rel=1e-3)
    assert GPT_OSS_120B.flops_per_token() == pytest.approx(2 * GPT_OSS_120B.num_active_parameters(), rel=1e-3)


def test_flops_grow_with_the_keys_that_are_seen() -> None:
    at_start, a_window, far = (GPT_OSS_20B.flops_per_token(context) for context in (0, 127, 1_000))
    per_key = 2 * 2 * 64 * 64  # A score and a weighted sum, a multiply-add for each component of each query head.
    assert a_window - at_start == 24 * 127 * per_key
    assert far - a_window == 12 * 873 * per_key


def test_shapes_that_follow() -> None:
    assert (GPT_OSS_20B.q_dim, GPT_OSS_20B.kv_dim) == (4096, 512)
    assert [GPT_OSS_20B.window(layer) for layer in range(4)] == [128, None, 128, None]
    assert GPT_OSS_20B.layer_types == ("sliding_attention", "full_attention") * 12


def test_presets() -> None:
    assert PRESETS["gpt-oss-20b"] is GPT_OSS_20B
    assert PRESETS["gpt-oss-120b"] is GPT_OSS_120B
    demo = PRESETS["ossia-demo"]
    assert demo.hidden_size != demo.intermediate_size, "a wrong transpose must not fit"
    assert 5e6 < demo.num_parameters() < 15e6
    assert ModelConfig.from_json(demo.to_json("original")) == replace(demo, router_aux_loss_coef=0.9)


# ---------------------------------------------------------------- reading and writing


def test_published_files_are_the_presets() -> None:
    assert ModelConfig.from_json(PUBLISHED_HF) == GPT_OSS_20B
    assert ModelConfig.from_json(new_rope(PUBLISHED_HF)) == GPT_OSS_20B
    assert ModelConfig.from_json(PUBLISHED_ORIGINAL) == GPT_OSS_20B
    assert ModelConfig.from_json(PUBLISHED_ORIGINAL | {"num_hidden_layers": 36, "num_experts": 128}) == GPT_OSS_120B


def test_published_files_are_what_is_written() -> None:
    written = GPT_OSS_20B.to_json("hf")
    assert {key: written.get(key) for key in PUBLISHED_HF if key != "transformers_version"} == {
        key: value for key, value in PUBLISHED_HF.items() if key != "transformers_version"
    }
    assert GPT_OSS_20B.to_json("original") == PUBLISHED_ORIGINAL


@pytest.mark.parametrize("config", [GPT_OSS_20B, GPT_OSS_120B, UNUSUAL], ids=["20b", "120b", "unusual"])
def test_what_is_written_reads_back(config: ModelConfig, tmp_path: Path) -> None:
    for layout in ("hf", "original"):
        path = tmp_path / f"{layout}.json"
        path.write_text(json.dumps(config.to_json(layout)), encoding="utf-8")
        assert ModelConfig.from_json(path) == config
        assert ModelConfig.from_json(str(path)) == config


def test_every_field_survives_the_hf_spelling() -> None:
    config = replace(
        UNUSUAL,
        layer_types=("full_attention", "full_attention", "sliding_attention"),
        max_position_embeddings=999,
        rms_norm_eps=1e-6,
        router_aux_loss_coef=0.02,
        mxfp4_experts=False,
    )
    for field in fields(ModelConfig):
        assert getattr(config, field.name) != getattr(GPT_OSS_20B, field.name), f"{field.name} is not tested"
    assert ModelConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_types": ("full_attention",) * 3}, "layer_types is not the published alternation"),
        ({"max_position_embeddings": 999}, "max_position_embeddings 999 is not initial_context_length times"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps is 1e-06: the original layout fixes it"),
    ],
)
def test_the_original_spelling_refuses_what_it_cannot_say(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(UNUSUAL, **change).to_json("original")


def test_what_transformers_writes_is_read() -> None:
    from transformers import GptOssConfig, Mxfp4Config

    theirs = GptOssConfig(num_hidden_layers=24, num_local_experts=32, router_aux_loss_coef=0.9)
    for raw in (theirs.to_dict(), json.loads(theirs.to_json_string()), json.loads(theirs.to_json_string(False))):
        assert ModelConfig.from_json(raw) == replace(GPT_OSS_20B, mxfp4_experts=False)
    packed = theirs.to_dict() | {"quantization_config": Mxfp4Config().to_dict()}
    assert ModelConfig.from_json(packed) == GPT_OSS_20B


def test_what_ossia_writes_is_read_by_transformers(tmp_path: Path) -> None:
    from transformers import GptOssConfig

    (tmp_path / "config.json").write_text(json.dumps(UNUSUAL.to_json()), encoding="utf-8")
    theirs = GptOssConfig.from_pretrained(tmp_path)
    read = theirs.to_dict()
    for key in ("initial_context_length", "experts_per_token"):
        assert read[key] == UNUSUAL.to_json()[key]  # Kept, though transformers itself does not use them.
    assert ModelConfig.from_json(read) == UNUSUAL


def test_what_ossia_writes_is_read_by_the_official_code() -> None:
    from gpt_oss.torch.model import ModelConfig as Official

    theirs = Official(**UNUSUAL.to_json("original"))
    assert theirs.rope_ntk_beta == 20.0
    assert theirs.swiglu_limit == 3.0


# ---------------------------------------------------------------- refusing


def hf(**changes: Any) -> dict[str, Any]:
    return PUBLISHED_HF | changes


def without(raw: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in raw.items() if name != key}


def rope(**changes: Any) -> dict[str, Any]:
    return hf(rope_scaling=PUBLISHED_HF["rope_scaling"] | changes)


def quantization(**changes: Any) -> dict[str, Any]:
    return hf(quantization_config=PUBLISHED_HF["quantization_config"] | changes)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    # Unknown keys, in each spelling and inside each object.
    ("unknown", hf(attention_temperature=1), "unknown key attention_temperature"),
    ("unknown, two", hf(b=1, a=2), "unknown key a, b"),
    ("unknown in rope", rope(mscale=1.0), "unknown key rope_scaling.mscale"),
    ("unknown in new rope", new_rope(rope(mscale=1.0)), "unknown key rope_parameters.mscale"),
    ("unknown in quantization", quantization(group_size=16), "unknown key quantization_config.group_size"),
    ("unknown in original", PUBLISHED_ORIGINAL | {"tie": True}, "unknown key tie"),
    ("hf key in original", PUBLISHED_ORIGINAL | {"rms_norm_eps": 1e-5}, "unknown key rms_norm_eps"),
    # Other architectures.
    ("model_type", hf(model_type="llama"), "key model_type is 'llama': gpt-oss has 'gpt_oss'"),
    ("hidden_act", hf(hidden_act="gelu"), "key hidden_act is 'gelu'"),
    ("no biases", hf(attention_bias=False), "key attention_bias is False"),
    ("tied", hf(tie_word_embeddings=True), "key tie_word_embeddings is True"),
    ("dropout", hf(attention_dropout=0.1), "key attention_dropout is 0.1"),
    ("swiglu_alpha", hf(swiglu_alpha=1.0), r"key swiglu_alpha is 1.0: gpt-oss has 1.702"),
    ("rope_type", rope(rope_type="llama3"), "key rope_scaling.rope_type is 'llama3'"),
    ("truncate", rope(truncate=True), "key rope_scaling.truncate is True: gpt-oss has False"),
    ("quant_method", quantization(quant_method="fp8"), "key quantization_config.quant_method is 'fp8'"),
    (
        "experts not packed",
        quantization(modules_to_not_convert=["model.layers.*.mlp.experts"]),
        "key quantization_config.modules_to_not_convert is .*: gpt-oss packs the experts",
    ),
    # Contradictions.
    (
        "experts a token",
        hf(experts_per_token=2),
        "keys contradict each other: num_experts_per_tok = 4, experts_per_token = 2",
    ),
    (
        "context",
        hf(initial_context_length=2048),
        "initial_context_length = 2048, rope_scaling.original_max_position_embeddings = 4096",
    ),
    (
        "theta",
        new_rope(PUBLISHED_HF) | {"rope_theta": 10_000},
        "keys contradict each other: rope_theta = 10000, rope_parameters.rope_theta = 150000",
    ),
    (
        "old and new rope",
        hf(rope_parameters=PUBLISHED_HF["rope_scaling"] | {"factor": 16.0}),
        "keys contradict each other: rope_scaling gives rope_scaling_factor = 32.0, rope_parameters 16.0",
    ),
    ("layers", hf(num_hidden_layers=23), "layer_types has 24 entries for num_hidden_layers 23"),
    ("too few experts", hf(num_local_experts=3), "experts_per_token 4 is more than num_experts 3"),
    ("heads", hf(num_key_value_heads=7), "num_attention_heads 64 is not a multiple of num_key_value_heads 7"),
    ("betas", rope(beta_slow=32.0), "rope_beta_slow 32.0 must be above 0 and below rope_beta_fast 32.0"),
    # Sizes that cannot be.
    ("hidden", hf(hidden_size=2881), "hidden_size is 2881: MXFP4 packs blocks of 32"),
    ("intermediate", hf(intermediate_size=2890), "intermediate_size is 2890: MXFP4 packs blocks of 32"),
    ("odd head", hf(head_dim=63), "head_dim is 63: .* even number"),
    ("no layers", hf(num_hidden_layers=0), "num_hidden_layers is 0: give a whole number from 1 to 10,000"),
    (
        "more layers than memory",
        hf(layer_types=None, num_hidden_layers=10**10),
        "num_hidden_layers is 10000000000: give",
    ),
    ("more experts than an index", hf(num_local_experts=2**31), "num_experts is 2147483648: give a whole number from"),
    ("negative", hf(vocab_size=-5), "vocab_size is -5"),
    ("theta of one", hf(rope_theta=1), "rope_theta is 1.0: give more than 1"),
    ("factor below one", rope(factor=0.5), "rope_scaling_factor is 0.5: give at least 1"),
    # Wrong types.
    ("string", hf(hidden_size="2880"), "hidden_size is '2880': give a whole number"),
    ("float", hf(num_hidden_layers=24.0), "num_hidden_layers is 24.0: give a whole number"),
    ("truth", hf(head_dim=True), "head_dim is True: give a whole number"),
    ("null", hf(sliding_window=None), "sliding_window is None: give a whole number"),
    ("list", hf(rms_norm_eps=[1e-5]), r"rms_norm_eps is \[1e-05\]: give a finite number"),
    ("nan", hf(swiglu_limit=float("nan")), "swiglu_limit is nan: give a finite number"),
    ("infinite", hf(rope_theta=float("inf")), "rope_theta is inf: give a finite number"),
    ("beyond float64", hf(rope_theta=10**400), "rope_theta is 1000.*: give a finite number"),
    ("rope not an object", hf(rope_scaling="yarn"), "key rope_scaling is 'yarn': expected an object"),
    ("quantization not an object", hf(quantization_config="mxfp4"), "key quantization_config is 'mxfp4'"),
    ("layer types a string", hf(layer_types="full_attention"), "key layer_types is 'full_attention': expected a list"),
    ("layer types empty", hf(layer_types=[]), r"key layer_types is \[\]: expected a list"),
    ("layer types a number", hf(layer_types=24), "key layer_types is 24: expected a list"),
    ("layer type", hf(layer_types=["chunked_attention"] * 24), "layer_types holds 'chunked_attention'"),
    ("original string", PUBLISHED_ORIGINAL | {"initial_context_length": "4096"}, "initial_context_length is '4096'"),
    ("original null", PUBLISHED_ORIGINAL | {"rope_scaling_factor": None}, "rope_scaling_factor None: give numbers"),
    ("original infinite", PUBLISHED_ORIGINAL | {"rope_scaling_factor": float("inf")}, "rope_scaling_factor inf"),
    ("original nan", PUBLISHED_ORIGINAL | {"rope_scaling_factor": float("nan")}, "rope_scaling_factor nan"),
    (
        "original overflow",
        PUBLISHED_ORIGINAL | {"rope_scaling_factor": 1e308},
        "at most 2,147,483,647 tokens of context",
    ),
    ("original long", PUBLISHED_ORIGINAL | {"initial_context_length": 2**31}, "rope_scaling_factor 32.0: give numbers"),
    ("factor", rope(factor=1e300), "rope_scaling_factor is 1e\\+300: give at least 1, at most 2,147,483,647"),
    ("original float", PUBLISHED_ORIGINAL | {"num_experts": 32.5}, "num_experts is 32.5: give a whole number"),
    # Neither spelling.
    ("empty", {}, "key initial_context_length is missing"),
    ("no rope", without(PUBLISHED_HF, "rope_scaling"), r"key rope_scaling \(or rope_parameters\) is missing"),
]


@pytest.mark.parametrize(("raw", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refuses(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^config.json: .*{message}") as caught:
        ModelConfig.from_json(raw)
    assert "\n" not in str(caught.value)


REQUIRED_HF = [
    "head_dim hidden_size intermediate_size max_position_embeddings num_attention_heads num_hidden_layers",
    "num_key_value_heads num_local_experts rms_norm_eps rope_theta sliding_window vocab_size",
]


@pytest.mark.parametrize("key", " ".join(REQUIRED_HF).split())
def test_names_a_missing_key(key: str) -> None:
    with pytest.raises(ConfigError, match=f"key {key} is missing"):
        ModelConfig.from_json(without(PUBLISHED_HF, key))


@pytest.mark.parametrize("key", [key for key in PUBLISHED_ORIGINAL if key not in ("swiglu_limit",)])
def test_names_a_missing_key_of_the_original_spelling(key: str) -> None:
    if key.startswith("rope_ntk"):
        assert ModelConfig.from_json(without(PUBLISHED_ORIGINAL, key)) == GPT_OSS_20B  # These have one usual value.
    else:
        with pytest.raises(ConfigError, match=f"key {key} is missing"):
            ModelConfig.from_json(without(PUBLISHED_ORIGINAL, key))


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings"])
@pytest.mark.parametrize("spelling", [lambda raw: raw, new_rope], ids=["old", "new"])
def test_names_a_missing_rope_key(key: str, spelling: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    raw = spelling(hf(rope_scaling=without(PUBLISHED_HF["rope_scaling"], key)))
    with pytest.raises(ConfigError, match=rf"key rope_(scaling|parameters)\.{key} is missing"):
        ModelConfig.from_json(raw)


def test_missing_experts_a_token_are_asked_for_by_name() -> None:
    raw = without(without(PUBLISHED_HF, "experts_per_token"), "num_experts_per_tok")
    with pytest.raises(ConfigError, match="key num_experts_per_tok is missing"):
        ModelConfig.from_json(raw)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[]", "expected a JSON object, found list"),
        ('{"hidden_size": 64, "hidden_size": 96}', "not valid JSON .key 'hidden_size' stands twice"),
        ("[" * 100_000, "not valid JSON"),
        ('{"hidden_size": ' + "9" * 5_000 + "}", "not valid JSON"),
    ],
    ids=["empty", "cut", "list", "repeated key", "deep", "long number"],
)
def test_refuses_a_file(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"config.json: {message}") as caught:
        ModelConfig.from_json(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_refuses_bytes_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid JSON"):
        ModelConfig.from_json(path)


def test_refuses_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.json: cannot be read \(No such file or directory\)"):
        ModelConfig.from_json(tmp_path / "none.json")


def test_the_file_is_named_when_a_key_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(hf(surprise=1)), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_json(path)
    assert str(caught.value).startswith(f"{path}: unknown key surprise")


def test_reading_leaves_the_object_as_it_was() -> None:
    raw = json.loads(json.dumps(PUBLISHED_HF))
    ModelConfig.from_json(raw)
    assert raw == PUBLISHED_HF


def test_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        GPT_OSS_20B.hidden_size = 64  # type: ignore[misc]
