"""What a request is about: its own items, those of responses that it continues, reasoning that the client dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ossia.errors import HarmonyError
from ossia.server.errors import ApiError
from ossia.server.memory import Memory
from ossia.server.responses.items import (
    Item,
    Prompt,
    calls_without_reasoning,
    read_items,
    reasoning_item,
    reasoning_text,
    to_messages,
)
from ossia.server.store import ResponseStore


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """given: the request's own items, in full, as they are stored. prompt: these and all before them, for the model."""

    given: tuple[Item, ...]
    prompt: Prompt


async def gather(raw: Any, previous_id: str | None, store: ResponseStore | None, memory: Memory) -> History:
    """The history of a request with this `input` and this `previous_response_id`.

    Raises HarmonyError that names an item, ApiError for a response that cannot be continued, StorageError.
    """
    earlier = [] if previous_id is None else await _continued(previous_id, store)
    given = await _resolved([] if raw is None else read_items(raw), earlier, store)
    if not (given or earlier):
        raise HarmonyError("input is empty: give at least one item")
    items = [*earlier, *given]
    places = [*("previous_response_id" for _ in earlier), *(f"input[{index}]" for index in range(len(given)))]
    for index, call_id in reversed(calls_without_reasoning(items)):
        thought = await _recalled(call_id, store, memory)
        if thought and not any(thought == reasoning_text(item) for item in items if item["type"] == "reasoning"):
            items.insert(index, reasoning_item(thought))
            places.insert(index, places[index])
    return History(given=tuple(given), prompt=to_messages(items, places.__getitem__))


async def _continued(response_id: str, store: ResponseStore | None) -> list[Item]:
    """The items of a response and of those that it continues."""
    chain = None if store is None else await store.chain(response_id)
    if chain is None:
        why = "responses are not kept here" if store is None else "it was deleted, or never stored"
        line = f"previous_response_id: there is no response {response_id[:100]!r}: {why}"
        raise ApiError(404, line, param="previous_response_id", code="previous_response_not_found")
    if not chain.finished:
        line = f"previous_response_id: {response_id} is not finished: wait for it, or cancel it"
        raise ApiError(409, line, param="previous_response_id", code="response_not_finished")
    if chain.missing is not None:
        line = f"previous_response_id: {response_id} continues {chain.missing}, which was deleted: send its items again"
        raise ApiError(404, line, param="previous_response_id", code="previous_response_not_found")
    return list(chain.items)


async def _resolved(items: Sequence[Item], earlier: Sequence[Item], store: ResponseStore | None) -> list[Item]:
    """Items with each reference replaced by what it refers to, and reasoning filled in that came by its id alone."""
    known = {item["id"]: item for item in earlier}
    out: list[Item] = []
    for index, item in enumerate(items):
        refers = item["type"] == "item_reference"
        if refers or (item["type"] == "reasoning" and not item.get("content")):
            found = known.get(item["id"]) or (None if store is None else await store.item(item["id"]))
            if found is not None and (refers or found["type"] == "reasoning"):
                item = found
            elif refers:
                raise HarmonyError(f"input[{index}].id is {item['id'][:100]!r}: no stored item has that id")
        known[item["id"]] = item
        out.append(item)
    return out


async def _recalled(call_id: str, store: ResponseStore | None, memory: Memory) -> str | None:
    """What the model thought before this call."""
    thought = memory.recall([call_id])
    if thought is None and store is not None:
        thought = "\n\n".join(reasoning_text(item) for item in await store.reasoning_before(call_id))
    return thought or None
