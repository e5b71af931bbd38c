"""What an assistant may write in one turn, as a grammar: which messages, with which headers, and what is in them.

    start        what stands after the prompt's `<|start|>assistant`
    lead         analysis and, beside tools, preambles: free text, then `<|end|><|start|>assistant`
    last         the final answer up to `<|return|>`, or a call up to `<|call|>`

The dialect is that of llguidance: `<|end|>` is a special token by name, `<[640]>` a token by its id, `%json` a value by
its schema, upper-case names are regular expressions. No text can be a special token in it.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ossia.errors import HarmonyError
from ossia.harmony.render import Vocabulary
from ossia.harmony.schema import Schema
from ossia.harmony.schema_check import Part, UnenforceableError, check_schema, pattern_size

Problem: TypeAlias = Callable[[str], str | None]
"""What is wrong with a grammar, in a line; None for nothing."""

_ANY_OBJECT: Schema = {"type": "object"}
_NO_ARGUMENTS: Schema = {"type": "object", "maxProperties": 0}
_WHITESPACE = {"whitespace_pattern": r"[ \n\t]{1,32}"}
"""Between the parts of a value: as people indent, but a model cannot lose itself in it."""
_TEXT = r"/(.|\n)*/"
_MAX_PROBES = 100
"""Parts of a schema that are tried alone to find the place of a problem."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnGrammar:
    """A grammar of a whole turn, and what helps to bring an answer to its end."""

    lark: str
    finish: tuple[int, ...]
    """Token ids that lead to an end, the best first."""
    growth: int
    """Characters which one choice may oblige an answer to, at most."""
    is_free: bool = False
    """Whether any text will do as an answer, so that nothing is lost where it is cut off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Offered:
    """A function that may be called."""

    name: str
    arguments: str
    """The rule's right side."""
    growth: int


def turn_grammar(
    tokenizer: Vocabulary,
    *,
    response_format: Mapping[str, Any] | None = None,
    regex: str | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | Mapping[str, Any] | None = None,
    problem: Problem,
    format_place: str = "response_format",
) -> TurnGrammar | None:
    """The grammar of the next turn; None where nothing is asked that one could hold the model to.

    response_format: OpenAI's object of type text, json_object or json_schema, which `final` then follows.
    regex: an expression that the whole of `final` matches instead.
    tools: OpenAI's function tools, nested or flat. A strict one gets arguments by its schema or is refused; another
        gets any JSON object where its schema cannot be enforced.
    tool_choice: "auto" (None too), "none", "required", or OpenAI's object naming a function.
    problem: tells what the grammar's own library has against a grammar.
    format_place: what to call the response format in errors.
    Where an answer's form is asked for, or a call, there is analysis first. Raises HarmonyError naming the place.
    """
    if regex is not None and response_format is not None and response_format.get("type") != "text":
        raise HarmonyError(f"regex and {format_place} both say what the answer is: give one of them")
    choice, named = _choice(tool_choice)
    offered = [_offered(raw, f"tools[{index}]", problem) for index, raw in enumerate(tools)]
    _check_names(offered, choice, named)
    if named is not None:
        offered = [tool for tool in offered if tool.name == named]
    elif choice == "none":
        offered = []
    body, growth = _final_body(response_format, regex, problem, format_place)
    if not offered and body is None:
        return None
    must_call = choice == "required"
    pieces = _Pieces(tokenizer)
    return TurnGrammar(
        lark=_turn(pieces, offered, body, must_call=must_call),
        finish=pieces.finish(must_call=must_call),
        growth=max(growth, *(tool.growth for tool in offered), 0),
        is_free=body is None and not must_call,
    )


def _turn(pieces: "_Pieces", offered: Sequence[_Offered], body: str | None, *, must_call: bool) -> str:
    lead = "(analysis | preamble)*" if offered else ""
    ends = [f"call{index}" for index in range(len(offered))]
    if not must_call:
        ends.insert(0, "final")
    # Without a form to follow, the model may answer at once, as it does after the result of a call.
    first = "" if body is None and not must_call else "analysis"
    start = " ".join(filter(None, (first, lead, f"({' | '.join(ends)})")))
    again = f"<|end|> <|start|> {pieces('assistant')}"
    commentary, constrained = pieces("commentary"), f"{pieces(' ')} <|constrain|> {pieces('json')}"
    rules = [
        f"start: {start}",
        f"analysis: <|channel|> {pieces('analysis')} <|message|> SAID {again}",
        r"SAID: /(.|\n)+/",
    ]
    if not must_call:
        rules.append(f"final: <|channel|> {pieces('final')} <|message|> answer <|return|>")
        rules.append(f"answer: {_TEXT if body is None else body}")
    if offered:
        rules.append(f"preamble: <|channel|> {commentary} <|message|> SAID {again}")
    for index, tool in enumerate(offered):
        recipient = pieces(f" to=functions.{tool.name}")
        # Models write the recipient after the role, as the renderer does, or after the channel.
        header = f"({recipient} <|channel|> {commentary} | <|channel|> {commentary} {recipient})"
        rules.append(f"call{index}: {header} {constrained} <|message|> arguments{index} <|call|>")
        rules.append(f"arguments{index}: {tool.arguments}")
    return "\n".join(rules)


class _Pieces:
    """Plain text of headers as the very tokens that the renderer writes."""

    def __init__(self, tokenizer: Vocabulary) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> str:
        return " ".join(f"<[{token}]>" for token in self._tokenizer.encode(text))

    def finish(self, *, must_call: bool) -> tuple[int, ...]:
        """Ids in the order in which an answer that must end soon should take them."""
        special, encode = self._tokenizer.special, self._tokenizer.encode
        ends = [special[name] for name in ("<|return|>", "<|call|>", "<|end|>")]
        headers = [*encode(" to=")[:1], special["<|channel|>"], *encode("commentary")[:1], special["<|message|>"]]
        if not must_call:
            headers = [special["<|channel|>"], *encode("final")[:1], special["<|message|>"]]
        return (*ends, *headers)


