"""Constraints over an alphabet of bytes: id b is byte b, special tokens follow, and one row stands for nothing."""

import random

import numpy as np
import pytest

from ossia.engine import grammar as module
from ossia.engine.grammar import GrammarConstraint, GuardConstraint, LLParserLimits, ReasoningMarks, Vocabulary, check
from ossia.errors import RequestError

CHANNEL, MESSAGE, END, RETURN, NOTHING = 256, 257, 258, 259, 260
SPECIAL = {"<|channel|>": CHANNEL, "<|message|>": MESSAGE, "<|end|>": END, "<|return|>": RETURN}
VOCABULARY = Vocabulary([*(bytes([n]) for n in range(256)), *(name.encode() for name in SPECIAL), None], SPECIAL)
MARKS = ReasoningMarks(channel=CHANNEL, message=MESSAGE, end=END, headers=(tuple(b"analysis"),))
FINISH = (RETURN, END)

REASONED = r"""
start: <|channel|> "analysis" <|message|> SAID <|end|> <|channel|> "final" <|message|> answer <|return|>
SAID: /(.|\n)+/
"""
OBJECT = """answer: %json {
    "type": "object", "required": ["a"], "additionalProperties": false,
    "properties": {"a": {"type": "string", "minLength": 2}, "b": {"type": "array", "items": {"const": "much longer"}}}
}"""


def constraint(grammar: str, limit: int | None, **more: object) -> GrammarConstraint:
    return GrammarConstraint(VOCABULARY, grammar, limit=limit, finish=FINISH, marks=MARKS, **more)


def allowed(mask: np.ndarray | None) -> list[int]:
    assert mask is not None
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def written(held: GrammarConstraint, limit: int, rng: random.Random) -> list[int]:
    """An answer, each token any of those allowed."""
    out: list[int] = []
    while len(out) < limit and (not out or out[-1] != RETURN):
        out.append(rng.choice(allowed(held.mask(limit - len(out)))))
        held.accept(out[-1])
    return out


# -------------------------------------------------------------------- grammars


def test_a_wrong_grammar_is_told_in_a_line() -> None:
    assert VOCABULARY.problem('start: "a"') is None
    check(VOCABULARY, 'start: "a" <|end|>')
    for grammar, says in (
        ('start: %json {"type": "strin"}', "Invalid type: strin"),
        ("start: /(?=x)y/", "look-around, including look-ahead and look-behind, is not supported"),
        ('start: "a" <|nope|>', "unknown special token"),
        ("start: other", "unknown name"),
        ("start: /\ud800/", "not JSON serializable"),
    ):
        problem = VOCABULARY.problem(grammar)
        assert problem is not None
        assert says in problem
        assert "\n" not in problem
        with pytest.raises(RequestError, match="the grammar cannot be used: "):
            check(VOCABULARY, grammar)


def test_text_is_neither_special_nor_without_a_token() -> None:
    held = constraint("start: /(.|\\n)+/ <|end|>", None)
    assert {token for token in allowed(held.mask(9)) if token >= 128} < set(range(128, 256))
    held.accept(ord("x"))
    assert END in allowed(held.mask(8))
    assert not {CHANNEL, MESSAGE, RETURN, NOTHING} & set(allowed(held.mask(8)))


def test_a_token_that_is_not_allowed_is_an_error() -> None:
    held = constraint('start: "ab" <|end|>', None)
    with pytest.raises(RequestError, match="token 98 is not allowed by the grammar here"):
        held.accept(ord("b"))


# -------------------------------------------------------------------- ending in time


@pytest.mark.parametrize("growth", [4, 30])
def test_every_answer_ends_within_its_limit(growth: int) -> None:
    rng = random.Random(0)
    shortest = constraint(REASONED + OBJECT, None).shortest
    assert shortest == len('<analysis<x><final<{"a":"xx"}>')  # Each special token stands for one bracket here.
    for limit in [*range(shortest, shortest + 30), 200]:
        held = constraint(REASONED + OBJECT, limit, growth=growth)
        answer = written(held, limit, rng)
        assert answer[-1] == RETURN, f"limit {limit}: {answer}"


