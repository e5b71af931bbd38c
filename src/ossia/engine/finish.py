"""The shortest way out of a grammar: which tokens end an answer soon, from wherever it stands.

A heuristic, for the shortest end of an arbitrary grammar has no cheap exact answer: take what closes things before what
opens them, and where that leads round in circles, look at several ways at once.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from llguidance import LLMatcher

_TELLING = frozenset(b'"\\{}[],:')
"""Bytes that may change how deep a JSON value is nested."""
_PUNCTUATION = b"@./:-_=;!?#%&*+|~^$'`<>()"
_HEADER = 16
"""Where a header has a choice, it is among no more tokens; elsewhere its words are text like any other."""
_DELAYING = b" \n\t\r\\"
_REPEATS = 2
"""The same choice so often in a row leads nowhere."""
_LOOKED_AT = 16
_BEAM = 12
_WAYS = 6
_BEAM_STEPS = 160
_DEPTH_COST = 6
"""About how many tokens it takes to close what one bracket opened."""


class Preference:
    """The order in which the tokens of a vocabulary help to end an answer."""

    def __init__(self, token_bytes: Sequence[bytes], special: frozenset[int]) -> None:
        ids = {text: token for token, text in reversed([*enumerate(token_bytes)]) if text and token not in special}
        self.special = special
        self.structure = _ids_in_order(ids, _structure_rank)
        """Between the parts of a JSON value: closing first, then short values, then opening."""
        self.text = _ids_in_order(ids, _text_rank)
        """Within text: a closing quote first, then what patterns have between their parts."""
        self.newline = ids.get(b"\n")
        """Allowed between the parts of a JSON value, not within its strings."""
        self.closing = frozenset(token for text, token in ids.items() if not text.strip(b'"}]'))
        self.delaying = frozenset(ids[text] for byte in _DELAYING if (text := bytes([byte])) in ids)
        self.depths = {token: _depth(token_bytes[token]) for token in {*self.structure.tolist(), *self.text.tolist()}}
        self._is_telling = np.array([not _TELLING.isdisjoint(text) for text in token_bytes])
        self._is_telling[[*special]] = True
        self._is_whole = np.array([_is_whole(text) for text in token_bytes])
        self._lengths = np.array([len(text) for text in token_bytes])

    def telling(self, ids: np.ndarray, count: int) -> np.ndarray:
        """Those of the ids that may open or close something, at most `count`, the shortest first."""
        found = ids[self._is_telling[ids] & self._is_whole[ids]]
        return found[np.argsort(self._lengths[found], kind="stable")[:count]]

    def plain(self, ids: np.ndarray) -> np.ndarray:
        """Those of the ids that are nothing but text, in whole characters."""
        return ids[~self._is_telling[ids] & self._is_whole[ids]]


_Rank: TypeAlias = tuple[int, int]


def _structure_rank(text: bytes) -> _Rank | None:
    """Where a token stands between the parts of a JSON value; None for those that need not be looked at."""
    words = (b",", b"0", b"null", b"n", b"true", b"t", b"false", b"f", b'""', b"[]", b"{}", b'"', b"[", b"{", b"-")
    if not text.strip(b"}]"):
        return (0, -len(text))
    if text in words:
        return (1, words.index(text))
    return (2, _byte_rank(text[0])) if len(text) == 1 else None


def _text_rank(text: bytes) -> _Rank | None:
    """Where a token stands within text."""
    if text.startswith(b'"') and not text[1:].strip(b"}]"):
        return (0, -len(text))
    return (1, _byte_rank(text[0])) if len(text) == 1 else None


def _byte_rank(byte: int) -> int:
    """Punctuation, digits, letters, the bytes of longer characters; what only delays comes last."""
    if byte in _PUNCTUATION:
        return _PUNCTUATION.index(byte)
    if byte in b"}],":
        return 64
    if byte in _DELAYING:
        return 1024
    group = 128 if chr(byte).isdigit() else 256 if chr(byte).isascii() and chr(byte).isalpha() else 512
    return group + byte


def _is_whole(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _depth(text: bytes) -> int:
    return sum(text.count(opening) for opening in b"[{") - sum(text.count(closing) for closing in b"]}")


def _ids_in_order(ids: Mapping[bytes, int], key: Callable[[bytes], _Rank | None]) -> np.ndarray:
    ranked = sorted((rank, text) for text in ids if (rank := key(text)) is not None)
    return np.array([ids[text] for _, text in ranked], dtype=np.int64)


class Finisher:
    """Finds ends of answers; `finish` lists the ids that are best: special ones anywhere, others in headers."""

    def __init__(self, preference: Preference, finish: Sequence[int]) -> None:
        self._preference = preference
        self.work = 0
        """How many more states of a grammar may be looked at; whoever asks for plans sets it first."""
        self.error = ""
        """What the grammar's library had against going on, where it gave up."""
        special = [token for token in finish if token in preference.special]
        self._header = _Order(finish)
        self._structure = _Order([*special, *preference.structure.tolist()])
        self._text = _Order([*special, *preference.text.tolist()])
        self._closing = preference.closing | frozenset(finish)

    def plan(self, matcher: LLMatcher, limit: int, *, thorough: bool = True) -> list[int] | None:
        """Tokens from the matcher's state to the end of the grammar; None where no way is found within limit and work.

        thorough: look further where the straight way fails.
        """
        plan = self._straight(matcher.deep_copy(), limit)
        return self._beam(matcher, min(limit, _BEAM_STEPS)) if plan is None and thorough else plan

    def _straight(self, matcher: LLMatcher, limit: int) -> list[int] | None:
        out: list[int] = []
        best, num_alike = -1, 0
        while not matcher.is_stopped() and self.work > 0:
            if forced := matcher.compute_ff_tokens():
                num_alike, step = 0, forced
            else:
                order, allowed = self._allowed(matcher)
                if not allowed.any():
                    return None
                index = int(allowed.argmax())
                num_alike = num_alike + 1 if order.ids[index] == best and best not in self._closing else 0
                best = int(order.ids[index])
                if num_alike.bit_count() == 1 and num_alike >= _REPEATS:  # Ever more seldom: it is costly.
                    index = self._another(matcher, order, allowed, num_alike)
                step = [int(order.ids[index])]
            out += step
            if len(out) > limit or not matcher.consume_tokens(step):
                break
        self.error = matcher.get_error()
        return out if matcher.is_stopped() and not matcher.is_error() else None

    def _closes(self, order: "_Order", index: int) -> bool:
        return int(order.ids[index]) in self._closing

    def _another(self, matcher: LLMatcher, order: "_Order", allowed: np.ndarray, turn: int) -> int:
        """Where the best choice leads nowhere: one after which others are open, or just the next in turn."""
        indices = np.flatnonzero(allowed)
        for index in indices[:_LOOKED_AT].tolist():
            copy = matcher.deep_copy()
            copy.consume_token(int(order.ids[index]))
            other, following = self._allowed(copy)
            if other is not order or (following & ~allowed).any():
                return index
        return int(indices[turn % len(indices)])

    def _allowed(self, matcher: LLMatcher) -> "tuple[_Order, np.ndarray]":
        """The order that fits the place, and for each of its ids whether it is allowed."""
        self.work -= 1
        words = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint32)
        if np.bitwise_count(words).sum() <= _HEADER and (allowed := self._header.allowed(words)).any():
            return self._header, allowed
        newline = self._preference.newline
        between = newline is not None and words[newline // 32] >> np.uint32(newline % 32) & 1
        order = self._structure if between else self._text
        allowed = order.allowed(words)
        if not allowed.any() and words.any():
            word = int(np.flatnonzero(words)[0])
            order = _Order([32 * word + (int(words[word]) & -int(words[word])).bit_length() - 1])
            return order, order.allowed(words)
        return order, allowed

    def _beam(self, matcher: LLMatcher, limit: int) -> list[int] | None:
        """Several ways side by side, those first that are nested least."""
        beam: list[tuple[int, list[int], LLMatcher]] = [(0, [], matcher)]
        for _ in range(limit):
            following: list[tuple[int, list[int], LLMatcher]] = []
            for depth, way, state in beam:
                for step in self._ways(state):
                    copy = state.deep_copy()
                    if self.work <= 0 or len(way) + len(step) > limit or not copy.consume_tokens(step):
                        continue
                    if copy.is_stopped():
                        return [*way, *step]
                    deeper = sum(self._preference.depths.get(token, 0) for token in step)
                    following.append((depth + deeper, [*way, *step], copy))
            beam = sorted(following, key=lambda one: _DEPTH_COST * one[0] + len(one[1]))[:_BEAM]
        return None

    def _ways(self, matcher: LLMatcher) -> list[list[int]]:
        if forced := matcher.compute_ff_tokens():
            return [forced]
        order, allowed = self._allowed(matcher)
        indices = np.flatnonzero(allowed)
        if len(indices) and self._closes(order, int(indices[0])):
            indices = indices[:1]
        ways = [int(order.ids[index]) for index in indices]
        return [[token] for token in [way for way in ways if way not in self._preference.delaying][:_WAYS] or ways[:1]]


class _Order:
    """Ids in an order, and quick to look up in a mask."""

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = np.array(ids, dtype=np.int64)
        self._words = self.ids // 32
        self._shifts = (self.ids % 32).astype(np.uint32)

    def allowed(self, words: np.ndarray) -> np.ndarray:
        return (words[self._words] >> self._shifts & 1).astype(bool)
