"""The server on the bundled model: what comes out is what the model says, to one client and to several."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import openai
import pytest
from tests.server.conftest import Scripted, running
from tests.server.test_chat import TOOL, comparable, replay

import ossia
from ossia.engine.engine import Engine
from ossia.engine.worker import Worker
from ossia.server.settings import Settings

ASKED: Any = [{"role": "user", "content": "What is 17 + 25?"}]


@pytest.fixture(scope="module")
def bundled() -> Iterator[Scripted]:
    llm = ossia.load("demo", threads=1)
    engine = Engine(llm.model, context=llm.context, cache_type=llm.cache_type, max_batch=8)
    worker: Any = Worker(engine)
    with running(llm, worker, Settings(model_name="demo", page=False)) as served:
        yield served
    engine.check_integrity()


def test_the_answer_is_that_of_the_library(bundled: Scripted) -> None:
    reply = bundled.bridge.llm.chat("What is 17 + 25?", temperature=0)
    choice = bundled.client().chat.completions.create(model="demo", messages=ASKED, temperature=0).choices[0]
    assert choice.message.content == reply.final
    assert (choice.message.model_extra or {})["reasoning"] == reply.reasoning


def test_a_stream_adds_up_to_the_whole_answer_of_the_same_seed(bundled: Scripted) -> None:
    """At temperature 1, several at a time."""

    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=bundled.url, api_key="none", max_retries=0) as client:

            async def one(seed: int) -> None:
                asked: dict[str, Any] = {
                    "model": "demo",
                    "messages": ASKED,
                    "seed": seed,
                    "temperature": 1,
                    "logprobs": True,
                }
                whole, stream = await asyncio.gather(
                    client.chat.completions.create(**asked),
                    client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}),
                )
                streamed, other = comparable(replay([chunk async for chunk in stream])), comparable(whole)
                # Whichever comes first finds less of the prompt in the cache.
                assert streamed.pop("usage")["completion_tokens"] == other.pop("usage")["completion_tokens"]
                assert streamed == other

            await asyncio.gather(*(one(seed) for seed in range(4)))

    asyncio.run(ask())


def test_a_prompt_that_was_seen_is_found_again(bundled: Scripted) -> None:
    messages: Any = [{"role": "system", "content": "Be brief. " * 40}, *ASKED]
    client = bundled.client()
    cached = []
    for _ in range(2):
        usage = client.chat.completions.create(model="demo", messages=messages, max_tokens=1).usage
        assert usage is not None and usage.prompt_tokens_details is not None
        cached.append(usage.prompt_tokens_details.cached_tokens or 0)
    assert cached[1] > cached[0]


def test_an_answer_in_the_form_asked_for(bundled: Scripted) -> None:
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}, "parity": {"enum": ["odd", "even"]}},
        "required": ["sum", "parity"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "s", "schema": schema, "strict": True}}
    choice = bundled.client().chat.completions.create(model="demo", messages=ASKED, response_format=form).choices[0]
    jsonschema.validate(json.loads(choice.message.content or ""), schema)
    assert (choice.message.model_extra or {})["reasoning"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_that_is_required(bundled: Scripted, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "demo",
        "messages": ASKED,
        "tools": [TOOL],
        "tool_choice": "required",
        "max_tokens": 300,
    }
    client = bundled.client()
    if stream:
        answer = replay(list(client.chat.completions.create(**asked, stream=True)))
    else:
        answer = client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    calls: Any = answer.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["get_weather"]
    assert isinstance(json.loads(calls[0].function.arguments), dict)


def test_no_call_where_none_is_wanted(bundled: Scripted) -> None:
    asked: Any = [{"role": "user", "content": "What is the weather in Oslo?"}]
    choice = (
        bundled.client()
        .chat.completions.create(model="demo", messages=asked, tools=[TOOL], tool_choice="none")
        .choices[0]
    )
    assert choice.message.tool_calls is None
    assert choice.message.content


def test_an_answer_that_matches_an_expression(bundled: Scripted) -> None:
    choice = (
        bundled.client()
        .chat.completions.create(model="demo", messages=ASKED, extra_body={"structured_outputs": {"regex": "[ab]{3}c"}})
        .choices[0]
    )
    assert choice.message.content in {f"{x}{y}{z}c" for x in "ab" for y in "ab" for z in "ab"}


def test_logprobs_of_the_likeliest(bundled: Scripted) -> None:
    choice = (
        bundled.client()
        .chat.completions.create(model="demo", messages=ASKED, temperature=0, logprobs=True, top_logprobs=2)
        .choices[0]
    )
    assert choice.logprobs is not None and choice.logprobs.content
    assert "".join(one.token for one in choice.logprobs.content) == choice.message.content
    for one in choice.logprobs.content:
        assert one.logprob <= 0
        assert one.top_logprobs[0].token == one.token


def test_tokens_that_the_model_has_not(bundled: Scripted) -> None:
    asked = {"model": "demo", "messages": ASKED, "logit_bias": {"999999": 1}}
    status, error = bundled.error("/v1/chat/completions", asked)
    assert (status, error["param"]) == (400, "logit_bias")
