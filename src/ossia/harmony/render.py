"""A conversation as tokens: for history, for completion, and for training with the mask of what is to be learnt.

    <|start|>{role}[ to={recipient}][<|channel|>{channel}][ <|constrain|>{type}]<|message|>{content}<|end|>

Text between special tokens is encoded piece by piece, as the models were trained to see it: role, recipient,
channel, type and content never share a token.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from json import dumps
from typing import Protocol

from ossia.errors import HarmonyError, TokenizerError
from ossia.harmony.messages import EFFORTS, ROLES, Conversation, Developer, Message, System, ToolNamespace
from ossia.harmony.schema import comment_lines, typescript

_BARE_TYPES = ("code",)
"""Content types which the models write without `<|constrain|>`: `code`, in calls of python."""


class Vocabulary(Protocol):
    """What a renderer needs of a tokenizer."""

    @property
    def special(self) -> Mapping[str, int]:
        """Ids of the special tokens by their text, `<|start|>` and the rest."""
        ...

    def encode(self, text: str, /) -> list[int]:
        """Ids of plain text; text that looks like a special token must not become one."""
        ...


def render(conversation: Conversation, tokenizer: Vocabulary) -> list[int]:
    """Ids of the conversation as history: each message closed, analysis before the last final answer left out.

    Raises HarmonyError for an unknown role or effort or a malformed schema, TokenizerError for a vocabulary
    without the special tokens.
    """
    ids: list[int] = []
    has_functions = conversation.developer is not None and bool(conversation.developer.tools)
    if conversation.system is not None:
        text = system_text(conversation.system, has_functions=has_functions)
        ids += _message(Message(role="system", content=text), tokenizer)
    if conversation.developer is not None:
        text = developer_text(conversation.developer)
        ids += _message(Message(role="developer", content=text), tokenizer)
    for message in without_past_analysis(conversation.messages):
        ids += _message(message, tokenizer)
    return ids


def render_completion(conversation: Conversation, tokenizer: Vocabulary) -> list[int]:
    """Ids of the prompt from which the assistant goes on: history, then `<|start|>assistant`."""
    return [*render(conversation, tokenizer), *_start("assistant", tokenizer)]


def render_training(conversation: Conversation, tokenizer: Vocabulary) -> tuple[list[int], list[bool]]:
    """Ids, and for each of them whether the model is to learn it: all of the last assistant turn, nothing else.

    The prompt is what `render_completion` gives for the messages before that turn. The turn is what the model then
    generates up to its stop: headers, content, `<|end|>` between messages, `<|call|>` or `<|return|>` at the end.
    Raises HarmonyError if the conversation does not end with an assistant's answer or call.
    """
    messages = conversation.messages
    if not messages or not messages[-1].ends_turn:
        raise HarmonyError("a training sample must end with an assistant's final message or call: see training_turns")
    first = len(messages) - 1
    while first > 0 and messages[first - 1].role == "assistant" and not messages[first - 1].ends_turn:
        first -= 1
    prompt = render_completion(replace(conversation, messages=messages[:first]), tokenizer)
    turn: list[int] = []
    for message in messages[first:]:
        turn += _message(message, tokenizer)
    turn = turn[len(_start("assistant", tokenizer)) :]
    if not messages[-1].is_call:
        turn[-1] = _special("<|return|>", tokenizer)
    return prompt + turn, [False] * len(prompt) + [True] * len(turn)


def training_turns(conversation: Conversation) -> list[Conversation]:
    """One conversation for each assistant turn, ending with it, to be given to `render_training`.

    Rendering is not prefix-preserving (a final answer drops the analysis before it), so a conversation of several
    turns cannot be one sample. Messages after the last complete turn are left out; an assistant turn that never
    stops is a HarmonyError.
    """
    messages = conversation.messages
    for index, (message, following) in enumerate(pairwise((*messages, None))):
        unfinished = message is not None and message.role == "assistant" and not message.ends_turn
        if unfinished and (following is None or following.role != "assistant"):
            raise HarmonyError(f"messages[{index}] leaves an assistant turn without a final message or a call")
    return [
        replace(conversation, messages=messages[: index + 1])
        for index, message in enumerate(messages)
        if message.ends_turn
    ]


def without_past_analysis(messages: Sequence[Message]) -> Iterable[Message]:
    """Messages without the analysis that led to the last final answer or an earlier one.

    Whatever stands on that channel goes, calls of built-in tools and their results included. After the last final
    answer it all stays: a turn is open there, and the reasoning between its calls is needed.
    """
    last = max((index for index, message in enumerate(messages) if message.channel == "final"), default=-1)
    return (message for index, message in enumerate(messages) if index > last or message.channel != "analysis")


def system_text(system: System, *, has_functions: bool) -> str:
    """Content of the system message. has_functions: whether the developer declares functions."""
    if system.effort is not None and system.effort not in EFFORTS:
        raise HarmonyError(f"effort is {system.effort!r}: give one of {', '.join(EFFORTS)}")
    top = (("", system.identity), ("Knowledge cutoff: ", system.knowledge_cutoff), ("Current date: ", system.date))
    lines = [f"{label}{value}" for label, value in top if value is not None]
    sections = ["\n".join(lines)] if lines else []
    if system.effort is not None:
        sections.append(f"Reasoning: {system.effort}")
    if system.builtin_tools:
        sections.append(tools_section(system.builtin_tools))
    if system.channels:
        channels = f"# Valid channels: {', '.join(system.channels)}. Channel must be included for every message."
        if has_functions:
            channels += "\nCalls to these tools must go to the commentary channel: 'functions'."
        sections.append(channels)
    return "\n\n".join(sections)


def developer_text(developer: Developer) -> str:
    """Content of the developer message."""
    sections: list[str] = []
    if developer.instructions is not None:
        sections += ["# Instructions", developer.instructions]
    if developer.tools:
        sections.append(tools_section([ToolNamespace(name="functions", tools=developer.tools)]))
    if developer.response_formats:
        sections.append("# Response Formats")
    for form in developer.response_formats:
        schema = dumps(form.schema, ensure_ascii=False, separators=(",", ":"))
        sections += [f"## {form.name}", "\n".join((*comment_lines(form.description), schema))]
    return "\n\n".join(sections)


def tools_section(namespaces: Sequence[ToolNamespace]) -> str:
    """The section `# Tools`, namespaces by name."""
    sections = ["# Tools"]
    for namespace in sorted(namespaces, key=lambda namespace: namespace.name):
        if not namespace.tools:
            sections.append("\n".join((f"## {namespace.name}", "", *namespace.description.splitlines())))
            continue
        out = [f"## {namespace.name}", "", *comment_lines(namespace.description), f"namespace {namespace.name} {{", ""]
        for tool in namespace.tools:
            argument = ""
            if tool.parameters is not None:
                argument = f"_: {typescript(tool.parameters, path=f'{tool.name}.parameters')}"
            out += [*comment_lines(tool.description), f"type {tool.name} = ({argument}) => any;", ""]
        sections.append("\n".join((*out, f"}} // namespace {namespace.name}")))
    return "\n\n".join(sections)


def _message(message: Message, tokenizer: Vocabulary) -> list[int]:
    """Ids of one message as history has it."""
    if message.role == "tool":
        if not message.name:
            raise HarmonyError("a tool message has no name: give the tool that answers, such as functions.get_weather")
        ids = _start(message.name, tokenizer)
    elif message.role in ROLES:
        ids = _start(message.role, tokenizer)
        if message.name is not None:
            ids += tokenizer.encode(f":{message.name}")
    else:
        raise HarmonyError(f"role is {message.role!r}: give one of {', '.join(ROLES)}")
    if message.recipient not in (None, "all"):
        ids += tokenizer.encode(f" to={message.recipient}")
    if message.channel is not None:
        ids += [_special("<|channel|>", tokenizer), *tokenizer.encode(message.channel)]
    if message.content_type in _BARE_TYPES:
        ids += tokenizer.encode(f" {message.content_type}")
    elif message.content_type is not None:
        ids += [*tokenizer.encode(" "), _special("<|constrain|>", tokenizer), *tokenizer.encode(message.content_type)]
    ids += [_special("<|message|>", tokenizer), *tokenizer.encode(message.content)]
    ids.append(_special("<|call|>" if message.is_call else "<|end|>", tokenizer))
    return ids


def _start(author: str, tokenizer: Vocabulary) -> list[int]:
    return [_special("<|start|>", tokenizer), *tokenizer.encode(author)]


def _special(text: str, tokenizer: Vocabulary) -> int:
    token = tokenizer.special.get(text)
    if token is None:
        raise TokenizerError(f"the vocabulary has no special token {text}: use one made for harmony")
    return token
