"""Tokens, merges and special ids, checked with an independent implementation of BPE."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from ossia.errors import TokenizerError
from ossia.harmony.tokenizer import O200K_PATTERN, Tokenizer
from ossia.model.locate import demo_folder
from ossia.release.vocabulary import NEAREST, merges_of, tokenizer_metadata

DEMO = demo_folder() / "tokenizer.json"
TEXTS = [
    "Hello, world! It's 12345 o'clock.\n\n  def f(x):\n\treturn x ** 2  # naïve café 中文字 🙂",
    "What is 4213 + 2789?",
    "x" * 40 + "\n" * 5 + " " * 70,
]


def from_metadata(metadata: dict[str, object], pattern: str) -> tokenizers.Tokenizer:
    """The tokenizers library's BPE, given what the file would say."""
    vocab = {text: token for token, text in enumerate(metadata["tokenizer.ggml.tokens"])}  # type: ignore[arg-type]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]  # type: ignore[attr-defined]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return tokenizer


def test_the_published_vocabulary(o200k_path: Path, o200k: Tokenizer) -> None:
    metadata, notes = tokenizer_metadata(o200k_path, 201_088)
    assert notes == []
    assert metadata["tokenizer.ggml.model"] == "gpt2"
    assert metadata["tokenizer.ggml.pre"] == "gpt-4o"
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert len(tokens) == len(types) == 201_088
    assert [tokens[200_006], types[200_006], types[0], tokens[198], tokens[220]] == ["<|start|>", 3, 1, "Ċ", "Ġ"]
    assert metadata["tokenizer.ggml.bos_token_id"] == 199_998
    assert metadata["tokenizer.ggml.eos_token_id"] == 200_002
    assert metadata["tokenizer.ggml.padding_token_id"] == 199_999
    independent = from_metadata(metadata, O200K_PATTERN)
    for text in TEXTS:
        assert independent.encode(text).ids == o200k.encode(text)


def test_the_bundled_vocabulary() -> None:
    metadata, notes = tokenizer_metadata(DEMO, 4096)
    assert metadata["tokenizer.ggml.pre"] == NEAREST
    assert len(notes) == 1
    assert f"'{NEAREST}', the nearest" in notes[0]
    demo, pattern = Tokenizer.load(DEMO), json.loads(DEMO.read_text())["pre_tokenizer"]["pretokenizers"][0]["pattern"]
    independent = from_metadata(metadata, pattern["Regex"])
    for text in TEXTS:
        assert independent.encode(text).ids == demo.encode(text)


def test_merges_follow_from_ranks_as_from_the_file() -> None:
    demo = Tokenizer.load(DEMO)
    ranks = {demo.token_bytes(token): token for token in range(demo.vocab_size) if token not in demo.special_ids}
    metadata, _ = tokenizer_metadata(DEMO, 4096)
    texts = metadata["tokenizer.ggml.tokens"]
    assert isinstance(texts, list)
    derived = [f"{texts[ranks[left]]} {texts[ranks[right]]}" for left, right in merges_of(ranks)]
    assert derived == metadata["tokenizer.ggml.merges"]


def test_rows_without_a_token_are_unused(tiny_tokenizer_file: Path) -> None:
    metadata, _ = tokenizer_metadata(tiny_tokenizer_file, 272)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    assert isinstance(tokens, list)
    assert isinstance(types, list)
    assert tokens[256:] == [
        *"<|endoftext|> <|return|> <|constrain|> <|channel|> <|start|> <|end|> <|message|> <|call|>".split(),
        *(f"<|unused_{token}|>" for token in range(264, 272)),
    ]
    assert types[255:] == [1, *[3] * 8, *[5] * 8]
    assert metadata["tokenizer.ggml.bos_token_id"] == 256
    assert metadata["tokenizer.ggml.merges"] == []


def test_a_foreign_vocabulary_is_refused(tiny_tokenizer_file: Path) -> None:
    with pytest.raises(TokenizerError, match="has ids up to 263 and the model a vocabulary of 200: put the model's"):
        tokenizer_metadata(tiny_tokenizer_file, 200)


def test_ranks_that_no_merge_makes() -> None:
    with pytest.raises(TokenizerError, match="token 300 is made by no merge of earlier ones"):
        merges_of({**{bytes([byte]): byte for byte in range(256)}, b"abc": 300})
