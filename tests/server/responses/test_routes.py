"""/v1/responses through the official client: made, streamed, kept, continued, cancelled, deleted."""

import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel
from tests.server.event_grammar import Machine, without_chance
from tests.server.fake import said
from tests.server.responses_live import (
    ANSWER,
    CALL,
    GREETING,
    PATIENCE_SECONDS,
    THOUGHT,
    WEATHER,
    Live,
    live,
    says,
)
from tests.server.serving import free_port


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "responses.sqlite"


@pytest.fixture
def greeter(store: Path) -> Iterator[Live]:
    """Says the same to everything."""
    with live(says(GREETING), store=store) as server:
        yield server


def streamed(server: Live, body: dict[str, Any], *, method: str = "POST", path: str = "/v1/responses") -> list[Any]:
    """The events of a stream, as they went over the wire."""
    with server.http.stream(method, path, json=body or None) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        return events_in(answer.read())


def events_in(stream: bytes) -> list[Any]:
    events: list[Any] = []
    for piece in stream.decode("ascii").split("\n\n")[:-1]:
        name, data = piece.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


# -------------------------------------------------------------------- made and streamed


def test_a_response_holds_reasoning_and_answer_and_is_kept(greeter: Live) -> None:
    made = greeter.client.responses.create(model="demo", input="hello", instructions="Be kind.", metadata={"a": "b"})
    assert made.status == "completed" and made.output_text == ANSWER
    assert [item.type for item in made.output] == ["reasoning", "message"]
    reasoning, message = (item.to_dict() for item in made.output)
    assert reasoning["content"] == [{"type": "reasoning_text", "text": THOUGHT}] and reasoning["summary"] == []
    assert message["phase"] == "final_answer"
    assert message["content"] == [{"type": "output_text", "text": ANSWER, "annotations": [], "logprobs": []}]
    assert made.usage is not None and made.usage.input_tokens == len(greeter.worker.requests[0].prompt)
    assert made.usage.input_tokens_details.cached_tokens == 3
    assert 0 < made.usage.output_tokens_details.reasoning_tokens < made.usage.output_tokens
    assert made.metadata == {"a": "b"} and made.instructions == "Be kind." and made.temperature == 0
    assert "# Instructions\n\nBe kind." in greeter.prompt()
    assert greeter.client.responses.retrieve(made.id).to_dict() == made.to_dict()

    [item] = greeter.client.responses.input_items.list(made.id).data
    assert item.type == "message" and item.to_dict()["content"] == [{"type": "input_text", "text": "hello"}]
    assert greeter.client.responses.delete(made.id) is None
    with pytest.raises(openai.NotFoundError, match=f"there is no response '{made.id}': it was deleted"):
        greeter.client.responses.retrieve(made.id)
    with pytest.raises(openai.NotFoundError):
        greeter.client.responses.input_items.list(made.id)


ASKED: list[tuple[str, Any, dict[str, Any]]] = [
    ("greeting", GREETING, {}),
    ("call", CALL, {"tools": [WEATHER], "tool_choice": "required"}),
    ("cut in the reasoning", GREETING, {"max_output_tokens": 5}),
    ("cut in the call", CALL, {"max_output_tokens": 32, "tools": [WEATHER]}),
    ("cut in the header", GREETING, {"max_output_tokens": 1}),
    ("logprobs", GREETING, {"include": ["message.output_text.logprobs"], "top_logprobs": 2}),
    ("sealed", GREETING, {"include": ["reasoning.encrypted_content"], "store": False}),
    ("a form", (said("final", '{"a": 1}'),), {"text": {"format": {"type": "json_object"}}}),
    ("ends of lines", (said("final", "one\u2028two\u0085three\r\n\nfour"),), {}),
]


