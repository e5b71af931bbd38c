"""What is exported computes what was trained: the fake-quantised forward pass against two independent readers.

transformers de-quantises the official layout by its own code; the GGUF file is read with the `gguf` package, whose
values are put into transformers' model too.
"""

import gguf
import numpy as np
import pytest
import torch
from tests.model.oracles import small, transformers_config
from tests.train.small import batch_of, loop_of

from ossia.kernels import select
from ossia.model.adapt import build
from ossia.model.attention import Packed
from ossia.model.write import write_checkpoint
from ossia.release.export import export_gguf
from ossia.train.loss import cross_entropy
from ossia.train.optim import initial_weights

CONFIG = small(num_hidden_layers=2, mxfp4_experts=True)
LIMIT = 1e-4
"""On logits of about unit spread."""


class Given:
    def next(self, step):
        return [batch_of((30, 40), step, vocab_size=CONFIG.vocab_size)]

    def state(self):
        return {}

    def accounting(self):
        return {}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A few steps of QAT in float32: the checkpoint that comes out, ids, and logits of the training forward pass."""
    out = tmp_path_factory.mktemp("run")
    model = build(CONFIG, select("torch"))
    weights = dict(initial_weights(model, 0))
    model = model.to_empty(device="cpu").eval().requires_grad_(True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name] * (4 if name.startswith("unembedding") else 1))
    loop_of(out, model=model, steps=8, rate=3e-3, optimizer="muon", feed=Given(), objective=cross_entropy).run()
    ids = torch.randint(CONFIG.vocab_size, (200,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(ids, torch.arange(200), Packed(model.kernels, (200,)))
    folder = out / "checkpoint"
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    checkpoint = write_checkpoint(folder, CONFIG, tensors)
    assert checkpoint.packed and float(logits.std()) > 0.3
    return folder, checkpoint, ids, logits


def assert_near(found, logits):
    off = float((found - logits).abs().max())
    print(f"largest difference {off:.1e}")
    assert off <= LIMIT


def test_transformers_de_quantising(trained):
    from transformers import GptOssForCausalLM, Mxfp4Config

    folder, _, ids, logits = trained
    model = GptOssForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=Mxfp4Config(dequantize=True),
    ).eval()
    with torch.no_grad():
        found = model.float()(ids[None], use_cache=False).logits[0]
    assert_near(found, logits)


def gguf_values(path):
    """Every tensor of a GGUF file in float32, by the package's own decoders."""
    reader = gguf.GGUFReader(path)
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        yield tensor.name, torch.from_numpy(np.array(values, dtype=np.float32)).view(shape)


GGUF_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
GGUF_PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}


def test_gguf_by_its_own_package(trained, tmp_path):
    from transformers import GptOssForCausalLM

    _, checkpoint, ids, logits = trained
    path = tmp_path / "model.gguf"
    export_gguf(checkpoint, path, name="trained", dense="bf16")
    state, experts = {}, {}
    for name, tensor in gguf_values(path):
        if name in GGUF_NAMES:
            state[GGUF_NAMES[name]] = tensor
            continue
        _, layer, part, *leaf = name.split(".")
        if part.endswith("_exps"):
            experts[int(layer), part, leaf[0]] = tensor
        else:
            theirs = f"model.layers.{layer}.{GGUF_PARTS[part]}"
            state[theirs if part == "attn_sinks" else f"{theirs}.{leaf[0]}"] = tensor
    for layer in range(CONFIG.num_hidden_layers):
        stem = f"model.layers.{layer}.mlp.experts"
        for leaf, suffix in (("weight", ""), ("bias", "_bias")):
            gate, up, down = (experts[layer, f"ffn_{which}_exps", leaf] for which in ("gate", "up", "down"))
            both = torch.stack((gate, up), dim=2).flatten(1, 2)  # Rows in turn.
            for which, tensor in (("gate_up", both), ("down", down)):
                state[f"{stem}.{which}_proj{suffix}"] = tensor.mT.contiguous() if leaf == "weight" else tensor
    model = GptOssForCausalLM(transformers_config(CONFIG)).float().eval()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        found = model(ids[None], use_cache=False).logits[0]
    assert_near(found, logits)
