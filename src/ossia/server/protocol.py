"""What a request may say. A parameter is honoured, or known to be harmless, or refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from ossia.engine.request import MAX_SEED, Sampling

MOST_CHOICES = 128
MOST_STOPS = 16
MOST_STOP_CHARACTERS = 256
MOST_TOOLS = 128
MOST_BIASES = 1024
MOST_TOP_LOGPROBS = 20

Refused = Mapping[str, tuple[tuple[Any, ...], str]]
"""Parameter of OpenAI's → the values that change nothing here, and why no other can be honoured."""


def invalid(param: str, message: str) -> PydanticCustomError:
    """An error of validation that names its parameter itself."""
    # The message is data, not a template of pydantic's.
    return PydanticCustomError("invalid_parameter", "{message}", {"message": message, "param": param})


class Body(BaseModel):
    """The body of a request: no conversions, no unknown parameters."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    refused: ClassVar[Refused] = {}

    @model_validator(mode="before")
    @classmethod
    def _without_refused(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        body = cast("dict[str, Any]", value)
        for name, (harmless, why) in cls.refused.items():
            if name in body and body[name] not in harmless:
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "{message}",
                    {"message": f"{name} cannot be honoured: {why}", "param": name},
                )
        return {name: given for name, given in body.items() if name not in cls.refused}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_STOP_SCHEMA = {"type": "string", "minLength": 1, "maxLength": MOST_STOP_CHARACTERS}
Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MOST_STOP_CHARACTERS)]],
    Field(max_length=MOST_STOPS),
    BeforeValidator(_listed),
    WithJsonSchema({"anyOf": [_STOP_SCHEMA, {"type": "array", "items": _STOP_SCHEMA, "maxItems": MOST_STOPS}]}),
]


TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]


class StreamOptions(Body):
    """What a stream is to hold beside the answer."""

    include_usage: bool | None = Field(None, description="A last chunk with the count of tokens.")
    include_obfuscation: Literal[False] | None = Field(None, description="Padding of chunks; there is none.")


class Sampled(Body):
    """What chat and completions have in common."""

    model: str
    stream: bool | None = Field(None, description="Server-sent events instead of one object.")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MOST_CHOICES, description="How many answers.")
    max_tokens: int | None = Field(None, ge=1, description="Longest answer, reasoning included.")
    stop: Stop | None = Field(None, description="Text at which the answer ends, before it.")
    seed: int | None = Field(
        None, ge=0, le=MAX_SEED, description="Same seed, same answer; choice i of several has seed + i."
    )
    temperature: float | None = Field(None, ge=0, le=2, description="0 takes the likeliest token, always.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=2**31 - 1, description="An extension: keep this many; 0 keeps all.")
    min_p: float | None = Field(None, ge=0, le=1, description="An extension: least share of the likeliest's.")
    repetition_penalty: float | None = Field(None, gt=0, le=100, description="An extension.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[TokenKey, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=MOST_BIASES, description="Token id → what is added to its logit."
    )
    user: str | None = Field(None, description="Taken, and of no effect.")

    @model_validator(mode="after")
    def _stream_options_of_streams(self) -> "Sampled":
        if self.stream_options is not None and not self.stream:
            raise invalid("stream_options", "stream_options is for streams: set stream, or leave it out")
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def sampling(self, recommended: Sampling, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """How the answer is drawn: as the model recommends, but for what the request says."""
        given = {
            name: value
            for name in ("temperature", "top_p", "top_k", "min_p", "seed")
            if (value := getattr(self, name)) is not None
        }
        return replace(
            recommended,
            **given,
            max_tokens=max_tokens,
            repetition_penalty=self.repetition_penalty or 1.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias={int(token): value for token, value in (self.logit_bias or {}).items()},
            logprobs=logprobs,
        )


# -------------------------------------------------------------------- chat


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """Whether functions may or must be called, and which. names: those that may be; None means all."""

    mode: Literal["none", "auto", "required"]
    names: tuple[str, ...] | None = None


def _tool_choice(value: Any) -> ToolChoice:
    match value:
        case "none" | "auto" | "required":
            return ToolChoice(mode=value)
        case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return ToolChoice(mode="required", names=(name,))
        case {"type": "allowed_tools", "allowed_tools": {"mode": "auto" | "required" as mode, "tools": list(tools)}}:
            return ToolChoice(mode=mode, names=_tool_names(cast("list[Any]", tools)))
        case {"type": "custom"}:
            raise invalid("tool_choice.type", "tool_choice.type is 'custom': the model calls functions only")
        case _:
            wanted = "none, auto, required, a function by its name, or allowed_tools with a mode and tools"
            raise invalid("tool_choice", f"tool_choice is malformed: give {wanted}")


def _tool_names(tools: Sequence[Any]) -> tuple[str, ...]:
    names: list[str] = []
    for index, tool in enumerate(tools):
        match tool:
            case {"type": "function", "function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
                names.append(name)
            case _:
                where = f"tool_choice.allowed_tools.tools[{index}]"
                raise invalid(where, f"{where} is malformed: give a function by its name")
    if not names:
        raise invalid("tool_choice.allowed_tools.tools", "tool_choice.allowed_tools.tools is empty: name a function")
    return tuple(names)


_NAMED = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
    },
}
_TOOL_CHOICE_SCHEMA = {
    "anyOf": [
        {"enum": ["none", "auto", "required"]},
        _NAMED,
        {
            "type": "object",
            "required": ["type", "allowed_tools"],
            "properties": {
                "type": {"const": "allowed_tools"},
                "allowed_tools": {
                    "type": "object",
                    "required": ["mode", "tools"],
                    "properties": {
                        "mode": {"enum": ["auto", "required"]},
                        "tools": {"type": "array", "items": _NAMED, "minItems": 1},
                    },
                },
            },
        },
    ]
}
_PARTS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
        "additionalProperties": False,
    },
}
_MESSAGE_SCHEMA = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, _PARTS, {"type": "null"}]},
        "name": {"type": ["string", "null"]},
        "reasoning": {"type": ["string", "null"], "description": "What led to an assistant's message."},
        "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
        "tool_call_id": {"type": ["string", "null"]},
    },
    "description": "As in OpenAI's API; an assistant's may have `reasoning`, also called `reasoning_content`.",
}
_TOOL_SCHEMA = {
    "type": "object",
    "required": ["type", "function"],
    "properties": {
        "type": {"const": "function"},
        "function": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
                "description": {"type": ["string", "null"]},
                "parameters": {"type": ["object", "null"], "description": "A JSON Schema."},
                "strict": {"type": ["boolean", "null"]},
            },
        },
    },
}
_FORMAT_SCHEMA = {
    "anyOf": [
        {"type": "object", "required": ["type"], "properties": {"type": {"enum": ["text", "json_object"]}}},
        {
            "type": "object",
            "required": ["type", "json_schema"],
            "properties": {
                "type": {"const": "json_schema"},
                "json_schema": {
                    "type": "object",
                    "required": ["name", "schema"],
                    "properties": {
                        "name": {"type": "string"},
                        "description": {"type": ["string", "null"]},
                        "schema": {"type": "object"},
                        "strict": {"type": ["boolean", "null"]},
                    },
                },
            },
        },
    ]
}

Message = Annotated[dict[str, Any], WithJsonSchema(_MESSAGE_SCHEMA)]
FunctionTool = Annotated[dict[str, Any], WithJsonSchema(_TOOL_SCHEMA)]


class StructuredOutputs(Body):
    """An extension: what the answer must match, where a JSON Schema cannot say it."""

    regex: str = Field(max_length=10_000, description="A regular expression which the whole answer matches.")


ONE_TIER = "there is one way of serving"
NOT_KEPT = "chat completions are not kept: use /v1/responses"
TEXT_ONLY = "the model reads and writes text"


class ChatRequest(Sampled):
    """The body of /v1/chat/completions."""

    refused: ClassVar[Refused] = {
        "audio": ((None,), TEXT_ONLY),
        "modalities": ((None, ["text"]), TEXT_ONLY),
        "prediction": ((None,), "answers are not predicted"),
        "web_search_options": ((None,), "there is no search: offer one as a function in tools"),
        "functions": ((None,), "use tools"),
        "function_call": ((None,), "use tool_choice"),
        "store": ((None, False), NOT_KEPT),
        "service_tier": ((None, "auto", "default"), ONE_TIER),
        "verbosity": ((None, "medium"), "the model has no such setting: ask for it in the instructions"),
        "moderation": ((None,), "there is no moderation here"),
        "prompt_cache_retention": ((None, "in_memory"), "prompts are kept in memory while there is room"),
        "prompt_cache_options": ((None, {"mode": "implicit"}), "prompts are kept in memory while there is room"),
    }

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1, description="The newer name of max_tokens.")
    logprobs: bool | None = Field(None, description="Log-probabilities of the tokens of the answer.")
    top_logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS, description="Needs logprobs.")
    reasoning_effort: Literal["low", "medium", "high"] | None = Field(None, description="How much to think.")
    tools: list[FunctionTool] | None = Field(None, max_length=MOST_TOOLS)
    tool_choice: Annotated[ToolChoice, PlainValidator(_tool_choice), WithJsonSchema(_TOOL_CHOICE_SCHEMA)] | None = None
    parallel_tool_calls: bool | None = Field(None, description="The model calls one function a turn either way.")
    response_format: Annotated[dict[str, Any], WithJsonSchema(_FORMAT_SCHEMA)] | None = None
    structured_outputs: StructuredOutputs | None = None
    metadata: dict[str, str] | None = Field(None, description="Taken, and of no effect.")
    safety_identifier: str | None = Field(None, description="Taken, and of no effect.")
    prompt_cache_key: str | None = Field(None, description="Taken: like prefixes are found without one.")

    @field_validator("reasoning_effort", mode="before")
    @classmethod
    def _known_effort(cls, value: Any) -> Any:
        if isinstance(value, str) and value not in ("low", "medium", "high"):
            raise invalid("reasoning_effort", f"reasoning_effort is {value[:32]!r}: the model knows low, medium, high")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "ChatRequest":
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise invalid("max_tokens", "max_tokens and max_completion_tokens differ: give one of them")
        if self.top_logprobs is not None and not self.logprobs:
            raise invalid("top_logprobs", "top_logprobs needs logprobs: set it to true")
        if self.structured_outputs is not None and (self.response_format or {"type": "text"}).get("type") != "text":
            raise invalid("structured_outputs", "structured_outputs and response_format exclude each other: give one")
        check_tools(self.tools or ())
        check_format(self.response_format)
        names = [_function_name(tool) for tool in self.tools or ()]
        if repeated := next((name for index, name in enumerate(names) if name and name in names[:index]), None):
            where = f"tools[{names.index(repeated, names.index(repeated) + 1)}].function.name"
            raise invalid(where, f"{where} is {repeated!r}, as that of an earlier tool: give each its own name")
        choice = self.tool_choice
        if choice is not None:
            if choice.mode == "required" and not names:
                raise invalid("tool_choice", "tool_choice requires a call, and there are no tools: give some in tools")
            if unknown := next((name for name in choice.names or () if name not in names), None):
                raise invalid("tool_choice", f"tool_choice names {unknown!r}, which is not among tools")
        return self

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


_FUNCTION = ("name", "description", "parameters", "strict")


def check_tools(tools: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what nobody reads in function tools, nested or flat."""
    for index, tool in enumerate(tools):
        if tool.get("type") != "function":
            place = f"tools[{index}].type"
            raise invalid(place, f"{place} is {str(tool.get('type'))[:32]!r}: the model calls functions only")
        function = tool.get("function")
        only(tool, ("type", "function") if "function" in tool else ("type", *_FUNCTION), f"tools[{index}]")
        if isinstance(function, Mapping):
            only(cast("Mapping[str, Any]", function), _FUNCTION, f"tools[{index}].function")


