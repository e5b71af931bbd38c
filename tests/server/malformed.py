"""Requests that are wrong, each in one way: written by hand, and made from good ones by chance."""

import copy
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

CHAT, COMPLETIONS, RESPONSES, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"

USER = {"role": "user", "content": "What is 17 + 25?"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": "demo",
        "messages": [
            {"role": "system", "content": "Be brief."},
            USER,
            {"role": "assistant", "content": None, "reasoning": "Use get_weather: city=Paris", "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": '{"status":"ok"}'},
            {"role": "user", "content": [{"type": "text", "text": "What is 17 + 25?"}]},
        ],
        "tools": [WEATHER],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
        "temperature": 0,
        "top_p": 0.9,
        "seed": 1,
        "n": 1,
        "stop": ["\n\n"],
        "logprobs": True,
        "top_logprobs": 2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
        "logit_bias": {"17": 1},
        "max_completion_tokens": 16,
        "reasoning_effort": "low",
        "stream": True,
        "stream_options": {"include_usage": True},
    },
    COMPLETIONS: {
        "model": "demo",
        "prompt": "What is 17 + 25?",
        "temperature": 0,
        "max_tokens": 2,
        "stop": "\n",
        "n": 1,
        "seed": 1,
        "logprobs": 1,
        "stream": False,
    },
    RESPONSES: {
        "model": "demo",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 17 + 25?"}]},
        ],
        "instructions": "Be brief.",
        "tools": [{"type": "function", "strict": False, **WEATHER["function"]}],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "temperature": 0,
        "top_p": 0.9,
        "max_output_tokens": 16,
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "text"}},
        "store": False,
        "stream": False,
    },
}
"""Requests that are answered with status 200, and have every kind of field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """A request that must be refused."""

    name: str
    path: str
    body: bytes
    names: str
    """What the message, or the error's param, has to name; "" where the body is no JSON object."""
    status: int = 400


# -------------------------------------------------------------------- by hand


def by_hand() -> list[Bad]:
    """Every request of this file that was thought of."""
    return [*_no_json(), *_chat(), *_schemas(), *_completions(), *_responses()]


def _no_json() -> Iterator[Bad]:
    texts = {
        "nothing": b"",
        "no JSON": b"hello",
        "a string": b'"hello"',
        "a number": b"17",
        "null": b"null",
        "a list": b"[]",
        "cut": json.dumps(GOOD[CHAT]).encode()[:-7],
        "broken UTF-8": b'{"model":"demo","messages":[{"role":"user","content":"\xff\xfe"}]}',
        "a lone byte of UTF-8": b'{"model":"demo","messages":[{"role":"user","content":"\xc3"}]}',
        "UTF-16": json.dumps(GOOD[CHAT]).encode("utf-16"),
        "a NUL": b"\0",
        "single quotes": b"{'model':'demo'}",
        "infinity": b'{"model":"demo","messages":[{"role":"user","content":"a"}],"temperature":Infinity}',
        "a number too large": b'{"model":"demo","messages":[{"role":"user","content":"a"}],"temperature":1e400}',
        "a key twice": b'{"model":"demo","model":"demo","messages":[{"role":"user","content":"a"}]}',
        "half a surrogate": b'{"model":"demo","messages":[{"role":"user","content":"\\ud800"}]}',
        "a comma too many": b'{"model":"demo",}',
        "a hundred thousand lists": b"[" * 100_000,
        "a hundred thousand objects": b'{"a":' * 100_000,
    }
    for name, body in texts.items():
        for path in (CHAT, RESPONSES):
            yield Bad(name=f"{name} to {path}", path=path, body=body, names="")


def _with(path: str, name: str, names: str, status: int = 400, **fields: Any) -> Bad:
    """The least request to `path` with these fields; a field that is given as `...` is left out."""
    least = {CHAT: {"messages": [USER]}, COMPLETIONS: {"prompt": "17 + 25"}, RESPONSES: {"input": "17 + 25"}}
    body = {"model": "demo", **least[path], **fields}
    body = {field: value for field, value in body.items() if value is not ...}
    # Names in the path of an element, and in prose, differ: the last one has to be there.
    text = json.dumps(body).replace(json.dumps(_DEEP), _levels(1000))
    return Bad(name=f"{name} to {path}", path=path, body=text.encode(), names=names, status=status)


_LONG = "x" * 100_000
"""What no message may repeat."""
_DEEP = "a schema of a thousand levels"
"""Stands for one until the body is text: json cannot write it."""


