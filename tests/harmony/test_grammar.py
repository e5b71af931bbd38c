"""Grammars of turns: what they let through, told by the library that reads them, and what they refuse, by its place."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ossia.engine.grammar import Vocabulary
from ossia.errors import HarmonyError
from ossia.harmony.grammar import TurnGrammar, turn_grammar
from ossia.harmony.messages import Conversation, Message
from ossia.harmony.parse import Parser
from ossia.harmony.render import render_completion, render_training
from ossia.harmony.schema_check import check_schema
from ossia.harmony.tokenizer import Tokenizer

Grammar = Callable[..., TurnGrammar | None]


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer: Tokenizer) -> Vocabulary:
    tokens = [tiny_tokenizer.token_bytes(token) for token in range(tiny_tokenizer.vocab_size)]
    return Vocabulary(tokens, tiny_tokenizer.special)


@pytest.fixture(scope="module")
def grammar(tiny_tokenizer: Tokenizer, vocabulary: Vocabulary) -> Grammar:
    def make(**asked: Any) -> TurnGrammar | None:
        return turn_grammar(tiny_tokenizer, problem=vocabulary.problem, **asked)

    return make


@pytest.fixture(scope="module")
def takes(tiny_tokenizer: Tokenizer, vocabulary: Vocabulary) -> Callable[..., bool]:
    """Whether a grammar takes messages in the renderer's words, to the last token and as an end."""

    def take(grammar: TurnGrammar | None, *messages: Message, of: list[int] | None = None) -> bool:
        assert grammar is not None
        turn = turn_of(messages, tiny_tokenizer) if of is None else of
        matcher = vocabulary.matcher(grammar.lark)
        return matcher.consume_tokens(turn) and matcher.is_accepting()

    return take


def turn_of(messages: tuple[Message, ...], tokenizer: Tokenizer) -> list[int]:
    """The tokens after the prompt's `<|start|>assistant`."""
    before = Conversation(messages=(Message(role="user", content="?"),))
    ids, _ = render_training(replace(before, messages=(*before.messages, *messages)), tokenizer)
    return ids[len(render_completion(before, tokenizer)) :]


def analysis(content: str = "I think: <|end|> is text. 思\n") -> Message:
    return Message(role="assistant", channel="analysis", content=content)


def preamble(content: str = "One moment.") -> Message:
    return Message(role="assistant", channel="commentary", content=content)


def final(content: str) -> Message:
    return Message(role="assistant", channel="final", content=content)


def call(name: str, content: str, **more: str) -> Message:
    fields = {"channel": "commentary", "recipient": f"functions.{name}", "content_type": "json", **more}
    return Message(role="assistant", content=content, **fields)


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


ARGUMENTS = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [tool("weather", parameters=ARGUMENTS, strict=True), tool("weather_map"), tool("find", parameters={})]


