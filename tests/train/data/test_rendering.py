import pytest
from hypothesis import given
from hypothesis import strategies as st

from ossia.demo.curriculum.mixture import FAMILIES, sample
from ossia.errors import DataError
from ossia.harmony import Parser
from ossia.train.data.accounting import Accounting
from ossia.train.data.packing import Document
from ossia.train.data.rendering import documents, fit

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Bern"}'}}
CONVERSATION = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 2 + 2?"},
        {"role": "assistant", "reasoning": "2+2=4", "content": "2 + 2 = 4"},
        {"role": "user", "content": "The weather in Bern?"},
        {"role": "assistant", "reasoning": "I call.", "content": "A moment.", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "assistant", "reasoning": "It rains.", "content": "Rain."},
        {"role": "user", "content": "Thanks!"},
    ],
    "tools": [TOOL],
    "effort": "low",
    "date": "2025-06-28",
}


def learnt(document, tokenizer):
    return tokenizer.decode([t for t, keep in zip(document.token_ids, document.learn, strict=True) if keep])


def mask_of_last_turn(token_ids, tokenizer):
    """The mask, from the ids alone: the messages are told apart by their special tokens, and the last that are the
    assistant's and follow no stop of its own are one turn."""
    special = tokenizer.special
    starts = [place for place, token in enumerate(token_ids) if token == special["<|start|>"]]
    messages = []
    for start, end in zip(starts, [*starts[1:], len(token_ids)], strict=True):
        text = tokenizer.decode(token_ids[start:end])
        stops = text.endswith(("<|call|>", "<|return|>")) or "<|channel|>final<|message|>" in text
        messages.append((start, text.startswith("<|start|>assistant"), stops))
    first = len(messages) - 1
    while first and messages[first - 1][1] and not messages[first - 1][2]:
        first -= 1
    opened = messages[first][0] + 1 + len(tokenizer.encode("assistant"))
    return [place >= opened for place in range(len(token_ids))]


def test_golden_turns(tokenizer):
    first, call, answer = documents(CONVERSATION, tokenizer)
    assert learnt(first, tokenizer) == (
        "<|channel|>analysis<|message|>2+2=4<|end|><|start|>assistant<|channel|>final<|message|>2 + 2 = 4<|return|>"
    )
    assert learnt(call, tokenizer) == (
        "<|channel|>analysis<|message|>I call.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>A moment.<|end|>"
        "<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"
        '{"city":"Bern"}<|call|>'
    )
    assert learnt(answer, tokenizer) == (
        "<|channel|>analysis<|message|>It rains.<|end|><|start|>assistant<|channel|>final<|message|>Rain.<|return|>"
    )
    whole = [tokenizer.decode(document.token_ids) for document in (first, call, answer)]
    assert "2+2=4" in whole[0] and "2+2=4" not in whole[1] + whole[2]  # Past reasoning goes,
    assert "I call." in whole[2]  # that of a turn still open stays.
    assert "2 + 2 = 4<|end|>" in whole[1] and "Thanks!" not in whole[2]
    assert not first.divisible


@pytest.mark.parametrize("family", FAMILIES)
def test_the_mask_is_what_a_walk_of_the_ids_finds(family, tokenizer):
    for index in range(3):
        drawn = sample(7, index, family=family)
        record = {"messages": drawn.messages, "tools": drawn.tools, "effort": drawn.effort, "date": drawn.date}
        for document in documents(record, tokenizer):
            assert document.learn == mask_of_last_turn(document.token_ids, tokenizer)
            parser = Parser(tokenizer)
            events = parser.feed([t for t, keep in zip(document.token_ids, document.learn, strict=True) if keep])
            assert parser.assumed == [] and events[-1].stop in ("call", "return")
        last = drawn.messages[-1]
        said = parser.messages[-1].content
        assert said == (last["tool_calls"][0]["function"]["arguments"] if last.get("tool_calls") else last["content"])


def test_with_every_token_each_message_is_learnt_once(tokenizer):
    first, call, answer = documents(CONVERSATION, tokenizer, every_token=True)
    assert first.learn == [False] + [True] * (len(first) - 1) and first.divisible
    assert learnt(call, tokenizer).startswith("<|start|>user<|message|>The weather in Bern?<|end|><|start|>assistant")
    assert learnt(call, tokenizer).endswith("<|call|>")
    assert learnt(answer, tokenizer).startswith("<|start|>functions.get_weather to=assistant<|channel|>commentary")
    plain = documents(CONVERSATION, tokenizer)
    assert [document.token_ids for document in (first, call, answer)] == [document.token_ids for document in plain]


