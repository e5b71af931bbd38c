"""/v1/responses: OpenAI's newer API, in which what was said is kept by the server and can be continued by its id."""

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse, Response

from ossia.server.body import JsonRoute
from ossia.server.bridge import Bridge, PromptTooLongError, Turn
from ossia.server.chat import ANY_TEXT
from ossia.server.errors import RESPONSES, ApiError
from ossia.server.protocol import ToolChoice
from ossia.server.responses.events import Answer, to_json
from ossia.server.responses.history import History, gather
from ossia.server.responses.objects import DeletedResponse, ItemList, ResponseObject
from ossia.server.responses.request import SEALED, ResponseRequest
from ossia.server.responses.run import Listener, Runs, replayed
from ossia.server.services import Services, services
from ossia.server.store import Stored, lost
from ossia.server.stream import EventStream, waited_for

router = APIRouter(route_class=JsonRoute, tags=["responses"])

MOST_ITEMS = 100


async def _runs(request: Request) -> Runs:
    return request.app.state.runs


Of = Annotated[Services, Depends(services)]
Under = Annotated[Runs, Depends(_runs)]


@router.post("/v1/responses", response_model=ResponseObject, responses=RESPONSES, summary="Make a response")
async def create(body: ResponseRequest, request: Request, of: Of, runs: Under) -> Response:
    """What the model has to say to `input`: reasoning, messages, and calls of the functions in `tools`.

    With `stream`, the events of the answer come as server-sent events. With `background`, the answer is the response as
    it begins; it is finished later, and asked for by its id.
    """
    adapter = of.adapter(body.model)
    of.tell_of(request, body.input)
    stored = _is_stored(body, runs)
    history = await gather(body.input, body.previous_response_id, runs.store, of.memory)
    is_constrained = bool(body.tools or body.text)
    make = partial(_turn, body, history, of.bridge, adapter)
    turn = await of.bridge.in_background(make, constrained=is_constrained)
    answer = Answer(body.head(turn.sampling, stored=stored), sealed=body.wants(SEALED))
    try:
        generation = await of.bridge.generate(turn)
    except PromptTooLongError as error:
        raise ApiError(400, str(error), param="input", code="context_length_exceeded") from None
    run = await runs.start(answer, generation, history.given, streamed=bool(body.stream), stored=stored)
    if body.stream:
        listener = Listener()
        reader = listener if body.background else run
        return EventStream(run.follow(listener), [reader], patience=of.settings.patience)
    if body.background:
        return JSONResponse(to_json(run.response))
    return JSONResponse(to_json(await waited_for(run.ended(), [run], request.receive)))


@router.get(
    "/v1/responses/{response_id}", response_model=ResponseObject, responses=RESPONSES, summary="Get a stored response"
)
async def retrieve(
    response_id: str,
    of: Of,
    runs: Under,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=0, le=2**31)] = None,
) -> Response:
    """The response as it stands. With `stream`, its events from the first, or from the one after `starting_after`."""
    if starting_after is not None and not stream:
        raise ApiError(400, "starting_after is for streams: set stream, or leave it out", param="starting_after")
    listener = Listener(starting_after=-1 if starting_after is None else starting_after)
    run = runs.get(response_id)
    if run is not None:
        if not stream:
            return JSONResponse(to_json(run.response))
        if run.streamed and run.response.background:
            return EventStream(run.follow(listener), [listener], patience=of.settings.patience)
    else:
        stored = await _stored(response_id, runs)
        if not stream:
            return JSONResponse(stored.response)
        if stored.events is not None:
            return EventStream(replayed(stored.events, listener), patience=of.settings.patience)
    line = f"{response_id} has no events to tell again: responses made with background and stream have"
    raise ApiError(400, line, param="stream", code="not_streamed")


@router.delete(
    "/v1/responses/{response_id}",
    response_model=DeletedResponse,
    responses=RESPONSES,
    summary="Forget a response",
)
async def delete(response_id: str, runs: Under) -> Response:
    """End the response if it is under way, and delete it with its items; what continues it cannot be continued then."""
    if run := runs.get(response_id):
        await run.cancelled()
    if runs.store is None or not await runs.store.delete(response_id):
        raise _not_found(response_id)
    return JSONResponse({"id": response_id, "object": "response", "deleted": True})