@pytest.mark.parametrize(("turn", "asked"), [case[1:] for case in ASKED], ids=[case[0] for case in ASKED])
@pytest.mark.parametrize("per_step", [1, 7])
def test_the_stream_says_what_the_whole_answer_says(
    turn: Any, asked: dict[str, Any], per_step: int, store: Path
) -> None:
    body = {"model": "demo", "input": "hello", "seed": 7, **asked}
    with live(says(turn), store=store, per_step=per_step) as server:
        whole = server.http.post("/v1/responses", json=body)
        assert whole.status_code == 200, whole.text
        final = Machine().read(streamed(server, {**body, "stream": True}))
        assert without_chance(final) == without_chance(whole.json())
        if asked.get("store") is not False:
            assert server.http.get(f"/v1/responses/{final['id']}").json() == final
        if final["status"] == "incomplete":
            assert final["incomplete_details"] == {"reason": "max_output_tokens"}
            assert all(item["status"] == "completed" for item in final["output"][:-1])
            return
        # The client's own accumulator; it knows of no end but this one.
        extra = {"seed": body.pop("seed")}
        with server.client.responses.stream(**body, extra_body=extra) as events:
            for _ in events:
                pass
            accumulated = events.get_final_response()
        dumped = json.loads(
            accumulated.model_dump_json(exclude_unset=True, exclude={"output": {"__all__": {"parsed"}}})
        )
        for item in dumped["output"]:
            item.pop("parsed_arguments", None)
            for part in item.get("content", []):
                part.pop("parsed", None)
        assert without_chance(dumped) == without_chance(final)


class Place(BaseModel):
    city: str


def test_the_client_parses_what_it_asked_for(store: Path) -> None:
    with live(says((said("analysis", "hm"), said("final", '{"city": "Oslo"}'))), store=store) as server:
        parsed = server.client.responses.parse(model="demo", input="where?", text_format=Place)
        assert parsed.output_parsed == Place(city="Oslo")
        assert "# Response Formats" in server.prompt() and '"city"' in server.prompt()


# -------------------------------------------------------------------- continued


def test_a_conversation_goes_on_from_what_is_kept_across_a_restart(store: Path) -> None:
    with live(says(GREETING), store=store) as server:
        first = server.client.responses.create(model="demo", input="hello", instructions="Be kind.")
    with live(says(CALL, (said("final", "Cold."),)), store=store) as server:
        assert server.client.responses.retrieve(first.id).output_text == ANSWER
        tools: Any = [WEATHER]
        second = server.client.responses.create(
            model="demo", input="the weather?", previous_response_id=first.id, tools=tools
        )
        shown = server.prompt()
        assert "hello" in shown and ANSWER in shown and "the weather?" in shown
        assert THOUGHT not in shown, "past reasoning is not shown again"
        assert "Be kind." not in shown, "instructions are those of one response"
        call = second.output[-1]
        assert call.type == "function_call" and call.arguments == '{"city": "Oslo"}'
        result: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "-5"}]
        third = server.client.responses.create(model="demo", input=result, previous_response_id=second.id, tools=tools)
        assert third.output_text == "Cold."
        assert server.prompt().endswith(
            "<|start|>user<|message|>the weather?<|end|>"
            "<|start|>assistant<|channel|>analysis<|message|>I need the weather.<|end|>"
            "<|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>"
            "<|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>"
            '{"city": "Oslo"}<|call|>'
            "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>-5<|end|>"
            "<|start|>assistant"
        )
        listed = list(server.client.responses.input_items.list(third.id, order="asc", limit=2))
        kinds = ["message", "reasoning", "message"]
        assert [item.type for item in listed] == [
            *kinds,
            *("message", "reasoning", "message", "function_call", "function_call_output"),
        ]
        server.client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match=f"continues {first.id}, which was deleted"):
            server.client.responses.create(model="demo", input="and?", previous_response_id=third.id)


def _as_it_came(items: list[Any]) -> list[Any]:
    return [item.to_dict() for item in items]


def _with_nulls(items: list[Any]) -> list[Any]:
    return [item.model_dump(mode="json") for item in items]


def _bare(items: list[Any]) -> list[Any]:
    """As little as the API asks for."""
    kept = ("type", "role", "phase", "content", "summary", "call_id", "name", "arguments")
    out = [{name: value for name, value in item.to_dict().items() if name in kept} for item in items]
    for item in out:
        if item["type"] == "message":
            item["content"] = item["content"][0]["text"]
            del item["type"], item["phase"]
    return out