def test_an_answer_that_has_no_room_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        constraint(REASONED + OBJECT, 29)
    assert str(caught.value) == (
        "the shortest answer in the form asked for takes about 30 tokens and there is room for 29: "
        "raise max_tokens or ask for less"
    )


@pytest.mark.parametrize(
    "rule",
    [
        r"/[a-z0-9]+@[a-z]+\.com/",
        "/([a-z]{40})?[0-9]/",
        '%json {"type": "array", "items": {"type": "string", "pattern": "^a*b$"}, "minItems": 30}',
        '%json {"type": "integer", "multipleOf": 36}',
        '%json {"type": "string", "format": "uuid"}',
        # The way out is the second alternative, at each level anew.
        """%json {"$ref": "#/$defs/e", "$defs": {"e": {"anyOf": [
            {"type": "object", "properties": {"a": {"$ref": "#/$defs/e"}, "b": {"$ref": "#/$defs/e"}},
             "required": ["a", "b"], "additionalProperties": false},
            {"type": "object", "properties": {"z": {"const": 1}}, "required": ["z"], "additionalProperties": false}
        ]}}}""",
    ],
)
def test_ends_are_found_where_they_are_hard_to_find(rule: str) -> None:
    grammar = f"start: answer <|return|>\nanswer: {rule}"
    shortest = constraint(grammar, None).shortest
    assert 0 < shortest < 200
    for seed in range(4):
        held = constraint(grammar, shortest + 30, growth=80)
        assert written(held, shortest + 30, random.Random(seed))[-1] == RETURN


def test_near_the_end_no_character_is_begun_that_has_no_room() -> None:
    begins = 256
    tokens = [*(bytes([n]) for n in range(256)), b"word\xf0", *(b"word%d" % n for n in range(100)), b"<|return|>"]
    vocabulary = Vocabulary(tokens, {"<|return|>": len(tokens) - 1})
    held = GrammarConstraint(
        vocabulary, 'start: %json {"type": "string"} <|return|>', limit=80, growth=4, finish=[len(tokens) - 1]
    )
    held.mask(80)
    held.accept(ord('"'))
    assert begins in allowed(held.mask(79))
    # The quote, the end, and three more bytes of the character would have to follow it.
    assert begins not in allowed(held.mask(4))
    assert begins + 1 in allowed(held.mask(4))


def test_without_a_limit_nothing_is_forced() -> None:
    held = constraint(REASONED + OBJECT, None)
    for token in (CHANNEL, *b"analysis", MESSAGE, *random.Random(6).choices(b"abc", k=500)):
        assert token in allowed(held.mask(1))
        held.accept(token)
    assert held.notes == ()


def test_a_grammar_that_overtaxes_its_library_ends_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vocabulary, "problem", lambda *_: None)  # Which would have found out.
    monkeypatch.setattr(module, "_limits", lambda: LLParserLimits(step_max_items=2, verbose_errors=False))
    held = constraint('start: ("a" | b)+ <|return|>\nb: "a" "b" | "a" c\nc: "b"+ "c"', None)
    answer = written(held, 40, random.Random(1))
    assert answer[-1] == RETURN
    assert held.notes[0].startswith("the grammar could not be followed to its end: ")


# -------------------------------------------------------------------- reasoning


def reason(held: GrammarConstraint | GuardConstraint, text: bytes, remaining: int) -> int:
    """Tokens of reasoning until it is made to end."""
    for token in (CHANNEL, *b"analysis", MESSAGE):
        held.mask(remaining)
        held.accept(token)
    for count, token in enumerate(text):
        mask = held.mask(remaining)
        if mask is not None and token not in allowed(mask):
            assert allowed(mask) == [END]
            return count
        held.accept(token)
    return len(text)


