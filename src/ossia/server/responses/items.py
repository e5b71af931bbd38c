"""Items in: what a client sends, or what was stored, as items of one shape, and those as harmony messages.

    client's input ──▶ read_items ──▶ items ──▶ resolve, restore ──▶ items ──▶ to_messages ──▶ Message...
                                        └──▶ store

Whatever a client sends back of what it was given is read: with ids, status and null fields or without, messages easy
or full, reasoning by its content, its sealed copy, its id or its summary. What the model could not be shown is refused.
"""

import base64
import binascii
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ossia.errors import HarmonyError
from ossia.harmony.messages import Message, function_name

Item: TypeAlias = dict[str, Any]

_SEAL = "ossia1:"

_INSTRUCTING = ("system", "developer")

_FIELDS: dict[str, tuple[str, ...]] = {
    "message": ("role", "content", "phase"),
    "reasoning": ("summary", "content", "encrypted_content"),
    "function_call": ("call_id", "name", "arguments", "parsed_arguments", "caller"),
    "function_call_output": ("call_id", "output", "name", "caller"),
    "item_reference": (),
    "input_text": ("text", "prompt_cache_breakpoint"),
    "output_text": ("text", "annotations", "logprobs", "parsed"),
    "refusal": ("refusal",),
    "reasoning_text": ("text",),
    "summary_text": ("text",),
}
"""Fields of items and parts beside those of any item. Others are refused, unless null: they might mean something."""

_ANY_ITEM = ("type", "id", "status", "created_by")
_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}


def new_id(kind: str) -> str:
    """A fresh id for a message, a reasoning, a function_call or a function_call_output."""
    return f"{_PREFIXES[kind]}_{secrets.token_hex(16)}"


# -------------------------------------------------------------------- from the client


def read_items(raw: Any, where: str = "input") -> list[Item]:
    """Items of the API's full shape from what a client gave: a string, or a list of items in any of their spellings.

    References stay what they are, for `resolve`. Raises HarmonyError that names the item and its field.
    """
    if isinstance(raw, str):
        raw = [{"role": "user", "content": raw}]
    if not isinstance(raw, list):
        raise HarmonyError(f"{where} is {type(raw).__name__}: give a string or a list of items")
    return [_read_item(item, f"{where}[{index}]") for index, item in enumerate(raw)]


def _read_item(raw: Any, where: str) -> Item:
    item = _object(raw, where)
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    if not isinstance(kind, str) or kind not in (*_PREFIXES, "item_reference"):
        raise HarmonyError(f"{where}.type is {kind!r}: give one of {', '.join((*_PREFIXES, 'item_reference'))}")
    _check_fields(item, (*_ANY_ITEM, *_FIELDS[kind]), kind, where)
    if kind == "item_reference":
        return {"type": kind, "id": _string(item.get("id"), f"{where}.id")}
    own_id = item.get("id")
    base = {"type": kind, "id": new_id(kind) if own_id is None else _string(own_id, f"{where}.id")}
    match kind:
        case "message":
            return {**base, **_read_message(item, where), "status": "completed"}
        case "reasoning":
            return {**base, **_read_reasoning(item, where)}
        case "function_call":
            return {**base, **_read_call(item, where), "status": "completed"}
        case _:
            call_id = _string(item.get("call_id"), f"{where}.call_id")
            output = _read_content(item.get("output"), f"{where}.output", "input_text", keep_string=True)
            return {**base, "call_id": call_id, "output": output, "status": "completed"}


def _read_message(item: Mapping[str, Any], where: str) -> Item:
    role, phase = item.get("role"), item.get("phase")
    if role not in ("user", "assistant", *_INSTRUCTING):
        raise HarmonyError(f"{where}.role is {role!r}: give user, assistant, system or developer")
    content = _read_content(
        item.get("content"), f"{where}.content", "output_text" if role == "assistant" else "input_text"
    )
    if phase is None:
        return {"role": role, "content": content}
    if role != "assistant" or phase not in ("commentary", "final_answer"):
        raise HarmonyError(f"{where}.phase is {phase!r}: give commentary or final_answer, and to an assistant only")
    return {"role": role, "content": content, "phase": phase}


