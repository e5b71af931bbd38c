"""The Jinja template against the renderer: the same text, special tokens by name."""

import json
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

import ossia
from ossia.harmony.tokenizer import Tokenizer
from ossia.release.vocabulary import CHAT_TEMPLATE


def by_template(messages: list[dict[str, Any]], **variables: Any) -> str:
    """As transformers and llama-server render: blocks trimmed, and JSON without escapes for HTML."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(CHAT_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(messages=messages, add_generation_prompt=True, **variables)


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.\nToday only.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name"},
                "units": {"type": "string", "enum": ["c", "f"], "default": "c"},
                "days": {"type": "integer", "default": 3},
                "tags": {"type": "array", "items": {"type": ["string", "null"]}},
                "any": {"type": "array"},
                "place": {
                    "type": "object",
                    "properties": {"lat": {"type": "number"}, "lon": {"type": "number", "title": "Longitude"}},
                    "required": ["lat"],
                },
                "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "free": {},
            },
            "required": ["city", "free"],
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now", "description": ""}}


def call(number: int, name: str, arguments: str) -> dict[str, Any]:
    return {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "user": [{"role": "user", "content": "Hello"}],
    "parts": [
        {"role": "user", "name": "ann", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    ],
    "instructions": [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind.\n\nAlways."},
        {"role": "user", "content": "Hello"},
        {"role": "developer", "content": "Now be verbose."},
        {"role": "user", "content": "Again"},
    ],
    "empty instructions": [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}],
    "reasoning closed": [
        {"role": "user", "content": "1 + 1"},
        {"role": "assistant", "reasoning": "easy", "content": "2"},
        {"role": "user", "content": "And <|end|>?"},
    ],
    "calls open": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "reasoning": "first", "content": "Hi"},
        {"role": "user", "content": "In Rome and Oslo."},
        {
            "role": "assistant",
            "reasoning": "ask twice",
            "content": "One moment.",
            "tool_calls": [call(1, "get_weather", '{"city": "Rome"}'), call(2, "now", "{}")],
        },
        {"role": "tool", "tool_call_id": "c2", "content": "12:00"},
        {"role": "tool", "tool_call_id": "c1", "content": '{"t": 20}'},
        {"role": "assistant", "reasoning": "done", "tool_calls": [call(3, "functions.now", "{}")]},
        {"role": "tool", "tool_call_id": "c3", "content": "12:01"},
    ],
    "calls closed": [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "reasoning": "ask", "tool_calls": [call(1, "now", "{}")], "content": None},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
        {"role": "assistant", "reasoning": "so", "content": "Noon."},
        {"role": "user", "content": "Thanks"},
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [[], [WEATHER], [NOW, WEATHER]], ids=["none", "one", "two"])
def test_renders_what_the_renderer_renders(o200k: Tokenizer, name: str, tools: list[dict[str, Any]]) -> None:
    messages = CONVERSATIONS[name]
    expected = o200k.decode(ossia.render(messages, tokenizer=o200k, tools=tools))
    assert by_template(messages, tools=tools) == expected


@pytest.mark.parametrize("spelling", ["reasoning", "reasoning_content", "thinking"])
def test_effort_date_and_every_spelling_of_reasoning(o200k: Tokenizer, spelling: str) -> None:
    messages = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", spelling: "ask", "tool_calls": [call(1, "now", "{}")]},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
    ]
    expected = o200k.decode(ossia.render(messages, tokenizer=o200k, effort="high", date="2025-06-28"))
    assert by_template(messages, reasoning_effort="high", current_date="2025-06-28") == expected
    assert by_template(messages, reasoning_effort="high", strftime_now=lambda _: "2025-06-28") == expected
    assert "analysis<|message|>ask<|end|>" in expected


def test_arguments_may_be_an_object_and_the_generation_prompt_is_optional() -> None:
    messages = [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é"}}}]}]
    rendered = by_template(messages)
    assert rendered.endswith(
        'to=functions.f<|channel|>commentary <|constrain|>json<|message|>{"a": "é"}<|call|><|start|>assistant'
    )
