"""What a conversation is, before it becomes tokens: plain records, and the way in from OpenAI's chat messages.

    Conversation
    ├── system      System       the platform's own: identity, dates, effort, built-in tools, channels
    ├── developer   Developer    the application's: instructions, function tools, response formats
    └── messages    Message...   user, assistant (on a channel, perhaps to a recipient) and tool, in order

Records hold no check that could stop a parser: what a model wrote must always fit into a `Message`.
`render` checks what it is asked to render, and `from_openai` what it is given.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ossia.errors import HarmonyError
from ossia.harmony.schema import typescript

ROLES = ("system", "developer", "user", "assistant", "tool")
EFFORTS = ("low", "medium", "high")
CHANNELS = ("analysis", "commentary", "final")
IDENTITY = "You are ChatGPT, a large language model trained by OpenAI."
KNOWLEDGE_CUTOFF = "2024-06"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message.

    name: the author of a tool message ("functions.get_weather"), or the name of a user among several.
    recipient: whom an assistant calls ("functions.get_weather", "python"); a tool answers to "assistant".
    content_type: "json" for the arguments of a function, "code" in calls of built-in tools, None for prose.
    """

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None

    @property
    def is_call(self) -> bool:
        """Whether the assistant hands over to a tool here; "all" is the wire's word for no recipient."""
        return self.role == "assistant" and self.recipient not in (None, "all")

    @property
    def ends_turn(self) -> bool:
        """Whether the assistant stops generating here: a call, or an answer (an unmarked one counts as `final`)."""
        return self.is_call or (self.role == "assistant" and self.channel in (None, "final"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One callable; parameters is a JSON Schema, None where it takes no argument."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolNamespace:
    """Callables under a common name; without any, the description alone says how to call it (as `python` does)."""

    name: str
    description: str = ""
    tools: tuple[Tool, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """The JSON Schema which the final answer is asked to follow."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """The platform's message; None or an empty tuple leaves a part out. date: "2025-06-28"."""

    identity: str | None = IDENTITY
    knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF
    date: str | None = None
    effort: str | None = "medium"
    builtin_tools: tuple[ToolNamespace, ...] = ()
    channels: tuple[str, ...] = CHANNELS


@dataclass(frozen=True, slots=True, kw_only=True)
class Developer:
    """The application's message; tools are the functions of the namespace `functions`."""

    instructions: str | None = None
    tools: tuple[Tool, ...] = ()
    response_formats: tuple[ResponseFormat, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A whole conversation; system or developer None where that message is not to be rendered."""

    system: System | None = System()
    developer: Developer | None = None
    messages: tuple[Message, ...] = ()


# -------------------------------------------------------------------- from OpenAI's chat messages

_NAME = re.compile(r"(?!functions\.\Z)[A-Za-z0-9_.-]+")
_REASONING = ("reasoning", "reasoning_content", "thinking")
"""Spellings of the analysis among clients: all are read, and may repeat but not contradict each other."""

_FIELDS = {
    "system": ("name",),
    "developer": ("name",),
    "user": ("name",),
    "assistant": (*_REASONING, "tool_calls", "refusal", "annotations", "name"),
    "tool": ("tool_call_id", "name"),
}
"""Fields read beside role and content. Others are refused, unless null: they might have changed the meaning."""


def from_openai(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    effort: str = "medium",
    date: str | None = None,
    identity: str | None = None,
    builtin_tools: Sequence[ToolNamespace] | None = None,
    response_format: Mapping[str, Any] | None = None,
) -> Conversation:
    """A Conversation from OpenAI chat messages.

    messages: role system or developer (becomes the developer's instructions), user, assistant (with `reasoning`,
        `tool_calls`) or tool; content is a string or a list of text parts.
    tools: OpenAI's function tools, in the nested or the flat spelling.
    effort: "low", "medium" or "high". date: what the model is told today is, left out if None.
    identity: the first line of the system message, the published one if None.
    response_format: OpenAI's object of type text, json_object or json_schema.
    Raises HarmonyError naming the message's index and its field.
    """
    if effort not in EFFORTS:
        raise HarmonyError(f"effort is {effort!r}: give one of {', '.join(EFFORTS)}")
    builtin = tuple(builtin_tools or ())
    reader = _Reader(builtin=frozenset(namespace.name for namespace in builtin), called={})
    instructions: list[str] = []
    read: list[Message] = []
    for index, raw in enumerate(messages):
        where = f"messages[{index}]"
        role = _role(raw, where)
        if role in ("system", "developer") and not read:
            instructions.append(_text(raw.get("content"), f"{where}.content"))
        else:
            read.extend(reader.read(raw, role, where))
    developer = Developer(
        instructions="\n\n".join(instructions) if instructions else None,
        tools=tuple(_tool(raw, f"tools[{index}]") for index, raw in enumerate(tools or ())),
        response_formats=_response_formats(response_format),
    )
    return Conversation(
        system=System(
            identity=IDENTITY if identity is None else identity, date=date, effort=effort, builtin_tools=builtin
        ),
        developer=None if developer == Developer() else developer,
        messages=tuple(read),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Turns one chat message into harmony messages; called maps the ids of calls made so far to the call."""

    builtin: frozenset[str]
    called: dict[str, Message]

    def read(self, raw: Mapping[str, Any], role: str, where: str) -> list[Message]:
        match role:
            case "assistant":
                return self._assistant(raw, where)
            case "tool":
                return [self._tool_result(raw, where)]
            case "user":
                name = raw.get("name")
                if name is not None:
                    name = _name(name, f"{where}.name")
                return [Message(role="user", content=_text(raw.get("content"), f"{where}.content"), name=name)]
            case _:  # Instructions given midway stay where they were given.
                text = _text(raw.get("content"), f"{where}.content")
                return [Message(role="developer", content=f"# Instructions\n\n{text}")]

    def _assistant(self, raw: Mapping[str, Any], where: str) -> list[Message]:
        calls = _list(raw.get("tool_calls") or [], f"{where}.tool_calls")
        content, refusal = raw.get("content"), raw.get("refusal")
        if content is not None:
            content = _text(content, f"{where}.content")
        if refusal is not None:
            refusal = _text(refusal, f"{where}.refusal")
            if content:
                raise HarmonyError(f"{where}.refusal stands beside a content: give one of them")
            content = refusal
        reasoning = _reasoning(raw, where)
        out: list[Message] = []
        if reasoning:
            out.append(Message(role="assistant", channel="analysis", content=reasoning))
        if calls:
            if content:  # Said to the user before the calls: a preamble.
                out.append(Message(role="assistant", channel="commentary", content=content))
            out.extend(self._call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls))
        elif content is not None:
            out.append(Message(role="assistant", channel="final", content=content))
        if not out:
            raise HarmonyError(f"{where}.content is missing: give content, reasoning or tool_calls")
        return out

    def _call(self, raw: Any, where: str) -> Message:
        call = _object(raw, where)
        if call.get("type", "function") != "function":
            raise HarmonyError(f"{where}.type is {call['type']!r}: only function calls can be rendered")
        function = _object(call.get("function"), f"{where}.function")
        name = _bare(_name(function.get("name"), f"{where}.function.name"))
        arguments = function.get("arguments", "")
        if isinstance(arguments, Mapping):
            arguments = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"))
        elif not isinstance(arguments, str):
            raise HarmonyError(f"{where}.function.arguments is {arguments!r}: give a JSON string or an object")
        if name.partition(".")[0] in self.builtin:
            recipient, channel, content_type = name, "analysis", "code"
        else:
            recipient, channel, content_type = f"functions.{name}", "commentary", "json"
        message = Message(
            role="assistant", channel=channel, recipient=recipient, content_type=content_type, content=arguments
        )
        if (call_id := call.get("id")) is not None:
            if not isinstance(call_id, str):
                raise HarmonyError(f"{where}.id is {call_id!r}: give a string")
            self.called[call_id] = message
        return message

    def _tool_result(self, raw: Mapping[str, Any], where: str) -> Message:
        call_id = raw.get("tool_call_id")
        if not isinstance(call_id, str) or call_id not in self.called:
            raise HarmonyError(f"{where}.tool_call_id is {call_id!r}: no earlier tool call has that id")
        call = self.called[call_id]
        name = raw.get("name")
        if name is not None and _bare(_name(name, f"{where}.name")) != _bare(call.recipient or ""):
            raise HarmonyError(f"{where}.name is {name!r}, but call {call_id!r} went to {call.recipient}")
        return Message(
            role="tool",
            name=call.recipient,
            recipient="assistant",
            channel=call.channel,
            content=_text(raw.get("content"), f"{where}.content"),
        )


def _role(raw: Any, where: str) -> str:
    role = _object(raw, where).get("role")
    if role not in ROLES:
        raise HarmonyError(f"{where}.role is {role!r}: give one of {', '.join(ROLES)}")
    for field, value in raw.items():
        if value is not None and field not in ("role", "content", *_FIELDS[role]):
            raise HarmonyError(f"{where}.{field} cannot be rendered on a message of role {role}: remove it")
    return role


def _reasoning(raw: Mapping[str, Any], where: str) -> str | None:
    given = {field: _text(raw[field], f"{where}.{field}") for field in _REASONING if raw.get(field) is not None}
    if len(set(given.values())) > 1:
        raise HarmonyError(f"{where}: {' and '.join(given)} contradict each other: give one of them")
    return next(iter(given.values()), None)


def _text(value: Any, where: str) -> str:
    """A string, or the text parts of a list put together."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise HarmonyError(f"{where} is {type(value).__name__}: give a string or a list of text parts")
    out: list[str] = []
    for index, raw in enumerate(value):
        part = _object(raw, f"{where}[{index}]")
        if part.get("type") not in ("text", "input_text", "output_text"):
            raise HarmonyError(f"{where}[{index}].type is {part.get('type')!r}: gpt-oss reads text only")
        if not isinstance(part.get("text"), str):
            raise HarmonyError(f"{where}[{index}].text is {part.get('text')!r}: give a string")
        out.append(part["text"])
    return "".join(out)


def _tool(raw: Any, where: str) -> Tool:
    tool = _object(raw, where)
    if tool.get("type") != "function":
        raise HarmonyError(f"{where}.type is {tool.get('type')!r}: only function tools can be rendered")
    if "function" in tool:
        where = f"{where}.function"
        tool = _object(tool["function"], where)
    name = _name(tool.get("name"), f"{where}.name")
    description = tool.get("description")
    if description is not None and not isinstance(description, str):
        raise HarmonyError(f"{where}.description is {description!r}: give a string")
    parameters = tool.get("parameters")
    if parameters is not None:
        typescript(parameters, path=f"{where}.parameters")  # Refused here, where the caller's index is known.
    return Tool(name=name, description=description or "", parameters=parameters)


def _response_formats(raw: Any) -> tuple[ResponseFormat, ...]:
    if raw is None:
        return ()
    where = "response_format"
    outer = _object(raw, where)
    match outer.get("type"):
        case "text":
            return ()
        case "json_object":
            return (ResponseFormat(name="json_object", schema={"type": "object"}),)
        case "json_schema":
            if "json_schema" in outer:
                where = f"{where}.json_schema"
                outer = _object(outer["json_schema"], where)
        case other:
            raise HarmonyError(f"{where}.type is {other!r}: give text, json_object or json_schema")
    description = outer.get("description")
    if description is not None and not isinstance(description, str):
        raise HarmonyError(f"{where}.description is {description!r}: give a string")
    return (
        ResponseFormat(
            name=_name(outer.get("name"), f"{where}.name"),
            schema=_object(outer.get("schema"), f"{where}.schema"),
            description=description or "",
        ),
    )


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise HarmonyError(f"{where} is {type(value).__name__}: give an object")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise HarmonyError(f"{where} is {type(value).__name__}: give a list")
    return value


def function_name(recipient: str) -> str | None:
    """The name by which `from_openai` takes a call to `recipient`; None where what the model wrote there is no name."""
    name = _bare(recipient)
    return name if _NAME.fullmatch(name) else None


def _bare(name: str) -> str:
    return name.removeprefix("functions.")


def _name(value: Any, where: str) -> str:
    """A name fit for a message header, where a space would begin another field."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise HarmonyError(f"{where} is {value!r}: give a name of letters, digits, '_', '-' and '.'")
    return value
