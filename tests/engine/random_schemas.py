"""JSON Schemas at random: nesting, enums, bounds, anyOf, patterns, $ref to shared and to recursive definitions."""

import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]

_NAMES = ("city", "unit", "n", "items", "x-y", "ünï", "a b", "id", "next", 'quo"te', "value", "tags")
_WORDS = ("red", "green", "blue", "", "naïve", 'say "hi"', "line\nbreak", "{", "null", "🙂")
_PATTERNS = ("^[A-Z]{3}-[0-9]{4}$", "^(yes|no)$", "^[a-z]+@[a-z]+\\.com$", "^a*b$", "^\\d{1,3}(\\.\\d{1,3}){3}$")
_FORMATS = ("date", "time", "date-time", "uuid", "email", "ipv4")


def random_schema(seed: int) -> Schema:
    """An object's schema; some refer to definitions, one of which contains itself."""
    rng = random.Random(seed)
    refs = ["#/$defs/leaf", "#/$defs/tree"] if rng.random() < 0.5 else []
    schema = _object(rng, 0, refs)
    if refs:
        children: Schema = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": rng.choice((1, 2, 3))}
        tree = {"type": "object", "properties": {"value": _scalar(rng), "children": children}}
        if rng.random() < 0.5:
            tree["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}
        tree["required"] = list(tree["properties"])
        tree["additionalProperties"] = False
        schema["$defs"] = {"leaf": _scalar(rng), "tree": tree}
        schema["properties"]["tree"] = {"$ref": "#/$defs/tree"}
    return schema


def _any(rng: random.Random, depth: int, refs: list[str]) -> Schema:
    makers: list[Callable[[], Schema]] = [lambda: _scalar(rng)] * 3
    if refs:
        makers.append(lambda: {"$ref": rng.choice(refs)})
    if depth < 3:
        makers += [
            lambda: _object(rng, depth + 1, refs),
            lambda: _array(rng, depth + 1, refs),
            lambda: {"anyOf": [_any(rng, depth + 1, refs) for _ in range(rng.choice((2, 3)))]},
        ]
    return rng.choice(makers)()


def _object(rng: random.Random, depth: int, refs: list[str]) -> Schema:
    names = rng.sample(_NAMES, rng.choice((1, 2, 3, 4)))
    schema: Schema = {"type": "object", "properties": {name: _any(rng, depth + 1, refs) for name in names}}
    if rng.random() < 0.8:
        schema["required"] = [name for name in names if rng.random() < 0.7]
    if rng.random() < 0.7:
        schema["additionalProperties"] = rng.choice((False, False, {"type": "integer"}, True))
    if rng.random() < 0.3:
        schema |= {"title": "Thing", "description": "What it is."}
    return schema


def _array(rng: random.Random, depth: int, refs: list[str]) -> Schema:
    schema: Schema = {"type": "array", "items": _any(rng, depth + 1, refs)}
    least = rng.choice((None, 0, 1, 2))
    if least is not None:
        schema["minItems"] = least
    if rng.random() < 0.5:
        schema["maxItems"] = (least or 0) + rng.choice((1, 2, 5))
    if rng.random() < 0.15:
        schema |= {"prefixItems": [_scalar(rng), _scalar(rng)], "minItems": 2}
        schema.pop("maxItems", None)
    return schema


def _scalar(rng: random.Random) -> Schema:
    low = rng.choice((-1000, -3, 0, 5, 999))
    makers: list[Callable[[], Schema]] = [
        lambda: {"type": "string"},
        lambda: {"type": "string", "minLength": rng.choice((0, 2, 7)), "maxLength": rng.choice((7, 20))},
        lambda: {"type": "string", "pattern": rng.choice(_PATTERNS)},
        lambda: {"type": "string", "format": rng.choice(_FORMATS)},
        lambda: {"type": "integer"},
        lambda: {"type": "integer", "minimum": low, "maximum": low + rng.choice((0, 1, 7, 12345))},
        lambda: {"type": "integer", "multipleOf": rng.choice((2, 5, 12))},
        lambda: {"type": "number"},
        lambda: {"type": "number", "exclusiveMinimum": low, "maximum": low + rng.choice((1.5, 10))},
        lambda: {"type": rng.choice((["string", "null"], ["integer", "boolean"], "boolean", "null"))},
        lambda: {"enum": rng.sample(_WORDS, rng.choice((1, 3, 5)))},
        lambda: {"enum": [1, None, True, "x", [1, 2], {"a": None}]},
        lambda: {"const": rng.choice((0, -1.5, "only", None, ["x"], {"k": "v"}))},
    ]
    return rng.choice(makers)()
