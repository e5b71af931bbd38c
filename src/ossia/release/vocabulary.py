"""A model's vocabulary as metadata of a GGUF file: tokens, their types, merges, special ids and the chat template."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from ossia.errors import TokenizerError
from ossia.files import read_json
from ossia.harmony.tokenizer import O200K_PATTERN, Tokenizer
from ossia.release.gguf import Value

CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")
"""Harmony as a Jinja template, for programs that render conversations with one."""

NEAREST = "qwen2"
"""The splitting rule of llama.cpp that is closest to the bundled vocabulary's: single digits, runs of newlines."""
_PRE_TOKENIZERS = {O200K_PATTERN: "gpt-4o"}
"""Pattern → llama.cpp's name for the rule that splits text the same way."""

_NORMAL, _CONTROL, _UNUSED = 1, 3, 5


def _characters() -> list[str]:
    """The character for each byte in a byte-level vocabulary: printable Latin-1 is itself, others follow U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_CHARACTERS = _characters()


def tokenizer_metadata(path: Path, vocab_size: int) -> tuple[dict[str, Value], list[str]]:
    """The keys `tokenizer.*` for the vocabulary at `path` in a model of `vocab_size` rows, and what to say about it.

    Raises TokenizerError where the vocabulary is unsound, or has more ids than the model has rows.
    """
    tokenizer = Tokenizer.load(path)
    if tokenizer.vocab_size > vocab_size:
        raise TokenizerError(
            f"{path} has ids up to {tokenizer.vocab_size - 1} and the model a vocabulary of {vocab_size}: put the "
            "model's own one there"
        )
    texts: list[str] = []
    types: list[int] = []
    for token in range(vocab_size):
        if (name := tokenizer.special_names.get(token)) is not None:
            texts.append(name)
            types.append(_CONTROL)
        elif token in tokenizer:
            texts.append(_text(tokenizer.token_bytes(token)))
            types.append(_NORMAL)
        else:
            texts.append(f"<|unused_{token}|>")
            types.append(_UNUSED)
    if len(set(texts)) < vocab_size:
        raise TokenizerError(f"{path}: two tokens have one text, which GGUF cannot say: rename a special token")
    pattern, merges = _pattern_and_merges(path, tokenizer)
    notes: list[str] = []
    if pattern not in _PRE_TOKENIZERS:
        notes.append(
            f"llama.cpp knows no splitting rule like this vocabulary's own; {NEAREST!r}, the nearest, is named, so "
            "unusual text may become other tokens there"
        )
    special = tokenizer.special
    fallback = special.get("<|endoftext|>", special["<|return|>"])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _PRE_TOKENIZERS.get(pattern, NEAREST),
        "tokenizer.ggml.tokens": texts,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": special.get("<|startoftext|>", fallback),
        "tokenizer.ggml.eos_token_id": special["<|return|>"],
        "tokenizer.ggml.padding_token_id": fallback,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": CHAT_TEMPLATE.read_text(encoding="utf-8"),
    }, notes


def merges_of(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges, first tried first, that a vocabulary given by ranks alone implies.

    The two halves of a token are what merging its bytes by lower ranks ends with. Raises TokenizerError where that is
    not two pieces.
    """
    return [
        _halves(token, rank, ranks) for token, rank in sorted(ranks.items(), key=lambda item: item[1]) if len(token) > 1
    ]


def _halves(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts = [token[index : index + 1] for index in range(len(token))]
    while len(parts) > 2:
        tried = [ranks.get(left + right, math.inf) for left, right in pairwise(parts)]
        lowest = min(tried)
        if lowest >= rank:
            raise TokenizerError(f"token {rank} is made by no merge of earlier ones: the vocabulary is damaged")
        at = tried.index(lowest)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts[0], parts[1]


def _pattern_and_merges(path: Path, tokenizer: Tokenizer) -> tuple[str, list[str]]:
    if path.suffix == ".tiktoken":
        ids = [token for token in range(tokenizer.vocab_size) if token not in tokenizer.special_ids]
        pairs = merges_of({tokenizer.token_bytes(token): token for token in ids if token in tokenizer})
        return O200K_PATTERN, [f"{_text(left)} {_text(right)}" for left, right in pairs]
    raw = read_json(path, TokenizerError)  # The tokenizer was loaded from it: its structure is known to be sound.
    merges: Sequence[str | Sequence[str]] = raw["model"]["merges"]
    pattern: str = raw["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
    return pattern, [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]


def _text(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)
