"""GET /docs: the OpenAPI document of a service as a page for people: one file of HTML without scripts."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from mlflowkit.serving.http.openapi import Document

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{margin-bottom:0}h2{margin-top:2.5rem}code,pre{font:14px/1.45 ui-monospace,monospace}
pre{background:#f3f5f8;padding:.8rem;overflow:auto;border-radius:6px}
details{border:1px solid #d5dae2;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}summary b{display:inline-block;min-width:3.5rem}
table{border-collapse:collapse;margin:.5rem 0}th,td{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}
.note{color:#5a6474}
@media(prefers-color-scheme:dark){body{color:#e4e8ee;background:#14181f}pre{background:#1f2530}
details{border-color:#39414f}.note{color:#9aa5b5}}
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-type", b"text/html; charset=utf-8"),
    (
        b"content-security-policy",
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'".encode(),
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
MAX_DEPTH = 6
"""Depth to which an example is filled in."""


def docs_page(document: Document, endpoint: str) -> bytes:
    """The page of an OpenAPI document; ``endpoint`` is the service's URL in its example."""
    info = document["info"]
    title = escape(info["title"])
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><style>{_STYLE}</style></head><body>',
        f"<h1>{title}</h1><p class=note>version {escape(info['version'])}</p><p>{escape(info['description'])}</p>",
        f"<h2>Try it</h2><pre><code>{escape(example_command(document, endpoint))}</code></pre>",
        "<p class=note>The same as a document for programs: GET /openapi.json.</p><h2>Operations</h2>",
    ]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if method in ("get", "post"):
                parts.append("".join(_operation(document, method, path, operation)))
    return "".join([*parts, "</body></html>"]).encode()


def example_command(document: Document, endpoint: str) -> str:
    """A curl command for one row, with values of the right types."""
    body = json.dumps(example(document, {"$ref": "#/components/schemas/Rows"}), ensure_ascii=False)
    key = "  -H 'authorization: Bearer TOKEN' \\\n" if document.get("security") else ""
    quoted = body.replace("'", "'\\''")
    return f"curl {endpoint}/predict \\\n{key}  -H 'content-type: application/json' \\\n  -d '{quoted}'"


def example(document: Document, schema: Mapping[str, Any], depth: int = 0) -> Any:
    """A value of a schema's types; only what is required is there.

    >>> example({}, {"type": "object", "required": ["a"], "properties": {"a": {"type": ["number", "null"]}, "b": {}}})
    {'a': 0.5}
    """
    schema = _resolved(document, schema)
    if "const" in schema or "enum" in schema:
        return schema["const"] if "const" in schema else schema["enum"][0]
    for choice in ("oneOf", "anyOf"):
        if choice in schema:
            return example(document, schema[choice][0], depth + 1)
    kinds = schema.get("type", "object")
    kind = kinds if isinstance(kinds, str) else kinds[0]
    if kind == "object" and depth < MAX_DEPTH:
        properties = schema.get("properties", {})
        return {name: example(document, properties.get(name, {}), depth + 1) for name in schema.get("required", ())}
    if kind == "array" and depth < MAX_DEPTH:
        items = schema.get("prefixItems") or [schema.get("items") or {}] * max(1, schema.get("minItems", 1))
        return [example(document, item, depth + 1) for item in items]
    return {"number": 0.5, "integer": max(0, schema.get("minimum", 0)), "string": "text", "boolean": True}.get(kind)


def _operation(document: Document, method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    """One operation: its request, with an example, and its replies by status."""
    summary = escape(operation.get("summary", ""))
    yield f"<details><summary><b>{method.upper()}</b> <code>{escape(path)}</code> {summary}</summary>"
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield f"<p>Request</p>{_fields(document, content['schema'])}"
        text = json.dumps(example(document, content["schema"]), indent=1, ensure_ascii=False)
        yield f"<pre><code>{escape(text)}</code></pre>"
    yield "<table><tr><th>Status<th>Reply</tr>"
    for status, reply in operation["responses"].items():
        yield f"<tr><td>{escape(status)}<td>{escape(reply['description'])}</tr>"
    yield "</table></details>"


def _fields(document: Document, schema: Mapping[str, Any]) -> str:
    """The keys of an object, with their types; "" for another schema."""
    schema = _resolved(document, schema)
    if not schema.get("properties"):
        return ""
    required = schema.get("required", ())
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type_name(document, value))}"
        f"<td>{'required' if name in required else ''}</tr>"
        for name, value in schema["properties"].items()
    )
    return f"<table><tr><th>Key<th>Type<th></tr>{rows}</table>"


def _type_name(document: Document, schema: Mapping[str, Any]) -> str:
    schema = _resolved(document, schema)
    if "const" in schema:
        return json.dumps(schema["const"])
    kinds = schema.get("type", "one of several")
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


def _resolved(document: Document, schema: Mapping[str, Any]) -> Mapping[str, Any]:
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema
