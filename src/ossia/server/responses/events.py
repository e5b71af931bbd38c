"""Events out: what happens while an answer is generated, as the events and the object of the Responses API.

    response.created  [response.queued]  response.in_progress
      for each message of the turn, an item:
        response.output_item.added
          reasoning   content_part.added  reasoning_text.delta...  reasoning_text.done  content_part.done
          message     content_part.added  output_text.delta...     output_text.done     content_part.done
          call        function_call_arguments.delta...  function_call_arguments.done
        response.output_item.done
    response.completed | response.incomplete | response.failed

Analysis is reasoning; `final` is a message of phase final_answer; whatever else is said to the user is one of phase
commentary. A cancelled response ends with response.incomplete, its status says cancelled: the API has no event for it.
"""

import time
from typing import Any

from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseError,
    ResponseFailedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseIncompleteEvent,
    ResponseInProgressEvent,
    ResponseOutputItem,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseQueuedEvent,
    ResponseReasoningTextDeltaEvent,
    ResponseReasoningTextDoneEvent,
    ResponseStatus,
    ResponseStreamEvent,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    response_content_part_added_event,
    response_content_part_done_event,
)
from openai.types.responses.response import IncompleteDetails

from ossia.harmony.parse import MessageStart
from ossia.server.events import Closed, Done, Event, Mended, Opened, Text
from ossia.server.responses.draft import Draft, ItemStatus, delta_logprob, done_logprob, usage_object
from ossia.server.responses.objects import ResponseObject


class Answer:
    """A response in the making. Each method returns the events it brings about, in order; `conclusion` is the last."""

    def __init__(self, response: ResponseObject, *, sealed: bool = False) -> None:
        """response: as it is before anything has happened. sealed: whether reasoning comes in its sealed form, too."""
        self.response = response
        """As far as it has come: its finished items, and how it stands."""
        self.notes: list[str] = []
        """What in the model's output had to be mended, a line each."""
        self.calls: list[tuple[str, str]] = []
        """For each call of a function its call_id, and the reasoning before it."""
        self._sealed = sealed
        self._sequence = 0
        self._item: Draft | None = None
        self._reasoning: list[str] = []

    def begin(self) -> list[ResponseStreamEvent]:
        """The response is there: in progress, or queued if that is its status."""
        created = ResponseCreatedEvent(response=self.response, sequence_number=self._next(), type="response.created")
        if self.response.status != "queued":
            return [created, self._in_progress()]
        queued = ResponseQueuedEvent(response=self.response, sequence_number=self._next(), type="response.queued")
        return [created, queued]

    def feed(self, event: Event) -> list[ResponseStreamEvent]:
        """Something happened. After `Done`, the `conclusion` alone is left to tell."""
        events: list[ResponseStreamEvent] = []
        if self.response.status == "queued":
            self._update(status="in_progress")
            events.append(self._in_progress())
        match event:
            case Opened():
                events += self._close("completed")
                events += self._open(event.message)
            case Text():
                events += self._say(event)
            case Closed() if event.stop != "cut":
                events += self._close("completed")
            case Closed():  # Whether it is complete, what comes next will tell.
                pass
            case Mended():
                self.notes.append(event.text)
            case Done():
                events += self._done(event)
        return events

    def fail(self, message: str) -> list[ResponseStreamEvent]:
        """The answer cannot be completed, or not be kept."""
        error = ResponseError(code="server_error", message=message)
        return self._end("failed", error=error, completed_at=None, incomplete_details=None)

    def cancel(self) -> list[ResponseStreamEvent]:
        """Nobody wants the rest."""
        return self._end("cancelled")

    def conclusion(self) -> ResponseStreamEvent:
        """The last event, which tells how the response ended. Asking changes nothing."""
        number = self._sequence
        match self.response.status:
            case "completed":
                return ResponseCompletedEvent(response=self.response, sequence_number=number, type="response.completed")
            case "failed":
                return ResponseFailedEvent(response=self.response, sequence_number=number, type="response.failed")
            case _:
                return ResponseIncompleteEvent(
                    response=self.response, sequence_number=number, type="response.incomplete"
                )

    # ---------------------------------------------------------------- the response

    def _done(self, event: Done) -> list[ResponseStreamEvent]:
        usage = usage_object(event.usage)
        match event.finish:
            case "length":
                cut = IncompleteDetails(reason="max_output_tokens")
                return self._end("incomplete", usage=usage, incomplete_details=cut)
            case "cancelled":
                return self._end("cancelled", usage=usage)
            case _:
                return self._end("completed", usage=usage, completed_at=int(time.time()))

    def _end(self, status: ResponseStatus, **changes: Any) -> list[ResponseStreamEvent]:
        events = self._close("completed" if status == "completed" else "incomplete")
        mended = {"mended": self.notes} if self.notes else {}
        self._update(status=status, **changes, **mended)
        return events

    def _in_progress(self) -> ResponseInProgressEvent:
        number = self._next()
        return ResponseInProgressEvent(response=self.response, sequence_number=number, type="response.in_progress")

    def _update(self, **changes: Any) -> None:
        """Another response with these changes: the one before belongs to the events that showed it."""
        self.response = self.response.model_copy(update=changes)

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence - 1

    # ---------------------------------------------------------------- items

    def _open(self, start: MessageStart) -> list[ResponseStreamEvent]:
        if start.role != "assistant":
            self.notes.append(f"a message as {start.role} is no part of the answer")
            return []
        item = self._item = Draft(start, index=len(self.response.output))
        if item.nameless:
            self.notes.append(f"a call to {start.recipient!r} names no function: taken as text")
        added = ResponseOutputItemAddedEvent(
            item=item.shown("in_progress", sealed=False),
            output_index=item.index,
            sequence_number=self._next(),
            type="response.output_item.added",
        )
        if item.kind == "function_call":
            return [added]
        part = ResponseContentPartAddedEvent(
            content_index=0,
            item_id=item.id,
            output_index=item.index,
            part=(
                response_content_part_added_event.PartReasoningText(text="", type="reasoning_text")
                if item.kind == "reasoning"
                else item.part()
            ),
            sequence_number=self._next(),
            type="response.content_part.added",
        )
        return [added, part]

    def _say(self, event: Text) -> list[ResponseStreamEvent]:
        item = self._item
        if item is None:
            return []
        item.add(event)
        if item.kind == "message":
            return [
                ResponseTextDeltaEvent(
                    content_index=0,
                    delta=event.text,
                    item_id=item.id,
                    logprobs=[delta_logprob(logprob) for logprob in event.logprobs],
                    output_index=item.index,
                    sequence_number=self._next(),
                    type="response.output_text.delta",
                )
            ]
        if not event.text:
            return []
        if item.kind == "reasoning":
            return [
                ResponseReasoningTextDeltaEvent(
                    content_index=0,
                    delta=event.text,
                    item_id=item.id,
                    output_index=item.index,
                    sequence_number=self._next(),
                    type="response.reasoning_text.delta",
                )
            ]
        return [
            ResponseFunctionCallArgumentsDeltaEvent(
                delta=event.text,
                item_id=item.id,
                output_index=item.index,
                sequence_number=self._next(),
                type="response.function_call_arguments.delta",
            )
        ]

    def _close(self, status: ItemStatus) -> list[ResponseStreamEvent]:
        """End the open item, if there is one."""
        item, self._item = self._item, None
        if item is None:
            return []
        events = self._close_content(item)
        done = item.shown(status, sealed=self._sealed)
        if item.kind == "reasoning":
            self._reasoning.append(item.text)
        elif isinstance(done, ResponseFunctionToolCall):
            self.calls.append((done.call_id, "\n\n".join(self._reasoning)))
        self._update(output=[*self.response.output, done])
        events.append(
            ResponseOutputItemDoneEvent(
                item=done,
                output_index=item.index,
                sequence_number=self._next(),
                type="response.output_item.done",
            )
        )
        return events

    def _close_content(self, item: Draft) -> list[ResponseStreamEvent]:
        if item.kind == "function_call":
            return [
                ResponseFunctionCallArgumentsDoneEvent(
                    arguments=item.text,
                    item_id=item.id,
                    output_index=item.index,
                    sequence_number=self._next(),
                    type="response.function_call_arguments.done",
                )
            ]
        events: list[ResponseStreamEvent] = []
        if item.kind == "reasoning":
            part = response_content_part_done_event.PartReasoningText(text=item.text, type="reasoning_text")
            events.append(
                ResponseReasoningTextDoneEvent(
                    content_index=0,
                    item_id=item.id,
                    output_index=item.index,
                    sequence_number=self._next(),
                    text=item.text,
                    type="response.reasoning_text.done",
                )
            )
        else:
            part = item.part()
            events.append(
                ResponseTextDoneEvent(
                    content_index=0,
                    item_id=item.id,
                    logprobs=[done_logprob(logprob) for logprob in item.logprobs],
                    output_index=item.index,
                    sequence_number=self._next(),
                    text=item.text,
                    type="response.output_text.done",
                )
            )
        events.append(
            ResponseContentPartDoneEvent(
                content_index=0,
                item_id=item.id,
                output_index=item.index,
                part=part,
                sequence_number=self._next(),
                type="response.content_part.done",
            )
        )
        return events


def to_json(model: Response | ResponseOutputItem) -> dict[str, Any]:
    """An object of the API as it goes over the wire: what was set, and nothing else."""
    return model.model_dump(mode="json", exclude_unset=True, by_alias=True)


def to_sse(event: ResponseStreamEvent) -> bytes:
    """An event as the piece of an event stream, in ASCII: some clients take other characters for ends of lines."""
    data = event.model_dump_json(exclude_unset=True, by_alias=True, serialize_as_any=True, ensure_ascii=True)
    return f"event: {event.type}\ndata: {data}\n\n".encode()
