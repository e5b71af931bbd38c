"""What cannot be honoured is refused with the parameter's name; what the model writes is never anybody's error."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.server.conftest import Scripted
from tests.server.fake import CONFIG, said, turn_ids
from tests.server.test_chat import TOOL, comparable, replay

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "Hi"}


def nested(levels: int) -> Any:
    schema: Any = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def tool(**function: Any) -> Any:
    return {"type": "function", "function": {"name": "f", **function}}


def schema(value: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": value, "strict": True}}


JSON = {"type": "json_object"}

REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"messages": []}, "messages", "at least 1 item"),
    ({"messages": "Hi"}, "messages", "list"),
    ({"messages": [3]}, "messages[0]", "dictionary"),
    ({"messages": [{"role": "pope", "content": "Hi"}]}, "messages[0].role", "'pope': give one of system"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "give a string or a list"),
    ({"messages": [{**USER, "colour": "red"}]}, "messages[0].colour", "remove it"),
    (
        {"messages": [{"role": "tool", "tool_call_id": "x", "content": ""}]},
        "messages[0].tool_call_id",
        "no earlier tool",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "gpt-oss reads text only",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}]},
        "messages[0].content[0].type",
        "gpt-oss reads text only",
    ),
    (
        {"messages": [USER, {"role": "assistant", "function_call": {"name": "f"}}]},
        "messages[1].function_call",
        "remove",
    ),
    ({"temperature": -1}, "temperature", "greater than or equal to 0"),
    ({"temperature": "1"}, "temperature", "valid number"),
    ({"temperature": True}, "temperature", "valid number"),
    ({"top_p": 0}, "top_p", "greater than 0"),
    ({"top_p": 1.1}, "top_p", "less than or equal to 1"),
    ({"n": 1000}, "n", "less than or equal to 128"),
    ({"n": 0}, "n", "greater than or equal to 1"),
    ({"max_tokens": -5}, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "differ: give one of them"),
    ({"stop": ["a"] * 10_000}, "stop", "at most 16 items"),
    ({"stop": ["a", ""]}, "stop[1]", "at least 1 character"),
    ({"stop": 3}, "stop", "list"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"seed": 10**30}, "seed", "less than or equal to"),
    ({"logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
    ({"logit_bias": {"7": 101}}, None, "less than or equal to 100"),
    ({"top_logprobs": 3}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
    ({"reasoning_effort": "none"}, "reasoning_effort", "'none': the model knows low, medium, high"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "for streams: set stream"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown parameter stream_options.x: remove it"),
    ({"colour": "red"}, "colour", "unknown parameter colour: remove it"),
    ({"audio": {"voice": "alloy"}}, "audio", "cannot be honoured: the model reads and writes text"),
    ({"modalities": ["text", "audio"]}, "modalities", "cannot be honoured"),
    ({"prediction": {"type": "content", "content": ""}}, "prediction", "cannot be honoured"),
    ({"web_search_options": {}}, "web_search_options", "cannot be honoured"),
    ({"functions": []}, "functions", "cannot be honoured: use tools"),
    ({"store": True}, "store", "cannot be honoured"),
    ({"service_tier": "flex"}, "service_tier", "cannot be honoured"),
    ({"verbosity": "low"}, "verbosity", "cannot be honoured"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "'custom': the model calls functions"),
    ({"tools": [{}]}, "tools[0].type", "functions only"),
    ({"x" * 100_000: 1}, "xxx", "unknown parameter xxx"),
    ({"messages": [{**USER, "\x16": 1}]}, None, "remove it"),
    ({"tools": [{"type": "custom", "name": "f"}]}, "tools[0].type", "'custom'"),
    ({"tools": [tool(name="a b")]}, "tools[0].function.name", "give a name of letters"),
    ({"tools": [tool(), tool()]}, "tools[1].function.name", "give each its own name"),
    ({"tools": [tool(colour="red")]}, "tools[0].function.colour", "unknown parameter"),
    ({"tools": [tool(parameters=nested(50))] * 129}, "tools", "at most 128 items"),
    ({"tool_choice": "required"}, "tool_choice", "there are no tools"),
    ({"tool_choice": "sometimes"}, "tool_choice", "malformed"),
    ({"tools": [tool()], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "names 'g'"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "give text, json_object or json_schema"),
    ({"response_format": schema({"type": "colour"})}, "response_format.json_schema.schema", "colour"),
    ({"response_format": schema({"$ref": "#/nowhere"})}, "response_format.json_schema.schema", "nowhere"),
    ({"response_format": {"type": "text", "colour": 1}}, "response_format.colour", "unknown parameter"),
    ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "structured_outputs",
        "exclude",
    ),
    ({"response_format": JSON, "max_tokens": 2}, "max_tokens", "max_tokens is 2: the shortest"),
]


@pytest.mark.parametrize(("change", "param", "message"), REFUSED, ids=lambda value: json.dumps(value)[:40])
def test_what_chat_refuses(served: Scripted, change: dict[str, Any], param: str | None, message: str) -> None:
    status, error = served.error(CHAT, {"model": "demo", "messages": [USER], **change})
    assert status == 400, error
    assert error["type"] == "invalid_request_error"
    assert message in error["message"], error
    assert len(error["message"]) <= 500 and error["message"].isprintable()
    if param is not None:
        assert str(error["param"]).startswith(param), error
    assert served.worker.requests == []


@pytest.mark.parametrize(
    ("change", "param", "message"),
    [
        ({"prompt": []}, "prompt", "give text, token ids, or a list of either"),
        ({"prompt": None}, "prompt", "malformed"),
        ({"prompt": ["a", 1]}, "prompt[1]", "malformed"),
        ({"prompt": ["a", [1]]}, "prompt", "mixes text and token ids"),
        ({"prompt": [1, -1]}, "prompt[0]", "malformed"),
        ({"prompt": [10**9]}, None, "outside the vocabulary"),
        ({"prompt": ""}, None, "the prompt is empty"),
        ({"prompt": ["a"] * 129}, "prompt", "at most 128"),
        ({"prompt": ["a"] * 100, "n": 2}, "n", "more than 128"),
        ({"suffix": "b"}, "suffix", "cannot be honoured"),
        ({"best_of": 2}, "best_of", "cannot be honoured"),
        ({"echo": True, "logprobs": 1}, "echo", "cannot be honoured"),
    ],
)
def test_what_completions_refuse(served: Scripted, change: dict[str, Any], param: str | None, message: str) -> None:
    status, error = served.error(COMPLETIONS, {"model": "demo", "prompt": "a", **change})
    assert status == 400, error
    assert message in error["message"], error
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is missing"),
        (b"{", "expecting property name"),
        (b"\xff{}", "byte 0 is not UTF-8"),
        (b'{"model": "\xc3("}', "is not UTF-8"),
        (b'{"temperature": NaN}', "NaN is no number of JSON"),
        (b'{"temperature": -Infinity}', "-Infinity is no number of JSON"),
        (b'{"temperature": 1e999}', "the number 1e999 is too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "digits"),
        (b'{"a": 1, "a": 2}', "key 'a' stands twice"),
        (b'{"a": "\\ud800"}', "half of a surrogate pair"),
        (b"[" * 129 + b"]" * 129, "nested more than 128 levels"),
        (b"[" * 100_000, "nested more than 128 levels"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "nested more than 128 levels"),
        (b"[]", "the body is no JSON object: send one as application/json"),
        (b"null", "no JSON object"),
        (b'"a"', "no JSON object"),
    ],
    ids=lambda value: str(value[:24]),
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS, "/tokenize"])
def test_bodies_that_are_no_request(served: Scripted, path: str, body: bytes, message: str) -> None:
    status, error = served.error(path, body)
    assert status == 400
    assert message in error["message"], error


def test_a_body_that_is_not_declared_as_json(served: Scripted) -> None:
    status, error = served.error(CHAT, b"model=demo", {"content-type": "application/x-www-form-urlencoded"})
    assert (status, error["message"]) == (400, "the body is no JSON object: send one as application/json")


ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}}


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [TOOL], "max_tokens": 1},
        {"tools": [TOOL], "tool_choice": "none", "max_tokens": 50},
        {"response_format": {"type": "text"}, "modalities": ["text"], "store": False, "service_tier": "auto"},
        {"parallel_tool_calls": False, "verbosity": "medium", "prompt_cache_key": "k"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_weather"}}},
        {"tools": [TOOL], "tool_choice": ALLOWED},
        {"structured_outputs": {"regex": "[ab]+"}},
    ],
    ids=lambda value: json.dumps(value)[:40],
)
def test_what_chat_takes(served: Scripted, change: dict[str, Any]) -> None:
    served.script(said("final", "Hi"))
    status, _, content = served.ask("POST", CHAT, {"model": "demo", "messages": [USER], **change})
    assert status == 200, content


def test_a_free_answer_may_be_cut_though_functions_are_offered(served: Scripted) -> None:
    served.script(said("final", "Hello there"))
    choice = served.client().chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Hi"}], tools=[TOOL], max_tokens=1
    )
    assert choice.choices[0].finish_reason == "length"


# -------------------------------------------------------------------- what models write


def hostile(seed: int, served: Scripted) -> list[int]:
    """Something like harmony, or nothing like it."""
    draw, tokenizer = random.Random(seed), served.bridge.tokenizer
    special = sorted(tokenizer.special_ids)
    call, answer = said("commentary", '{"a": [}', "functions.f"), said("final", '\x00\u2028"\\')
    turn = turn_ids(tokenizer, said("analysis", "<script>alert(1)</script>"), answer) + turn_ids(tokenizer, call)
    match seed % 4:
        case 0:
            ids = [draw.randrange(CONFIG.vocab_size) for _ in range(80)]
        case 1:
            ids = [draw.choice((draw.choice(special), draw.randrange(CONFIG.vocab_size))) for _ in range(80)]
        case 2:
            ids = [draw.choice(turn) for _ in range(80)]
        case _:
            ids = [token for token in turn for _ in range(draw.choice((0, 1, 1, 2)))] or turn
    return ids


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), logprobs=st.booleans())
def test_whatever_the_model_writes_is_an_answer(shared: Scripted, seed: int, logprobs: bool) -> None:
    ids = hostile(seed, shared)
    shared.worker.reset()
    shared.worker.script = lambda _: ids
    shared.worker.per_step = 1 + seed % 7
    body = {"model": "demo", "messages": [USER], "logprobs": logprobs, "stop": ["zz"]}
    status, _, content = shared.ask("POST", CHAT, body)
    assert status == 200, content
    options = {"stream": True, "stream_options": {"include_usage": True}}
    status, _, streamed = shared.ask("POST", CHAT, {**body, **options})
    events = streamed.decode().strip().split("\n\n")
    assert (status, events[-1]) == (200, "data: [DONE]")
    chunks = [ChatCompletionChunk.model_validate_json(event.removeprefix("data: ")) for event in events[:-1]]
    assert comparable(replay(chunks)) == comparable(ChatCompletion.model_validate_json(content))
    status, _, content = shared.ask("POST", COMPLETIONS, {"model": "demo", "prompt": "a", "max_tokens": 100})
    assert status == 200, content
