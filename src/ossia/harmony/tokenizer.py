"""Text ⇄ token ids: a byte-level BPE vocabulary from a checkpoint's own file, run by tiktoken, never downloaded."""

import base64
import binascii
import codecs
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import tiktoken

from ossia.errors import TokenizerError
from ossia.files import parse_json

HARMONY_SPECIALS = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")

_MOST_ID = 2**31 - 1
NUM_O200K_RANKS = 199_998
O200K_SHA256 = "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d"
O200K_PATTERN = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
GPT_OSS_SPECIALS: Mapping[str, int] = MappingProxyType(
    {
        {
            199_998: "<|startoftext|>",
            199_999: "<|endoftext|>",
            200_002: "<|return|>",
            200_003: "<|constrain|>",
            200_005: "<|channel|>",
            200_006: "<|start|>",
            200_007: "<|end|>",
            200_008: "<|message|>",
            200_012: "<|call|>",
            200_018: "<|endofprompt|>",
        }.get(token, f"<|reserved_{token}|>"): token
        for token in range(NUM_O200K_RANKS, 201_088)
    }
)

# One of each kind of character: a pattern that does not cover these would make tiktoken drop text in silence.
_PROBE = "aZ é中\u0301 1½ .-/'s\t \r\n\n  _\x00\u200d🙂 "

# tiktoken panics where its pattern backtracks over a million characters, which only a run of white space makes it do.
_MAX_RUN = 500_000
_LONG_RUN = re.compile(rf"(?<!\s)\s{{{_MAX_RUN},}}+")


