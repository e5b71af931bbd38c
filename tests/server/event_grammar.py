"""The event grammar of the Responses API: a machine that reads a stream and stops at the first thing out of place."""

from typing import Any, cast

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

_ANY_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)

TERMINAL = ("response.completed", "response.incomplete", "response.failed")


def check_event(event: dict[str, Any]) -> None:
    """The event is one of the API's, with no field that the API has not."""
    model = _ANY_EVENT.validate_python(event)
    assert not model.model_extra, f"{event['type']} has {model.model_extra}"


class Machine:
    """Reads events one by one, and rebuilds the answer from them."""

    def __init__(self) -> None:
        self.output: list[dict[str, Any]] = []
        self.final: dict[str, Any] | None = None
        self._sequence = 0
        self._life = ["response.created"]
        self._id: str | None = None
        self._item: dict[str, Any] | None = None
        self._part: dict[str, Any] | None = None
        self._said = ""
        self._logprobs: list[Any] = []
        self._text_done = False

    def read(self, events: list[dict[str, Any]], *, first: int = 0) -> dict[str, Any]:
        """All events of a stream; returns the response of the last."""
        self._sequence = first
        for event in events:
            assert self.final is None, f"{event['type']} after the end"
            self.feed(event)
        assert self.final is not None, "the stream has no end"
        return self.final

    def feed(self, event: dict[str, Any]) -> None:
        check_event(event)
        assert event["sequence_number"] == self._sequence, event
        self._sequence += 1
        kind = event["type"]
        if kind in ("response.created", "response.queued", "response.in_progress", *TERMINAL):
            self._lives(kind, event["response"])
            return
        assert "response.in_progress" not in self._life and "response.created" not in self._life, f"{kind} too early"
        if kind == "response.output_item.added":
            assert self._item is None and event["output_index"] == len(self.output)
            self._item, self._said, self._logprobs, self._text_done = event["item"], "", [], False
            assert self._item is not None and self._item.get("status") == "in_progress"
            assert not self._item.get("content") and not self._item.get("arguments")
            return
        item = self._item
        assert item is not None, f"{kind} outside an item"
        assert event["output_index"] == len(self.output)
        if kind != "response.output_item.done":
            assert event["item_id"] == item["id"]
            assert event.get("content_index", 0) == 0
        match kind:
            case "response.content_part.added":
                assert item["type"] in ("message", "reasoning") and self._part is None and not self._text_done
                self._part = event["part"]
                assert self._part is not None and self._part["text"] == ""
            case "response.output_text.delta" | "response.reasoning_text.delta":
                self._in_part(item, kind)
                self._said += event["delta"]
                self._logprobs += event.get("logprobs", [])
                assert event["delta"] or event.get("logprobs"), "a delta that says nothing"
            case "response.output_text.done" | "response.reasoning_text.done":
                self._in_part(item, kind)
                assert event["text"] == self._said
                assert event.get("logprobs", []) == self._logprobs
                self._text_done = True
            case "response.content_part.done":
                assert self._part is not None and self._text_done
                assert event["part"]["text"] == self._said and event["part"]["type"] == self._part["type"]
                self._part = None
            case "response.function_call_arguments.delta":
                assert item["type"] == "function_call" and not self._text_done
                assert event["delta"], "a delta that says nothing"
                self._said += event["delta"]
            case "response.function_call_arguments.done":
                assert item["type"] == "function_call" and not self._text_done
                assert event["arguments"] == self._said
                self._text_done = True
            case "response.output_item.done":
                self._item_done(item, event["item"])
            case _:
                raise AssertionError(f"{kind} is not for text")

    def _lives(self, kind: str, response: dict[str, Any]) -> None:
        assert kind in self._life or (kind in TERMINAL and "end" in self._life), f"{kind} out of place"
        self._life = {
            "response.created": ["response.queued", "response.in_progress"],
            "response.queued": ["response.in_progress", "end"],
            "response.in_progress": ["end"],
        }.get(kind, [])
        self._id = self._id or response["id"]
        assert response["id"] == self._id
        statuses = {
            "response.created": ("queued", "in_progress"),
            "response.queued": ("queued",),
            "response.in_progress": ("in_progress",),
            "response.completed": ("completed",),
            "response.incomplete": ("incomplete", "cancelled"),
            "response.failed": ("failed",),
        }
        assert response["status"] in statuses[kind]
        if kind in TERMINAL:
            assert self._item is None, "the response ended within an item"
            assert response["output"] == self.output
            self.final = response
        else:
            assert response["output"] == [] and response["usage"] is None

    def _in_part(self, item: dict[str, Any], kind: str) -> None:
        assert self._part is not None and not self._text_done, f"{kind} outside a part"
        assert (item["type"] == "reasoning") == ("reasoning" in kind)

    def _item_done(self, item: dict[str, Any], done: dict[str, Any]) -> None:
        assert self._part is None and self._text_done, "the item ended within its content"
        assert (done["id"], done["type"]) == (item["id"], item["type"])
        assert done["status"] in ("completed", "incomplete")
        if done["type"] == "function_call":
            assert done["arguments"] == self._said and done["call_id"] == item["call_id"]
            assert done["name"] == item["name"]
        else:
            assert [part["text"] for part in done["content"]] == [self._said]
        self.output.append(done)
        self._item = None


def without_chance(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs between two answers to one request: ids and times."""
    chance = ("id", "call_id", "created_at", "completed_at", "background", "store")

    def cleaned(value: Any) -> Any:
        if isinstance(value, dict):
            fields = cast("dict[str, Any]", value)
            return {name: cleaned(inner) for name, inner in fields.items() if name not in chance}
        return [cleaned(inner) for inner in cast("list[Any]", value)] if isinstance(value, list) else value

    return cleaned(response)