def schema_format(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


# -------------------------------------------------------------------- what is let through


def test_nothing_asked_nothing_held(grammar: Grammar) -> None:
    assert grammar() is None
    assert grammar(response_format={"type": "text"}) is None
    assert grammar(tools=TOOLS, tool_choice="none") is None


def test_a_form_holds_the_final_message_behind_reasoning(grammar: Grammar, takes: Callable[..., bool]) -> None:
    formed = grammar(response_format=schema_format(ARGUMENTS))
    assert formed is not None
    assert not formed.is_free
    assert takes(formed, analysis(), final('{"city":"Łódź"}'))
    assert takes(formed, analysis(), final('{\n  "city": "x"\n}'))
    assert not takes(formed, analysis(), final('{"city":1}'))
    assert not takes(formed, analysis(), final('{"city":"x"} '))
    assert not takes(formed, analysis(), final('{"city":"x"' + " " * 33 + "}"))
    assert not takes(formed, final('{"city":"x"}'))
    assert not takes(formed, analysis(""), final('{"city":"x"}'))
    assert not takes(formed, analysis(), call("weather", '{"city":"x"}'))
    assert takes(
        grammar(response_format={**schema_format(ARGUMENTS)["json_schema"], "type": "json_schema"}),
        analysis(),
        final('{"city":"x"}'),
    )


def test_properties_come_in_the_schema_s_order(grammar: Grammar, takes: Callable[..., bool]) -> None:
    schema = {"type": "object", "properties": {"b": {}, "a": {}}, "required": ["a", "b"]}
    formed = grammar(response_format=schema_format(schema))
    assert takes(formed, analysis(), final('{"b":1,"a":2}'))
    assert not takes(formed, analysis(), final('{"a":2,"b":1}'))


def test_any_object_will_do_where_an_object_is_asked_for(grammar: Grammar, takes: Callable[..., bool]) -> None:
    formed = grammar(response_format={"type": "json_object"})
    assert takes(formed, analysis(), final('{"x":[1,{"y":null}]}'))
    assert not takes(formed, analysis(), final("[1]"))


@pytest.mark.parametrize(
    ("regex", "matches", "fails"),
    [
        ("a/b|c", ["a/b", "c"], ["a", "a/c", "a/b/"]),
        (r"a\/b", ["a/b"], [r"a\/b"]),
        ("^[0-9]+$", ["12"], ["", "1a"]),
        ('x" | "y', ['x" ', ' "y'], ["x", 'x" "y']),
        ("a\nb\\\nc", ["a\nb\nc"], ["a\\nb\nc"]),
        (r"<\|return\|>", ["<|return|>"], [""]),
        (r"\\", ["\\"], ["\\\\"]),
        ("思+", ["思思"], ["想"]),
    ],
)
def test_a_regular_expression_is_the_whole_answer(
    grammar: Grammar, takes: Callable[..., bool], regex: str, matches: list[str], fails: list[str]
) -> None:
    formed = grammar(regex=regex)
    assert [takes(formed, analysis(), final(text)) for text in matches] == [True] * len(matches)
    assert [takes(formed, analysis(), final(text)) for text in fails] == [False] * len(fails)


def test_calls_are_written_as_the_renderer_writes_them(
    grammar: Grammar, takes: Callable[..., bool], tiny_tokenizer: Tokenizer
) -> None:
    free = grammar(tools=TOOLS)
    assert free is not None
    assert free.is_free
    weather = call("weather", '{"city":"x"}')
    for messages in ((weather,), (analysis(), weather), (analysis(), preamble(), analysis(), weather)):
        assert takes(free, *messages)
    assert takes(free, call("weather_map", "{}"))
    assert takes(free, call("find", '{"anything":[1]}'))
    assert takes(free, final("Any text at all."))
    assert takes(free, analysis(), final(""))
    for wrong in (
        call("weather", '{"town":"x"}'),
        call("weather_map", '{"x":1}'),
        call("find", "[1]"),
        call("weathe", "{}"),
        call("other", "{}"),
        call("weather", '{"city":"x"}', channel="analysis"),
        call("weather", '{"city":"x"}', content_type="code"),
    ):
        assert not takes(free, analysis(), wrong)

    encode, special = tiny_tokenizer.encode, tiny_tokenizer.special
    after_channel = [
        *(special["<|channel|>"], *encode("commentary to=functions.find "), special["<|constrain|>"], *encode("json")),
        *(special["<|message|>"], *encode("{}"), special["<|call|>"]),
    ]
    assert takes(free, of=after_channel)
    parser = Parser(tiny_tokenizer)
    parser.feed(after_channel)
    assert (parser.messages, parser.assumed) == ([call("find", "{}")], [])


def test_the_choice_decides_who_is_called(grammar: Grammar, takes: Callable[..., bool]) -> None:
    weather, other = call("weather", '{"city":"x"}'), call("weather_map", "{}")
    required = grammar(tools=TOOLS, tool_choice="required")
    assert required is not None
    assert not required.is_free
    assert takes(required, analysis(), weather)
    assert takes(required, analysis(), preamble(), other)
    assert not takes(required, weather)
    assert not takes(required, analysis(), final("No."))
    for choice in ({"type": "function", "function": {"name": "weather"}}, {"type": "function", "name": "weather"}):
        named = grammar(tools=TOOLS, tool_choice=choice)
        assert takes(named, analysis(), weather)
        assert not takes(named, analysis(), other)
        assert not takes(named, analysis(), final("No."))
    both = grammar(tools=TOOLS, response_format={"type": "json_object"})
    assert takes(both, analysis(), preamble(), weather)
    assert takes(both, analysis(), final("{}"))
    assert not takes(both, weather)
    assert not takes(both, analysis(), final("No."))
    formed = grammar(tools=TOOLS, tool_choice="none", response_format={"type": "json_object"})
    assert not takes(formed, analysis(), weather)


def test_headers_are_the_tokens_of_the_renderer_and_no_others(
    o200k: Tokenizer, grammar: Grammar, takes: Callable[..., bool]
) -> None:
    """In a vocabulary where a name is one token among several ways to spell it."""
    made = turn_grammar(o200k, tools=TOOLS, tool_choice="required", problem=lambda _: None)
    assert made is not None
    for piece in (" to=functions.weather_map", "analysis", "commentary", " ", "json", "assistant"):
        ids = o200k.encode(piece)
        assert " ".join(f"<[{token}]>" for token in ids) in made.lark
    assert made.finish[0] == o200k.special["<|return|>"]


def test_tools_that_cannot_be_held_to_their_schema(grammar: Grammar, takes: Callable[..., bool]) -> None:
    loose = {"type": "object", "not": {"required": ["x"]}}
    free = grammar(tools=[tool("f", parameters=loose)])
    assert takes(free, call("f", '{"x":1}'))
    with pytest.raises(HarmonyError, match=r"^tools\[0\]\.function\.parameters\.not cannot be enforced"):
        grammar(tools=[tool("f", parameters=loose, strict=True)])
    untyped = grammar(tools=[tool("f", parameters={"properties": {"x": {"type": "integer"}}})])
    assert takes(untyped, call("f", '{"x":1}'))
    assert not takes(untyped, call("f", "1"))


# -------------------------------------------------------------------- what is refused, and where

NESTED = {"type": "object", "properties": {"a": {"type": "array", "items": {"anyOf": [{"type": "string"}, {}]}}}}


def nested(schema: Any) -> dict[str, Any]:
    inner = {"anyOf": [{"type": "string"}, schema]}
    return {"type": "object", "properties": {"a": {"type": "array", "items": inner}}}


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"type": "strin"}, ".type is 'strin': give one of string, number,"),
        ({"type": []}, ".type is []: give one of"),
        ({"$ref": "#/$defs/x"}, ".$ref is '#/$defs/x', which leads nowhere in this schema"),
        ({"$ref": "http://example.com/x"}, ".$ref is 'http://example.com/x', which leads nowhere"),
        ({"$ref": 3}, ".$ref is 3: give text"),
        (3, " is int: give a JSON Schema object"),
        ({"enum": []}, ".enum is []: give a list of values"),
        ({"required": "x"}, ".required is 'x': give a list of names"),
        ({"minLength": -1}, ".minLength is -1: give a whole number of at least 0"),
        ({"minimum": "1"}, ".minimum is '1': give a number"),
        ({"multipleOf": 0}, ".multipleOf is 0: give a number above 0"),
        ({"properties": []}, ".properties is list: give an object of schemas"),
        ({"anyOf": {}}, ".anyOf is {}: give a list of schemas"),
        ({"pattern": 1}, ".pattern is 1: give text"),
        ({"not": {}}, ".not cannot be enforced: leave it out"),
        ({"uniqueItems": True}, ".uniqueItems cannot be enforced: leave it out"),
        ({"unevaluatedProperties": False}, ".unevaluatedProperties cannot be enforced: leave it out"),
        ({"items": [{}]}, ".items is a list, as an old draft has it: give prefixItems"),
        ({"exclusiveMinimum": True}, ".exclusiveMinimum is True, as an old draft has it: give the number itself"),
        ({"minProperties": 2}, ".minProperties is more than are required: name those in required"),
        (
            {"type": "number", "exclusiveMinimum": 1, "maximum": 1.5},
            ".exclusiveMinimum 1 beside maximum 1.5 cannot be enforced: give an end that is allowed",
        ),
        # These are found by the library, and their places by us.
        ({"type": "string", "pattern": "(?=x)y"}, " cannot be enforced: look-around, including"),
        ({"type": "string", "format": "colour"}, " cannot be enforced: Unknown format: colour"),
        (
            {"oneOf": [{"type": "integer"}, {"type": "number"}]},
            " cannot be enforced: oneOf constraints are not supported",
        ),
    ],
)
def test_a_bad_schema_is_refused_by_its_place(grammar: Grammar, schema: Any, says: str) -> None:
    for asked, place in (
        ({"response_format": schema_format(nested(schema))}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "schema": nested(schema)}, "format_place": "text.format"},
            "text.format.schema",
        ),
        ({"tools": [tool("f"), tool("g", parameters=nested(schema), strict=True)]}, "tools[1].function.parameters"),
        (
            {"tools": [{"type": "function", "name": "g", "parameters": nested(schema), "strict": True}]},
            "tools[0].parameters",
        ),
    ):
        with pytest.raises(HarmonyError) as caught:
            grammar(**asked)
        assert str(caught.value).startswith(f"{place}.properties.a.items.anyOf.1{says}")


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"$ref": "#"}, ".$ref is '#', of which no value ever ends: make something optional"),
        (
            {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
            ".properties.a.$ref is '#', of which",
        ),
        (
            {"$ref": "#/$defs/x", "$defs": {"x": {"type": "array", "items": {"$ref": "#/$defs/x"}, "minItems": 1}}},
            ".$ref is '#/$defs/x', of which no value ever ends",
        ),
        ({"enum": [float("nan")]}, ".enum.0 is nan: give a finite number"),
        ({1: 2}, " has the key 1: give text"),
        ({"enum": list(range(30_000))}, " has more than 20,000 values: simplify the schema"),
    ],
)
def test_a_schema_out_of_bounds_is_refused(grammar: Grammar, schema: Any, says: str) -> None:
    with pytest.raises(HarmonyError) as caught:
        grammar(response_format=schema_format(schema))
    assert str(caught.value).startswith(f"response_format.json_schema.schema{says}")