class Tokenizer:
    """Encodes text and decodes ids of one vocabulary that has the special tokens of harmony.

    Text never becomes a special id, whatever it says: special ids come only from `special`, by name.
    """

    def __init__(self, *, ranks: dict[bytes, int], pattern: str, special: Mapping[str, int], source: str) -> None:
        """Build from parts; `load` is the usual way in.

        Args:
            ranks: id of each token by its bytes; ids increase in the order in which BPE merges are tried.
            pattern: regular expression whose matches are encoded one by one.
            special: id of each special token by its name.
            source: what to call this vocabulary in messages, normally its path.

        Raises:
            TokenizerError: the parts contradict each other, or harmony's special tokens are lacking.
        """
        lacking = [name for name in HARMONY_SPECIALS if name not in special]
        if lacking:
            raise TokenizerError(f"{source}: no special token {' '.join(lacking)}; give a gpt-oss vocabulary")
        lacking_bytes = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if lacking_bytes:
            raise TokenizerError(
                f"{source}: no token for byte 0x{lacking_bytes[0]:02x} ({len(lacking_bytes)} of 256 bytes lack one); "
                f"train the vocabulary with the whole byte alphabet"
            )
        ids = {*ranks.values(), *special.values()}
        if len(ids) != len(ranks) + len(special):
            raise TokenizerError(f"{source}: two tokens share one id; repair the vocabulary")
        try:
            # The constructor alone registers nothing and reads no cache.
            self._bpe = tiktoken.Encoding(source, pat_str=pattern, mergeable_ranks=ranks, special_tokens=dict(special))
        except ValueError as error:
            raise TokenizerError(f"{source}: tiktoken refuses the pattern or the ranks ({_one_line(error)})") from None
        self.special: Mapping[str, int] = MappingProxyType(dict(special))
        self.special_ids = frozenset(special.values())
        self.special_names: Mapping[int, str] = MappingProxyType({token: name for name, token in special.items()})
        self.vocab_size = max(ids) + 1
        self._ids = frozenset(ids)
        ends = ("<|return|>", "<|call|>", "<|endoftext|>")
        self.stop_ids = frozenset(special[name] for name in ends if name in special)
        if self.decode(self.encode(_PROBE)) != _PROBE:
            raise TokenizerError(f"{source}: the pre_tokenizer pattern drops text; let its last branch match anything")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a vocabulary from disk; nothing else is read or written, and there is no network.

        Args:
            path: a folder with `tokenizer.json` or `o200k_base.tiktoken` (the former wins), or one such file.

        Raises:
            TokenizerError: nothing there, another kind of tokenizer, broken contents, or no harmony tokens.
        """
        path = Path(path)
        if path.is_dir():
            candidates = [path / "tokenizer.json", path / "o200k_base.tiktoken"]
            found = [candidate for candidate in candidates if candidate.is_file()]
            if not found:
                raise TokenizerError(f"{path}: no tokenizer.json and no o200k_base.tiktoken; copy either one there")
            path = found[0]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"{path}: cannot be read ({error.strerror}); give a tokenizer.json or o200k_base.tiktoken"
            ) from None
        if path.suffix == ".tiktoken":
            return cls(
                ranks=_o200k_ranks(data, path), pattern=O200K_PATTERN, special=GPT_OSS_SPECIALS, source=str(path)
            )
        ranks, pattern, special = _read_tokenizer_json(data, path)
        return cls(ranks=ranks, pattern=pattern, special=special, source=str(path))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, none of them special; a lone surrogate counts as U+FFFD."""
        ids: list[int] = []
        start = 0
        for run in _LONG_RUN.finditer(text) if len(text) > _MAX_RUN else ():
            for end in range(run.start() + _MAX_RUN, run.end(), _MAX_RUN):
                ids += self._bpe.encode_ordinary(text[start:end])
                start = end
        return ids + self._bpe.encode_ordinary(text[start:])

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, specials by name; bytes that are not UTF-8 become U+FFFD.

        Raises:
            TokenizerError: an id is outside the vocabulary (`IncrementalDecoder`, for model output, never raises).
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes of `ids`, specials by name.

        Raises:
            TokenizerError: an id is outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids))

    def token_bytes(self, token: int) -> bytes:
        """Bytes of one token: its name in UTF-8 if it is special.

        Raises:
            TokenizerError: `token` is outside the vocabulary.
        """
        name = self.special_names.get(token)
        if name is not None:
            return name.encode()
        if token not in self._ids:
            raise TokenizerError(f"token id {token} is not in this vocabulary of {self.vocab_size} ids")
        return self._bpe.decode_single_token_bytes(token)

    def __contains__(self, token: int) -> bool:
        """Whether `token` is an id of this vocabulary; models often have a few more rows than it has ids."""
        return token in self._ids


class IncrementalDecoder:
    """Decodes ids one at a time, holding back bytes until they make whole characters.

    Never raises on what a model writes: an id outside the vocabulary reads U+FFFD, as do bytes that are not UTF-8.
    Special ids are silent, or their names with `show_special`; then the pieces join to `Tokenizer.decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer, *, show_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._show_special = show_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The characters that `token` completes, often "" in the middle of one."""
        name = self._tokenizer.special_names.get(token)
        if name is not None:
            return self.finish() + (name if self._show_special else "")
        if token not in self._tokenizer:
            return self.finish() + "\ufffd"
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What was held back: "" or U+FFFD. The decoder is then as new."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


# -------------------------------------------------------------------- o200k_base.tiktoken


def _o200k_ranks(data: bytes, path: Path) -> dict[bytes, int]:
    # The special ids are fixed by convention and not in the file, so no other ranks than the published ones will do.
    if hashlib.sha256(data).hexdigest() != O200K_SHA256:
        raise TokenizerError(f"{path}: not the published o200k_base.tiktoken (sha256 differs); fetch the file again")
    try:
        pairs = (line.split() for line in data.splitlines())
        return {base64.b64decode(token): int(rank) for token, rank in pairs}
    except (ValueError, binascii.Error) as error:
        raise TokenizerError(f"{path}: {error}; fetch the file again") from None


# -------------------------------------------------------------------- tokenizer.json