def _references(items: list[Any]) -> list[Any]:
    return [{"type": "item_reference", "id": item.id} for item in items]


def _reasoning_by_id(items: list[Any]) -> list[Any]:
    return [
        {"type": "reasoning", "id": item.id, "summary": []} if item.type == "reasoning" else item.to_dict()
        for item in items
    ]


def _reasoning_dropped(items: list[Any]) -> list[Any]:
    return [item.to_dict() for item in items if item.type != "reasoning"]


def _calls_alone(items: list[Any]) -> list[Any]:
    return [item.to_dict() for item in items if item.type == "function_call"]


def _reasoning_sealed(items: list[Any]) -> list[Any]:
    out = _as_it_came(items)
    for item in out:
        if item["type"] == "reasoning":
            del item["content"], item["id"]
    return out


WAYS = [_as_it_came, _with_nulls, _bare, _references, _reasoning_by_id, _reasoning_dropped, _reasoning_sealed]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("restarted", [False, True], ids=["same server", "after a restart"])
def test_what_a_client_sends_back_is_understood(way: Any, restarted: bool, store: Path) -> None:
    asked: dict[str, Any] = {"model": "demo", "tools": [WEATHER], "include": ["reasoning.encrypted_content"]}
    question = {"role": "user", "content": "the weather?"}
    with live(says(CALL), store=store) as server:
        first = server.client.responses.create(input=[question], **asked)
        result = {"type": "function_call_output", "call_id": first.output[-1].to_dict()["call_id"], "output": "-5"}
        server.client.responses.create(input=[result], previous_response_id=first.id, **asked)
        wanted = server.prompt()
        if not restarted:
            server.client.responses.create(input=[question, *way(first.output), result], **asked)
            assert server.prompt() == wanted
    if restarted:
        with live(says(GREETING), store=store) as server:
            server.client.responses.create(input=[question, *way(first.output), result], **asked)
            assert server.prompt() == wanted


def test_reasoning_dropped_by_a_client_that_keeps_nothing_here_is_restored_from_memory(store: Path) -> None:
    asked: dict[str, Any] = {"model": "demo", "tools": [WEATHER], "store": False}
    with live(says(CALL), store=store) as server:
        first = server.client.responses.create(input="the weather?", **asked)
        result = {"type": "function_call_output", "call_id": first.output[-1].to_dict()["call_id"], "output": "-5"}
        question = {"role": "user", "content": "the weather?"}
        server.client.responses.create(input=[question, *_calls_alone(first.output), result], **asked)
        assert "analysis<|message|>I need the weather.<|end|><|start|>assistant to=functions" in server.prompt()
        with pytest.raises(openai.NotFoundError):
            server.client.responses.retrieve(first.id)


# -------------------------------------------------------------------- in the background


def test_a_response_in_the_background_is_there_at_once_and_finished_later(store: Path) -> None:
    with live(says(GREETING), store=store) as server:
        server.worker.gate.clear()
        made = server.client.responses.create(model="demo", input="hello", background=True)
        assert made.status == "queued" and made.output == [] and made.background
        assert server.client.responses.retrieve(made.id).status == "queued"
        with pytest.raises(openai.ConflictError, match="is not finished: wait for it, or cancel it"):
            server.client.responses.create(model="demo", input="and?", previous_response_id=made.id)
        server.worker.gate.set()
        wait_for(lambda: server.client.responses.retrieve(made.id).status == "completed", "it does not end")
        done = server.client.responses.retrieve(made.id)
        assert done.output_text == ANSWER
        assert server.client.responses.cancel(made.id).to_dict() == done.to_dict()
        line = "has no events to tell again: responses made with background and stream have"
        with pytest.raises(openai.BadRequestError, match=line):
            server.client.responses.retrieve(made.id, stream=True)