def _read_content(raw: Any, where: str, kind: str, *, keep_string: bool = False) -> Any:
    """Text parts of the given kind, and refusals; a string becomes one, unless it is to be kept."""
    if isinstance(raw, str):
        text = _string(raw, where, empty=True)
        return text if keep_string else [_part(kind, text)]
    parts: list[Item] = []
    for index, part in enumerate(_list(raw, where)):
        place = f"{where}[{index}]"
        given = _object(part, place)
        match given.get("type"):
            case "input_text" | "output_text" | "text":
                _check_fields(given, ("type", *_FIELDS["input_text"], *_FIELDS["output_text"]), "text", place)
                parts.append(_part(kind, _string(given.get("text"), f"{place}.text", empty=True)))
            case "refusal" if kind == "output_text":
                _check_fields(given, ("type", *_FIELDS["refusal"]), "refusal", place)
                text = _string(given.get("refusal"), f"{place}.refusal", empty=True)
                parts.append({"type": "refusal", "refusal": text})
            case other:
                raise HarmonyError(f"{place}.type is {other!r}: the model reads text only")
    return parts


def _part(kind: str, text: str) -> Item:
    part: Item = {"type": kind, "text": text}
    return {**part, "annotations": []} if kind == "output_text" else part


def _read_reasoning(item: Mapping[str, Any], where: str) -> Item:
    read: Item = {"summary": _read_parts(item.get("summary"), f"{where}.summary", "summary_text")}
    if content := _read_parts(item.get("content"), f"{where}.content", "reasoning_text"):
        read["content"] = content
    if (sealed := item.get("encrypted_content")) is not None:
        read["encrypted_content"] = _string(sealed, f"{where}.encrypted_content", empty=True)
        if sealed and not content and not read["summary"]:
            try:
                read["content"] = [{"type": "reasoning_text", "text": unseal(sealed)}]
            except ValueError:
                line = "was not made by this server, and stands alone: send the reasoning's content or summary"
                raise HarmonyError(f"{where}.encrypted_content {line}") from None
    return read


def _read_parts(raw: Any, where: str, kind: str) -> list[Item]:
    parts: list[Item] = []
    for index, part in enumerate([] if raw is None else _list(raw, where)):
        place = f"{where}[{index}]"
        given = _object(part, place)
        if given.get("type", kind) != kind:
            raise HarmonyError(f"{place}.type is {given.get('type')!r}: give {kind}")
        _check_fields(given, ("type", *_FIELDS[kind]), kind, place)
        parts.append({"type": kind, "text": _string(given.get("text"), f"{place}.text", empty=True)})
    return parts


def _read_call(item: Mapping[str, Any], where: str) -> Item:
    name = item.get("name")
    if not isinstance(name, str) or function_name(name) is None:
        raise HarmonyError(f"{where}.name is {name!r}: give a name of letters, digits, '_', '-' and '.'")
    arguments = item.get("arguments")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
    return {
        "call_id": _string(item.get("call_id"), f"{where}.call_id"),
        "name": name,
        "arguments": _string(arguments, f"{where}.arguments", empty=True),
    }


# -------------------------------------------------------------------- reasoning that travels sealed


def seal(text: str) -> str:
    """Reasoning in one opaque string that clients which keep nothing else send back; it is no secret."""
    return _SEAL + base64.b64encode(text.encode()).decode()


