"""What a request for a response may say, and what it comes to: a turn of the model, and the head of the answer."""

import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, PlainValidator, WithJsonSchema, field_validator, model_validator

from ossia.engine.request import MAX_SEED, Sampling
from ossia.errors import HarmonyError
from ossia.harmony.messages import Conversation, Developer, from_openai
from ossia.server.protocol import (
    MOST_TOOLS,
    MOST_TOP_LOGPROBS,
    ONE_TIER,
    TEXT_ONLY,
    Body,
    Refused,
    ToolChoice,
    invalid,
)
from ossia.server.responses.items import Prompt
from ossia.server.responses.objects import ResponseObject

LOGPROBS = "message.output_text.logprobs"
SEALED = "reasoning.encrypted_content"

MOST_METADATA, MOST_KEY, MOST_VALUE = 16, 64, 512
_NO_SUMMARY = "reasoning is given whole, not summarised"
_KEPT_IN_MEMORY = "prompts are kept in memory while there is room"
_ONLY_FUNCTIONS = "only functions can be offered, which the client runs"

_TOOL_FIELDS = ("type", "name", "description", "parameters", "strict", "output_schema")

_TEXT_PART = {"type": "object", "required": ["type", "text"], "properties": {"type": {}, "text": {"type": "string"}}}
_ITEM_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"enum": ["message", "reasoning", "function_call", "function_call_output", "item_reference"]},
        "role": {"enum": ["user", "assistant", "system", "developer"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}, {"type": "null"}]},
        "call_id": {"type": ["string", "null"]},
        "name": {"type": ["string", "null"]},
        "arguments": {"type": ["string", "null"]},
        "output": {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}, {"type": "null"}]},
    },
    "description": "An item as in OpenAI's API; what the model gave may be sent back as it came.",
}
_INPUT_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": _ITEM_SCHEMA}]}
_TOOL_SCHEMA = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {
        "type": {"const": "function"},
        "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
        "description": {"type": ["string", "null"]},
        "parameters": {"type": ["object", "null"], "description": "A JSON Schema."},
        "strict": {"type": ["boolean", "null"]},
    },
}
_NAMED = {
    "type": "object",
    "required": ["type", "name"],
    "properties": {"type": {"const": "function"}, "name": {"type": "string"}},
}
_TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        _NAMED,
        {
            "type": "object",
            "required": ["type", "mode", "tools"],
            "properties": {
                "type": {"const": "allowed_tools"},
                "mode": {"enum": ["auto", "required"]},
                "tools": {"type": "array", "items": _NAMED, "minItems": 1},
            },
        },
    ]
}
_FORMAT_SCHEMA = {
    "anyOf": [
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
        {
            "type": "object",
            "required": ["type", "name", "schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "name": {"type": "string"},
                "description": {"type": ["string", "null"]},
                "schema": {"type": "object"},
                "strict": {"type": ["boolean", "null"]},
            },
        },
    ]
}


def _tool_choice(value: Any) -> ToolChoice:
    match value:
        case "none" | "auto" | "required":
            return ToolChoice(mode=value)
        case {"type": "function", "name": str(name)}:
            return ToolChoice(mode="required", names=(name,))
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [_, *_] as tools}:
            return ToolChoice(mode=mode, names=_tool_names(cast("list[Any]", tools)))
        case {"type": str(kind)} if kind not in ("function", "allowed_tools"):
            raise invalid("tool_choice", f"tool_choice.type is {kind[:64]!r}: {_ONLY_FUNCTIONS}")
        case _:
            wanted = "none, auto, required, a function by its name, or allowed_tools with a mode and tools"
            raise invalid("tool_choice", f"tool_choice is malformed: give {wanted}")


def _tool_names(tools: Sequence[Any]) -> tuple[str, ...]:
    names: list[str] = []
    for index, tool in enumerate(tools):
        match tool:
            case {"type": "function", "name": str(name)}:
                names.append(name)
            case _:
                where = f"tool_choice.tools[{index}]"
                raise invalid(where, f"{where} is malformed: give a function by its name")
    return tuple(names)


