"""JSON Schema as types: equal to openai-harmony where that library loses nothing, and better where it does.

The tests named test_departure_* are the list in docs/harmony.md: each shows what openai-harmony writes, and what we do.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest

from ossia.errors import HarmonyError
from ossia.harmony.schema import typescript


def ours(schema: Any) -> str:
    return typescript(schema, path="f.parameters")


def property_of(schema: dict[str, Any], **root: Any) -> dict[str, Any]:
    """An object with the one property x."""
    return {"type": "object", "properties": {"x": schema}, **root}


def declared(text: str) -> str:
    """What stands between the braces of an object of the outermost level."""
    assert text.startswith("{\n"), text
    assert text.endswith("\n}"), text
    return text[2:-2]


STRING, NUMBER, NULL = {"type": "string"}, {"type": "number"}, {"type": "null"}
POINT = property_of(NUMBER, required=["x"])

AGREED = {
    "no properties": ({"type": "object", "properties": {}}, "{\n}"),
    "nothing said": ({}, "any"),
    "required and not": (
        {"type": "object", "properties": {"a": STRING, "b": {"type": "integer"}}, "required": ["b"]},
        "{\na?: string,\nb: number,\n}",
    ),
    "title, description and examples": (
        property_of({"type": "string", "title": "T", "description": "D", "examples": ["e", "f"]}),
        '{\n// T\n//\n// D\n// Examples:\n// - "e"\n// - "f"\nx?: string,\n}',
    ),
    "an empty description": (property_of({"type": "string", "description": ""}), "{\n// \nx?: string,\n}"),
    "default": (property_of({"type": "string", "default": "d"}), '{\nx?: string, // default: "d"\n}'),
    "default null": (property_of({"type": "string", "default": None}), "{\nx?: string, // default: null\n}"),
    "default object": (
        property_of({"type": "array", "default": [{"k": 1}, 0.5]}),
        '{\nx?: Array<any>, // default: [{"k":1},0.5]\n}',
    ),
    "enum with default": (
        property_of({"type": "string", "enum": ["a", "b"], "default": "a"}),
        '{\nx?: "a" | "b", // default: a\n}',
    ),
    "type list": (property_of({"type": ["integer", "string", "null"]}), "{\nx?: number | string | null,\n}"),
    "nullable": (property_of({"type": "string", "nullable": True}), "{\nx?: string | null,\n}"),
    "arrays of arrays": (
        property_of({"type": "array", "items": {"type": "array", "items": STRING}}),
        "{\nx?: string[][],\n}",
    ),
    "described object": (
        {"type": "object", "description": "top", "properties": {"x": {**POINT, "description": "in"}}},
        "// top\n{\n// in\nx?:     // in\n{\n    x: number,\n    },\n}",
    ),
    "array of objects": (
        property_of({"type": "array", "items": POINT}),
        "{\nx?: {\n    x: number,\n    }[],\n}",
    ),
    "oneOf": (
        property_of({"oneOf": [STRING, {**NUMBER, "description": "n", "default": 1}, POINT], "description": "D"}),
        "{\n// D\nx?:\n | string\n | number // n default: 1\n | {\n   x: number,\n   }\n,\n}",
    ),
    "oneOf with its own default": (
        property_of({"oneOf": [STRING, {**STRING, "nullable": True}], "default": "s"}),
        '{\n// default: "s"\nx?:\n | string\n | string | null\n,\n}',
    ),
    "oneOf outermost": ({"oneOf": [STRING, {**NUMBER, "description": "n"}]}, "\n | string\n | number // n"),
}


@pytest.mark.parametrize("name", AGREED)
def test_types_on_which_both_agree(reference: Any, name: str) -> None:
    schema, text = AGREED[name]
    assert ours(schema) == text
    assert reference.type(schema) == text


def test_equals_openai_harmony_on_generated_schemas(
    reference: Any, make_schema: Callable[[random.Random], dict[str, Any]]
) -> None:
    for seed in range(400):
        schema = make_schema(random.Random(seed))
        assert ours(schema) == reference.type(schema), (seed, schema)


# -------------------------------------------------------------------- where we differ on purpose


def check_departure(reference: Any, schema: dict[str, Any], *, theirs: str, text: str, **root: Any) -> None:
    whole = property_of(schema, **root)
    assert declared(reference.type(whole)) == theirs
    assert declared(ours(whole)) == text


def test_departure_any_of(reference: Any) -> None:
    check_departure(reference, {"anyOf": [STRING, NULL]}, theirs="x?: any,", text="x?: string | null,")
    described = {"anyOf": [{**STRING, "description": "a name"}, POINT, NULL], "default": None}
    check_departure(
        reference,
        described,
        theirs="x?: any, // default: null",
        text="// default: null\nx?:\n | string // a name\n | {\n   x: number,\n   }\n | null\n,",
    )


def test_departure_reference(reference: Any) -> None:
    defs = {"Color": {"type": "string", "enum": ["red", "blue"], "description": "A color."}}
    check_departure(
        reference,
        {"$ref": "#/$defs/Color", "default": "red"},
        theirs='x?: any, // default: "red"',
        text='// A color.\nx?: "red" | "blue", // default: red',
        **{"$defs": defs},
    )
    beside = {"$ref": "#/$defs/Color", "description": "Of the wall."}
    assert declared(ours(property_of(beside, **{"$defs": defs}))) == '// Of the wall.\nx?: "red" | "blue",'
    assert declared(ours(property_of({"$ref": "#/definitions/a~1b%20c"}, definitions={"a/b c": STRING}))) == (
        "x?: string,"
    )


def test_departure_all_of(reference: Any) -> None:
    check_departure(reference, {"allOf": [STRING]}, theirs="x?: any,", text="x?: string,")
    check_departure(
        reference,
        {"allOf": [{"$ref": "#/$defs/P"}, {"type": "object", "properties": {"y": NUMBER}}, {"minProperties": 1}]},
        theirs="x?: any,",
        text="x?: ({\n    x: number,\n    } & {\n    y?: number,\n    }),",
        **{"$defs": {"P": POINT}},
    )


def test_departure_properties_beside_a_union(reference: Any) -> None:
    both = {**POINT, "oneOf": [property_of(STRING), {"required": ["y"]}]}
    check_departure(
        reference,
        both,
        theirs="x?:\n | {\n   x?: string,\n   }\n | any\n,",
        text="x?: ({\n    x: number,\n    } & (\n     | {\n       x?: string,\n       }\n     | any\n    )),",
    )


def test_departure_restrictions_are_no_types(reference: Any) -> None:
    check_departure(
        reference,
        {**POINT, "oneOf": [{"required": ["x"]}, {"required": ["y"]}]},
        theirs="x?:\n | any\n | any\n,",
        text="x?: {\n    x: number,\n    },",
    )


def test_departure_literals(reference: Any) -> None:
    check_departure(reference, {"const": 5}, theirs="x?: any,", text="x?: 5,")
    check_departure(reference, {"enum": ["a", 1, None]}, theirs="x?: any,", text='x?: "a" | 1 | null,')
    check_departure(reference, {"type": "integer", "enum": [1, 2]}, theirs="x?: number,", text="x?: 1 | 2,")
    check_departure(
        reference,
        {"type": ["string", "null"], "enum": ["a", None]},
        theirs="x?: string | null,",
        text='x?: "a" | null,',
    )


def test_departure_null(reference: Any) -> None:
    check_departure(reference, NULL, theirs="x?: any,", text="x?: null,")


def test_departure_nullable_inside(reference: Any) -> None:
    holder = {"type": "object", "properties": {"y": {**STRING, "nullable": True}}, "nullable": True}
    check_departure(
        reference,
        holder,
        theirs="x?: {\n    y?: string | null,\n    },",
        text="x?: {\n    y?: string | null,\n    } | null,",
    )


def test_departure_nullable_union(reference: Any) -> None:
    check_departure(
        reference,
        {"oneOf": [STRING, NUMBER], "nullable": True},
        theirs="x?:\n | string\n | number\n,",
        text="x?:\n | string\n | number\n | null\n,",
    )


def test_departure_array_of_a_union(reference: Any) -> None:
    check_departure(
        reference,
        {"type": "array", "items": {"type": "string", "enum": ["u", "v"]}},
        theirs='x?: "u" | "v"[],',
        text='x?: ("u" | "v")[],',
    )
    check_departure(
        reference,
        {"type": "array", "items": {"oneOf": [STRING, NUMBER]}},
        theirs="x?: \n     | string\n     | number[],",
        text="x?: (\n     | string\n     | number\n    )[],",
    )


def test_departure_map(reference: Any) -> None:
    check_departure(
        reference,
        {"type": "object", "additionalProperties": {"type": "integer", "description": "how many"}},
        theirs="x?: {\n    },",
        text="x?: {\n    // how many\n    [key: string]: number,\n    },",
    )


def test_departure_object_and_array_in_a_type_list(reference: Any) -> None:
    check_departure(
        reference,
        {"type": ["array", "object", "null"], "items": STRING, "properties": {"y": NUMBER}},
        theirs="x?: array | object | null,",
        text="x?: string[] | {\n    y?: number,\n    } | null,",
    )


def test_departure_type_left_out(reference: Any) -> None:
    check_departure(
        reference,
        {"properties": {"y": {"items": STRING}}},
        theirs="x?: any,",
        text="x?: {\n    y?: string[],\n    },",
    )


def test_departure_tuple(reference: Any) -> None:
    check_departure(
        reference,
        {"type": "array", "prefixItems": [NUMBER, {"type": ["string", "null"]}]},
        theirs="x?: Array<any>,",
        text="x?: [number, string | null],",
    )


def test_departure_repeated_type(reference: Any) -> None:
    check_departure(reference, {"type": ["integer", "number"]}, theirs="x?: number | number,", text="x?: number,")


def test_departure_lines_of_a_description(reference: Any) -> None:
    check_departure(
        reference,
        {**STRING, "description": "one\r\ntwo\n"},
        theirs="// one\r\ntwo\n\nx?: string,",
        text="// one\n// two\nx?: string,",
    )


def test_departure_strings_are_escaped(reference: Any) -> None:
    check_departure(
        reference,
        {**STRING, "enum": ['say "a"', "b\nc"], "examples": ["\n"]},
        theirs='// Examples:\n// - "\n"\nx?: "say "a"" | "b\nc",',
        text='// Examples:\n// - "\\n"\nx?: "say \\"a\\"" | "b\\nc",',
    )
    check_departure(
        reference,
        {**STRING, "default": "a\nb"},
        theirs='x?: string, // default: "a\nb"',
        text='x?: string, // default: "a\\nb"',
    )


def test_departure_examples_of_any_type(reference: Any) -> None:
    check_departure(
        reference,
        {**NUMBER, "examples": [1, {"a": None}]},
        theirs="// Examples:\nx?: number,",
        text='// Examples:\n// - 1\n// - {"a":null}\nx?: number,',
    )


def test_departure_description_of_the_first_variant(reference: Any) -> None:
    check_departure(
        reference,
        {"description": "D", "oneOf": [{**STRING, "description": "one"}, NUMBER]},
        theirs="// D\nx?:\n | string\n | number\n,",
        text="// D\nx?:\n | string // one\n | number\n,",
    )
    check_departure(
        reference,
        {"description": "D", "oneOf": [{**STRING, "description": "D"}, NUMBER]},
        theirs="x?:\n | string\n | number\n,",
        text="// D\nx?:\n | string\n | number\n,",
    )


def test_departure_default_of_a_nested_literal(reference: Any) -> None:
    literal = {**STRING, "enum": ["a", "b"], "default": "a"}
    assert reference.type({"oneOf": [literal]}) == '\n | "a" | "b" // default: "a"'
    assert ours({"oneOf": [literal]}) == '\n | "a" | "b" // default: a'


def test_departure_small_numbers(reference: Any) -> None:
    check_departure(
        reference,
        {**NUMBER, "default": 1e-7},
        theirs="x?: number, // default: 1e-7",
        text="x?: number, // default: 1e-07",
    )


# -------------------------------------------------------------------- recursion


def test_a_schema_that_contains_itself_is_named_where_it_would_repeat() -> None:
    tree = {
        "type": "object",
        "title": "Tree",
        "properties": {"leaf": STRING, "children": {"type": "array", "items": {"$ref": "#/$defs/Tree"}}},
    }
    assert declared(ours(property_of({"$ref": "#/$defs/Tree"}, **{"$defs": {"Tree": tree}}))) == (
        "// Tree\n//\nx?: {\n    leaf?: string,\n    children?: Tree[],\n    },"
    )


def test_a_reference_into_a_list() -> None:
    assert declared(ours(property_of({"$ref": "#/shared/1"}, shared=[STRING, NUMBER]))) == "x?: number,"
    with pytest.raises(HarmonyError, match="leads nowhere"):
        ours(property_of({"$ref": "#/shared/2"}, shared=[STRING, NUMBER]))


def test_a_root_that_contains_itself() -> None:
    assert declared(ours(property_of({"$ref": "#"}))) == "x?: Root,"
    assert declared(ours(property_of({"$ref": "#"}, title="Node"))) == "x?: Node,"


def test_references_that_only_name_each_other() -> None:
    defs = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
    assert declared(ours(property_of({"$ref": "#/$defs/a"}, **{"$defs": defs}))) == "x?: a,"


def test_booleans_as_schemas() -> None:
    assert declared(ours({"properties": {"x": True, "y": False}})) == "x?: any,\ny?: never,"


# -------------------------------------------------------------------- malformed schemas


def doubling() -> dict[str, Any]:
    """Forty definitions, each of which holds the next one twice."""
    step = {
        n: {"properties": {"l": {"$ref": f"#/$defs/{n + 1}"}, "r": {"$ref": f"#/$defs/{n + 1}"}}} for n in range(40)
    }
    return {"$ref": "#/$defs/0", "$defs": {**{str(n): schema for n, schema in step.items()}, "40": STRING}}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = STRING
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


MALFORMED: dict[str, tuple[Any, str]] = {
    "not an object": ([], r"^f\.parameters is list: give a JSON Schema object$"),
    "property": (
        {"type": "object", "properties": {"x": "string"}},
        r"\.properties\.x is str: give a JSON Schema object$",
    ),
    "type": (
        property_of({"type": "text"}),
        r"\.properties\.x has type 'text': give one of string, number",
    ),
    "type in a list": (property_of({"type": ["string", 3]}), r"properties\.x has type 3: give one of"),
    "properties": ({"type": "object", "properties": ["x"]}, r"^f\.parameters has malformed properties: give an object"),
    "required": ({"type": "object", "required": "x"}, r"^f\.parameters has a malformed required: give a list"),
    "enum": (property_of({"enum": "a"}), r"properties\.x has enum 'a': give a list of values"),
    "anyOf": (property_of({"anyOf": {"a": STRING}}), r"properties\.x has a malformed anyOf: give a list of schemas"),
    "items": (property_of({"type": "array", "items": 3}), r"properties\.x\.items is int: give a JSON Schema object"),
    "dangling reference": (property_of({"$ref": "#/$defs/no"}), r"has \$ref '#/\$defs/no', which leads nowhere"),
    "foreign reference": (property_of({"$ref": "http://x/y"}), r"has \$ref 'http://x/y', which leads nowhere"),
    "reference that is no text": (property_of({"$ref": 3}), r"has \$ref 3, which leads nowhere"),
    "too large": (doubling(), "is too deep or too large once its references are expanded"),
    "too deep": (nested(200), "is too deep or too large once its references are expanded"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_refuses_malformed_schemas(name: str) -> None:
    schema, message = MALFORMED[name]
    with pytest.raises(HarmonyError, match=message):
        ours(schema)


def test_nests_as_deep_as_anyone_writes() -> None:
    assert ours(nested(60)) == "string" + "[]" * 60
