"""Tokens become the same events however they are split, and stop strings are found across their borders."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.server.fake import said, turn_ids

from ossia.engine.request import Drawn
from ossia.harmony.tokenizer import Tokenizer
from ossia.llm import LLM
from ossia.server.events import Closed, Event, Mended, Opened, Text
from ossia.server.reader import RawReader, TurnReader

STOPS = ((), ("42",), ("☃", "is "), ("final",), ("zzzz",), (" 4", "42, n"))


def joined(events: Sequence[Event]) -> list[Any]:
    """Events with neighbouring texts put together."""
    out: list[Any] = []
    for event in events:
        if isinstance(event, Text) and out and isinstance(out[-1], Text):
            text, logprobs = out[-1].text + event.text, out[-1].logprobs + event.logprobs
            out[-1] = Text(text=text, channel=event.channel, recipient=event.recipient, logprobs=logprobs)
        elif not isinstance(event, Mended):  # Stands wherever in a text it was noticed.
            out.append(event)
    return out


def read(reader: TurnReader | RawReader, tokens: Sequence[int], cuts: Sequence[int]) -> list[Event]:
    drawn = [Drawn(token=token, logprob=-1.0) for token in tokens]
    events: list[Event] = []
    for begin, end in zip((0, *cuts), (*cuts, len(drawn)), strict=True):
        events += reader.feed(drawn[begin:end])
    return events + reader.finish("length")


def tokens_of(tokenizer: Tokenizer, seed: int) -> list[int]:
    """A turn, or something that no model should write."""
    draw = random.Random(seed)
    turn = turn_ids(
        tokenizer, said("analysis", "6 × 7 = 42"), said("commentary", "final"), said("final", "It is 42, naïvely ☃ 🙂.")
    )
    match seed % 3:
        case 0:
            return turn
        case 1:
            return [draw.choice(turn) for _ in range(60)]
        case _:
            return [draw.randrange(tokenizer.vocab_size + 3) for _ in range(60)]


@given(seed=st.integers(0, 5000), stop=st.sampled_from(STOPS), data=st.data())
def test_any_split_tells_the_same(llm: LLM, seed: int, stop: tuple[str, ...], data: st.DataObject) -> None:
    tokens = tokens_of(llm.tokenizer, seed)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(tokens) - 1))))
    for kind in (TurnReader, RawReader):
        whole, split = kind(llm.tokenizer, stop=stop), kind(llm.tokenizer, stop=stop)
        assert joined(read(whole, tokens, ())) == joined(read(split, tokens, cuts))
        assert whole.stop_string == split.stop_string
        assert (whole.completion_tokens, whole.reasoning_tokens) == (split.completion_tokens, split.reasoning_tokens)


@given(seed=st.integers(0, 5000), stop=st.sampled_from(STOPS[1:]))
def test_no_stop_string_gets_out(llm: LLM, seed: int, stop: tuple[str, ...]) -> None:
    tokens = tokens_of(llm.tokenizer, seed)
    reader = TurnReader(llm.tokenizer, stop=stop)
    for event in joined(read(reader, tokens, range(1, len(tokens)))):
        if isinstance(event, Text) and event.channel == "final":
            assert not any(one in event.text for one in stop)
        if isinstance(event, Closed) and event.message.channel == "final":
            assert not any(one in event.message.content for one in stop)


@given(seed=st.integers(0, 5000))
def test_nothing_is_lost_where_nothing_stops(llm: LLM, seed: int) -> None:
    """Each message is what its texts say, and each token of a text has its logprob, once."""
    tokens = tokens_of(llm.tokenizer, seed)
    text, logprobs = "", 0
    for event in joined(read(TurnReader(llm.tokenizer), tokens, ())):
        match event:
            case Opened():
                text = ""
            case Text():
                text, logprobs = event.text, logprobs + len(event.logprobs)
            case Closed():
                assert event.message.content == text
    assert logprobs <= len(tokens)


def test_a_stop_string_closes_its_message_there(llm: LLM) -> None:
    reader = TurnReader(llm.tokenizer, stop=("42",))
    events = read(reader, turn_ids(llm.tokenizer, said("analysis", "42?"), said("final", "It is 42.")), ())
    assert [type(event) for event in events] == [Opened, Text, Closed, Opened, Text, Closed]
    last = events[-1]
    assert isinstance(last, Closed)
    assert (last.message.content, last.stop) == ("It is ", "cut")
    assert reader.stop_string == "42"


def test_tokens_after_a_stop_string_do_not_count(llm: LLM) -> None:
    ids = turn_ids(llm.tokenizer, said("final", "one two three"))
    reader = TurnReader(llm.tokenizer, stop=("two",))
    read(reader, ids, ())
    assert reader.completion_tokens < len(ids) - 2


def test_what_may_become_a_stop_string_waits(llm: LLM) -> None:
    tokenizer = llm.tokenizer
    reader = TurnReader(tokenizer, stop=("xyz",))
    head = turn_ids(tokenizer, said("final", "a"))[:-2]
    events = reader.feed([Drawn(token=token) for token in [*head, *tokenizer.encode("a"), *tokenizer.encode("xy")]])
    assert [event.text for event in events if isinstance(event, Text)] == ["a"]
    events = reader.feed([Drawn(token=token) for token in tokenizer.encode("!")])
    assert [event.text for event in events if isinstance(event, Text)] == ["xy!"]


@pytest.mark.parametrize("stop", [(), ("zzz",)])
def test_reasoning_is_counted(llm: LLM, stop: tuple[str, ...]) -> None:
    reader = TurnReader(llm.tokenizer, stop=stop)
    read(reader, turn_ids(llm.tokenizer, said("analysis", "one two"), said("final", "three")), ())
    assert reader.reasoning_tokens == len(llm.tokenizer.encode("one two"))


def test_raw_text_names_special_tokens_but_the_last(llm: LLM) -> None:
    tokenizer = llm.tokenizer
    ids = turn_ids(tokenizer, said("final", "Hi"))
    reader = RawReader(tokenizer, stop_ids=tokenizer.stop_ids)
    said_raw = joined(read(reader, ids, ()))[0]
    assert said_raw.text == "<|channel|>final<|message|>Hi"
    assert len(said_raw.logprobs) == len(ids) - 1