class TextConfig(Body):
    """How the answer is to be written."""

    refused: ClassVar[Refused] = {
        "verbosity": ((None, "medium"), "the model has no such setting: ask for it in the instructions")
    }

    format: Annotated[dict[str, Any], WithJsonSchema(_FORMAT_SCHEMA)] | None = None

    @field_validator("format")
    @classmethod
    def _flat(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        for name in value or {}:
            if name not in ("type", "name", "schema", "description", "strict"):
                raise invalid(f"text.format.{name[:64]}", f"text.format.{name[:64]} is unknown: remove it")
        return value


class Reasoning(Body):
    """How much to think."""

    refused: ClassVar[Refused] = {
        "summary": ((None, "auto"), _NO_SUMMARY),
        "generate_summary": ((None, "auto"), _NO_SUMMARY),
        "context": ((None, "auto", "current_turn"), "the model is shown its reasoning while a turn is open"),
        "mode": ((None, "standard"), "the model has one way of thinking"),
    }

    effort: Literal["low", "medium", "high"] | None = None

    @field_validator("effort", mode="before")
    @classmethod
    def _known_effort(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("low", "medium", "high"):
            raise invalid("reasoning.effort", f"reasoning.effort is {value[:32]!r}: the model knows low, medium, high")
        return value


class StreamOptions(Body):
    """What a stream is to hold beside the answer."""

    include_obfuscation: Literal[False] | None = Field(None, description="Padding of events; there is none.")


class ResponseRequest(Body):
    """The body of /v1/responses."""

    refused: ClassVar[Refused] = {
        "conversation": ((None,), "continue a response with previous_response_id"),
        "prompt": ((None,), "there are no prompt templates: put the text into instructions and input"),
        "truncation": ((None, "disabled"), "nothing is cut in silence: send fewer items"),
        "service_tier": ((None, "auto", "default"), ONE_TIER),
        "moderation": ((None,), "there is no moderation here"),
        "context_management": ((None, []), "nothing is compacted: send fewer items"),
        "prompt_cache_retention": ((None, "in_memory"), _KEPT_IN_MEMORY),
        "prompt_cache_options": ((None, {"mode": "implicit"}), _KEPT_IN_MEMORY),
        "background_options": ((None, {"completion_window": "soonest"}), "it runs as soon as it can"),
        "access_programs": ((None,), "there are none here"),
        "image": ((None,), TEXT_ONLY),
        "modalities": ((None, ["text"]), TEXT_ONLY),
    }

    model: str
    input: Annotated[str | list[Any], WithJsonSchema(_INPUT_SCHEMA)] | None = None
    instructions: str | None = Field(None, description="Of this response alone: the next one needs its own.")
    previous_response_id: str | None = Field(None, description="A stored response, which this one continues.")
    stream: bool | None = Field(None, description="Server-sent events instead of one object.")
    stream_options: StreamOptions | None = None
    background: bool | None = Field(None, description="Answer at once, and run on; needs store.")
    store: bool | None = Field(None, description="Whether the response is kept; it is, unless this is false.")
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token, always.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="An extension: keep this many; 0 keeps all.")
    min_p: float | None = Field(None, ge=0, le=1, description="An extension: least share of the likeliest's.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="An extension: same seed, same answer.")
    max_output_tokens: int | None = Field(None, ge=1, description="Longest answer, reasoning included.")
    max_tool_calls: int | None = Field(None, ge=1, description="Of built-in tools; there are none.")
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS, description=f"Needs {LOGPROBS} in include.")
    include: list[str] | None = Field(None, max_length=16, description=f"{LOGPROBS}, {SEALED}.")
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    tools: list[Annotated[dict[str, Any], WithJsonSchema(_TOOL_SCHEMA)]] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Annotated[ToolChoice, PlainValidator(_tool_choice), WithJsonSchema(_TOOL_CHOICE_SCHEMA)] | None = None
    parallel_tool_calls: bool | None = Field(None, description="The model calls one function a turn either way.")
    metadata: dict[str, str] | None = Field(None, max_length=MOST_METADATA, description="Kept with the response.")
    user: str | None = Field(None, description="Taken, and of no effect.")
    safety_identifier: str | None = Field(None, description="Taken, and of no effect.")
    prompt_cache_key: str | None = Field(None, description="Taken: like prefixes are found without one.")

    @model_validator(mode="after")
    def _consistent(self) -> "ResponseRequest":
        if self.input is None and self.previous_response_id is None:
            raise invalid("input", "input is missing: give a string or a list of items")
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "stream_options is for streams: set stream, or leave it out")
        if self.background and self.store is False:
            raise invalid("background", "background needs store: a response that is not kept could not be asked for")
        for index, wanted in enumerate(self.include or ()):
            if wanted not in (LOGPROBS, SEALED):
                line = f"include[{index}] is {wanted[:64]!r}: there is {LOGPROBS} and {SEALED}"
                raise invalid(f"include[{index}]", line)
        if self.top_logprobs and not self.wants(LOGPROBS):
            raise invalid("top_logprobs", f"top_logprobs needs {LOGPROBS} in include")
        for key, value in (self.metadata or {}).items():
            if len(key) > MOST_KEY or len(value) > MOST_VALUE:
                line = f"metadata.{key[:MOST_KEY]} is too long: keys have {MOST_KEY} characters, values {MOST_VALUE}"
                raise invalid("metadata", line)
        self._check_tools()
        return self

    def _check_tools(self) -> None:
        names: list[Any] = []
        for index, tool in enumerate(self.tools or ()):
            _check_tool(tool, f"tools[{index}]")
            name = tool.get("name")
            if name in names:
                where = f"tools[{index}].name"
                raise invalid(where, f"{where} is {name!r}, as that of an earlier tool: give each its own name")
            names.append(name)
        choice = self.tool_choice
        if choice is None:
            return
        if choice.mode == "required" and not names:
            raise invalid("tool_choice", "tool_choice requires a call, and there are no tools: give some in tools")
        if unknown := next((name for name in choice.names or () if name not in names), None):
            raise invalid("tool_choice", f"tool_choice names {unknown!r}, which is not among tools")

    def wants(self, included: str) -> bool:
        """Whether the answer is to hold this, too."""
        return included in (self.include or ())

    @property
    def effort(self) -> Literal["low", "medium", "high"]:
        return (self.reasoning and self.reasoning.effort) or "medium"

    @property
    def format(self) -> dict[str, Any]:
        """What the answer's text must be."""
        return (self.text and self.text.format) or {"type": "text"}

    def sampling(self, recommended: Sampling) -> Sampling:
        """How the answer is drawn: as the model recommends, but for what the request says."""
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "seed")
            if (value := getattr(self, name)) is not None
        }
        logprobs = (self.top_logprobs or 0) if self.wants(LOGPROBS) else None
        return replace(recommended, **given, max_tokens=self.max_output_tokens, logprobs=logprobs)

    def conversation(self, prompt: Prompt) -> Conversation:
        """What the model is shown. Raises HarmonyError that names the place in tools or text.format."""
        texts = (self.instructions, *prompt.instructions)
        instructions = "\n\n".join(text for text in texts if text is not None) or None
        try:
            shown = from_openai([], tools=self.tools, effort=self.effort, response_format=self.format)
        except HarmonyError as error:
            raise HarmonyError(in_our_terms(str(error))) from None
        developer = replace(shown.developer or Developer(), instructions=instructions)
        return replace(shown, developer=None if developer == Developer() else developer, messages=prompt.messages)

    def head(self, sampling: Sampling, *, stored: bool) -> ResponseObject:
        """The response before anything has happened, with all that is known of it."""
        tools = [
            {field: tool.get(field) for field in ("type", "name", "description", "parameters", "strict")}
            for tool in self.tools or ()
        ]
        return ResponseObject.model_validate(
            {
                "id": f"resp_{secrets.token_hex(24)}",
                "object": "response",
                "created_at": int(time.time()),
                "completed_at": None,
                "status": "queued" if self.background else "in_progress",
                "error": None,
                "incomplete_details": None,
                "model": self.model,
                "output": [],
                "usage": None,
                "previous_response_id": self.previous_response_id,
                "instructions": self.instructions,
                "background": bool(self.background),
                "store": stored,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_output_tokens": self.max_output_tokens,
                "max_tool_calls": self.max_tool_calls,
                "top_logprobs": self.top_logprobs or 0,
                "reasoning": {"effort": self.effort, "summary": None},
                "text": {"format": self.format, "verbosity": "medium"},
                "tools": tools,
                "tool_choice": _shown_choice(self.tool_choice),
                "parallel_tool_calls": self.parallel_tool_calls is not False,
                "truncation": "disabled",
                "service_tier": "default",
                "metadata": self.metadata or {},
                "user": self.user,
                "safety_identifier": self.safety_identifier,
                "prompt_cache_key": self.prompt_cache_key,
            }
        )


