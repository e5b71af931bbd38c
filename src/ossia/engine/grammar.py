"""Answers held to a grammar, which end in time; and reasoning that goes round in circles, ended.

Ids only: which text they stand for, and what a message is, is the business of whoever makes a Vocabulary and a grammar.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from ossia.engine.finish import Finisher, Preference
from ossia.engine.request import Constraint
from ossia.errors import RequestError

_LONGEST_PERIOD = 64
_LOOP_SPAN = 256
"""A loop: up to so many tokens repeat over at least so many."""

_LARGEST_RESERVE = 2048
"""Tokens kept for the answer where there is much room."""

_LONGEST_PLAN = 4096
"""Tokens in which an end is looked for."""
_TRIAL_WORK, _FIRST_WORK, _STEP_WORK = 100, 20_000, 1000
"""States of a grammar to look at in search of an end: when it is checked, when an answer begins, for each token."""
_MOST_FAILURES = 4
_UNLIMITED = 2**31 - 1
_FEW = 48
"""So many tokens can be tried one by one; where more are allowed, most are text."""
_TRIED_OF_TEXT = 8


class Vocabulary:
    """The tokens of one model as grammars see them; made once, used by all requests."""

    def __init__(self, token_bytes: Sequence[bytes | None], special: Mapping[str, int]) -> None:
        """token_bytes: of each id of the model, None where there is no token. special: ids by the grammars' names."""
        self.size = len(token_bytes)
        self.token_bytes = tuple(text or b"" for text in token_bytes)
        self.preference = Preference(self.token_bytes, frozenset(special.values()))
        self._tokenizer = LLTokenizer(
            TokenizerWrapper(_Source(self.token_bytes, frozenset(special.values()))), n_vocab=self.size + 1
        )

    def problem(self, grammar: str) -> str | None:
        """What is wrong with a grammar, in one line; None for nothing."""
        error = LLMatcher.validate_grammar(grammar, self._tokenizer, limits=_limits())
        if not error or error.startswith("WARNING"):  # Some limits are only met on the way.
            finisher = Finisher(self.preference, ())
            finisher.work = _TRIAL_WORK
            finisher.plan(self._new_matcher(grammar), _LONGEST_PLAN, thorough=False)
            error = finisher.error
        return _brief(error) or None

    def matcher(self, grammar: str) -> LLMatcher:
        """One at its beginning. Raises RequestError for a grammar that is none."""
        if (reason := self.problem(grammar)) is not None:
            raise RequestError(f"the grammar cannot be used: {reason}")
        return self._new_matcher(grammar)

    def _new_matcher(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=_limits())


def check(vocabulary: Vocabulary, grammar: str) -> None:
    """Raise RequestError for a grammar that cannot be used."""
    vocabulary.matcher(grammar)


def _limits() -> LLParserLimits:
    """A hundred milliseconds for a grammar and ten for a step, rather than what one request could cost the others."""
    return LLParserLimits(step_lexer_fuel=100_000, max_lexer_states=50_000, verbose_errors=False)


def _brief(error: str) -> str:
    """What a report says, in a line, without the excerpt of the grammar."""
    lines = error.split("\n   1 |")[0].strip().split("\n")
    said = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    said = said.rpartition("failed to compile JSON schema: ")[2].rpartition("(in regex): ")[2]
    return said.partition(";")[0].strip()


class _Source:
    """What the library asks of a tokenizer. Text becomes tokens greedily, which is only used to end answers."""

    def __init__(self, tokens: Sequence[bytes], special: frozenset[int]) -> None:
        # It wants an end of text, too: one that no model has, so that turns end as their grammar says.
        self.tokens = (*tokens, b"<end of text>")
        self.eos_token_id = len(tokens)
        self.special_token_ids = [*sorted(special), self.eos_token_id]
        self.bos_token_id = None
        self._ids = {text: token for token, text in enumerate(tokens) if text and token not in special}
        self._longest = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = []
        while text:
            size = next((n for n in range(self._longest, 0, -1) if text[:n] in self._ids), 0)
            if not size:
                return ids
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids


# -------------------------------------------------------------------- reasoning


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningMarks:
    """The ids by which messages are told apart: a header stands between `channel` and `message`."""

    channel: int
    message: int
    end: int
    headers: tuple[tuple[int, ...], ...]
    """Headers of messages that are reasoning."""