def test_recursion_that_can_end_is_fine(grammar: Grammar, takes: Callable[..., bool]) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#"}}, "additionalProperties": False}
    assert takes(grammar(response_format=schema_format(schema)), analysis(), final('{"a":{"a":{}}}'))


def test_depth_is_bounded_before_anything_recurses(grammar: Grammar) -> None:
    deep: Any = {"type": "string"}
    for _ in range(100_000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(HarmonyError, match="has more than 128 levels: simplify the schema"):
        grammar(response_format=schema_format(deep))
    chain = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(5000)}
    with pytest.raises(HarmonyError, match="goes more than 400 schemas and references deep: simplify it"):
        grammar(response_format=schema_format({"$ref": "#/$defs/d0", "$defs": {**chain, "d5000": {}}}))
    short = {f"d{n}": {"$ref": f"#/$defs/d{n + 1}"} for n in range(80)}
    assert grammar(response_format=schema_format({"$ref": "#/$defs/d0", "$defs": {**short, "d80": {}}}))


def test_the_library_s_own_switches_are_not_the_caller_s(grammar: Grammar, takes: Callable[..., bool]) -> None:
    loosened = {"type": "object", "x-guidance": {"lenient": True}, "properties": {"a": {"format": "colour"}}}
    with pytest.raises(HarmonyError, match=r"schema\.properties\.a cannot be enforced: Unknown format: colour"):
        grammar(response_format=schema_format(loosened))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"tool_choice": "required"}, "tool_choice asks for a call, and there are no tools"),
        (
            {"tools": TOOLS, "tool_choice": "weather"},
            "tool_choice is 'weather': give auto, none, required or an object",
        ),
        ({"tools": TOOLS, "tool_choice": {"type": "mcp"}}, "tool_choice.type is 'mcp': only a function can be chosen"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "no"}}},
            "tool_choice names 'no', which is none of the tools: give one of weather, weather_map, find",
        ),
        ({"tools": [tool("f"), tool("f")]}, "tools[1] has the name of tools[0], 'f': give each its own"),
        (
            {"tools": [tool("f", parameters={"type": "string"})]},
            "tools[0].function.parameters.type is 'string': arguments",
        ),
        ({"tools": [{"type": "function"}]}, "tools[0].name is None: give text"),
        ({"response_format": {"type": "xml"}}, "response_format.type is 'xml': give text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.schema is missing: give a JSON Schema object"),
        ({"regex": "(", "response_format": {"type": "text"}}, "regex '(' cannot be enforced: unclosed group"),
        ({"regex": "a\\"}, "regex 'a\\\\' ends in a lone backslash: escape it"),
        ({"regex": "a", "response_format": {"type": "json_object"}}, "regex and response_format both say what"),
    ],
)
def test_what_contradicts_itself_is_refused(grammar: Grammar, asked: dict[str, Any], says: str) -> None:
    with pytest.raises(HarmonyError) as caught:
        grammar(**asked)
    assert str(caught.value).startswith(says)


# -------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("schema", "growth"),
    [
        ({}, 1),
        ({"type": "object", "properties": {"a": {"type": "string", "minLength": 50}}}, 52),
        ({"type": "object", "properties": {"a": {"const": "x"}}, "required": ["a"]}, len('{"a":"x",}')),
        ({"type": "array", "items": {"type": "null"}, "minItems": 3}, len("[null,null,null,]")),
        ({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"enum": ["long", 1]}, "minItems": 9}]}, 20),
        (
            {
                "type": "object",
                "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
                "required": ["next"],
            },
            14,
        ),
    ],
)
def test_growth_is_that_of_the_longest_part(schema: Any, growth: int) -> None:
    assert check_schema(schema, path="s") == growth


def test_no_grammar_library_is_needed() -> None:
    code = "import sys, ossia.harmony.grammar; assert 'llguidance' not in sys.modules, 'llguidance was imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