def test_a_response_in_the_background_can_be_cancelled_and_deleted(store: Path) -> None:
    with live(says(GREETING), store=store) as server:
        server.worker.gate.clear()
        made = [server.client.responses.create(model="demo", input="hello", background=True) for _ in range(2)]
        cancelled = server.client.responses.cancel(made[0].id)
        assert cancelled.status == "cancelled" and cancelled.usage is None
        assert server.client.responses.retrieve(made[0].id).to_dict() == cancelled.to_dict()
        server.client.responses.delete(made[1].id)
        wait_for(lambda: server.worker.cancelled == [1, 2], "the engine was not told")
        server.worker.gate.set()
        server.worker.wait_until_idle()
        with pytest.raises(openai.NotFoundError):
            server.client.responses.retrieve(made[1].id)
        foreground = server.client.responses.create(model="demo", input="hello")
        with pytest.raises(openai.BadRequestError, match="was not made with background: leave the connection"):
            server.client.responses.cancel(foreground.id)


def test_a_stream_in_the_background_can_be_left_and_followed_again(store: Path) -> None:
    body = {"model": "demo", "input": "hello", "background": True, "stream": True}
    with live(says(GREETING), store=store) as server:
        server.worker.gate.clear()
        with server.http.stream("POST", "/v1/responses", json=body) as answer:
            begin = next(answer.iter_bytes())
        response_id = events_in(begin)[0]["response"]["id"]
        path = f"/v1/responses/{response_id}?stream=true"
        followed: list[Any] = []
        follower = threading.Thread(target=lambda: followed.extend(streamed(server, {}, method="GET", path=path)))
        follower.start()
        wait_for(lambda: len(server.worker.requests) == 1, "it does not begin")
        server.worker.gate.set()
        follower.join(PATIENCE_SECONDS)
        final = Machine().read(followed)
        assert followed[0]["response"]["status"] == "queued" and final["status"] == "completed"
        assert server.worker.cancelled == [], "leaving must not end what runs in the background"
    with live(says(GREETING), store=store) as server:
        assert streamed(server, {}, method="GET", path=path) == followed
        assert streamed(server, {}, method="GET", path=f"{path}&starting_after=4") == followed[5:]
        with server.client.responses.stream(response_id=response_id, starting_after=4) as events:
            assert [event.sequence_number for event in events] == list(range(5, len(followed)))
        assert streamed(server, {}, method="GET", path=f"{path}&starting_after=4000") == []


# -------------------------------------------------------------------- when things go wrong


def test_a_client_that_leaves_ends_what_was_for_it(store: Path) -> None:
    with live(says(GREETING), store=store) as server:
        server.worker.gate.clear()
        body = {"model": "demo", "input": "hello", "stream": True}
        with server.http.stream("POST", "/v1/responses", json=body) as answer:
            response_id = events_in(next(answer.iter_bytes()))[0]["response"]["id"]
        wait_for(lambda: server.worker.cancelled == [1], "the engine goes on for nobody")
        with pytest.raises(httpx2.ReadTimeout):
            server.http.post("/v1/responses", json={"model": "demo", "input": "hello"}, timeout=0.2)
        wait_for(lambda: server.worker.cancelled == [1, 2], "the engine goes on for nobody")
        server.worker.gate.set()
        server.worker.wait_until_idle()
        wait_for(lambda: server.client.responses.retrieve(response_id).status == "cancelled", "it is not ended")


def test_an_engine_that_fails_is_told_and_stored(store: Path) -> None:
    with live(says(GREETING), store=store, fails_after=6) as server:
        with pytest.raises(openai.InternalServerError, match="the logits are not numbers: this is a test"):
            server.client.responses.create(model="demo", input="hello")
        final = Machine().read(streamed(server, {"model": "demo", "input": "hello", "stream": True}))
        assert final["status"] == "failed" and final["output"][0]["status"] == "incomplete"
        assert final["error"] == {"code": "server_error", "message": "the logits are not numbers: this is a test"}
        assert server.http.get(f"/v1/responses/{final['id']}").json() == final


