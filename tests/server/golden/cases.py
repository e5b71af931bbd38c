"""What is recorded: a request each, and what the model writes on it, word for word."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"

BUSY = "<busy>"
"""In place of a turn: the engine has no room."""
FAILS = "<fails>"
"""At the end of a turn: the engine fails there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One request. turns: what the model writes, a text for each of its generations in order."""

    name: str
    path: str
    body: Mapping[str, Any] | None
    turns: tuple[str, ...] = ()

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"


ANSWER = (
    "<|channel|>analysis<|message|>17 + 25 = 42<|end|><|start|>assistant<|channel|>final<|message|>It is 42.<|return|>"
)
CALL = (
    "<|channel|>analysis<|message|>Use get_weather: city=Paris<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city":"Paris"}<|call|>'
)
PREAMBLE = (
    "<|channel|>analysis<|message|>Look first.<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>I look it up.<|end|>"
    "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city":"Paris"}<|call|>'
)
REPLY = (
    "<|channel|>analysis<|message|>The tool answered.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Here is the weather: value is 17.<|return|>"
)
JSON = '<|channel|>analysis<|message|>A sum.<|end|><|start|>assistant<|channel|>final<|message|>{"sum": 42}<|return|>'
PARAGRAPHS = (
    "<|channel|>analysis<|message|>STOP here does not count.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>One, two. STOP Three, four.<|return|>"
)
WORLD = "<|channel|>final<|message|>Grüße, 世界 👋🏽 naïve<|return|>"

# Malformed, each in its own way.
NO_CHANNEL = "<|message|>It is 42.<|return|>"
BARE = "It is 42.<|return|>"
UNKNOWN_CHANNEL = "<|channel|>thoughts<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>"
NO_END = "<|channel|>analysis<|message|>17 + 25<|channel|>final<|message|>42<|return|>"
ODD_CALL = (
    "<|channel|>commentary to=functions.no such tool <|constrain|>json<|message|>{}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>42<|return|>"
)
NO_JSON = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>city is Paris<|call|>"

TOOL = {
    "name": "get_weather",
    "description": "Get the weather.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city."}},
        "required": ["city"],
    },
}
CHAT_TOOL = {"type": "function", "function": TOOL}
RESPONSES_TOOL = {"type": "function", **TOOL, "strict": False}
SCHEMA = {
    "type": "object",
    "properties": {"sum": {"type": "integer"}},
    "required": ["sum"],
    "additionalProperties": False,
}
SUM = "What is 17 + 25?"
WEATHER = "What is the weather in Paris?"


def chat(name: str, *turns: str, content: str = SUM, **fields: Any) -> Case:
    body = {"model": "demo", "messages": [{"role": "user", "content": content}], **fields}
    return Case(name=f"chat_{name}", path=CHAT, body=body, turns=turns)


def completion(name: str, *turns: str, **fields: Any) -> Case:
    body = {"model": "demo", "prompt": "17 + 25 =", "max_tokens": 16, **fields}
    return Case(name=f"completion_{name}", path=COMPLETIONS, body=body, turns=turns)


def response(name: str, *turns: str, given: Any = SUM, **fields: Any) -> Case:
    body = {"model": "demo", "input": given, "store": False, **fields}
    return Case(name=f"response_{name}", path=RESPONSES, body=body, turns=turns)


def both(make: Any, name: str, *turns: str, **fields: Any) -> list[Case]:
    """The same not streamed and streamed."""
    return [make(name, *turns, **fields), make(f"{name}_streamed", *turns, stream=True, **fields)]


CHAT_CALL = {
    "id": "call_17",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
}
CHAT_RESULT = [
    {"role": "user", "content": WEATHER},
    {"role": "assistant", "content": None, "reasoning": "Use get_weather: city=Paris", "tool_calls": [CHAT_CALL]},
    {"role": "tool", "tool_call_id": "call_17", "content": '{"value":17}'},
]
CHAT_ECHO = [
    {"role": "user", "content": SUM},
    {
        "role": "assistant",
        "content": "42",
        "reasoning": "17 + 25 = 42",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
        "parsed": None,
        "mended": ["text with no header is taken as the final answer"],
    },
    {"role": "user", "content": SUM},
]
"""A conversation as the Python client gives it back, with all the fields of an answer."""
RESPONSES_RESULT = [
    {"role": "user", "content": WEATHER},
    {
        "type": "reasoning",
        "id": "rs_17",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Use get_weather: city=Paris"}],
    },
    {"type": "function_call", "call_id": "call_17", "name": "get_weather", "arguments": '{"city":"Paris"}'},
    {"type": "function_call_output", "call_id": "call_17", "output": '{"value":17}'},
]
CHAT_FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA}}
RESPONSES_FORMAT = {"format": {"type": "json_schema", "name": "answer", "strict": True, "schema": SCHEMA}}

CASES: list[Case] = [
    *both(chat, "answer", ANSWER),
    chat("answer_usage_streamed", ANSWER, stream=True, stream_options={"include_usage": True}),
    *both(chat, "call", CALL, content=WEATHER, tools=[CHAT_TOOL]),
    *both(chat, "preamble_and_call", PREAMBLE, content=WEATHER, tools=[CHAT_TOOL]),
    chat("result", REPLY, messages=CHAT_RESULT, tools=[CHAT_TOOL]),
    chat("echo", ANSWER, messages=CHAT_ECHO),
    *both(chat, "forced_call", CALL, content=WEATHER, tools=[CHAT_TOOL], tool_choice="required"),
    *both(chat, "two_choices", ANSWER, WORLD, n=2),
    *both(chat, "logprobs", ANSWER, logprobs=True, top_logprobs=2),
    *both(chat, "stop_string", PARAGRAPHS, stop=["STOP", "five"]),
    chat("length", ANSWER, max_completion_tokens=18),
    chat("length_in_reasoning_streamed", ANSWER, max_completion_tokens=4, stream=True),
    *both(chat, "schema", JSON, response_format=CHAT_FORMAT),
    chat("text_of_the_world_streamed", WORLD, stream=True),
    chat("malformed_no_channel", NO_CHANNEL),
    chat("malformed_bare_streamed", BARE, stream=True),
    chat("malformed_unknown_channel", UNKNOWN_CHANNEL),
    chat("malformed_no_end_streamed", NO_END, stream=True),
    chat("malformed_call", ODD_CALL, content=WEATHER, tools=[CHAT_TOOL]),
    chat("malformed_arguments", NO_JSON, content=WEATHER, tools=[CHAT_TOOL]),
    *both(chat, "engine_fails", ANSWER.partition("<|end|>")[0] + FAILS),
    chat("engine_busy", BUSY),
    chat("refused_parameter", prediction={"type": "content", "content": "42"}),
    chat(
        "refused_image", messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a.png"}}]}]
    ),
    chat("unknown_model", model="no-such-model"),
    chat("too_long", content="17 + 25 + " * 2000),
    *both(completion, "answer", "42, as ever.<|return|>", echo=True),
    completion("logprobs", "42<|return|>", logprobs=2),
    completion("stop_streamed", "42, as everyone knows.<|return|>", stop=" every", stream=True),
    *both(response, "answer", ANSWER),
    *both(response, "call", CALL, given=WEATHER, tools=[RESPONSES_TOOL]),
    response("preamble_and_call_streamed", PREAMBLE, given=WEATHER, tools=[RESPONSES_TOOL], stream=True),
    response("result_streamed", REPLY, given=RESPONSES_RESULT, tools=[RESPONSES_TOOL], stream=True),
    response("stored", ANSWER, store=True, instructions="Be brief.", metadata={"who": "test"}),
    response("schema_streamed", JSON, text=RESPONSES_FORMAT, stream=True),
    response("logprobs", ANSWER, include=["message.output_text.logprobs"], top_logprobs=1),
    response("length_streamed", ANSWER, max_output_tokens=20, stream=True),
    response("malformed_no_end_streamed", NO_END, stream=True),
    response("malformed_call_streamed", ODD_CALL, given=WEATHER, tools=[RESPONSES_TOOL], stream=True),
    *both(response, "engine_fails", ANSWER.partition("<|end|>")[0] + FAILS),
    response("engine_busy", BUSY, stream=True),
    response("unknown_previous", previous_response_id="resp_nothing"),
    response("refused_tool", tools=[{"type": "web_search"}]),
    Case(name="models", path="/v1/models", body=None),
    Case(name="tokenize", path="/tokenize", body={"text": "17 + 25 <|end|>"}),
]
