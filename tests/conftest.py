"""What several parts need: the published vocabulary, without a network."""

import gzip
import hashlib
import json
from importlib.metadata import distribution
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings

from ossia.harmony.tokenizer import Tokenizer

# No test is timed, and by default hypothesis fails an example that takes longer than usual.
settings.register_profile("ossia", deadline=None)
settings.load_profile("ossia")

O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"


@pytest.fixture(scope="session")
def o200k_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file o200k_base.tiktoken, alone in its folder, as the package bpe-openai carries it."""
    # The file alone: importing that package loads every vocabulary it has.
    packed = Path(str(distribution("bpe-openai").locate_file("bpe_openai/data/o200k_base.tiktoken.gz"))).read_bytes()
    unpacked = gzip.decompress(packed)
    assert hashlib.sha256(unpacked).hexdigest() == O200K_SHA256, "bpe-openai carries another vocabulary"
    path = tmp_path_factory.mktemp("o200k") / "o200k_base.tiktoken"
    path.write_bytes(unpacked)
    return path


@pytest.fixture(scope="session")
def o200k(o200k_path: Path) -> Tokenizer:
    """The tokenizer of the published models."""
    return Tokenizer.load(o200k_path)


TINY_SPECIALS = "<|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>".split()
"""Special tokens of the tiny vocabulary, from id 256 on; each id below is the byte of that number."""


@pytest.fixture(scope="session")
def tiny_tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of bytes without a merge, and harmony's special tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
    split = {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    path = tmp_path_factory.mktemp("tiny_vocabulary") / "tokenizer.json"
    content = {
        "version": "1.0",
        "added_tokens": [{"id": 256 + n, "content": name, "special": True} for n, name in enumerate(TINY_SPECIALS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "model": {"type": "BPE", "vocab": alphabet, "merges": []},
    }
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_file: Path) -> Tokenizer:
    """The tokenizer of `tiny_model`."""
    return Tokenizer.load(tiny_tokenizer_file)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_file: Path) -> Path:
    """A model folder, in the HF layout with packed experts, whose answer to everything is 42.

    Attention and experts add nothing, so a token's embedding alone chooses its successor: the `t` of `assistant` leads
    to `<|channel|>`, and so on to `<|return|>`.
    """
    import torch

    from ossia.config import ModelConfig
    from ossia.model.layouts import parameter_shapes
    from ossia.model.write import write_checkpoint

    config = ModelConfig(
        num_hidden_layers=2,
        num_experts=4,
        experts_per_token=2,
        vocab_size=272,
        hidden_size=64,
        intermediate_size=32,
        head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        initial_context_length=512,
        max_position_embeddings=1024,
        rope_scaling_factor=2.0,
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in parameter_shapes(config, packed=True).items():
        packed = name.endswith(("_blocks", "_scales"))
        tensors[name] = torch.zeros(shape, dtype=torch.uint8 if packed else torch.bfloat16)
        if name.endswith("norm.scale"):
            tensors[name].fill_(1)
    signs = torch.randint(0, 2, (config.vocab_size, config.hidden_size), generator=torch.Generator().manual_seed(0))
    tensors["embedding.weight"] = (2 * signs - 1).bfloat16()
    special = {name: 256 + n for n, name in enumerate(TINY_SPECIALS)}
    path = [ord("t"), special["<|channel|>"], *b"final", special["<|message|>"], *b"42", special["<|return|>"]]
    for token, successor in pairwise(path):
        tensors["unembedding.weight"][successor] = tensors["embedding.weight"][token]
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    write_checkpoint(folder, config, tensors, extra_files=[tiny_tokenizer_file], generation_config={"do_sample": False})
    return folder
