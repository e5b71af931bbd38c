"""What clients send as input, read into items and shown to the model; or refused with the place named."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseItem
from pydantic import TypeAdapter

from ossia.errors import HarmonyError
from ossia.harmony.messages import Message
from ossia.server.responses.items import (
    calls_without_reasoning,
    final_answers,
    read_items,
    seal,
    to_messages,
    unseal,
)

_ANY_ITEM: TypeAdapter[Any] = TypeAdapter(ResponseItem)


def call(call_id: str = "call_1", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": "f", "arguments": "{}", **more}


def result(call_id: str = "call_1", output: Any = "1", **more: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output, **more}


def thought(text: str = "hm") -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def user(text: str = "hello") -> dict[str, Any]:
    return {"role": "user", "content": text}


def shown(*items: Any) -> list[Message]:
    return list(to_messages(read_items(list(items)), lambda index: f"input[{index}]").messages)


@pytest.mark.parametrize(
    "item",
    [
        user(),
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hello"}], "status": None},
        {"id": "msg_1", **says("yes"), "type": "message", "status": "completed", "phase": "final_answer"},
        says([{"type": "output_text", "text": "yes", "annotations": [], "logprobs": [], "parsed": None}]),  # pyright: ignore[reportArgumentType]
        says([{"type": "refusal", "refusal": "no"}]),  # pyright: ignore[reportArgumentType]
        {"role": "developer", "content": "be kind"},
        thought(),
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}], "content": None},
        {"type": "reasoning", "summary": [], "encrypted_content": seal("hm"), "status": "completed"},
        {
            **call(),
            "id": "fc_1",
            "status": "completed",
            "parsed_arguments": {"a": 1},
            "namespace": None,
            "async": False,
        },
        result(output=[{"type": "input_text", "text": "1"}, {"type": "output_text", "text": "2"}]),
        result(id="fco_1", status="completed", name=None),
    ],
)
def test_an_item_takes_the_full_shape_and_keeps_it(item: dict[str, Any]) -> None:
    [read] = read_items([item])
    _ANY_ITEM.validate_python(read)
    assert read_items([read]) == [read]
    if "id" in item:
        assert read["id"] == item["id"]


def test_a_string_is_what_the_user_says() -> None:
    assert to_messages(read_items("hello"), str).messages == (Message(role="user", content="hello"),)


def test_texts_are_found_wherever_they_may_be() -> None:
    summary = [{"type": "summary_text", "text": "short"}]
    reasonings = [
        ({"type": "reasoning", "summary": summary}, "short"),
        ({**thought("long"), "summary": summary}, "long"),
        ({"type": "reasoning", "summary": [], "encrypted_content": seal("é\U0001f600")}, "é\U0001f600"),
        ({"type": "reasoning", "summary": summary, "encrypted_content": "gAAAAA-of-another-server"}, "short"),
    ]
    for item, text in reasonings:
        assert shown(item) == [Message(role="assistant", channel="analysis", content=text)]
    assert shown({"type": "reasoning", "id": "rs_1", "summary": []}) == []
    parts = [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}]
    assert shown(says(parts))[0].content == "ab"  # pyright: ignore[reportArgumentType]


def test_instructions_lead_or_stay_where_they_were_given() -> None:
    items = read_items(
        [
            {"role": "system", "content": "one"},
            {"role": "developer", "content": "two"},
            user(),
            {"role": "system", "content": "three"},
        ]
    )
    prompt = to_messages(items, str)
    assert prompt.instructions == ("one", "two")
    assert prompt.messages[1] == Message(role="developer", content="# Instructions\n\nthree")


def test_what_is_said_before_a_call_is_a_preamble() -> None:
    items = [user(), thought(), says("wait"), call(), result(), says("done"), user(), says("hm", phase="commentary")]
    assert [message.channel for message in shown(*items)] == [
        *(None, "analysis", "commentary", "commentary", "commentary", "final", None),
        "commentary",
    ]
    assert final_answers(read_items(items)).index(True) == 5
    explicit = [says("the end", phase="final_answer"), call()]
    assert [message.channel for message in shown(*explicit)] == ["final", "commentary"]


def test_calls_and_results_belong_together() -> None:
    messages = shown(user(), call("a"), call("b", name="functions.g"), result("b", "2"), result("a", "1"))
    assert [(m.name, m.recipient, m.content) for m in messages[1:]] == [
        (None, "functions.f", "{}"),
        (None, "functions.g", "{}"),
        ("functions.g", "assistant", "2"),
        ("functions.f", "assistant", "1"),
    ]


def test_steps_that_lost_their_reasoning_are_found() -> None:
    def bare(*items: Any) -> list[tuple[int, str]]:
        return calls_without_reasoning(read_items(list(items)))

    assert bare(user(), call("a"), result("a")) == [(1, "a")]
    assert bare(user(), says("wait"), call("a"), call("b"), result("a")) == [(1, "a")]
    assert bare(user(), thought(), says("wait"), call("a"), result("a")) == []
    assert bare(user(), thought(), call("a"), result("a"), call("b"), result("b")) == [(4, "b")]
    assert bare(user(), thought(""), call("a")) == [(1, "a")]
    assert bare(user(), call("a"), result("a"), says("done"), user(), call("b")) == [(5, "b")]
    assert bare(user(), thought(), user(), call("a")) == [(3, "a")]


@given(st.text())
def test_sealed_reasoning_opens_as_it_was(text: str) -> None:
    assert unseal(seal(text)) == text


@pytest.mark.parametrize("sealed", ["", "gAAAAA", "ossia1:?", "ossia1:gA==", "ossia1:é"])
def test_foreign_seals_do_not_open(sealed: str) -> None:
    with pytest.raises(ValueError):
        unseal(sealed)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (5, "input[0] is int: give an object"),
        ({"type": "teapot"}, "input[0].type is 'teapot': give one of message, reasoning"),
        ({"type": ["message"]}, "input[0].type is ['message']"),
        ({"type": "web_search_call", "id": "ws_1"}, "input[0].type is 'web_search_call'"),
        ({}, "input[0].id is None: give a string"),
        ({"role": "robot", "content": "x"}, "input[0].role is 'robot': give user, assistant, system or developer"),
        ({"role": "user"}, "input[0].content is NoneType: give a string or a list"),
        ({"role": "user", "content": [5]}, "input[0].content[0] is int: give an object"),
        ({"role": "user", "content": [{"type": "input_file"}]}, "input[0].content[0].type is 'input_file': the model"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "x"}]}, "type is 'refusal'"),
        ({"role": "user", "content": [{"type": "input_text", "text": 5}]}, "input[0].content[0].text is 5"),
        ({"role": "user", "content": "x", "phase": "commentary"}, "input[0].phase is 'commentary'"),
        ({"role": "assistant", "content": "x", "phase": "beginning"}, "input[0].phase is 'beginning'"),
        (
            {"role": "user", "content": "x", "audio": {"id": "a"}},
            "input[0].audio cannot be honoured on an item of type",
        ),
        ({"type": "reasoning", "summary": "short"}, "input[0].summary is str: give a string or a list"),
        ({"type": "reasoning", "content": [{"type": "text"}]}, "input[0].content[0].type is 'text': give reasoning_te"),
        (
            {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAA"},
            "input[0].encrypted_content was not made by this server, and stands alone",
        ),
        (call(name="a b"), "input[0].name is 'a b': give a name of letters"),
        (call(name=None), "input[0].name is None"),
        (call(arguments=5), "input[0].arguments is 5: give a string"),
        (call(call_id=""), "input[0].call_id is '': give a string"),
        (call(namespace="x"), "input[0].namespace cannot be honoured on an item of type function_call: remove it"),
        (result(output=None), "input[0].output is NoneType"),
        (result(output=[{"type": "input_image"}]), "input[0].output[0].type is 'input_image': the model reads text"),
        (result(), "input[0].call_id is 'call_1': no call before it has that id"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_place(item: Any, message: str) -> None:
    with pytest.raises(HarmonyError) as error:
        shown(item)
    assert message in str(error.value)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from("type id role content summary text phase call_id name x".split()), inner),
    ),
    max_leaves=12,
)
WORDS = st.sampled_from(
    "message reasoning function_call function_call_output item_reference user assistant system input_text".split()
)
ITEMS = st.lists(
    st.dictionaries(
        st.sampled_from("type role content summary encrypted_content call_id name arguments output phase id".split()),
        st.one_of(WORDS, JSON),
    ),
    max_size=4,
)


@given(st.one_of(ITEMS, JSON))
def test_any_input_is_read_or_refused(raw: Any) -> None:
    try:
        items = read_items(raw)
    except HarmonyError:
        return
    for item in items:
        if item["type"] != "item_reference":
            _ANY_ITEM.validate_python(item)
    assert read_items(items) == items
    whole = [item for item in items if item["type"] != "item_reference"]
    try:
        to_messages(whole, str)
    except HarmonyError as error:
        assert "no call before it has that id" in str(error)
    calls_without_reasoning(whole)