def in_our_terms(message: str) -> str:
    """An error about a response format as one about this API's parameter."""
    head, tail = message[: len("response_format")], message[len("response_format") :]
    return f"text.format{tail}" if head == "response_format" else message


def _shown_choice(choice: ToolChoice | None) -> str | Mapping[str, Any]:
    if choice is None or choice.names is None:
        return "auto" if choice is None else choice.mode
    named = [{"type": "function", "name": name} for name in choice.names]
    if choice.mode == "required" and len(named) == 1:
        return named[0]
    return {"type": "allowed_tools", "mode": choice.mode, "tools": named}


def _check_tool(tool: Mapping[str, Any], where: str) -> None:
    """A tool is a function in the flat spelling. Its name and its schema are read when the model is shown it."""
    if (kind := tool.get("type")) != "function":
        raise invalid(f"{where}.type", f"{where}.type is {str(kind)[:64]!r}: {_ONLY_FUNCTIONS}")
    for name, given in tool.items():
        harmless = (None, False, ["direct"]) if name == "allowed_callers" else (None, False)
        if name not in _TOOL_FIELDS and given not in harmless:
            raise invalid(f"{where}.{name[:64]}", f"{where}.{name[:64]} cannot be honoured: remove it")
    if not isinstance(tool.get("strict"), bool | None):
        raise invalid(f"{where}.strict", f"{where}.strict is {str(tool['strict'])[:64]!r}: give true or false")