def test_a_full_queue_is_told_and_nothing_stored(store: Path) -> None:
    with live(says(GREETING), store=store, max_waiting=0) as server:
        with pytest.raises(openai.RateLimitError):
            server.client.responses.create(model="demo", input="hello")
        with pytest.raises(openai.RateLimitError):
            server.client.responses.create(model="demo", input="hello", stream=True)
        assert _count(server.app.state.store._connection) == 0


def _count(connection: sqlite3.Connection) -> int:
    """How many responses are stored."""
    return connection.execute("SELECT count(*) FROM responses").fetchone()[0]


def test_a_full_disk_fails_the_request_and_not_the_server(store: Path) -> None:
    long = "word " * 1500
    with live(says(GREETING), store=store) as server:
        connection: sqlite3.Connection = server.app.state.store._connection
        kept = server.client.responses.create(model="demo", input="hello")
        # A disk is full where SQLite may take no further page. It may take as many as there are, if asked for fewer.
        connection.execute("PRAGMA max_page_count = 1")
        server.worker.gate.clear()
        with pytest.raises(openai.InternalServerError, match=r"responses\.sqlite: the disk is full: free some space"):
            server.client.responses.create(model="demo", input="hello", instructions="word " * 700)
        wait_for(lambda: server.worker.cancelled == [2], "the engine goes on for nobody")
        # The beginning of this one fits, and the end does not.
        connection.execute("PRAGMA max_page_count = 100000")
        server.worker.script = says((said("final", long),))
        body = {"model": "demo", "input": "hello", "background": True}
        response_id = server.http.post("/v1/responses", json=body).json()["id"]
        connection.execute("PRAGMA max_page_count = 1")
        server.worker.gate.set()
        wait_for(lambda: server.client.responses.retrieve(response_id).status == "failed", "it does not fail")
        connection.execute("PRAGMA max_page_count = 100000")
        body = {"model": "demo", "input": "hello", "stream": True}
        server.worker.script = says(GREETING)
        assert Machine().read(streamed(server, body))["status"] == "completed"
        assert server.client.responses.retrieve(kept.id).output_text == ANSWER
    with live(says(GREETING), store=store) as server:
        assert server.client.responses.retrieve(response_id).status == "failed"


def test_an_answer_that_cannot_be_stored_is_not_given_as_if_it_were(store: Path) -> None:
    with live(says((said("final", "word " * 1500),)), store=store) as server:
        connection: sqlite3.Connection = server.app.state.store._connection
        for stream in (False, True):
            server.worker.gate.clear()
            body = {"model": "demo", "input": "hello", "stream": stream}
            answers: list[bytes] = []
            asking = threading.Thread(
                target=lambda body=body, to=answers: to.append(server.http.post("/v1/responses", json=body).content)
            )
            asking.start()
            wait_for(lambda wanted=1 + stream: _count(connection) == wanted, "it does not begin")
            connection.execute("PRAGMA max_page_count = 1")
            server.worker.gate.set()
            asking.join(PATIENCE_SECONDS)
            connection.execute("PRAGMA max_page_count = 100000")
            if stream:
                final = Machine().read(events_in(answers[0]))
                assert final["status"] == "failed"
                assert final["error"]["message"].startswith("the answer could not be stored: ")
            else:
                assert json.loads(answers[0])["error"]["message"].endswith("the disk is full: free some space")


def test_a_server_that_closes_leaves_no_response_unended(store: Path) -> None:
    with live(says(GREETING), store=store) as server:
        server.worker.gate.clear()
        made = server.client.responses.create(model="demo", input="hello", background=True)
    with live(says(GREETING), store=store) as server:
        found = server.client.responses.retrieve(made.id)
        assert found.status == "failed" and found.error is not None
        assert found.error.message == "the server stopped before this response was finished: ask again"


