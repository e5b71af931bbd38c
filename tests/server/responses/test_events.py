"""What a generation becomes in the Responses API: every event in its place, whatever the model does."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response
from tests.server.event_grammar import Machine

from ossia.engine.request import Sampling
from ossia.harmony.messages import Message
from ossia.harmony.parse import MessageStart, Stop
from ossia.server.events import Closed, Done, Event, FinishReason, Mended, Opened, Text, TokenLogprob, Usage
from ossia.server.responses.events import Answer, to_json, to_sse
from ossia.server.responses.items import unseal
from ossia.server.responses.request import ResponseRequest

USAGE = Usage(prompt_tokens=10, cached_tokens=4, completion_tokens=7, reasoning_tokens=3)


def head(**asked: Any) -> Response:
    request = ResponseRequest.model_validate({"model": "demo", "input": "hello", **asked})
    return request.head(Sampling(), stored=True)


def message(
    content: str,
    *,
    channel: str | None = None,
    recipient: str | None = None,
    role: str = "assistant",
    stop: Stop = "end",
) -> list[Event]:
    """A message as the bridge tells it, a character at a time."""
    texts = [Text(text=character, channel=channel, recipient=recipient) for character in content]
    whole = Message(role=role, content=content, channel=channel, recipient=recipient)
    start = MessageStart(role=role, channel=channel, recipient=recipient)
    return [Opened(message=start), *texts, Closed(message=whole, stop=stop)]


def done(finish: FinishReason = "stop") -> Done:
    return Done(finish=finish, usage=USAGE)


def told(answer: Answer, events: list[Event], *, end: str = "done") -> list[dict[str, Any]]:
    """The events over the wire."""
    out = answer.begin()
    for event in events:
        out += answer.feed(event)
    if end == "cancel":
        out += answer.cancel()
    elif end == "fail":
        out += answer.fail("the engine failed")
    out.append(answer.conclusion())
    pieces = [to_sse(event).decode() for event in out]
    for piece, event in zip(pieces, out, strict=True):
        assert piece.startswith(f"event: {event.type}\ndata: ") and piece.endswith("\n\n") and piece.count("\n") == 3
    return [json.loads(piece.split("data: ", 1)[1]) for piece in pieces]


def test_reasoning_preamble_and_call() -> None:
    answer = Answer(head())
    events = told(
        answer,
        [
            *message("hm", channel="analysis"),
            *message("wait", channel="commentary"),
            *message('{"a":1}', channel="commentary", recipient="functions.add", stop="call"),
            done("tool_calls"),
        ],
    )
    final = Machine().read(events)
    assert final == to_json(answer.response)
    reasoning, preamble, call = final["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}] and reasoning["summary"] == []
    assert "encrypted_content" not in reasoning
    assert (preamble["phase"], preamble["content"][0]["text"]) == ("commentary", "wait")
    assert (call["name"], call["arguments"], call["status"]) == ("add", '{"a":1}', "completed")
    assert answer.calls == [(call["call_id"], "hm")]
    assert final["status"] == "completed" and final["incomplete_details"] is None and final["completed_at"]
    assert final["usage"] == {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 3},
        "total_tokens": 17,
    }
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:8] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", "content_part.done"),
    ]
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]


def test_logprobs_stand_in_deltas_and_in_the_part() -> None:
    top = TokenLogprob(token="hi", bytes=(104, 105), logprob=-0.5)
    logprob = TokenLogprob(token="hi", bytes=(104, 105), logprob=-0.5, top=(top,))
    answer = Answer(head())
    start = MessageStart(role="assistant", channel="final")
    events = told(
        answer,
        [
            Opened(message=start),
            Text(text="hi", channel="final", logprobs=(logprob,)),
            Text(text="", channel="final", logprobs=(logprob,)),
            Closed(message=Message(role="assistant", channel="final", content="hi"), stop="return"),
            done(),
        ],
    )
    final = Machine().read(events)
    wanted = {"token": "hi", "bytes": [104, 105], "logprob": -0.5}
    part = final["output"][0]["content"][0]
    assert part["logprobs"] == [{**wanted, "top_logprobs": [wanted]}] * 2 and part["annotations"] == []
    assert final["output"][0]["phase"] == "final_answer"


def test_sealed_reasoning_can_be_opened() -> None:
    answer = Answer(head(), sealed=True)
    final = Machine().read(told(answer, [*message("hm é", channel="analysis"), *message("x", channel="final"), done()]))
    assert unseal(final["output"][0]["encrypted_content"]) == "hm é"


@pytest.mark.parametrize(
    ("finish", "status", "item_status"),
    [
        ("length", "incomplete", "incomplete"),
        ("cancelled", "cancelled", "incomplete"),
        ("stop", "completed", "completed"),
    ],
)
def test_a_cut_item_is_complete_only_where_the_answer_is(finish: FinishReason, status: str, item_status: str) -> None:
    answer = Answer(head())
    cut = [*message("hm", channel="analysis", stop="cut"), *message("so", channel="final", stop="cut"), done(finish)]
    final = Machine().read(told(answer, cut))
    assert final["status"] == status
    # The next message shows that the first was complete.
    assert [item["status"] for item in final["output"]] == ["completed", item_status]
    assert final["incomplete_details"] == ({"reason": "max_output_tokens"} if finish == "length" else None)
    assert (final["completed_at"] is not None) == (finish == "stop")


def test_what_the_model_should_not_do_is_mended() -> None:
    answer = Answer(head())
    events = [
        *message("I am the user", role="user"),
        *message("to nobody", channel="commentary", recipient="no name"),
        *message("odd", channel="gossip"),
        Mended(text="a header was mended"),
        *message("", channel="final"),
        done(),
    ]
    final = Machine().read(told(answer, events))
    texts = [(item["type"], item["phase"], item["content"][0]["text"]) for item in final["output"]]
    assert texts == [
        ("message", "commentary", "to nobody"),
        ("message", "commentary", "odd"),
        ("message", "final_answer", ""),
    ]
    assert answer.notes == [
        "a message as user is no part of the answer",
        "a call to 'no name' names no function: taken as text",
        "a header was mended",
    ]


def test_failing_after_the_end_replaces_the_end() -> None:
    answer = Answer(head())
    answer.begin()
    answer.feed(done())
    assert answer.conclusion().type == "response.completed"
    answer.fail("it could not be stored")
    last = answer.conclusion()
    assert last.type == "response.failed" and last.sequence_number == 2
    assert to_json(answer.response)["error"] == {"code": "server_error", "message": "it could not be stored"}


MESSAGES = st.lists(
    st.builds(
        message,
        st.text(max_size=3),
        channel=st.sampled_from(["analysis", "commentary", "final", None, "odd"]),
        recipient=st.sampled_from([None, "all", "functions.f", "python", "no name"]),
        role=st.sampled_from(["assistant", "assistant", "assistant", "user"]),
        stop=st.sampled_from(["end", "call", "return", "cut"]),
    ),
    max_size=4,
)


@given(MESSAGES, st.integers(0, 3), st.sampled_from(["stop", "length", "cancelled", "cancel", "fail"]), st.booleans())
def test_any_generation_keeps_the_grammar(messages: list[list[Event]], missing: int, end: str, queued: bool) -> None:
    flat = [event for one in messages for event in one]
    flat = flat[: len(flat) - missing]
    answer = Answer(head(background=True) if queued else head())
    if end in ("cancel", "fail"):
        final = Machine().read(told(answer, flat, end=end))
    else:
        final = Machine().read(told(answer, [*flat, done(end)]))
    assert final == to_json(answer.response)
    statuses = {"cancel": "cancelled", "fail": "failed", "stop": "completed", "length": "incomplete"}
    assert final["status"] == statuses.get(end, end)
    calls = [item["call_id"] for item in final["output"] if item["type"] == "function_call"]
    assert calls == [call_id for call_id, _ in answer.calls] and len(set(calls)) == len(calls)