# -------------------------------------------------------------------- tools


def _choice(raw: str | Mapping[str, Any] | None) -> tuple[str, str | None]:
    """One of auto, none, required; and the function that must be called, where one is named."""
    if raw is None or raw in ("auto", "none", "required"):
        return str(raw or "auto"), None
    if not isinstance(raw, Mapping):
        raise HarmonyError(f"tool_choice is {raw!r}: give auto, none, required or an object that names a function")
    if raw.get("type") != "function":
        raise HarmonyError(f"tool_choice.type is {raw.get('type')!r}: only a function can be chosen")
    function = raw.get("function", raw)
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str):
        raise HarmonyError(f"tool_choice names {name!r}: give the name of one of the tools")
    return "required", name.removeprefix("functions.")


def _check_names(offered: Sequence[_Offered], choice: str, named: str | None) -> None:
    names = [tool.name for tool in offered]
    for index, name in enumerate(names):
        if (first := names.index(name)) < index:
            raise HarmonyError(f"tools[{index}] has the name of tools[{first}], {name!r}: give each its own")
    if choice == "required" and not names:
        raise HarmonyError("tool_choice asks for a call, and there are no tools: give some, or leave it out")
    if named is not None and named not in names:
        raise HarmonyError(f"tool_choice names {named!r}, which is none of the tools: give one of {', '.join(names)}")


def _offered(raw: Mapping[str, Any], place: str, problem: Problem) -> _Offered:
    if raw.get("type") != "function":
        raise HarmonyError(f"{place}.type is {raw.get('type')!r}: only function tools can be offered")
    nested = raw.get("function")
    if isinstance(nested, Mapping):
        raw, place = nested, f"{place}.function"
    name, parameters, place = raw.get("name"), raw.get("parameters"), f"{place}.parameters"
    if not isinstance(name, str):
        raise HarmonyError(f"{place.removesuffix('parameters')}name is {name!r}: give text")
    schema: Any = _NO_ARGUMENTS if parameters is None else parameters
    if isinstance(schema, Mapping):
        if schema.get("type", "object") != "object":
            raise HarmonyError(f"{place}.type is {schema['type']!r}: arguments are an object")
        schema = {**schema, "type": "object"}
    try:
        rule, growth = _json_rule(schema, place, problem)
    except UnenforceableError:
        if raw.get("strict"):
            raise
        rule, growth = _json(_ANY_OBJECT), 0
    return _Offered(name=name.removeprefix("functions."), arguments=rule, growth=growth)


# -------------------------------------------------------------------- the answer's form


def _final_body(
    response_format: Mapping[str, Any] | None, regex: str | None, problem: Problem, place: str
) -> tuple[str | None, int]:
    """The right side of the rule for what `final` holds, None for any text; and its growth."""
    if regex is not None:
        rule = _regex_rule(regex)
        if (reason := problem(f"start: {rule}")) is not None:
            raise HarmonyError(f"regex {regex!r} cannot be enforced: {reason}")
        return rule, pattern_size(regex)
    outer = response_format or {"type": "text"}
    match outer.get("type"):
        case "text":
            return None, 0
        case "json_object":
            return _json(_ANY_OBJECT), 0
        case "json_schema":
            if "json_schema" in outer:
                outer, place = outer["json_schema"], f"{place}.json_schema"
            if not isinstance(outer, Mapping) or "schema" not in outer:
                raise HarmonyError(f"{place}.schema is missing: give a JSON Schema object")
            return _json_rule(outer["schema"], f"{place}.schema", problem)
        case other:
            raise HarmonyError(f"{place}.type is {other!r}: give text, json_object or json_schema")


def _regex_rule(regex: str) -> str:
    """The expression between slashes, none of which ends it early."""
    if re.search(r"(?<!\\)(\\\\)*\\\Z", regex):
        raise HarmonyError(f"regex {regex!r} ends in a lone backslash: escape it")
    text = re.sub(r"\\?[\n\r]|\\.|/", _in_slashes, regex)
    return f"/{text}/"


def _in_slashes(found: re.Match[str]) -> str:
    return {"/": r"\/", "\n": r"\n", "\r": r"\r"}.get(found[0].removeprefix("\\"), found[0])


def _json_rule(schema: Any, place: str, problem: Problem) -> tuple[str, int]:
    growth = check_schema(schema, path=place)
    rule = _json(schema)
    if (reason := problem(f"start: {rule}")) is not None:
        where = _culprit(Part(schema=schema, path=place), schema, reason, problem)
        raise UnenforceableError(f"{where} cannot be enforced: {reason.partition('. Enable ')[0]}")
    return rule, growth


def _json(schema: Schema) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _WHITESPACE})}"


def _culprit(whole: Part, root: Schema, reason: str, problem: Problem) -> str:
    """The path of the innermost part that has the same problem when it stands alone."""
    shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
    probes = 0

    def same(parts: Iterable[Part]) -> Part | None:
        nonlocal probes
        for part in parts:
            if isinstance(part.schema, Mapping) and probes < _MAX_PROBES:
                probes += 1
                if problem(f"start: {_json({**shared, **part.schema})}") == reason:
                    return part
        return None

    found, inner = whole, same(whole.children())
    while inner is not None:
        found, inner = inner, same(inner.children())
    return found.path
