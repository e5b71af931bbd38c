"""The OpenAPI description as one page for people: no scripts, nothing from another host."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
code, .path { font-family: ui-monospace, monospace; }
details { border: 1px solid #8886; border-radius: .5rem; margin: .5rem 0; padding: .5rem .75rem; }
summary { cursor: pointer; }
.method { display: inline-block; min-width: 4.5rem; font-weight: 600; }
.muted { opacity: .7; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td, th { text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #8883; }
"""


def reference_page(description: Mapping[str, Any]) -> str:
    """HTML that lists every operation with its parameters, body and answers."""
    info = description["info"]
    schemas: Mapping[str, Any] = description.get("components", {}).get("schemas", {})
    operations = [
        _operation(path, method, operation, schemas)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}: the API</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1>{_paragraphs(info.get('description', ''))}"
        '<p class="muted">For programs: <a href="openapi.json">openapi.json</a></p>'
        f"{''.join(operations)}</body></html>"
    )


def _operation(path: str, method: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    parts = [_paragraphs(operation.get("description", ""))]
    if parameters := operation.get("parameters"):
        rows = [(p["name"], _type(p.get("schema", {})), p["in"], p.get("description", "")) for p in parameters]
        parts.append(_table(("parameter", "type", "in", ""), rows))
    bodies = operation.get("requestBody", {}).get("content", {}).values()
    parts += [_fields(media.get("schema", {}), schemas) for media in bodies]
    rows = [(status, answer.get("description", "")) for status, answer in operation.get("responses", {}).items()]
    parts.append(_table(("status", "answer"), rows))
    summary = escape(operation.get("summary", ""))
    return (
        f'<details><summary><span class="method">{method.upper()}</span> <span class="path">{escape(path)}</span> '
        f'<span class="muted">{summary}</span></summary>{"".join(parts)}</details>'
    )


def _fields(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """The properties of a body, a row each."""
    schema = schemas.get(_reference(schema), schema)
    required = set(schema.get("required", ()))
    rows = [
        (name, _type(field), "required" if name in required else "", field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return _table(("field", "type", "", ""), rows) if rows else ""


def _type(schema: Mapping[str, Any]) -> str:
    """What a value may be, in a few words."""
    if reference := _reference(schema):
        return reference
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " | ".join(dict.fromkeys(_type(choice) for choice in choices))
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return " | ".join(kind)
    return f"{_type(schema.get('items', {}))}[]" if kind == "array" else str(kind)


def _reference(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(_cell(index, text) for index, text in enumerate(row)) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(index: int, text: str) -> str:
    return f"<td><code>{escape(text)}</code></td>" if index == 0 else f"<td>{escape(text)}</td>"


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part)}</p>" for part in text.split("\n\n") if part)