class _Reasoning:
    """Follows the messages of an answer and finds where reasoning should end."""

    def __init__(self, marks: ReasoningMarks, most: int | None) -> None:
        self.inside = False
        self.num_tokens = 0
        """Of all reasoning so far."""
        self.why: str | None = None
        """Why it must end now."""
        self._marks = marks
        self._most = most
        self._header: list[int] | None = None
        self._places: dict[int, list[int]] = {}
        """Where each token was last seen, counted in tokens of reasoning."""
        self._runs: dict[int, int] = {}
        """For each period, how many tokens in a row equal the one that much earlier; none where it is 0."""

    @property
    def may_begin(self) -> bool:
        """Whether what comes now decides what kind of message this is."""
        return self._header == []

    def accept(self, token: int) -> None:
        if self.inside:
            if token == self._marks.end:
                self.inside, self.why = False, None
                return
            self.num_tokens += 1
            self._follow(token)
        elif token == self._marks.channel:
            self._header = []
        elif token == self._marks.message:
            self.inside = self._header is not None and tuple(self._header) in self._marks.headers
            self._header = None
            self._places.clear()
            self._runs.clear()
        elif self._header is not None:
            self._header.append(token)

    def _follow(self, token: int) -> None:
        here, runs = self.num_tokens, self._runs
        places = [place for place in self._places.get(token, ()) if here - place <= _LONGEST_PERIOD]
        self._runs = {here - place: runs.get(here - place, 0) + 1 for place in reversed(places)}
        self._places[token] = [*places, here]
        if self._runs:
            period, run = max(self._runs.items(), key=itemgetter(1))
            if run + period >= _LOOP_SPAN:
                tokens = "one token" if period == 1 else f"{period} tokens"
                self.why = f"it repeated {tokens} over {_LOOP_SPAN}"
        if self._most is not None and self.num_tokens >= self._most:
            self.why = f"it reached its {self._most} tokens"


