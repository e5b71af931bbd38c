"""Whole answers held to a form, by a model that knows something of it and by one that knows nothing."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import jsonschema
import pytest
from tests.engine.random_schemas import random_schema
from tests.engine.small import CONFIG, random_model

import ossia
from ossia.engine.finish import Finisher
from ossia.engine.grammar import GrammarConstraint, ReasoningMarks, Vocabulary
from ossia.engine.loop import new_cache, prefill, step
from ossia.engine.request import Sampling
from ossia.engine.sampler import Sampler
from ossia.harmony.grammar import TurnGrammar, turn_grammar
from ossia.harmony.messages import Message
from ossia.harmony.parse import Parser
from ossia.llm import LLM
from ossia.model.transformer import Transformer

UNNAMED = 5
"""Rows of the random model that stand for no token."""


@dataclass(frozen=True, slots=True)
class Setting:
    model: Transformer
    llm: LLM
    vocabulary: Vocabulary

    def grammar(self, **asked: Any) -> TurnGrammar:
        grammar = turn_grammar(self.llm.tokenizer, problem=self.vocabulary.problem, **asked)
        assert grammar is not None
        return grammar

    def answer(self, grammar: TurnGrammar, *, spare: int, seed: int, tools: Any = None) -> list[Message]:
        """The messages of one answer at temperature 1, all of them as they should be.

        spare: tokens it may have beyond those of the shortest.
        """
        tokenizer = self.llm.tokenizer
        special = tokenizer.special
        held = partial(
            GrammarConstraint,
            self.vocabulary,
            grammar.lark,
            finish=grammar.finish,
            growth=grammar.growth,
            marks=ReasoningMarks(
                channel=special["<|channel|>"],
                message=special["<|message|>"],
                end=special["<|end|>"],
                headers=(tuple(tokenizer.encode("analysis")),),
            ),
        )
        limit = held(limit=None).shortest + spare
        constraint = held(limit=limit)
        prompt = ossia.render("Answer as you are told: what is 3 + 4?", tokenizer=tokenizer, effort="low", tools=tools)
        kv, sampler, answer = new_cache(self.model, context=len(prompt) + limit), Sampler(Sampling(seed=seed)), []
        logits = prefill(self.model, prompt, kv)
        while True:
            answer.append(sampler.draw(logits, constraint.mask(limit - len(answer))).token)
            constraint.accept(answer[-1])
            if answer[-1] in tokenizer.stop_ids or len(answer) == limit:
                break
            logits = step(self.model, answer[-1:], kv)
        parser = Parser(tokenizer)
        parser.feed(answer)
        assert answer[-1] in tokenizer.stop_ids, f"cut off after {limit} tokens: {tokenizer.decode(answer)}"
        assert not parser.assumed
        return parser.messages


@cache
def setting(name: str) -> Setting:
    llm = ossia.load("demo")
    tokenizer = llm.tokenizer
    size = tokenizer.vocab_size
    model = llm.model
    if name == "random":
        size += UNNAMED
        model = random_model(replace(CONFIG, num_hidden_layers=1, layer_types=CONFIG.layer_types[:1], vocab_size=size))
    tokens = [tokenizer.token_bytes(token) if token in tokenizer else None for token in range(size)]
    return Setting(model, llm, Vocabulary(tokens, tokenizer.special))


def json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize("name", ["demo", "random"])
def test_answers_to_a_hundred_schemas_validate(name: str) -> None:
    where = setting(name)
    for seed in range(100):
        schema = random_schema(seed)
        grammar = where.grammar(response_format=json_schema(schema))
        analysis, final = where.answer(grammar, spare=(60, 25, 5)[seed % 3], seed=seed)
        assert (analysis.channel, final.channel) == ("analysis", "final")
        assert analysis.content
        jsonschema.Draft202012Validator(schema).validate(json.loads(final.content))


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


WEATHER = tool(
    "get_weather",
    strict=True,
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["c", "f"]}},
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
)
SEARCH = tool("get_weather_map", parameters={"type": "object", "not": {"required": ["x"]}})
PING = tool("ping")
TOOLS = [WEATHER, SEARCH, PING]


def check_call(call: Message) -> str:
    """That a call is to one of the tools, with arguments that are right for it; its name."""
    assert (call.channel, call.content_type) == ("commentary", "json")
    name = (call.recipient or "").removeprefix("functions.")
    arguments = json.loads(call.content)
    assert isinstance(arguments, dict)
    if name == "get_weather":
        jsonschema.Draft202012Validator(WEATHER["function"]["parameters"]).validate(arguments)
    elif name == "ping":
        assert arguments == {}
    else:
        assert name == "get_weather_map"
    return name


@pytest.mark.parametrize("name", ["demo", "random"])
def test_a_call_that_is_asked_for_comes(name: str) -> None:
    where = setting(name)
    required = where.grammar(tools=TOOLS, tool_choice="required")
    called: set[str] = set()
    for seed in range(8):
        *before, call = where.answer(required, spare=80, seed=seed, tools=TOOLS)
        assert before[0].channel == "analysis"
        assert {message.channel for message in before} <= {"analysis", "commentary"}
        called.add(check_call(call))
    assert len(called) > 1 or name == "demo"
    named = where.grammar(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "get_weather"}})
    for seed in range(4):
        analysis, *_, call = where.answer(named, spare=80, seed=seed, tools=TOOLS)
        assert analysis.channel == "analysis"
        assert check_call(call) == "get_weather"


def test_wherever_a_turn_stands_its_end_is_known() -> None:
    where = setting("random")
    for asked in ({}, {"tool_choice": "required"}, {"response_format": {"type": "json_object"}}):
        grammar = where.grammar(tools=TOOLS, **asked)
        finisher, matcher = (
            Finisher(where.vocabulary.preference, grammar.finish),
            where.vocabulary.matcher(grammar.lark),
        )
        ids = where.llm.tokenizer.special
        text = where.llm.tokenizer.encode
        begun = [
            ids["<|channel|>"],
            *text("analysis"),
            ids["<|message|>"],
            *text("So"),
            ids["<|end|>"],
            ids["<|start|>"],
        ]
        for token in [*begun, *text("assistant"), ids["<|channel|>"], *text("commentary"), *text(" to=functions.ping")]:
            finisher.work = 100
            assert finisher.plan(matcher, 60, thorough=False)
            assert matcher.consume_token(token)


def test_where_the_model_may_choose_it_calls_or_answers() -> None:
    ends: set[str | None] = set()
    for name in ("demo", "random"):
        where = setting(name)
        auto = where.grammar(tools=TOOLS)
        formed = where.grammar(tools=TOOLS, response_format=json_schema(WEATHER["function"]["parameters"]))
        for seed in range(8):
            *_, last = where.answer(auto, spare=50, seed=seed, tools=TOOLS)
            ends.add(check_call(last) if last.is_call else last.channel)
            first, *_, last = where.answer(formed, spare=80, seed=seed, tools=TOOLS)
            assert first.channel == "analysis"
            if last.is_call:
                check_call(last)
            else:
                jsonschema.Draft202012Validator(WEATHER["function"]["parameters"]).validate(json.loads(last.content))
    assert {"final", "ping"} <= ends


@pytest.mark.parametrize("regex", [r"(yes|no)/[a-z]{2,5}", r"[0-9]{3}-[0-9]{4}", "a\n+b", r"<\|return\|>!"])
def test_an_answer_matches_the_regular_expression_asked_for(regex: str) -> None:
    where = setting("random")
    grammar = where.grammar(regex=regex)
    for seed in range(3):
        analysis, final = where.answer(grammar, spare=40, seed=seed)
        assert (analysis.channel, final.channel) == ("analysis", "final")
        assert re.fullmatch(regex, final.content)


def test_a_json_object_is_one() -> None:
    where = setting("random")
    grammar = where.grammar(response_format={"type": "json_object"})
    for seed in range(4):
        assert isinstance(json.loads(where.answer(grammar, spare=80, seed=seed)[-1].content), dict)
