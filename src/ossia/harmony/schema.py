"""JSON Schema as the TypeScript-like types in which gpt-oss is shown the arguments of a tool.

    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}

becomes

    {
    city: string,
    }

Spacing is part of the wire format, odd as it looks in places: the models were trained on it. What such types cannot
say (bounds, patterns, `not`, closed objects) is left out. A `$ref` is expanded where it stands, and named where it
would contain itself.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias
from urllib.parse import unquote

from ossia.errors import HarmonyError

Schema: TypeAlias = Mapping[str, Any]

_MAX_DEPTH = 64
_MAX_NODES = 20_000
"""Limits of one expanded schema: a few lines of references to references can grow without end."""

_SCALARS = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean", "null": "null"}
_TYPE_KEYS = ("type", "$ref", "oneOf", "anyOf", "allOf", "enum", "const", "properties", "items", "prefixItems")
"""Keys that say something about the type; a schema with none of them only restricts, as {"required": [...]} does."""


def typescript(schema: Any, *, path: str) -> str:
    """The type that a JSON Schema describes; path is its name in errors.

    Raises HarmonyError naming the place where the schema is malformed, refers to nothing, or is out of proportion.
    """
    if not isinstance(schema, Mapping):
        raise HarmonyError(f"{path} is {type(schema).__name__}: give a JSON Schema object")
    return _type(schema, "", _Place(root=schema, path=path, nodes=iter(range(_MAX_NODES))))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where we are: the root for references, the path for errors, the references being expanded around us."""

    root: Schema
    path: str
    nodes: Iterator[int]
    depth: int = 0
    open: tuple[str, ...] = ("#",)

    def at(self, *steps: str | int) -> "_Place":
        if next(self.nodes, None) is None or self.depth == _MAX_DEPTH:
            raise self.error("is too deep or too large once its references are expanded: simplify the schema")
        return replace(self, path=".".join((self.path, *map(str, steps))), depth=self.depth + 1)

    def error(self, what: str) -> HarmonyError:
        return HarmonyError(f"{self.path} {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """A schema with its references resolved. word: stands for the whole type (an open reference, never)."""

    schema: Schema
    place: _Place
    word: str | None = None

    def children(self, key: str) -> "list[_Node]":
        """The schemas in a list such as anyOf; [] if there is none."""
        raw = self.schema.get(key, [])
        if not isinstance(raw, list):
            raise self.place.error(f"has a malformed {key}: give a list of schemas")
        return [_resolve(item, self.place.at(key, index)) for index, item in enumerate(raw)]

    def says_type(self) -> bool:
        return self.word is not None or any(key in self.schema for key in _TYPE_KEYS)

    def text(self, key: str) -> str | None:
        """An annotation, if it is there and is text."""
        value = self.schema.get(key)
        return value if isinstance(value, str) else None


def _resolve(raw: Any, place: _Place) -> _Node:
    """Follow references; keys beside a `$ref` go before the same keys behind it."""
    if isinstance(raw, bool):
        return _Node(schema={}, place=place, word=None if raw else "never")
    if not isinstance(raw, Mapping):
        raise place.error(f"is {type(raw).__name__}: give a JSON Schema object")
    schema: Schema = raw
    while "$ref" in schema:
        ref = schema["$ref"]
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        if ref in place.open:
            title = place.root.get("title") if ref == "#" else ref.rpartition("/")[2]
            return _Node(schema=beside, place=place, word=title if isinstance(title, str) else "Root")
        schema = {**_lookup(ref, place), **beside}
        place = replace(place, open=(*place.open, ref))
    return _Node(schema=schema, place=place)


def _lookup(ref: Any, place: _Place) -> Schema:
    target = pointed_to(ref, place.root)
    if not isinstance(target, Mapping):
        raise place.error(f"has $ref {ref!r}, which leads nowhere in this schema")
    return target


def pointed_to(ref: Any, root: Schema) -> Any:
    """What a `$ref` into the schema `root` leads to; None where it leads nowhere."""
    if ref == "#":
        return root
    target: Any = root if isinstance(ref, str) and ref.startswith("#/") else None
    for step in unquote(str(ref)).split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list):
            target = {str(index): item for index, item in enumerate(target)}
        target = target.get(step) if isinstance(target, Mapping) else None
    return target


# -------------------------------------------------------------------- types


def _type(raw: Any, indent: str, place: _Place) -> str:
    return " | ".join(_alternatives(_resolve(raw, place), indent))


def _alternatives(node: _Node, indent: str) -> list[str]:
    """Members of the union that a schema is: one, for most; a union with comments is one text of several lines."""
    if node.word is not None:
        out = [node.word]
    elif "const" in node.schema:
        out = [_json(node.schema["const"])]
    elif values := _enum(node):
        out = [_json(value) for value in values]
    elif _is_block(node):
        out = ["".join(f"\n{indent} | {line}" for line in _variants(node, indent))]
    elif members := _union(node):
        out = [text for member in members for text in _alternatives(member, indent)]
    else:
        out = _plain(node, indent)
    if "properties" in node.schema and _union(node):
        out = [f"({_object(node, indent)} & {_grouped(out, indent)})"]
    out = _intersected(node, out, indent)
    if node.schema.get("nullable") is True and not _is_block(node):
        out.append("null")
    return list(dict.fromkeys(out))


def _intersected(node: _Node, out: list[str], indent: str) -> list[str]:
    """`out` and what `allOf` adds to it."""
    parts = [_alternatives(part, indent) for part in node.children("allOf") if part.says_type()]
    if not parts:
        return out
    if out != ["any"]:
        parts.insert(0, out)
    if len(parts) == 1:
        return parts[0]
    return [f"({' & '.join(_grouped(part, indent) for part in parts)})"]


def _plain(node: _Node, indent: str) -> list[str]:
    """What `type` says, or what the other keys give away about it."""
    kinds = node.schema.get("type")
    if kinds is None:
        is_array = "items" in node.schema or "prefixItems" in node.schema
        is_object = "properties" in node.schema or isinstance(node.schema.get("additionalProperties"), Mapping)
        kinds = ["array"] * is_array + ["object"] * is_object
    out: list[str] = []
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind == "object":
            out.append(_object(node, indent))
        elif kind == "array":
            out.append(_array(node, indent))
        elif isinstance(kind, str) and kind in _SCALARS:
            out.append(_SCALARS[kind])
        else:
            raise node.place.error(f"has type {kind!r}: give one of {', '.join(_SCALARS)}, array, object")
    return out or ["any"]


def _array(node: _Node, indent: str) -> str:
    key = "prefixItems" if "prefixItems" in node.schema else "items"
    if isinstance(node.schema.get(key), list):
        members = node.children(key)
        return f"[{', '.join(' | '.join(_alternatives(member, indent)) for member in members)}]"
    if "items" not in node.schema:
        return "Array<any>"
    item = _resolve(node.schema["items"], node.place.at("items"))
    return f"{_grouped(_alternatives(item, indent), indent)}[]"


def _object(node: _Node, indent: str) -> str:
    properties = node.schema.get("properties", {})
    required = node.schema.get("required", [])
    if not isinstance(properties, Mapping):
        raise node.place.error("has malformed properties: give an object of schemas")
    if not isinstance(required, list):
        raise node.place.error("has a malformed required: give a list of names")
    out = [*_comment(node.text("description"), indent), "{"]
    for name, raw in properties.items():
        place = node.place.at("properties", name)
        out += _property(name if name in required else f"{name}?", _resolve(raw, place), indent)
    others = node.schema.get("additionalProperties")
    if isinstance(others, Mapping) and others:
        out += _property("[key: string]", _resolve(others, node.place.at("additionalProperties")), indent)
    return "\n".join((*out, f"{indent}}}"))


def _property(name: str, node: _Node, indent: str) -> list[str]:
    """The lines that declare one property, comments first."""
    out: list[str] = []
    description, default = node.text("description"), _default(node)
    if title := _comment(node.text("title"), indent):
        out += [*title, f"{indent}//"]
    said = _comment(description, indent)
    examples: Any = node.schema.get("examples")
    shown = [f"{indent}// Examples:", *(f"{indent}// - {_json(example)}" for example in examples)] if examples else []
    if _is_block(node) and not node.schema.keys() & {"properties", "allOf"}:
        out += [*shown, *said, *_comment(default, indent), f"{indent}{name}:"]
        out += [f"{indent} | {line}" for line in _variants(node, indent, said=description)]
        return [*out, f"{indent},"]
    line = f"{indent}{name}: {' | '.join(_alternatives(node, f'{indent}    '))},"
    return [*out, *said, *shown, f"{line} // {default}" if default else line]


# -------------------------------------------------------------------- unions


def _union(node: _Node) -> list[_Node]:
    """Members of oneOf or anyOf, unless none of them says more than a restriction."""
    members = node.children("oneOf") or node.children("anyOf")
    return members if any(member.says_type() for member in members) else []


def _is_block(node: _Node) -> bool:
    """Whether a union is written with a line to each member: oneOf always, anyOf where a member needs the room."""
    if node.word is not None or "const" in node.schema or _enum(node):
        return False
    members = _union(node)
    return bool(members) and (
        "oneOf" in node.schema
        or any(member.schema.keys() & {"description", "default", "properties", "oneOf", "anyOf"} for member in members)
    )


def _variants(node: _Node, indent: str, said: str | None = None) -> Iterator[str]:
    """The members, each with its comment; `said` is the description written above them."""
    for index, member in enumerate(_union(node)):
        text = " | ".join(_alternatives(member, f"{indent}   "))
        description = member.text("description")
        repeats = description == said or (index == 0 and said is not None and text.lstrip().startswith("//"))
        comments = [] if description is None or repeats else _lines(description)
        if default := _default(member):
            comments.append(default)
        yield f"{text} // {' '.join(comments)}" if comments else text
    if node.schema.get("nullable") is True:
        yield "null"


def _grouped(alternatives: list[str], indent: str) -> str:
    """A union that may stand before `[]` or beside `&`."""
    text = " | ".join(alternatives)
    if text.startswith("\n"):
        return f"({text}\n{indent})"
    return f"({text})" if len(alternatives) > 1 else text


# -------------------------------------------------------------------- values and comments


def _enum(node: _Node) -> list[Any]:
    values: Any = node.schema.get("enum", [])
    if not isinstance(values, list):
        raise node.place.error(f"has enum {values!r}: give a list of values")
    return values


def _default(node: _Node) -> str | None:
    if "default" not in node.schema:
        return None
    value = node.schema["default"]
    bare = isinstance(value, str) and _enum(node)  # The literals beside it show that it is a string.
    return f"default: {_json(value)[1:-1] if bare else _json(value)}"


def _comment(text: str | None, indent: str) -> list[str]:
    return [] if text is None else [f"{indent}// {line}" for line in _lines(text) or [""]]


def _lines(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


def comment_lines(text: str) -> list[str]:
    """Lines of a description, each as a comment; none for an empty one."""
    return [f"// {line}" for line in _lines(text)]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