def _levels(count: int) -> str:
    return '{"type":"object","properties":{"x":' * count + '{"type":"string"}' + "}}" * count


def _chat() -> Iterator[Bad]:
    wrong: dict[str, list[Any]] = {
        "model": [..., 17, None, ["demo"]],
        "messages": [..., [], "hello", {}, [1], [None], ["hello"], None],
        "temperature": [-1, "hot", True, [0]],
        "top_p": [0, -0.5, 1.5, "all"],
        "n": [0, -1, 1000, 1.5, "two"],
        "max_tokens": [0, -5, "many", 1.5],
        "max_completion_tokens": [0, -5, "many"],
        "seed": ["x", 1.5, 2**70, -(2**70)],
        "stop": [5, [5], [""], "", [f"stop {n}" for n in range(10_000)], {"a": 1}],
        "logprobs": ["yes", 3],
        "top_logprobs": [21, -1, "few", 5],  # The last: without logprobs.
        "presence_penalty": [3, -3, "some"],
        "frequency_penalty": [3, -3, "some"],
        "logit_bias": [{"x": 1}, {"17": 200}, {"17": "much"}, [1], {"99999999": 1}, {"-1": 1}],
        "stream": ["yes", 2],
        "stream_options": [{"include_usage": True}, "usage", {"include_everything": True}],  # The first: no stream.
        "reasoning_effort": ["extreme", 3],
        "parallel_tool_calls": ["maybe"],
        "tools": [{}, "get_weather", [1], [{"type": "retrieval"}], [{"type": "function"}]],
        "tool_choice": ["always", "required", {"type": "function", "function": {"name": "get_weather"}}, 5],
        "response_format": [
            "json",
            {"type": "xml"},
            {"type": "json_schema"},
            {},
            {"type": "json_schema", "json_schema": {}},
        ],
        "modalities": [["audio"]],
        "audio": [{"voice": "alloy", "format": "wav"}],
        "prediction": [{"type": "content", "content": "42"}],
        "web_search_options": [{}],
        "functions": [[WEATHER["function"]]],
        "min_p": [-1, 2],
        "top_k": [-1, 1.5],
        "repetition_penalty": [0, -1],
        "no_such_field": [1],
        "Temperature": [0],
    }
    for field, values in wrong.items():
        for number, value in enumerate(values):
            yield _with(CHAT, f"{field} {number}", field, **{field: value})
    yield _with(CHAT, "an unknown model", "no-such-model", status=404, model="no-such-model")
    yield _with(CHAT, "a very long model", "model", status=404, model=_LONG)
    yield _with(CHAT, "a very long parameter", "xxx", **{_LONG: 1})

    messages: dict[str, tuple[str, list[Any]]] = {
        "an unknown role": ("role", [{"role": "wizard", "content": "hello"}]),
        "no role": ("role", [{"content": "hello"}]),
        "a number as role": ("role", [{"role": 5, "content": "hello"}]),
        "no content": ("content", [{"role": "user"}]),
        "a number as content": ("content", [{"role": "user", "content": 5}]),
        "null as content": ("content", [{"role": "user", "content": None}]),
        "a part that is no object": ("content", [{"role": "user", "content": ["hello"]}]),
        "a part without type": ("type", [{"role": "user", "content": [{"text": "hello"}]}]),
        "a part without text": ("text", [{"role": "user", "content": [{"type": "text"}]}]),
        "an image": ("image_url", [_parts({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}})]),
        "a sound": ("input_audio", [_parts({"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}})]),
        "a file": ("file", [_parts({"type": "file", "file": {"file_id": "file_1"}})]),
        "a result without a call": ("tool_call_id", [USER, {"role": "tool", "tool_call_id": "call_9", "content": "1"}]),
        "a result without id": ("tool_call_id", [USER, {"role": "tool", "content": "1"}]),
        "an empty assistant": ("content", [USER, {"role": "assistant"}, USER]),
        "a call without function": ("function", [USER, _calling({"id": "call_1", "type": "function"})]),
        "a call without name": ("name", [USER, _calling({**CALL, "function": {"arguments": "{}"}})]),
        "a call with arguments that are a list": (
            "arguments",
            [USER, _calling({**CALL, "function": {"name": "f", "arguments": [1]}})],
        ),
        "a call of a kind that nobody knows": ("type", [USER, _calling({**CALL, "type": "custom"})]),
        "a name with a space": ("name", [{**USER, "name": "a b"}]),
        "a name with a special token": ("name", [{**USER, "name": "<|start|>"}]),
        "a field that nobody knows": ("mood", [{**USER, "mood": "good"}]),
        "two kinds of reasoning": (
            "reasoning",
            [USER, {"role": "assistant", "content": "a", "reasoning": "b", "reasoning_content": "c"}, USER],
        ),
        "a very long role": ("role", [{"role": _LONG, "content": "hello"}]),
        "a very long field": ("messages", [{**USER, _LONG: 1}]),
        "a very long call id": ("tool_call_id", [USER, {"role": "tool", "tool_call_id": _LONG, "content": "1"}]),
        "a very long message": ("token", [{"role": "user", "content": "all work and no play " * 20_000}]),
        "very many messages": ("token", [USER] * 5_000),
    }
    for name, (names, value) in messages.items():
        yield _with(CHAT, name, names, messages=value)

    tools: dict[str, tuple[str, list[Any]]] = {
        "a tool without name": ("name", [{"type": "function", "function": {"description": "x"}}]),
        "a tool with a space in its name": ("name", [{"type": "function", "function": {"name": "get weather"}}]),
        "a tool with an empty name": ("name", [{"type": "function", "function": {"name": ""}}]),
        "two tools of one name": ("get_weather", [WEATHER, WEATHER]),
        "parameters that are a string": ("parameters", [_tool("city")]),
        "parameters that are a list": ("parameters", [_tool([1])]),
        "a description that is a number": (
            "description",
            [{"type": "function", "function": {"name": "f", "description": 5}}],
        ),
    }
    for name, (names, value) in tools.items():
        yield _with(CHAT, name, names, tools=value)
    other = {"type": "function", "function": {"name": "get_time"}}
    yield _with(CHAT, "a choice of a tool that is not offered", "tool_choice", tools=[WEATHER], tool_choice=other)


def _parts(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": "What is this?"}, part]}


def _calling(call: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _tool(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "get_weather", "parameters": parameters}}


def _format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


def _schemas() -> Iterator[Bad]:
    a: dict[str, Any] = {"$ref": "#/$defs/a"}
    wrong: dict[str, Any] = {
        "a type that does not exist": {"type": "object", "properties": {"x": {"type": "strnig"}}},
        "a reference to itself": {"$defs": {"a": a}, "properties": {"x": a}, "type": "object"},
        "two references to each other": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": a}, **a},
        "a reference into nothing": {"type": "object", "properties": {"x": {"$ref": "#/$defs/nothing"}}},
        "a reference to elsewhere": {"type": "object", "properties": {"x": {"$ref": "https://example.com/s.json"}}},
        "a thousand levels": _DEEP,
        "properties that are a list": {"type": "object", "properties": ["x"]},
        "an enum that is empty": {"type": "object", "properties": {"x": {"enum": []}}, "required": ["x"]},
        "a pattern that is none": {"type": "object", "properties": {"x": {"type": "string", "pattern": "("}}},
    }
    for name, schema in wrong.items():
        where = "levels" if schema is _DEEP else "format"
        yield _with(CHAT, f"a format with {name}", where, response_format=_format(schema))
        text = {"format": {"type": "json_schema", "name": "answer", "strict": True, "schema": schema}}
        yield _with(RESPONSES, f"a format with {name}", where, text=text)
    for name, where in (("a reference to itself", "tools"), ("a thousand levels", "levels")):
        yield _with(CHAT, f"a tool with {name}", where, tools=[_tool(wrong[name])])
    yield _with(CHAT, "a schema that is a string", "schema", response_format=_format("object"))


def _completions() -> Iterator[Bad]:
    wrong: dict[str, list[Any]] = {
        "model": [...],
        "prompt": [..., [], {}, 5, [1, "a"], [-1], [99_999_999], [[]], None, ""],
        "max_tokens": [-1, "many"],
        "temperature": ["hot", -1],
        "logprobs": [21, True, -1],
        "best_of": [5],
        "suffix": ["and so on"],
        "n": [0, 1000],
        "no_such_field": [1],
    }
    for field, values in wrong.items():
        for number, value in enumerate(values):
            yield _with(COMPLETIONS, f"{field} {number}", field, **{field: value})
    yield _with(COMPLETIONS, "an unknown model", "no-such-model", status=404, model="no-such-model")
    yield _with(COMPLETIONS, "a very long prompt", "token", prompt="all work and no play " * 20_000)


def _responses() -> Iterator[Bad]:
    wrong: dict[str, list[Any]] = {
        "model": [..., 5],
        "input": [..., 5, [1], {}, [{"type": "teapot"}], [{"role": "wizard", "content": "hello"}]],
        "instructions": [5],
        "max_output_tokens": [0, -1, "many"],
        "temperature": [-1, "hot"],
        "top_p": [2, "all"],
        "reasoning": [{"effort": "extreme"}, "low"],
        "text": [{"format": {"type": "xml"}}, "text"],
        "tools": [
            [{"type": "web_search"}],
            [{"type": "function"}],
            [{"type": "code_interpreter", "container": "x"}],
            5,
        ],
        "tool_choice": ["always", {"type": "function", "name": "get_weather"}],
        "include": [["everything"], "all"],
        "metadata": [{"a": 1}, 5],
        "store": ["yes"],
        "stream": ["yes"],
        "background": ["yes"],
        "truncation": ["middle"],
        "top_logprobs": [21],
        "no_such_field": [1],
    }
    for field, values in wrong.items():
        for number, value in enumerate(values):
            yield _with(RESPONSES, f"{field} {number}", field, **{field: value})
    output = {"type": "function_call_output", "call_id": "call_9", "output": "1"}
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"}
    file = {"type": "input_file", "file_id": "file_1"}
    yield _with(RESPONSES, "an unknown model", "no-such-model", status=404, model="no-such-model")
    yield _with(RESPONSES, "a result without a call", "call_id", input=[output])
    yield _with(RESPONSES, "an image", "input_image", input=[{"role": "user", "content": [image]}])
    yield _with(RESPONSES, "a file", "input_file", input=[{"role": "user", "content": [file]}])
    yield _with(RESPONSES, "a very long input", "token", input="all work and no play " * 20_000)
    yield _with(
        RESPONSES, "two tools of one name", "get_weather", tools=[{"type": "function", **WEATHER["function"]}] * 2
    )
    yield _with(
        RESPONSES, "an answer that does not exist", "previous_response_id", 404, previous_response_id="resp_nothing"
    )
    yield Bad(name=f"no prompt to {TOKENIZE}", path=TOKENIZE, body=b"{}", names="")


# -------------------------------------------------------------------- by chance

_FREE = ("metadata", "parameters", "schema", "logit_bias", "arguments")
"""Below these a name or a value of another type may be right."""
_STRANGE: tuple[Any, ...] = ({"strange": [1, {"more": None}]}, [["strange"]], "strange\u0000", -(2**63), 1.5e300)


def mutations(count: int, seed: int) -> Iterator[Bad]:
    """`count` requests, each a good one with one thing changed so that it cannot be right."""
    rng = random.Random(seed)
    made: set[bytes] = set()
    while len(made) < count:
        path = rng.choice(list(GOOD))
        body = copy.deepcopy(GOOD[path])
        bad = rng.choice((_cut, _unknown_field, _wrong_type, _wrong_type, _wrong_type))(rng, path, body)
        if bad is not None and bad.body not in made:
            made.add(bad.body)
            yield replace(bad, name=f"mutation {len(made)}: {bad.name}")


def _cut(rng: random.Random, path: str, body: dict[str, Any]) -> Bad:
    text = json.dumps(body).encode()
    at = rng.randrange(1, len(text) - 1)
    return Bad(name=f"cut at byte {at} to {path}", path=path, body=text[:at], names="")


def _unknown_field(rng: random.Random, path: str, body: dict[str, Any]) -> Bad | None:
    where, holder = rng.choice([(where, value) for where, value in _places(body) if isinstance(value, dict)])
    holder["unheard_of"] = rng.choice(_STRANGE)
    names = "unheard_of"
    return Bad(name=f"{where}.unheard_of to {path}", path=path, body=json.dumps(body).encode(), names=names)


def _wrong_type(rng: random.Random, path: str, body: dict[str, Any]) -> Bad | None:
    where, holder = rng.choice([(where, value) for where, value in _places(body) if isinstance(value, dict) and value])
    field = rng.choice(list(holder))
    if field in _FREE:
        return None
    # No field of the good requests takes an object of such keys, and none a list of lists.
    holder[field] = rng.choice(_STRANGE[:2])
    name = f"{where}.{field} as {type(holder[field]).__name__} to {path}"
    return Bad(name=name, path=path, body=json.dumps(body).encode(), names=field)


def _places(value: Any, where: str = "body") -> Iterator[tuple[str, Any]]:
    yield where, value
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in _FREE:
                yield from _places(inner, f"{where}.{name}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _places(inner, f"{where}[{index}]")