def unseal(sealed: str) -> str:
    """What `seal` was given. Raises ValueError for any other string."""
    if not sealed.startswith(_SEAL):
        raise ValueError("no reasoning of this server's")
    try:
        return base64.b64decode(sealed.removeprefix(_SEAL), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from None


def reasoning_item(text: str) -> Item:
    """A reasoning item that says this."""
    content = [{"type": "reasoning_text", "text": text}]
    return {"type": "reasoning", "id": new_id("reasoning"), "summary": [], "content": content}


def reasoning_text(item: Mapping[str, Any]) -> str:
    """What a reasoning item says: its content, else its summary."""
    return "".join(part["text"] for part in item.get("content") or item.get("summary") or ())


def calls_without_reasoning(items: Sequence[Item]) -> list[tuple[int, str]]:
    """Steps of the open turn that lead to a call and give no reasoning: where each begins, and its first call's id.

    What comes before the last final answer does not count: the model is not shown what it thought there.
    """
    finals = (index for index, final in enumerate(final_answers(items)) if final)
    bare: list[tuple[int, str]] = []
    begin = max(finals, default=-1) + 1
    explained = False
    for index in range(begin, len(items)):
        item = items[index]
        if item["type"] == "function_call_output" or item.get("role", "assistant") != "assistant":
            begin, explained = index + 1, False
        elif item["type"] == "reasoning":
            explained = explained or bool(reasoning_text(item))
        elif item["type"] == "function_call" and not explained:
            bare.append((begin, item["call_id"]))
            explained = True
    return bare


# -------------------------------------------------------------------- to harmony


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """Items in harmony's terms."""

    instructions: tuple[str, ...]
    """Of system and developer messages that come before any other."""
    messages: tuple[Message, ...]


def to_messages(items: Sequence[Item], where: Callable[[int], str]) -> Prompt:
    """The conversation that these items are. where: what to call the item of an index in an error.

    Raises HarmonyError for a result without a call before it.
    """
    instructions: list[str] = []
    messages: list[Message] = []
    called: dict[str, str] = {}
    for index, (item, final) in enumerate(zip(items, final_answers(items), strict=True)):
        match item["type"]:
            case "message" if item["role"] in _INSTRUCTING and not messages:
                instructions.append(_text(item["content"]))
            case "message":
                messages.append(_message(item, final=final))
            case "reasoning":
                if text := reasoning_text(item):
                    messages.append(Message(role="assistant", channel="analysis", content=text))
            case "function_call":
                recipient = called[item["call_id"]] = f"functions.{function_name(item['name'])}"
                messages.append(
                    Message(
                        role="assistant",
                        channel="commentary",
                        recipient=recipient,
                        content_type="json",
                        content=item["arguments"],
                    )
                )
            case _:
                name = called.get(item["call_id"])
                if name is None:
                    raise HarmonyError(f"{where(index)}.call_id is {item['call_id']!r}: no call before it has that id")
                messages.append(
                    Message(
                        role="tool",
                        name=name,
                        recipient="assistant",
                        channel="commentary",
                        content=_text(item["output"]),
                    )
                )
    return Prompt(instructions=tuple(instructions), messages=tuple(messages))


def _message(item: Item, *, final: bool) -> Message:
    text = _text(item["content"])
    match item["role"]:
        case "user":
            return Message(role="user", content=text)
        case "assistant":
            return Message(role="assistant", channel="final" if final else "commentary", content=text)
        case _:  # Instructions given midway stay where they were given.
            return Message(role="developer", content=f"# Instructions\n\n{text}")


def final_answers(items: Sequence[Item]) -> list[bool]:
    """For each item whether it is a final answer: one that says so, or does not say and leads to no call."""
    finals: list[bool] = []
    calls_follow = False
    for item in reversed(items):
        own = item["type"] != "function_call_output" and item.get("role", "assistant") == "assistant"
        calls_follow = own and (calls_follow or item["type"] == "function_call")
        spoken = own and item["type"] == "message"
        finals.append(spoken and (item["phase"] == "final_answer" if "phase" in item else not calls_follow))
    return finals[::-1]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "".join(part["refusal"] if part["type"] == "refusal" else part["text"] for part in content)


# -------------------------------------------------------------------- checks


def _check_fields(given: Mapping[str, Any], known: Sequence[str], kind: str, where: str) -> None:
    for field, value in given.items():
        if value is not None and value is not False and field not in known:
            raise HarmonyError(f"{where}.{field} cannot be honoured on an item of type {kind}: remove it")


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise HarmonyError(f"{where} is {type(value).__name__}: give an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise HarmonyError(f"{where} is {type(value).__name__}: give a string or a list")
    return value


def _string(value: Any, where: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise HarmonyError(f"{where} is {value!r:.80}: give a string")
    return value
