"""Whole answers held to a form, by a model that knows something of it and by one that knows nothing."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jsonschema
import pytest

import ossia
from ossia.engine.grammar import GrammarConstraint, ReasoningMarks, Vocabulary
from ossia.engine.loop import new_cache, prefill, step
from ossia.engine.request import Sampling
from ossia.engine.sampler import Sampler
from ossia.harmony.grammar import TurnGrammar, turn_grammar
from ossia.harmony.messages import Message
from ossia.harmony.parse import Parser
from ossia.llm import LLM
from ossia.model.transformer import Transformer
from tests.engine.random_schemas import random_schema
from tests.engine.small import CONFIG, random_model

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

    def answer(self, grammar: TurnGrammar, *, limit: int, seed: int, tools: Any = None) -> list[Message]:
        """The messages of one answer at temperature 1, all of them as they should be."""
        tokenizer = self.llm.tokenizer
        special = tokenizer.special
        constraint = GrammarConstraint(
            self.vocabulary,
            grammar.lark,
            limit=limit,
            finish=grammar.finish,
            growth=grammar.growth,
            marks=ReasoningMarks(
                channel=special["<|channel|>"],
                message=special["<|message|>"],
                end=special["<|end|>"],
                headers=(tuple(tokenizer.encode("analysis")),),
            ),
        )
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
        model = random_model(replace(CONFIG, vocab_size=size, max_position_embeddings=2048))
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
        analysis, final = where.answer(grammar, limit=(300, 180, 140)[seed % 3], seed=seed)
        assert (analysis.channel, final.channel) == ("analysis", "final")
        assert analysis.content
        jsonschema.Draft202012Validator(schema).validate(json.loads(final.content))
