"""Two independent implementations of gpt-oss, filled from one set of tensors under ossia's names.

The maps of names are written out here and share nothing with `ossia.model.layouts`. Both run in float32 on the CPU.

Shapes: E experts, D hidden, I intermediate, T tokens, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ossia.config import ModelConfig
from ossia.kernels import mxfp4

Oracle = Callable[[Tensor], Tensor]
"""Token ids int64 [T] of one sequence → logits [T, V]."""


def small(**fields: object) -> ModelConfig:
    """A configuration small enough for tests, in which no two sizes that may differ are equal."""
    defaults: dict[str, object] = {
        "num_hidden_layers": 3,
        "num_experts": 8,
        "vocab_size": 300,
        "hidden_size": 96,
        "intermediate_size": 64,
        "head_dim": 16,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mxfp4_experts": False,
    }
    return ModelConfig(**(defaults | fields))  # type: ignore[arg-type]


def random_tensors(config: ModelConfig, seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random dense parameters under ossia's names, scaled so that activations and logits have about unit spread.

    Nothing is left at a value that could hide a mistake: biases, sinks and norm scales are random too.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, spread: float) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=torch.float64) * spread).to(dtype)

    c, d, i, e = config, config.hidden_size, config.intermediate_size, config.num_experts
    out = {"embedding.weight": normal(c.vocab_size, d, spread=1)}
    for n in range(c.num_hidden_layers):
        rows = {"q": c.q_dim, "k": c.kv_dim, "v": c.kv_dim}
        out[f"layers.{n}.attention_norm.scale"] = 1 + normal(d, spread=0.2)
        for name, size in rows.items():
            out[f"layers.{n}.attention.{name}.weight"] = normal(size, d, spread=1.5 * d**-0.5)
            out[f"layers.{n}.attention.{name}.bias"] = normal(size, spread=0.5)
        out[f"layers.{n}.attention.o.weight"] = normal(d, c.q_dim, spread=c.q_dim**-0.5)
        out[f"layers.{n}.attention.o.bias"] = normal(d, spread=0.5)
        out[f"layers.{n}.attention.sinks"] = normal(c.num_attention_heads, spread=2)
        out[f"layers.{n}.mlp_norm.scale"] = 1 + normal(d, spread=0.2)
        out[f"layers.{n}.mlp.router.weight"] = normal(e, d, spread=d**-0.5)
        out[f"layers.{n}.mlp.router.bias"] = normal(e, spread=0.5)
        out[f"layers.{n}.mlp.experts.gate_up"] = normal(e, 2 * i, d, spread=3 * d**-0.5)
        out[f"layers.{n}.mlp.experts.gate_up_bias"] = normal(e, 2 * i, spread=0.5)
        out[f"layers.{n}.mlp.experts.down"] = normal(e, d, i, spread=0.5 * i**-0.5)
        out[f"layers.{n}.mlp.experts.down_bias"] = normal(e, d, spread=0.5)
    out["norm.scale"] = 1 + normal(d, spread=0.2)
    out["unembedding.weight"] = normal(c.vocab_size, d, spread=d**-0.5)
    return out


def packed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same parameters with the expert weights in MXFP4."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith((".gate_up", ".down")):
            out[f"{name}_blocks"], out[f"{name}_scales"] = mxfp4.quantize(tensor, name=name)
        else:
            out[name] = tensor
    return out


# ---------------------------------------------------------------- transformers


def transformers_config(config: ModelConfig):
    from transformers import GptOssConfig

    out = GptOssConfig(
        num_hidden_layers=config.num_hidden_layers,
        num_local_experts=config.num_experts,
        num_experts_per_tok=config.experts_per_token,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        head_dim=config.head_dim,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        sliding_window=config.sliding_window,
        layer_types=list(config.layer_types),
        max_position_embeddings=config.max_position_embeddings,
        rms_norm_eps=config.rms_norm_eps,
        swiglu_limit=config.swiglu_limit,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": config.rope_theta,
            "factor": config.rope_scaling_factor,
            "beta_fast": config.rope_beta_fast,
            "beta_slow": config.rope_beta_slow,
            "truncate": False,
            "original_max_position_embeddings": config.initial_context_length,
        },
        pad_token_id=None,
    )
    out._attn_implementation = "eager"
    out._experts_implementation = "eager"
    return out


def transformers_name(name: str) -> str:
    """The name that transformers' `GptOssForCausalLM` gives to a parameter of ours."""
    top = {
        "embedding.weight": "model.embed_tokens.weight",
        "norm.scale": "model.norm.weight",
        "unembedding.weight": "lm_head.weight",
    }
    if name in top:
        return top[name]
    _, n, rest = name.split(".", 2)
    for ours, theirs in (
        ("attention_norm.scale", "input_layernorm.weight"),
        ("mlp_norm.scale", "post_attention_layernorm.weight"),
        ("attention.q.", "self_attn.q_proj."),
        ("attention.k.", "self_attn.k_proj."),
        ("attention.v.", "self_attn.v_proj."),
        ("attention.o.", "self_attn.o_proj."),
        ("attention.sinks", "self_attn.sinks"),
        ("experts.gate_up", "experts.gate_up_proj"),
        ("experts.down", "experts.down_proj"),
    ):
        rest = rest.replace(ours, theirs)
    return f"model.layers.{n}.{rest}"


