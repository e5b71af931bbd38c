"""The tokenizer against tiktoken's own o200k_harmony and against the Hugging Face library, and files it must refuse."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken_ext.openai_public
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from ossia.errors import TokenizerError
from ossia.harmony.tokenizer import GPT_OSS_SPECIALS, HARMONY_SPECIALS, IncrementalDecoder, Tokenizer

O200K_URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"

DIGIT_BY_DIGIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

CORPUS = [
    "",
    " ",
    "\n\n \t\r\n  x  \n",
    "The quick brown fox can't jump; they'll've 1234567890 3.14 1e-9 ½ ²",
    "def f(x: int) -> int:\n    return x ** 2  # carré\n\n\nif __name__ == '__main__':\r\n\tprint(f'{f(3):>8}')",
    "Zażółć gęślą jaźń · Съешь ещё этих булок · 敏捷的棕色狐狸 · いろはにほへと · 다람쥐",
    "שלום עולם · مرحبا · हिन्दी ภาษา",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u202e rtl \ufeff bom \x00 nul \u200d zwj ﷽",
    "<|start|>assistant<|channel|>final<|message|>ok<|return|> <|call|> <|endoftext|> <|reserved_200013|>",
    "lone \ud800 surrogate \udfff and a pair \ud83d\ude00",
    b"caf\xe9 \xff\xfe \xf0\x9f\x99 \xc3\x28".decode("latin-1"),
    b"caf\xe9 \xff\xfe \xf0\x9f\x99 \xc3\x28".decode("utf-8", errors="replace"),
    b"caf\xe9 \xff\xfe \xf0\x9f\x99 \xc3\x28".decode("utf-8", errors="surrogateescape"),
]


@pytest.fixture(scope="module")
def oracle(o200k_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    """tiktoken's o200k_harmony, which it finds in a cache folder instead of downloading."""
    cache = tmp_path_factory.mktemp("tiktoken")
    shutil.copy(o200k_path, cache / hashlib.sha1(O200K_URL.encode()).hexdigest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        return tiktoken.Encoding(**tiktoken_ext.openai_public.o200k_harmony())


@pytest.fixture(scope="module")
def trained() -> tokenizers.Tokenizer:
    """A small byte-level vocabulary as the bundled model's: 600 tokens, digits one by one, specials last."""
    hugging = tokenizers.Tokenizer(tokenizers.models.BPE())
    hugging.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(DIGIT_BY_DIGIT), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    hugging.train_from_iterator([text for text in CORPUS if text.isprintable()] * 3 + [CORPUS[4]] * 3, trainer)
    hugging.add_special_tokens([*HARMONY_SPECIALS, "<|endoftext|>"])
    return hugging


@pytest.fixture(scope="module")
def small(trained: tokenizers.Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("small")
    trained.save(str(folder / "tokenizer.json"))
    return Tokenizer.load(folder)


# -------------------------------------------------------------------- o200k


def test_every_id_reads_as_tiktoken_reads_it(o200k: Tokenizer, oracle: tiktoken.Encoding) -> None:
    assert o200k.vocab_size == 201_088
    # tiktoken has two names for 200018 and decodes to either.
    same = [token for token in range(o200k.vocab_size) if token != 200_018]
    assert [o200k.token_bytes(token) for token in same] == oracle.decode_tokens_bytes(same)
    assert o200k.decode([200_018]) == "<|endofprompt|>"


def test_specials_are_tiktokens(o200k: Tokenizer, oracle: tiktoken.Encoding) -> None:
    assert o200k.special == GPT_OSS_SPECIALS
    assert {oracle.encode_single_token(name) == token for name, token in o200k.special.items()} == {True}
    assert o200k.special_ids == frozenset(range(199_998, 201_088))
    assert o200k.stop_ids == {199_999, 200_002, 200_012}


@pytest.mark.parametrize("text", CORPUS)
def test_encodes_as_tiktoken(o200k: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    assert o200k.encode(text) == oracle.encode_ordinary(text)


@given(text=st.text())
def test_encodes_any_text_as_tiktoken_and_back(o200k: Tokenizer, oracle: tiktoken.Encoding, text: str) -> None:
    assert o200k.encode(text) == oracle.encode_ordinary(text)
    assert o200k.decode(o200k.encode(text)) == text


@given(ids=st.lists(st.integers(0, 201_087).filter(lambda token: token != 200_018)))
def test_decodes_any_ids_as_tiktoken(o200k: Tokenizer, oracle: tiktoken.Encoding, ids: list[int]) -> None:
    assert o200k.decode_bytes(ids) == oracle.decode_bytes(ids)
    assert o200k.decode(ids) == oracle.decode(ids)


def test_the_names_of_special_tokens_in_text_are_only_text(o200k: Tokenizer, small: Tokenizer) -> None:
    for tokenizer in (o200k, small):
        text = "".join(list(tokenizer.special)[:40]) + "<|call|>"
        ids = tokenizer.encode(text)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids) == text


def test_a_lone_surrogate_reads_as_the_replacement_character(o200k: Tokenizer) -> None:
    assert o200k.decode(o200k.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize("text", [" " * 1_200_000 + "x", "\t \t" * 400_000 + "y\n"])
def test_endless_white_space_is_encoded_whole(o200k: Tokenizer, text: str) -> None:
    assert o200k.decode(o200k.encode(text)) == text


def test_white_space_short_of_endless_is_tiktokens(o200k: Tokenizer, oracle: tiktoken.Encoding) -> None:
    text = "a" + " " * 500_000 + "b" + " " * 300_000
    assert o200k.encode(text) == oracle.encode_ordinary(text)


@pytest.mark.parametrize("token", [-1, 201_088, 10**30])
def test_decode_refuses_an_id_outside_the_vocabulary(o200k: Tokenizer, token: int) -> None:
    with pytest.raises(TokenizerError, match=f"token id {token} is not in this vocabulary of 201088 ids"):
        o200k.decode([100, token])


# -------------------------------------------------------------------- tokenizer.json


# That library refuses lone surrogates, and makes a special id of a special token's name.
@pytest.mark.parametrize(
    "text", [text for text in CORPUS if "<|" not in text and not re.search("[\ud800-\udfff]", text)]
)
def test_encodes_as_the_hugging_face_library(small: Tokenizer, trained: tokenizers.Tokenizer, text: str) -> None:
    assert small.encode(text) == trained.encode(text).ids
    assert small.decode(small.encode(text)) == text


@given(text=st.text(alphabet=st.sampled_from("abcdefgh foxbrwn0123456789'.\n\té中🙂")))
def test_encodes_any_text_as_the_hugging_face_library(
    small: Tokenizer, trained: tokenizers.Tokenizer, text: str
) -> None:
    assert small.encode(text) == trained.encode(text).ids


def test_specials_of_a_file(small: Tokenizer, trained: tokenizers.Tokenizer) -> None:
    assert small.special == {name: trained.token_to_id(name) for name in (*HARMONY_SPECIALS, "<|endoftext|>")}
    assert small.vocab_size == trained.get_vocab_size()
    assert small.stop_ids == {small.special[name] for name in ("<|return|>", "<|call|>", "<|endoftext|>")}
    assert len(small.encode("1234567890")) == 10


def test_merges_may_be_strings(trained: tokenizers.Tokenizer, small: Tokenizer, tmp_path: Path) -> None:
    raw = json.loads(trained.to_str())
    assert all(isinstance(merge, list) for merge in raw["model"]["merges"])
    raw["model"]["merges"] = [" ".join(merge) for merge in raw["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    assert Tokenizer.load(tmp_path).encode(CORPUS[3]) == small.encode(CORPUS[3])


def test_the_published_vocabulary_names_every_id_of_the_model(o200k: Tokenizer, tmp_path: Path) -> None:
    """A file of the published form, whose special tokens stop at 200018, loads equal to the .tiktoken file."""
    letters = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in letters}
    alphabet |= {byte: chr(0x100 + n) for n, byte in enumerate(byte for byte in range(256) if byte not in alphabet)}
    vocab = {"".join(alphabet[byte] for byte in o200k.token_bytes(token)): token for token in range(199_998)}
    merges = [
        next([token[:n], token[n:]] for n in range(1, len(token)) if token[:n] in vocab and token[n:] in vocab)
        for token in vocab
        if len(token) > 1
    ]
    raw = {
        "added_tokens": [
            {"id": token, "content": name, "special": True}
            for name, token in GPT_OSS_SPECIALS.items()
            if token <= 200_018
        ],
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": DIGIT_BY_DIGIT}, "behavior": "Removed", "invert": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.special == o200k.special
    assert loaded.vocab_size == 201_088
    every = range(201_088)
    assert [loaded.token_bytes(token) for token in every] == [o200k.token_bytes(token) for token in every]


# -------------------------------------------------------------------- incremental decoding


@given(text=st.text(), data=st.data())
def test_incremental_decoding_of_any_split_is_whole_decoding(small: Tokenizer, text: str, data: st.DataObject) -> None:
    ids: list[int] = []
    rest = text.encode()
    while rest:  # cut anywhere, inside characters too
        length = data.draw(st.integers(1, min(4, len(rest))))
        chunk, rest = rest[:length], rest[length:]
        by_bytes = {small.token_bytes(token): token for token in range(small.vocab_size)}
        ids += [by_bytes[chunk]] if chunk in by_bytes else [byte_id(small, byte) for byte in chunk]
    decoder = IncrementalDecoder(small)
    pieces = [decoder.feed(token) for token in ids] + [decoder.finish()]
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def byte_id(tokenizer: Tokenizer, byte: int) -> int:
    return next(token for token in range(256) if tokenizer.token_bytes(token) == bytes([byte]))


@given(data=st.data())
def test_incremental_decoding_of_any_ids_is_whole_decoding(small: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, small.vocab_size - 1)))
    decoder = IncrementalDecoder(small, show_special=True)
    assert "".join([*map(decoder.feed, ids), decoder.finish()]) == small.decode(ids)
    silent = IncrementalDecoder(small)
    runs = "".join([*map(silent.feed, ids), silent.finish()])
    names = "|".join(map(re.escape, small.special))
    assert runs == re.sub(names, "", small.decode(ids))


def test_incremental_decoding_waits_for_the_whole_character(small: Tokenizer) -> None:
    decoder = IncrementalDecoder(small)
    ids = [byte_id(small, byte) for byte in "🙂".encode()]
    assert [decoder.feed(token) for token in ids] == ["", "", "", "🙂"]
    assert decoder.finish() == ""


def test_a_special_token_cuts_a_character_short(small: Tokenizer) -> None:
    decoder = IncrementalDecoder(small)
    assert decoder.feed(byte_id(small, 0xF0)) == ""
    assert decoder.feed(small.special["<|end|>"]) == "\ufffd"
    assert decoder.feed(byte_id(small, 0x41)) == "A"
    assert IncrementalDecoder(small, show_special=True).feed(small.special["<|end|>"]) == "<|end|>"


@pytest.mark.parametrize("token", [-1, 10_000, 10**30])
def test_incremental_decoding_survives_ids_outside_the_vocabulary(small: Tokenizer, token: int) -> None:
    decoder = IncrementalDecoder(small)
    assert decoder.feed(byte_id(small, 0xF0)) + decoder.feed(token) == "\ufffd\ufffd"
    assert decoder.finish() == ""


# -------------------------------------------------------------------- bad files


def test_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer.json and no o200k_base.tiktoken; copy either one there"):
        Tokenizer.load(tmp_path)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"absent: cannot be read \(No such file"):
        Tokenizer.load(tmp_path / "absent")


def test_loads_from_a_folder_too(o200k: Tokenizer, o200k_path: Path) -> None:
    assert Tokenizer.load(o200k_path.parent).special == o200k.special


def test_refuses_other_ranks(tmp_path: Path) -> None:
    (tmp_path / "o200k_base.tiktoken").write_bytes(b"IQ== 0\n")
    with pytest.raises(TokenizerError, match=r"not the published o200k_base\.tiktoken"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_refuses_broken_json(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(data)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: not valid JSON .*: mend the file, or fetch it again"):
        Tokenizer.load(tmp_path)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """A change to the parsed file: put(keys…, value) sets, put(keys…, ...) deletes."""

    def change(raw: Any) -> None:
        *keys, last, value = path
        for key in keys:
            raw = raw[key]
        if value is ...:
            del raw[last]
        else:
            raw[last] = value

    return change


def swap_two_merges(raw: dict[str, Any]) -> None:
    merges = raw["model"]["merges"]
    merges[5], merges[50] = merges[50], merges[5]


def lose_a_byte(raw: dict[str, Any]) -> None:
    del raw["model"]["vocab"]["Ā"]


def lose_the_last_merge(raw: dict[str, Any]) -> None:
    raw["model"]["merges"].pop()


def foreign_character(raw: dict[str, Any]) -> None:
    raw["model"]["vocab"]["▁the"] = 599


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("model", "type", "Unigram"), "model.type is 'Unigram'; only byte-level BPE"),
        (put("model", "type", "WordPiece"), "model.type is 'WordPiece'; only byte-level BPE"),
        (put("model", "continuing_subword_prefix", "##"), "model.continuing_subword_prefix is '##'"),
        (put("model", "byte_fallback", True), "model.byte_fallback is True"),
        (put("normalizer", {"type": "NFC"}), "normalizer is set"),
        (put("pre_tokenizer", {"type": "Whitespace"}), "pre_tokenizer must be a Sequence of Split"),
        (put("pre_tokenizer", None), "not the structure of a tokenizer.json"),
        (put("pre_tokenizer", "pretokenizers", 0, "behavior", "MergedWithNext"), "Split is MergedWithNext"),
        (put("pre_tokenizer", "pretokenizers", 1, "add_prefix_space", True), "add_prefix_space and use_regex false"),
        (put("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", "(["), "tiktoken refuses the pattern"),
        (put("pre_tokenizer", "pretokenizers", 0, "pattern", "Regex", r"\w+"), "pattern drops text"),
        (put("model", ...), "no key 'model'"),
        (put("model", "vocab", ...), "no key 'vocab'"),
        (put("model", "vocab", [1, 2]), "not the structure of a tokenizer.json"),
        (put("model", "vocab", {}), r"merge 0 .* is not two tokens that make a third"),
        (put("model", "merges", 3, "nonsense"), "merge 3 'nonsense' is not two tokens that make a third"),
        (put("model", "merges", 3, ["zzz", "zzz"]), r"merge 3 \['zzz', 'zzz'\] is not two tokens"),
        (put("model", "merges", 3, 7), "not the structure of a tokenizer.json"),
        (put("added_tokens", 0, "id", 300), "two tokens share one id"),
        *(
            (
                put(*where, value),
                rf"a token has the id {re.escape(repr(value))}; give whole numbers from 0 to 2147483647",
            )
            for where in (("added_tokens", 0, "id"), ("model", "vocab", "a"))
            for value in (-1, 2**32, float("inf"), 2.5, True, None, "7")
        ),
        (put("added_tokens", 3, ...), r"no special token <\|channel\|>; give a gpt-oss vocabulary"),
        (put("added_tokens", []), r"no special token <\|start\|> <\|end\|> .* <\|call\|>; give"),
        (swap_two_merges, "is not in the order of the merges"),
        (lose_a_byte, "no token for byte 0x00"),
        (lose_the_last_merge, "no merge makes the token"),
        (foreign_character, "stands for no byte; give byte-level BPE"),
    ],
)
def test_refuses_a_foreign_or_broken_tokenizer_json(
    trained: tokenizers.Tokenizer, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    raw = json.loads(trained.to_str())
    change(raw)
    (tmp_path / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(TokenizerError, match=message) as caught:
        Tokenizer.load(tmp_path)
    assert "tokenizer.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refuses_a_json_file_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: expected a JSON object, found list"):
        Tokenizer.load(tmp_path)