class GuardConstraint(Constraint):
    """Allows everything, but ends reasoning that repeats itself or is too long."""

    def __init__(self, marks: ReasoningMarks, *, vocab_size: int, max_reasoning: int | None = None) -> None:
        """max_reasoning: tokens of all reasoning in the answer."""
        self._reasoning = _Reasoning(marks, max_reasoning)
        self._end = marks.end
        self._mask = np.zeros((vocab_size + 31) // 32, dtype=np.int32)
        self._notes: list[str] = []
        self._mask.view(np.uint32)[marks.end // 32] = 1 << marks.end % 32

    def mask(self, remaining: int) -> np.ndarray | None:
        """See Constraint."""
        del remaining
        if self._reasoning.why is None:
            return None
        self._notes.append(f"the reasoning was ended: {self._reasoning.why}")
        return self._mask

    def accept(self, token: int) -> None:
        """See Constraint."""
        self._reasoning.accept(token)

    @property
    def notes(self) -> tuple[str, ...]:
        """See Constraint."""
        return tuple(dict.fromkeys(self._notes))


# -------------------------------------------------------------------- grammar


class GrammarConstraint(Constraint):
    """Allows what a grammar does, and sees to it that the answer ends, complete, within its limit.

    Where there is room enough, the grammar alone decides. Where one more choice might make the shortest end too long,
    each token is tried first, and only those are allowed after which an end still fits.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        grammar: str,
        *,
        limit: int | None,
        finish: Sequence[int] = (),
        growth: int = 64,
        marks: ReasoningMarks | None = None,
        max_reasoning: int | None = None,
    ) -> None:
        """Raises RequestError for a grammar that cannot be used, or whose shortest answer exceeds the limit.

        limit: tokens that the answer may have; None where it may also be cut off, whatever `mask` is told remains.
        finish: ids to prefer where it must end, best first, the one that ends a turn before all.
        growth: how many tokens one choice may oblige it to, at most. max_reasoning: tokens of all reasoning.
        """
        self._matcher = vocabulary.matcher(grammar)
        self._vocabulary = vocabulary
        self._finisher = Finisher(vocabulary.preference, finish)
        self._finish = tuple(finish)
        self._finisher.work = _FIRST_WORK
        plan = self._finisher.plan(self._matcher, _LONGEST_PLAN)
        self._failures = 0 if plan else _MOST_FAILURES
        self.shortest = 0 if plan is None else len(plan)
        """Tokens of about the shortest answer; 0 where none is known, and then none can be promised."""
        self._in_time = limit is not None
        limit = _UNLIMITED if limit is None else limit
        if self.shortest > limit:
            raise RequestError(
                f"the shortest answer in the form asked for takes about {self.shortest:,} tokens and there is room for "
                f"{limit:,}: raise max_tokens or ask for less"
            )
        self._plan: list[int] | None = plan
        """Tokens that would end the answer from here, where known."""
        self._margin = growth + 16
        spare = limit - self.shortest
        self._reserve = min(max(self._margin, min(spare // 4, _LARGEST_RESERVE)), spare // 2)
        self._check_at = limit
        self._reasoning = None if marks is None else _Reasoning(marks, max_reasoning)
        self._end = None if marks is None else marks.end
        self._headers = () if marks is None else marks.headers
        self._was_ended = False
        self._mask = np.zeros(vocabulary.size // 32 + 1, dtype=np.int32)  # Of one more id than the model has.
        self._notes: list[str] = []

    def mask(self, remaining: int) -> np.ndarray:
        """See Constraint. The array is the same each time: use it before the next call."""
        reasoning, remaining = self._reasoning, remaining if self._in_time else _UNLIMITED
        self._finisher.work = _STEP_WORK
        if reasoning is not None and reasoning.inside:
            why = reasoning.why
            if why is None and remaining <= self.shortest + self._reserve:
                why = f"{remaining} tokens were left for the answer"
            if why is not None:
                return self._ended_reasoning(why, remaining)
        self._fill()
        if self._matcher.is_error():
            self._notes.append(f"the grammar could not be followed to its end: {_brief(self._matcher.get_error())}")
            return self._only(self._finish[:1])
        if self._was_ended and reasoning is not None and reasoning.may_begin:
            self._begin_no_more()
        if remaining <= self._check_at and self._failures < _MOST_FAILURES:
            self._narrow(remaining)
        return self._mask

    def accept(self, token: int) -> None:
        """See Constraint. Raises RequestError for a token that the grammar does not allow."""
        # A token that was offered can only be too much for the library: that is told with the next mask.
        if not (self._matcher.is_error() or self._matcher.consume_token(token) or _is_allowed(self._mask, token)):
            raise RequestError(f"token {token} is not allowed by the grammar here: {_brief(self._matcher.get_error())}")
        if self._plan:
            self._plan = self._plan[1:] if self._plan[0] == token else self._plan
        if self._reasoning is not None:
            self._reasoning.accept(token)

    @property
    def notes(self) -> tuple[str, ...]:
        """See Constraint."""
        return tuple(dict.fromkeys(self._notes))

    def _fill(self) -> None:
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)

    def _only(self, tokens: Sequence[int]) -> np.ndarray:
        allowed = np.zeros(32 * len(self._mask), dtype=np.uint8)
        allowed[tokens] = 1
        self._mask[:] = np.packbits(allowed, bitorder="little").view(np.int32)
        return self._mask

    def _ended_reasoning(self, why: str, remaining: int) -> np.ndarray:
        assert self._end is not None
        self._fill()
        if _is_allowed(self._mask, self._end):
            self._notes.append(f"the reasoning was ended: {why}")
            self._was_ended = True
            return self._only([self._end])
        plan = self._current_plan(remaining)  # In the middle of a character, which must be completed first.
        return self._only(plan[:1]) if plan else self._mask

    def _begin_no_more(self) -> None:
        """Reasoning that had to be ended is not to be taken up again, where something else may be written."""
        for header in self._headers:
            if header and _is_allowed(self._mask, header[0]):
                word = self._mask.view(np.uint32)[header[0] // 32 :]
                word[0] &= ~np.uint32(1 << header[0] % 32)
        if not self._mask.any():
            self._fill()

    def _current_plan(self, remaining: int) -> list[int] | None:
        """Tokens that end the answer from here; None where none that fit are found."""
        known = () if self._plan is None else (self._plan, self._plan[1:])
        fitting = (plan for plan in known if len(plan) <= remaining and self._fits(self._matcher, plan))
        self._plan = next(fitting, None) or self._finisher.plan(self._matcher, min(remaining, _LONGEST_PLAN))
        return self._plan

    def _fits(self, matcher: LLMatcher, plan: Sequence[int]) -> bool:
        """Whether the plan, which ends a turn from somewhere, does so from there."""
        self._finisher.work -= len(plan) // 32
        return 0 < len(plan) == matcher.validate_tokens([*plan])

    def _narrow(self, remaining: int) -> None:
        """Take away what might keep the answer from ending in time."""
        plan = self._current_plan(remaining)
        if plan is None:
            self._failures += 1
            self._check_at = remaining - remaining // 4
            return
        self._failures = 0
        slack = remaining - len(plan) - self._margin
        if slack > 0:  # No choice can matter now, nor several in a row.
            self._check_at = remaining - max(1, slack // (self._margin + 1))
            return
        self._check_at = remaining
        ids = np.flatnonzero(np.unpackbits(self._mask.view(np.uint8), bitorder="little"))
        few = len(ids) <= _FEW
        tried = ids if few else self._vocabulary.preference.telling(ids, _TRIED_OF_TEXT)
        kept = [token for token in tried.tolist() if token == plan[0] or self._ends_after(token, plan, remaining - 1)]
        if len(kept) == len(ids):
            return
        if not few and len(plan) + 1 < remaining:
            text = self._vocabulary.preference.plain(ids)
            probes = text[:: max(1, len(text) // _TRIED_OF_TEXT)]
            if all(self._ends_after(token, plan, remaining - 1) for token in probes.tolist()):
                kept += text.tolist()
        if len(plan) == remaining:
            self._notes.append("the answer was brought to its end: max_tokens was reached")
        self._only([plan[0], *kept])

    def _ends_after(self, token: int, plan: Sequence[int], limit: int) -> bool:
        """Whether the answer can still end within the limit once this token has come."""
        matcher = self._matcher.deep_copy()
        if self._finisher.work <= 0 or not matcher.consume_token(token):
            return False
        # In place of the plan's next token, or before it: then nothing need be sought.
        if self._fits(matcher, plan[1:]) or (len(plan) <= limit and self._fits(matcher, plan)):
            return True
        return self._finisher.plan(matcher, limit, thorough=False) is not None


def _is_allowed(mask: np.ndarray, token: int) -> bool:
    return bool(mask.view(np.uint32)[token // 32] >> np.uint32(token % 32) & 1)