def both(**more: int) -> list[GrammarConstraint | GuardConstraint]:
    grammar = REASONED + "answer: /(.|\\n)*/"
    return [constraint(grammar, None, **more), GuardConstraint(MARKS, vocab_size=261, **more)]


@pytest.mark.parametrize("period", [1, 7, 64])
def test_reasoning_that_goes_round_in_circles_is_ended(period: int) -> None:
    circle = bytes(random.Random(period).sample(range(32, 127), period))
    for held in both():
        assert reason(held, b"Well: " + circle * 300, 9000) == 6 + 256
        what = "one token" if period == 1 else f"{period} tokens"
        assert held.notes == (f"the reasoning was ended: it repeated {what} over 256",)
        held.accept(END)
        assert held.mask(9000) is None or len(allowed(held.mask(9000))) == 1  # The next header; nothing to end.


def test_reasoning_that_does_not_is_left_alone() -> None:
    rng = random.Random(3)
    longer = bytes(rng.sample(range(32, 127), 65)) * 30
    broken = b"".join(b"ab" * 120 + bytes([rng.randrange(97, 120)]) for _ in range(20))
    for text in (longer, broken, bytes(rng.choices(b"ab", k=3000))):
        for held in both():
            assert reason(held, text, 9000) == len(text)
            assert held.notes == ()


def test_a_circle_outside_the_reasoning_is_none_of_its_business() -> None:
    guard = GuardConstraint(MARKS, vocab_size=261)
    for token in (CHANNEL, *b"final", MESSAGE, *b"x" * 1000):
        assert guard.mask(9000) is None
        guard.accept(token)


def test_reasoning_has_a_budget() -> None:
    rng = random.Random(4)
    for held in both(max_reasoning=50):
        assert reason(held, bytes(rng.choices(b"abcdef", k=100)), 9000) == 50
        assert held.notes == ("the reasoning was ended: it reached its 50 tokens",)


def test_reasoning_leaves_room_for_the_answer() -> None:
    limit = 400
    held = constraint(REASONED + OBJECT, limit, growth=10)
    rng, spent = random.Random(5), 0
    while (open_to := allowed(held.mask(limit - spent))) != [END]:
        held.accept(rng.choice([token for token in open_to if token != END]))
        spent += 1
    assert spent > limit / 2
    assert limit - spent >= held.shortest + 26
    assert held.notes == (f"the reasoning was ended: {limit - spent} tokens were left for the answer",)


def test_reasoning_that_was_ended_is_not_taken_up_again() -> None:
    again = r"""
start: think+ <|channel|> ("final" | "aside") <|message|> SAID <|return|>
think: <|channel|> "analysis" <|message|> SAID <|end|>
SAID: /(.|\n)+/
"""
    for ended in (False, True):
        held = constraint(again, 300, max_reasoning=20 if ended else None)
        for token in (CHANNEL, *b"analysis", MESSAGE, *b"x" * 20, END, CHANNEL):
            assert token in allowed(held.mask(200))
            held.accept(token)
        assert bytes(allowed(held.mask(200))) == (b"f" if ended else b"af")
    only = constraint(again.replace('("final" | "aside")', '"analysis"'), 300, max_reasoning=20)
    for token in (CHANNEL, *b"analysis", MESSAGE, *b"x" * 20, END, CHANNEL):
        only.mask(200)
        only.accept(token)
    assert bytes(allowed(only.mask(200))) == b"a"


def test_reasoning_does_not_end_within_a_character() -> None:
    held = constraint(REASONED + "answer: /(.|\\n)*/", None, max_reasoning=3)
    for token in (CHANNEL, *b"analysis", MESSAGE, *"a🙂".encode()[:3]):
        held.accept(token)
    for _ in range(2):
        (token,) = allowed(held.mask(99))
        assert 0x80 <= token < 0xC0
        held.accept(token)
    assert allowed(held.mask(99)) == [END]