def test_a_killed_server_loses_no_response(store: Path) -> None:
    """Whatever the client was told of is there after the restart: ended as it was told, or failed."""
    port = free_port()
    command = [sys.executable, "-m", "tests.server.responses_live", str(port), str(store), "0.01"]
    ended: list[Any] = []
    begun: list[str] = []
    with (
        subprocess.Popen(command, stderr=subprocess.DEVNULL) as process,
        OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0) as client,
    ):

        def is_ready() -> bool:
            try:
                return bool(client.models.list().data)
            except openai.APIConnectionError:
                return False

        def ask() -> None:
            try:
                while True:
                    for event in client.responses.create(model="demo", input="hello", stream=True):
                        if event.type == "response.created":
                            begun.append(event.response.id)
                        elif event.type == "response.completed":
                            ended.append(event.response)
            except (openai.APIError, httpx2.HTTPError):
                pass

        wait_for(is_ready, "the server does not start")
        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        wait_for(lambda: len(ended) >= 6, "nothing ends")
        begun.append(client.responses.create(model="demo", input="hello", background=True).id)
        process.send_signal(signal.SIGKILL)
        for asker in askers:
            asker.join(PATIENCE_SECONDS)
    with live(says(GREETING), store=store) as server:
        for response in ended:
            assert server.client.responses.retrieve(response.id).to_dict() == response.to_dict()
        statuses = {one: server.client.responses.retrieve(one).status for one in begun}
        assert set(statuses.values()) == {"completed", "failed"}
        assert statuses[begun[-1]] == "failed"


# -------------------------------------------------------------------- refused


REFUSED: list[tuple[dict[str, Any], int, str, str]] = [
    ({"input": None}, 400, "input", "input is missing: give a string or a list of items"),
    ({"input": []}, 400, "input", "input is empty: give at least one item"),
    ({"model": "gpt-9"}, 404, "model", "there is no model 'gpt-9' here: this is demo"),
    ({"no_such": 1}, 400, "no_such", "unknown parameter no_such: remove it"),
    ({"conversation": "conv_1"}, 400, "conversation", "conversation cannot be honoured: continue a response with"),
    ({"prompt": {"id": "pmpt_1"}}, 400, "prompt", "prompt cannot be honoured: there are no prompt templates"),
    ({"truncation": "auto"}, 400, "truncation", "truncation cannot be honoured: nothing is cut in silence"),
    ({"service_tier": "flex"}, 400, "service_tier", "service_tier cannot be honoured: there is one way of serving"),
    ({"reasoning": {"effort": "minimal"}}, 400, "reasoning.effort", "reasoning.effort is 'minimal': the model knows"),
    ({"reasoning": {"summary": "detailed"}}, 400, "summary", "summary cannot be honoured: reasoning is given whole"),
    ({"text": {"verbosity": "low"}}, 400, "verbosity", "verbosity cannot be honoured"),
    ({"text": {"format": {"type": "xml"}}}, 400, "text.format.type", "text.format.type is 'xml': give text, json"),
    ({"text": {"format": {"type": "json_schema", "json_schema": {}}}}, 400, "text.format.json_schema", "is unknown"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object", "properties": 5}}}},
        400,
        "text.format.schema.properties",
        "text.format.schema.properties is int",
    ),
    ({"tools": [WEATHER, {"type": "web_search"}]}, 400, "tools[1].type", "tools[1].type is 'web_search': only func"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, 400, "tools[0].type", "tools[0].type is 'mcp': only functions"),
    ({"tools": [WEATHER, WEATHER]}, 400, "tools[1].name", "tools[1].name is 'get_weather', as that of an earlier"),
    ({"tools": [{**WEATHER, "name": "a b"}]}, 400, "tools[0].name", "tools[0].name is 'a b': give a name"),
    ({"tools": [{**WEATHER, "defer_loading": True}]}, 400, "tools[0].defer_loading", "cannot be honoured: remove it"),
    ({"tool_choice": "required"}, 400, "tool_choice", "tool_choice requires a call, and there are no tools"),
    ({"tool_choice": {"type": "file_search"}}, 400, "tool_choice", "tool_choice.type is 'file_search': only func"),
    (
        {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "sing"}},
        400,
        "tool_choice",
        "tool_choice names 'sing', which is not among tools",
    ),
    ({"include": ["file_search_call.results"]}, 400, "include[0]", "include[0] is 'file_search_call.results': there"),
    ({"top_logprobs": 3}, 400, "top_logprobs", "top_logprobs needs message.output_text.logprobs in include"),
    ({"stream_options": {}, "stream": False}, 400, "stream_options", "stream_options is for streams"),
    ({"background": True, "store": False}, 400, "background", "background needs store"),
    ({"metadata": {"k" * 65: "v"}}, 400, "metadata", "keys have 64 characters, values 512"),
    ({"max_output_tokens": 0}, 400, "max_output_tokens", "greater than or equal to 1"),
    ({"previous_response_id": "resp_x"}, 404, "previous_response_id", "there is no response 'resp_x': it was deleted"),
    ({"input": "word " * 9000}, 400, "input", "tokens and may have 4095: shorten it"),
    ({"input": [{"role": "robot", "content": "x"}]}, 400, "input[0].role", "input[0].role is 'robot'"),
    (
        {"input": [{"type": "function_call_output", "call_id": "call_9", "output": "1"}]},
        400,
        "input[0].call_id",
        "input[0].call_id is 'call_9': no call before it has that id",
    ),
    ({"input": [{"type": "item_reference", "id": "msg_9"}]}, 400, "input[0].id", "no stored item has that id"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
        400,
        "input[0].content[0].type",
        "input[0].content[0].type is 'input_image': the model reads text only",
    ),
]