def transformers_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a dense `GptOssForCausalLM`; packed experts are expanded by transformers' own code."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith("_blocks"):
            scales = tensors[name.replace("_blocks", "_scales")]
            out[transformers_name(name.removesuffix("_blocks"))] = convert_moe_packed_tensors(
                tensor, scales, dtype=torch.float32
            )
        elif name.endswith((".gate_up", ".down")):
            out[transformers_name(name)] = tensor.transpose(1, 2).contiguous()
        elif not name.endswith("_scales"):
            out[transformers_name(name)] = tensor
    return out


def transformers_model(config: ModelConfig, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32):
    """`GptOssForCausalLM` with plain attention and a plain loop over experts."""
    from transformers import GptOssForCausalLM

    model = GptOssForCausalLM(transformers_config(config)).to(dtype).eval()
    model.load_state_dict(transformers_state(tensors), strict=True)
    return model


def transformers_oracle(config: ModelConfig, tensors: dict[str, Tensor]) -> Oracle:
    """transformers' implementation."""
    model = transformers_model(config, tensors)

    @torch.no_grad()
    def logits(token_ids: Tensor) -> Tensor:
        return model(token_ids[None], use_cache=False).logits[0]

    return logits


# ---------------------------------------------------------------- gpt_oss.torch


def official_name(name: str) -> str:
    """The name that `gpt_oss.torch` gives to a parameter of ours, queries, keys and values aside."""
    if not name.startswith("layers."):
        return name
    _, n, rest = name.split(".", 2)
    for ours, theirs in (
        ("attention_norm.scale", "attn.norm.scale"),
        ("mlp_norm.scale", "mlp.norm.scale"),
        ("attention.o.", "attn.out."),
        ("attention.sinks", "attn.sinks"),
        ("mlp.router.", "mlp.gate."),
        ("mlp.experts.gate_up_bias", "mlp.mlp1_bias"),
        ("mlp.experts.down_bias", "mlp.mlp2_bias"),
        ("mlp.experts.gate_up", "mlp.mlp1_weight"),
        ("mlp.experts.down", "mlp.mlp2_weight"),
    ):
        if rest.startswith(ours):
            return f"block.{n}.{theirs}{rest.removeprefix(ours)}"
    raise AssertionError(f"no place for {name}")


def official_state(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a `gpt_oss.torch.model.Transformer`; packed experts are expanded by that package's own code."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        if stem.endswith("attention.q"):
            layer = stem.removeprefix("layers.").removesuffix(".attention.q")
            parts = [tensors[f"layers.{layer}.attention.{which}.{leaf}"] for which in "qkv"]
            out[f"block.{layer}.attn.qkv.{leaf}"] = torch.cat(parts)
        elif name.endswith("_blocks"):
            scales = tensors[name.replace("_blocks", "_scales")]
            out[official_name(name.removesuffix("_blocks"))] = official_dequantize(tensor, scales)
        elif not name.endswith("_scales") and not stem.endswith(("attention.k", "attention.v")):
            out[official_name(name)] = tensor
    return out


def official_dequantize(blocks: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The official decoder of MXFP4, which reads from a checkpoint: here from one that is in memory."""
    from gpt_oss.torch.weights import Checkpoint

    class InMemory(Checkpoint):
        def __init__(self) -> None:
            self.tensor_name_to_file = {"blocks": "", "scales": ""}

        def _get_tensor(self, name: str) -> Tensor:
            return {"blocks": blocks, "scales": scales}[name]

    return InMemory()._get_mxfp4_tensor("blocks", "scales", dtype=dtype)


def official_oracle(config: ModelConfig, tensors: dict[str, Tensor]) -> Oracle:
    """The official implementation, which is written for bfloat16, with every parameter in float32."""
    from gpt_oss.torch import model as official

    fields = {name: getattr(config, name) for name in official.ModelConfig.__dataclass_fields__ if "ntk" not in name}
    theirs = official.ModelConfig(**fields, rope_ntk_alpha=config.rope_beta_slow, rope_ntk_beta=config.rope_beta_fast)
    model = official.Transformer(theirs, torch.device("cpu")).float().eval()
    model.load_state_dict(official_state(tensors), strict=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}

    @torch.no_grad()
    def logits(token_ids: Tensor) -> Tensor:
        return model(token_ids)

    return logits


ORACLES: dict[str, Callable[[ModelConfig, dict[str, Tensor]], Oracle]] = {
    "transformers": transformers_oracle,
    "gpt_oss.torch": official_oracle,
}
