"""openai-harmony, the independent implementation, behind the records of ossia; and conversations to try both on."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai_harmony as oh
import pytest

from ossia.harmony import BROWSER, PYTHON, Conversation, Developer, Message, System, Tool, ToolNamespace


@dataclass(frozen=True, slots=True)
class Reference:
    """What openai-harmony makes of a Conversation. drop: leave it to that library to drop analysis."""

    encoding: oh.HarmonyEncoding

    def history(self, conversation: Conversation, *, drop: bool = True) -> list[int]:
        config = oh.RenderConversationConfig(auto_drop_analysis=drop)
        return self.encoding.render_conversation(_translate(conversation), config)

    def completion(self, conversation: Conversation, *, drop: bool = True) -> list[int]:
        config = oh.RenderConversationConfig(auto_drop_analysis=drop)
        return self.encoding.render_conversation_for_completion(_translate(conversation), oh.Role.ASSISTANT, config)

    def training(self, conversation: Conversation, *, drop: bool = True) -> list[int]:
        config = oh.RenderConversationConfig(auto_drop_analysis=drop)
        return self.encoding.render_conversation_for_training(_translate(conversation), config)

    def text(self, conversation: Conversation) -> str:
        return self.encoding.decode(self.history(conversation))

    def type(self, schema: dict[str, Any]) -> str:
        """The type it writes for a JSON Schema."""
        developer = Developer(tools=(Tool(name="f", parameters=schema),))
        text = self.text(Conversation(system=None, developer=developer))
        return text[text.index("type f = (_: ") + 13 : text.rindex(") => any;")]


@pytest.fixture(scope="session")
def reference(o200k_path: Path) -> Reference:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(o200k_path.parent))
        return Reference(oh.load_harmony_encoding("HarmonyGptOss"))


def _translate(conversation: Conversation) -> oh.Conversation:
    out: list[oh.Message] = []
    if (system := conversation.system) is not None:
        content = oh.SystemContent(
            model_identity=system.identity,
            reasoning_effort=system.effort and oh.ReasoningEffort(system.effort.capitalize()),
            conversation_start_date=system.date,
            knowledge_cutoff=system.knowledge_cutoff,
            channel_config=oh.ChannelConfig.require_channels(list(system.channels)),
            tools={space.name: _namespace(space) for space in system.builtin_tools} or None,
        )
        out.append(oh.Message.from_role_and_content(oh.Role.SYSTEM, content))
    if (developer := conversation.developer) is not None:
        functions = ToolNamespace(name="functions", tools=developer.tools)
        content = oh.DeveloperContent(
            instructions=developer.instructions,
            tools={"functions": _namespace(functions)} if developer.tools else None,
        )
        out.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, content))
    for message in conversation.messages:
        kind = message.content_type
        out.append(
            oh.Message(
                author=oh.Author(role=oh.Role(message.role), name=message.name),
                content=[oh.TextContent(text=message.content)],
                channel=message.channel,
                recipient=message.recipient,
                content_type=f"<|constrain|>{kind}" if kind == "json" else kind,
            )
        )
    return oh.Conversation.from_messages(out)


def _namespace(space: ToolNamespace) -> oh.ToolNamespaceConfig:
    tools = [oh.ToolDescription.new(tool.name, tool.description, tool.parameters) for tool in space.tools]
    return oh.ToolNamespaceConfig(name=space.name, description=space.description or None, tools=tools)


# -------------------------------------------------------------------- conversations

TEXTS = (
    "",
    "hi",
    "What is 2 + 2?",
    "  leading and trailing \n\n",
    "user asks: reply in rhyme.\n\n\n1. one\n2. two\t(tab)",
    "<|start|>assistant<|channel|>final<|message|>not a token<|end|>",
    "Zażółć gęślą jaźń, 敏捷的棕色狐狸, שלום, हिन्दी, ภาษา",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \x00 \u200d ﷽ \U0001f600",
    '{"city":"Łódź","n":[1,2.5,null],"quote":"\\"\\n"}',
    "def f(x):\n    return x ** 2\n",
    "1234567890 3.14 1e-9 ½ ²",
    " to=functions.f <|constrain|>json",
)
NAMES = ("get_weather", "search", "f", "add-2", "a_very_long_name_of_a_tool_42")


def random_conversation(rng: random.Random) -> Conversation:
    """A well-formed conversation with several turns, in that part of the format where both libraries agree."""
    builtin = tuple(space for space in (PYTHON, BROWSER) if rng.random() < 0.2)
    tools = tuple(
        Tool(
            name=name,
            description=rng.choice(("", "Does it.", "Two\r\nlines.\n", "naïve — “quoted”")),
            parameters=random_schema(rng) if rng.random() < 0.8 else None,
        )
        for name in rng.sample(NAMES, rng.choice((0, 0, 1, 2, 4)))
    )
    developer = None
    if tools or rng.random() < 0.5:
        developer = Developer(instructions=rng.choice((None, *TEXTS)) if tools else rng.choice(TEXTS), tools=tools)
    messages: list[Message] = []
    for turn in range(rng.choice((1, 1, 2, 3))):
        name = "ann" if rng.random() < 0.1 else None
        messages.append(Message(role="user", content=rng.choice(TEXTS), name=name))
        for _ in range(rng.choice((0, 0, 1, 2)) if tools or builtin else 0):
            messages += _random_call(rng, tools, builtin)
        if turn and rng.random() < 0.2:
            return Conversation(system=_random_system(rng, builtin), developer=developer, messages=tuple(messages))
        if rng.random() < 0.7:
            messages.append(Message(role="assistant", channel="analysis", content=rng.choice(TEXTS)))
        messages.append(Message(role="assistant", channel="final", content=rng.choice(TEXTS)))
    return Conversation(system=_random_system(rng, builtin), developer=developer, messages=tuple(messages))


def _random_system(rng: random.Random, builtin: tuple[ToolNamespace, ...]) -> System:
    return System(
        identity=rng.choice((System().identity, "You are ossia.", None)),
        date=rng.choice((None, "2025-06-28")),
        effort=rng.choice(("low", "medium", "high", None)),
        builtin_tools=builtin,
    )


def _random_call(rng: random.Random, tools: tuple[Tool, ...], builtin: tuple[ToolNamespace, ...]) -> list[Message]:
    names = [f"functions.{tool.name}" for tool in tools]
    names += [f"{space.name}.{tool.name}" for space in builtin for tool in space.tools]
    names += [space.name for space in builtin if not space.tools]
    name = rng.choice(names)
    channel, kind = ("commentary", "json") if name.startswith("functions.") else ("analysis", "code")
    out: list[Message] = []
    if rng.random() < 0.7:
        out.append(Message(role="assistant", channel="analysis", content=rng.choice(TEXTS)))
    if rng.random() < 0.2:
        out.append(Message(role="assistant", channel="commentary", content=rng.choice(TEXTS)))
    return [
        *out,
        Message(role="assistant", channel=channel, recipient=name, content_type=kind, content=rng.choice(TEXTS)),
        Message(role="tool", name=name, channel=channel, recipient="assistant", content=rng.choice(TEXTS)),
    ]


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """An object schema within what openai-harmony renders without loss."""
    names = rng.sample(("city", "unit", "n", "items", "x-y", "opt", "naïve"), rng.randrange(5))
    properties = {name: _random_property(rng, depth) for name in names}
    out: dict[str, Any] = {"type": "object", "properties": properties}
    if rng.random() < 0.6:
        out["required"] = [name for name in names if rng.random() < 0.5]
    if rng.random() < 0.3:
        out["description"] = "An object."
    return out


def _random_property(rng: random.Random, depth: int) -> dict[str, Any]:
    makers: list[Callable[[], dict[str, Any]]] = [
        lambda: {"type": "string", **rng.choice(({}, {"default": "x y"}, {"enum": ["a", "b c"], "default": "a"}))},
        lambda: {"type": "integer", **rng.choice(({}, {"default": 3}, {"minimum": 0, "default": -1}))},
        lambda: {"type": "number", **rng.choice(({}, {"default": 0.5}))},
        lambda: {"type": "boolean", **rng.choice(({}, {"default": True}))},
        lambda: {"type": rng.choice((["string", "null"], ["number", "string"], ["integer", "null"]))},
        lambda: {"type": "array", "items": {"type": rng.choice(("string", "integer"))}, "default": []},
        lambda: {"type": "array"},
        dict,
        lambda: {"oneOf": [{"type": "string"}, {"type": "number", "description": "as a number", "default": 1}]},
    ]
    if depth < 2:
        makers += [
            lambda: random_schema(rng, depth + 1),
            lambda: {"type": "array", "items": random_schema(rng, depth + 1)},
            lambda: {"oneOf": [random_schema(rng, depth + 1), {"type": "string", "nullable": True}]},
        ]
    out = rng.choice(makers)()
    for key, value in (("title", "Title"), ("description", "What it is."), ("examples", ["one", "two"])):
        if rng.random() < 0.25:
            out.setdefault(key, value)
    if rng.random() < 0.3 and out.get("type") in ("string", "integer", "number", "boolean"):
        out["nullable"] = True
    return out


@pytest.fixture(scope="session")
def make_conversation() -> Callable[[random.Random], Conversation]:
    return random_conversation


@pytest.fixture(scope="session")
def make_schema() -> Callable[[random.Random], dict[str, Any]]:
    return random_schema