def test_what_cannot_be_honoured_is_refused_by_name(greeter: Live) -> None:
    for more, status, param, message in REFUSED:
        for stream in (False, True):
            body = {"model": "demo", "input": "hello", "stream": stream, **more}
            body = {name: value for name, value in body.items() if value is not None}
            answer = greeter.http.post("/v1/responses", json=body)
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (status, param), (more, error)
            assert message in error["message"], (more, error)
    assert greeter.worker.requests == []
    assert greeter.client.responses.create(model="demo", input="hello").output_text == ANSWER


def test_parameters_that_change_nothing_here_are_taken(greeter: Live) -> None:
    harmless: dict[str, Any] = {
        "truncation": "disabled",
        "service_tier": "auto",
        "reasoning": {"effort": "high", "summary": "auto"},
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "user": "u",
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "conversation": None,
        "temperature": 0.5,
        "top_p": 0.9,
    }
    body = {"model": "demo", "input": [{"role": "user", "content": "x"}], **harmless}
    made = greeter.http.post("/v1/responses", json=body).json()
    for name in (
        "truncation",
        "prompt_cache_key",
        "safety_identifier",
        "user",
        "max_tool_calls",
        "temperature",
        "top_p",
    ):
        assert made[name] == harmless[name]
    assert made["parallel_tool_calls"] is False and made["reasoning"] == {"effort": "high", "summary": None}
    assert "Reasoning: high" in greeter.prompt()
    assert greeter.worker.requests[0].sampling.temperature == 0.5 and greeter.worker.requests[0].sampling.top_p == 0.9


def test_a_server_that_keeps_nothing_says_so() -> None:
    with live(says(GREETING), store=None) as server:
        made = server.client.responses.create(model="demo", input="hello")
        assert made.output_text == ANSWER and made.to_dict()["store"] is False
        with pytest.raises(openai.NotFoundError):
            server.client.responses.retrieve(made.id)
        for asked in ({"store": True}, {"background": True}):
            with pytest.raises(openai.BadRequestError, match="responses are not kept here; start the server with --st"):
                server.client.responses.create(model="demo", input="hello", **asked)
        with pytest.raises(openai.NotFoundError, match="responses are not kept here"):
            server.client.responses.create(model="demo", input="hello", previous_response_id=made.id)


@pytest.mark.parametrize(
    ("query", "param"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order"), ("after=msg_none", "after")],
)
def test_bad_pages_are_refused(query: str, param: str, greeter: Live) -> None:
    made = greeter.client.responses.create(model="demo", input="hello")
    answer = greeter.http.get(f"/v1/responses/{made.id}/input_items?{query}")
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    answer = greeter.http.get(f"/v1/responses/{made.id}?starting_after=3")
    assert answer.status_code == 400 and "starting_after is for streams" in answer.json()["error"]["message"]