def check_format(response_format: Mapping[str, Any] | None) -> None:
    """Refuse what nobody reads in a response format."""
    if response_format is None:
        return
    is_schema = response_format.get("type") == "json_schema"
    only(response_format, ("type", "json_schema") if is_schema else ("type",), "response_format")
    form = response_format.get("json_schema")
    if isinstance(form, Mapping):
        only(
            cast("Mapping[str, Any]", form), ("name", "description", "schema", "strict"), "response_format.json_schema"
        )


def only(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse a field that is not known, by its name."""
    if unknown := next((name for name in given if name not in known), None):
        place = f"{where}.{unknown[:100]}"
        raise invalid(place, f"unknown parameter {place}: remove it")


def _function_name(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else None


# -------------------------------------------------------------------- completions

_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PROMPT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_CHOICES},
        _IDS,
        {"type": "array", "items": _IDS, "minItems": 1, "maxItems": MOST_CHOICES},
    ]
}

Prompt = str | tuple[int, ...]


def _prompts(value: Any) -> list[Prompt]:
    """One prompt or several, each text or token ids, as a list."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise invalid("prompt", "prompt is malformed: give text, token ids, or a list of either")
    items = cast("list[Any]", value)
    if all(_is_id(item) for item in items):
        return [tuple(items)]
    if len(items) > MOST_CHOICES:
        raise invalid("prompt", f"prompt holds {len(items)} prompts: give at most {MOST_CHOICES}")
    prompts: list[Prompt] = []
    for index, item in enumerate(items):
        if isinstance(item, str):
            prompts.append(item)
        elif isinstance(item, list) and item and all(_is_id(token) for token in cast("list[Any]", item)):
            prompts.append(tuple(cast("list[int]", item)))
        else:
            raise invalid(f"prompt[{index}]", f"prompt[{index}] is malformed: give text, or a list of token ids")
    if len({type(prompt) for prompt in prompts}) > 1:
        raise invalid("prompt", "prompt mixes text and token ids: give one kind")
    return prompts


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class CompletionRequest(Sampled):
    """The body of /v1/completions."""

    refused: ClassVar[Refused] = {
        "best_of": ((None, 1), "ask for several with n, and choose"),
        "suffix": ((None, ""), "the model does not fill in: put what comes before into prompt"),
    }

    prompt: Annotated[list[Prompt], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
    echo: bool | None = Field(None, description="Repeat the prompt before the answer.")
    logprobs: int | None = Field(None, ge=0, le=MOST_TOP_LOGPROBS, description="Of each token, and of so many others.")

    @model_validator(mode="after")
    def _consistent(self) -> "CompletionRequest":
        if self.echo and self.logprobs is not None:
            raise invalid("echo", "echo with logprobs cannot be honoured: prompts have none; leave one of them out")
        if len(self.prompt) * (self.n or 1) > MOST_CHOICES:
            raise invalid("n", f"n times the number of prompts is more than {MOST_CHOICES}: ask for fewer")
        return self


# -------------------------------------------------------------------- tokens


class TokenizeRequest(Body):
    """The body of /tokenize: text, or a conversation as the model is asked to go on with it."""

    model: str | None = None
    text: str | None = Field(None, description="Encoded as it is, without special tokens.")
    messages: list[Message] | None = Field(None, min_length=1)
    tools: list[FunctionTool] | None = Field(None, max_length=MOST_TOOLS)
    reasoning_effort: Literal["low", "medium", "high"] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> "TokenizeRequest":
        if (self.text is None) == (self.messages is None):
            raise invalid("text", "give one of text and messages")
        return self


class DetokenizeRequest(Body):
    """The body of /detokenize."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=2**31 - 1)]] = Field(max_length=1_000_000)


class Tokens(BaseModel):
    """Token ids, and how many."""

    tokens: list[int]
    count: int


class Detokenized(BaseModel):
    """The text of token ids, special ones by name."""

    text: str
