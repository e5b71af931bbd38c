"""Whether a JSON Schema can be enforced, and how long the shortest values of its parts are.

A schema that says less than its author thinks is worse than an error, so each keyword is either enforced, known to
say nothing about the value, or refused by its place.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ossia.errors import HarmonyError
from ossia.harmony.schema import Schema, pointed_to

_MAX_DEPTH = 128
_MAX_NODES = 20_000
"""Limits of the JSON that a schema is."""
_MAX_STEPS = 400
"""Depth to which schemas are followed through references; those who compile them recurse."""
_MAX_ROUNDS = 100
_MAX_DIGITS = 5
"""Of a number whose multiples are to be recognised: there is a state for each remainder."""

_TYPES = ("string", "number", "integer", "boolean", "null", "array", "object")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")
_WHOLE = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_REAL = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_EXCLUDING = {
    "exclusiveMinimum": ("maximum", "exclusiveMaximum"),
    "exclusiveMaximum": ("minimum", "exclusiveMinimum"),
}
_TEXT = ("$ref", "pattern", "format")
_UNENFORCEABLE = (
    *("not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "propertyNames"),
    *("contains", "minContains", "maxContains", "uniqueItems", "additionalItems"),
    *("unevaluatedItems", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"),
)

_SHORTEST = {"string": 2, "number": 1, "integer": 1, "boolean": 4, "null": 4, "array": 2, "object": 2}
_FORMAT_SIZE = 40
"""Room for any of the formats: a UUID has 36 characters."""


class UnenforceableError(HarmonyError):
    """The schema is sound, but what it says at this place cannot be enforced while a model writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A schema within a schema."""

    schema: Any
    path: str
    depth: int = 0
    """Schemas and references around it."""

    def children(self) -> "Iterator[Part]":
        """The schemas directly in this one, in its order."""
        if not isinstance(self.schema, Mapping):
            return
        for key, value in self.schema.items():
            if key in _MAPS and isinstance(value, Mapping):
                yield from (self._inner(each, f"{key}.{name}") for name, each in value.items())
            elif key in _LISTS and isinstance(value, list):
                yield from (self._inner(each, f"{key}.{index}") for index, each in enumerate(value))
            elif key in _SINGLE:
                yield self._inner(value, key)

    def _inner(self, schema: Any, step: str) -> "Part":
        return Part(schema=schema, path=f"{self.path}.{step}", depth=self.depth + 1)


def check_schema(schema: Any, *, path: str) -> int:
    """Characters of the longest among the shortest values of the schema's parts: what one choice may add to an answer.

    path: what to call the schema in errors. Raises HarmonyError naming the place where it is malformed, refers to
    nothing, is out of proportion or describes no value that ends; UnenforceableError where it asks too much.
    """
    _check_proportions(schema, path)
    if not isinstance(schema, Mapping):
        raise HarmonyError(f"{path} is {type(schema).__name__}: give a JSON Schema object")
    parts: dict[int, Part] = {}
    waiting = [Part(schema=schema, path=path)]
    while waiting:
        part = waiting.pop()
        if id(part.schema) in parts:
            continue
        if part.depth > _MAX_STEPS:
            raise HarmonyError(f"{path} goes more than {_MAX_STEPS} schemas and references deep: simplify it")
        parts[id(part.schema)] = part
        _check_keywords(part, schema)
        waiting += reversed([*part.children(), *_referred(part, schema, path)])
    sizes = _sizes([part.schema for part in parts.values()], schema, path)
    for key, part in parts.items():
        if math.isinf(sizes[key]) and "$ref" in part.schema:
            ref = part.schema["$ref"]
            raise HarmonyError(f"{part.path}.$ref is {ref!r}, of which no value ever ends: make something optional")
    return int(max(sizes.values()))


def _referred(part: Part, root: Schema, path: str) -> Iterator[Part]:
    """What it refers to, which may stand where no schema is looked for."""
    if isinstance(part.schema, Mapping) and "$ref" in part.schema:
        ref = part.schema["$ref"]
        where = f"{path}{ref.removeprefix('#').replace('/', '.')}"
        yield Part(schema=pointed_to(ref, root), path=where, depth=part.depth + 1)


def _check_proportions(schema: Any, path: str) -> None:
    """No recursion here: this is what makes it safe elsewhere."""
    waiting, count = [(schema, path, 0)], 0
    while waiting:
        value, place, depth = waiting.pop()
        count += 1
        if depth > _MAX_DEPTH:
            raise HarmonyError(f"{path} has more than {_MAX_DEPTH} levels: simplify the schema")
        if count > _MAX_NODES:
            raise HarmonyError(f"{path} has more than {_MAX_NODES:,} values: simplify the schema")
        if isinstance(value, Mapping):
            for key, each in value.items():
                if not isinstance(key, str):
                    raise HarmonyError(f"{place} has the key {key!r}: give text")
                waiting.append((each, f"{place}.{key}", depth + 1))
        elif isinstance(value, list):
            waiting += [(each, f"{place}.{index}", depth + 1) for index, each in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise HarmonyError(f"{place} is {value}: give a finite number")


# -------------------------------------------------------------------- keywords


def _check_keywords(part: Part, root: Schema) -> None:
    schema, path = part.schema, part.path
    if isinstance(schema, bool):
        return
    if not isinstance(schema, Mapping):
        raise HarmonyError(f"{path} is {type(schema).__name__}: give a JSON Schema object")
    for key, value in schema.items():
        _check_keyword(key, value, f"{path}.{key}")
    if "$ref" in schema and not isinstance(pointed_to(schema["$ref"], root), Mapping | bool):
        raise HarmonyError(f"{path}.$ref is {schema['$ref']!r}, which leads nowhere in this schema")
    _check_interval(schema, path)
    # Names beyond those required may repeat in what is written, and would then count once.
    if schema.get("minProperties", 0) > max(1, len(schema.get("required", ()))):
        raise UnenforceableError(f"{path}.minProperties is more than are required: name those in required")


def _check_interval(schema: Schema, path: str) -> None:
    """The library behind the grammars lets an excluded whole number in where the other bound is less than 1 away."""
    for end, others in _EXCLUDING.items():
        for other in others:
            near, far = schema.get(end), schema.get(other)
            if near is not None and far is not None and near % 1 == 0 and far % 1 != 0 and abs(far - near) < 1:
                beside = f"{path}.{end} {near} beside {other} {far}"
                raise UnenforceableError(f"{beside} cannot be enforced: give an end that is allowed")


def _check_keyword(key: str, value: Any, place: str) -> None:
    if key == "type":
        kinds = value if isinstance(value, list) else [value]
        if not kinds or not all(isinstance(kind, str) and kind in _TYPES for kind in kinds):
            raise HarmonyError(f"{place} is {value!r}: give one of {', '.join(_TYPES)}")
    elif key == "enum":
        if not isinstance(value, list) or not value:
            raise HarmonyError(f"{place} is {value!r}: give a list of values")
    elif key == "required":
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise HarmonyError(f"{place} is {value!r}: give a list of names")
    elif key in _WHOLE:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise HarmonyError(f"{place} is {value!r}: give a whole number of at least 0")
    elif key in _REAL:
        if isinstance(value, bool) and key.startswith("exclusive"):
            raise UnenforceableError(f"{place} is {value!r}, as an old draft has it: give the number itself")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or (key == "multipleOf" and value <= 0):
            raise HarmonyError(f"{place} is {value!r}: give a number{' above 0' * (key == 'multipleOf')}")
        if key == "multipleOf" and len(str(value).replace(".", "").strip("0")) > _MAX_DIGITS:
            raise UnenforceableError(f"{place} is {value!r}: give a number of at most {_MAX_DIGITS} digits")
    elif key in _TEXT:
        if not isinstance(value, str):
            raise HarmonyError(f"{place} is {value!r}: give text")
    elif key in _MAPS:
        if not isinstance(value, Mapping):
            raise HarmonyError(f"{place} is {type(value).__name__}: give an object of schemas")
    elif key in _LISTS:
        if not isinstance(value, list) or not value:
            raise HarmonyError(f"{place} is {value!r}: give a list of schemas")
    elif key == "items" and isinstance(value, list):
        raise UnenforceableError(f"{place} is a list, as an old draft has it: give prefixItems")
    elif key in _UNENFORCEABLE:
        raise UnenforceableError(f"{place} cannot be enforced: leave it out")


# -------------------------------------------------------------------- sizes


def _sizes(schemas: list[Any], root: Schema, path: str) -> dict[int, float]:
    """Characters of about the shortest value of each schema, by its id; infinite where none ever ends."""
    sizes = {id(schema): math.inf for schema in schemas}
    changed, rounds = True, 0
    while changed:
        changed, rounds = False, rounds + 1
        if rounds > _MAX_ROUNDS:
            raise HarmonyError(f"{path} has chains of more than {_MAX_ROUNDS} references: simplify the schema")
        for schema in reversed(schemas):  # Inner ones come later in the walk.
            size = _size(schema, sizes, root)
            changed |= size < sizes[id(schema)]
            sizes[id(schema)] = size
    return sizes


def _size(schema: Any, sizes: Mapping[int, float], root: Schema) -> float:
    if isinstance(schema, bool):
        return 1
    if "const" in schema:
        return len(json.dumps(schema["const"]))
    if "enum" in schema:
        return min(len(json.dumps(value)) for value in schema["enum"])
    needed = [sizes[id(each)] for each in schema.get("allOf", ())]
    if "$ref" in schema:
        target = pointed_to(schema["$ref"], root)
        needed.append(sizes.get(id(target), 1))
    needed += [min(sizes[id(each)] for each in schema[key]) for key in ("anyOf", "oneOf") if key in schema]
    kinds = schema.get("type")
    if kinds is not None:
        needed.append(min(_kind_size(kind, schema, sizes) for kind in (kinds if isinstance(kinds, list) else [kinds])))
    return max(needed, default=1)


def _kind_size(kind: str, schema: Schema, sizes: Mapping[int, float]) -> float:
    """Of the shortest value of one type."""
    size: float = _SHORTEST[kind]
    if kind == "string":
        size += max(schema.get("minLength", 0), pattern_size(schema.get("pattern", "")))
        size += _FORMAT_SIZE * ("format" in schema)
    elif kind in ("number", "integer"):
        size = max((len(str(schema[key])) for key in _REAL if key in schema), default=1)
    elif kind == "array":
        first = [sizes[id(each)] for each in schema.get("prefixItems", ())]
        count = schema.get("minItems", 0)
        size += sum(each + 1 for each in first[:count])
        if count > len(first):
            size += (count - len(first)) * (1 + sizes.get(id(schema.get("items")), 1))
    elif kind == "object":
        properties = schema.get("properties", {})
        size += sum(
            len(json.dumps(name)) + 2 + sizes.get(id(properties.get(name)), 1) for name in schema.get("required", ())
        )
    return size


def pattern_size(pattern: str) -> int:
    """Characters that one choice within a regular expression may oblige to, roughly."""
    repeats = math.prod(max(1, int(count)) for count in re.findall(r"\{(\d{1,6})", pattern))
    return min(len(pattern) * repeats, 100_000)