def test_a_request_and_its_answer_are_a_conversation(tokenizer):
    (document,) = documents({"prompt": "Hello", "completion": "Good day."}, tokenizer)
    assert learnt(document, tokenizer) == "<|channel|>final<|message|>Good day.<|return|>"
    messages = [{"role": "user", "content": "Hello"}]
    same = documents({"prompt": messages, "completion": [{"role": "assistant", "content": "Good day."}]}, tokenizer)
    assert same == [document]


def test_a_text_is_learnt_but_for_its_first_token(tokenizer):
    (document,) = documents({"text": "<|start|> is only text here"}, tokenizer)
    assert tokenizer.decode(document.token_ids) == "<|start|> is only text here<|endoftext|>"
    assert sum(token in tokenizer.special_ids for token in document.token_ids) == 1
    assert document.learn == [False] + [True] * (len(document) - 1) and document.divisible


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({}, "field messages is missing"),
        ({"prompt": "a"}, "field completion is missing"),
        ({"text": ""}, "field text is empty"),
        ({"text": "a", "meta": 1}, "unknown field meta; beside text are known text"),
        ({"messages": [], "efort": "low"}, "unknown field efort"),
        ({"messages": [{"role": "user", "content": "hello"}]}, "no finished assistant turn"),
        ({"messages": [], "tools": 5}, "field tools is int; give list"),
        ({"messages": "hello"}, "field messages is str; give list"),
    ],
)
def test_a_record_that_is_none_is_refused(record, message, tokenizer):
    with pytest.raises(DataError, match=message):
        documents(record, tokenizer)


# -------------------------------------------------------------------- too long


@st.composite
def masked(draw, *, divisible):
    length = draw(st.integers(2, 60))
    learn = [True] * length if divisible else draw(st.lists(st.booleans(), min_size=length, max_size=length))
    return Document(list(range(length)), [False, *learn[1:]], divisible)


@given(document=masked(divisible=True), max_length=st.integers(2, 20))
def test_a_divided_text_loses_nothing(document, max_length):
    pieces = fit(document, max_length, "error")
    told = [
        (piece.token_ids[place - 1], piece.token_ids[place])
        for piece, _ in pieces
        for place in range(len(piece))
        if piece.learn[place]
    ]
    assert told == [(place - 1, place) for place in range(1, len(document))]
    assert all(2 <= len(piece) <= max_length for piece, _ in pieces)
    total = sum((counts for _, counts in pieces), Accounting())
    assert total.rendered == len(document) and total.learnt == len(document) - 1
    assert total.documents == len(pieces) == total.repeated + 1


@given(
    document=st.booleans().flatmap(lambda divisible: masked(divisible=divisible)),
    max_length=st.integers(2, 70),
    too_long=st.sampled_from(("cut", "drop")),
)
def test_accounts_add_up(document, max_length, too_long):
    fitted = fit(document, max_length, too_long)
    total = sum((counts for _, counts in fitted), Accounting())
    kept = [piece for piece, _ in fitted if piece is not None]
    assert total.rendered + total.repeated == total.kept + total.cut + total.dropped
    assert total.rendered == len(document)
    assert total.kept == sum(map(len, kept)) and total.documents == len(kept)
    assert total.learnt == sum(sum(piece.learn) for piece in kept) == total.kept - total.masked
    assert total.dropped_documents == (not kept)
    assert all(len(piece) <= max_length for piece in kept)


def test_what_is_too_long_is_cut_dropped_or_refused():
    document = Document([1, 2, 3, 4, 5], [False, False, False, True, True])
    with pytest.raises(DataError, match=r"5 tokens, more than --max-length 4: .* --too-long"):
        fit(document, 4, "error")
    [(cut, counts)] = fit(document, 4, "cut")
    assert cut == Document([1, 2, 3, 4], [False, False, False, True]) and (counts.cut, counts.cut_documents) == (1, 1)
    for max_length, too_long in ((4, "drop"), (3, "cut")):  # Cut at 3 it has nothing to learn.
        [(none, counts)] = fit(document, max_length, too_long)
        assert none is None and (counts.dropped, counts.dropped_documents, counts.kept) == (5, 1, 0)