def _read_tokenizer_json(data: bytes, path: Path) -> tuple[dict[bytes, int], str, dict[str, int]]:
    """Ranks, pattern and special tokens of a file of the Hugging Face `tokenizers` library, byte-level BPE only."""
    raw = parse_json(data, str(path), TokenizerError)
    try:
        special = {str(entry["content"]): _token_id(entry["id"]) for entry in raw.get("added_tokens") or ()}
        model = raw["model"]
        kind = model.get("type", "BPE")
        if kind != "BPE":
            raise TokenizerError(f"{path}: model.type is {kind!r}; only byte-level BPE, as gpt-oss has, can be read")
        for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
            if model.get(key):
                raise TokenizerError(f"{path}: model.{key} is {model[key]!r}; gpt-oss's byte-level BPE has none")
        if raw.get("normalizer"):
            raise TokenizerError(f"{path}: normalizer is set; gpt-oss's tokenizer has none and keeps every byte")
        pattern = _pattern(raw["pre_tokenizer"], path)
        vocab = {token: _token_id(number) for token, number in model["vocab"].items() if token not in special}
        ranks = {_token_bytes(token, path): number for token, number in vocab.items()}
        _check_merges(model["merges"], vocab, path)
    except KeyError as error:
        raise TokenizerError(f"{path}: no key {error}; give a tokenizer.json with byte-level BPE") from None
    except (AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(f"{path}: not the structure of a tokenizer.json ({_one_line(error)})") from None
    # The published file stops at id 200018 while the model has 201,088: name the rest as tiktoken does.
    if len(ranks) == NUM_O200K_RANKS and special.items() <= GPT_OSS_SPECIALS.items():
        special = dict(GPT_OSS_SPECIALS)
    return ranks, pattern, special


def _token_id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_ID:
        raise ValueError(f"a token has the id {value!r}; give whole numbers from 0 to {_MOST_ID}")
    return value


def _pattern(pre_tokenizer: Any, path: Path) -> str:
    steps = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    if [step["type"] for step in steps] != ["Split", "ByteLevel"] or "Regex" not in steps[0]["pattern"]:
        raise TokenizerError(f"{path}: pre_tokenizer must be a Sequence of Split by Regex and ByteLevel, as in gpt-oss")
    split, byte_level = steps
    # Either way of saying that each match is one piece.
    if (split["behavior"], bool(split["invert"])) not in (("Isolated", False), ("Removed", True)):
        raise TokenizerError(f"{path}: pre_tokenizer Split is {split['behavior']}; it must be Isolated, as in gpt-oss")
    if byte_level["add_prefix_space"] or byte_level.get("use_regex", True):
        raise TokenizerError(f"{path}: pre_tokenizer ByteLevel must have add_prefix_space and use_regex false")
    return str(split["pattern"]["Regex"])


def _check_merges(merges: list[Any], vocab: dict[str, int], path: Path) -> None:
    """tiktoken ranks a merge by the id it makes: true if and only if ids increase in the order of the merges."""
    first: dict[str, int] = {}
    for index, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2 or not all(part in vocab for part in (*parts, "".join(parts))):
            raise TokenizerError(f"{path}: merge {index} {merge!r} is not two tokens that make a third; mend the file")
        first.setdefault("".join(parts), index)
    previous = -1
    for token, _ in sorted(vocab.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        if token not in first:
            raise TokenizerError(f"{path}: no merge makes the token {token!r}; copy the file again")
        if first[token] < previous:
            raise TokenizerError(f"{path}: the id of {token!r} is not in the order of the merges; renumber the tokens")
        previous = first[token]


def _byte_alphabet() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary: printable Latin-1 is itself, others follow U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def _token_bytes(token: str, path: Path) -> bytes:
    try:
        return bytes([_BYTES[char] for char in token])
    except KeyError as error:
        raise TokenizerError(f"{path}: token {token!r}: {error} stands for no byte; give byte-level BPE") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