@router.post(
    "/v1/responses/{response_id}/cancel",
    response_model=ResponseObject,
    responses=RESPONSES,
    summary="Cancel a response in the background",
)
async def cancel(response_id: str, runs: Under) -> Response:
    """End a response that was made with `background`; one that has ended stays as it is."""
    run = runs.get(response_id)
    shown = (await _stored(response_id, runs)).response if run is None else to_json(run.response)
    if not shown["background"]:
        line = f"{response_id} was not made with background: leave the connection to cancel it"
        raise ApiError(400, line, code="not_in_background")
    return JSONResponse(shown if run is None else to_json(await run.cancelled()))


@router.get(
    "/v1/responses/{response_id}/input_items",
    response_model=ItemList,
    responses=RESPONSES,
    summary="List what a response was made from",
)
async def input_items(
    response_id: str,
    of: Of,
    runs: Under,
    limit: Annotated[int, Query(ge=1, le=MOST_ITEMS)] = 20,
    order: Literal["asc", "desc"] = "desc",
    after: str | None = None,
) -> Response:
    """Items from which the response was made, those of the responses it continues included, in pages of `limit`."""
    items = None if runs.store is None else await runs.store.input_items(response_id)
    if items is None:
        raise _not_found(response_id)
    # A client that keeps the conversation itself sends the same items again and again.
    listed: list[Mapping[str, Any]] = list({item["id"]: item for item in items}.values())
    if order == "desc":
        listed.reverse()
    begin = 0
    if after is not None:
        begin = next((index for index, item in enumerate(listed, start=1) if item["id"] == after), 0)
        if begin == 0:
            raise ApiError(400, f"after is {after[:100]!r}: no item has that id", param="after", code="invalid_value")
    page = listed[begin : begin + limit]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else "",
            "last_id": page[-1]["id"] if page else "",
            "has_more": begin + limit < len(listed),
        }
    )


def _is_stored(body: ResponseRequest, runs: Runs) -> bool:
    """Whether the response is to be kept; it is unless the request or the server says no."""
    if runs.store is not None:
        return body.store is not False
    for name, asked in (("store", body.store), ("background", body.background)):
        if asked:
            line = f"{name} cannot be honoured: responses are not kept here; start the server with --store"
            raise ApiError(400, line, param=name, code="unsupported_parameter")
    return False


def _turn(body: ResponseRequest, history: History, bridge: Bridge, adapter: str | None) -> Turn:
    """What the request asks of the model. Raises HarmonyError and RequestError that name the place."""
    tools, choice = body.tools or [], body.tool_choice or ToolChoice(mode="auto")
    conversation = body.conversation(history.prompt)
    no_call = choice.mode == "none" and tools and body.format.get("type") == "text"
    grammar = bridge.grammar(
        response_format=body.format,
        regex=ANY_TEXT if no_call else None,  # An answer to the user, whatever it says.
        tools=[tool for tool in tools if choice.names is None or tool["name"] in choice.names],
        tool_choice=choice.mode,
        format_place="text.format",
    )
    sampling = body.sampling(bridge.llm.sampling)
    return Turn(conversation=conversation, sampling=sampling, grammar=grammar, adapter=adapter)


async def _stored(response_id: str, runs: Runs) -> Stored:
    """A response that is not under way. Raises ApiError where there is none of this id."""
    stored = None if runs.store is None else await runs.store.get(response_id)
    if stored is None:
        raise _not_found(response_id)
    # Neither under way nor ended: its end could not be stored.
    return stored if stored.finished else Stored(response=lost(stored.response), events=None)


def _not_found(response_id: str) -> ApiError:
    line = f"there is no response {response_id[:100]!r}: it was deleted, or never stored"
    return ApiError(404, line, param="response_id", code="response_not_found")
