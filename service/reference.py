"""The page at /docs: /openapi.json as HTML, with no script and nothing of another host.

It has the origin of the page that holds a client's key, so nothing may run in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
}
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: interface</title>
<link rel="icon" href="page/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="page/style.css">
<header>
  <h1><a href="./">{title}</a> {version}</h1>
  <nav><a href="openapi.json">OpenAPI</a></nav>
</header>
<main class="reference">{body}</main>
</html>
"""


def page(description: Mapping[str, Any]) -> str:
    """The whole page for an OpenAPI description, as a string."""
    operations = [
        _operation(method, path, operation)
        for path, methods in description["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [
        f'<h3 id="{escape(name)}">{escape(name)}</h3>{_text(schema)}'
        f"{_fields(schema) or _kind(schema)}"
        for name, schema in sorted(description["components"]["schemas"].items())
    ]
    body = [_text(description["info"]), *operations, "<h2>Answers</h2>", *schemas]
    names = {name: escape(description["info"][name]) for name in ("title", "version")}
    return PAGE.format(**names, body="\n".join(body))


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    parameters = [
        (parameter["name"], f"{_kind(parameter['schema'])}, {parameter['in']}", _text(parameter))
        for parameter in operation.get("parameters", ())
    ]
    parts = [_text(operation), _table(parameters)]
    for content in operation.get("requestBody", {}).get("content", {}).items():
        parts += [f"<p><code>{escape(content[0])}</code></p>", _fields(content[1]["schema"])]
    answers = []
    for status, answer in operation["responses"].items():
        contents = answer.get("content", {}).items()
        kinds = {_kind(content.get("schema", {})) or escape(kind) for kind, content in contents}
        headers = "".join(
            f"<p><code>{escape(name)}</code>: {escape(header.get('description', ''))}</p>"
            for name, header in answer.get("headers", {}).items()
        )
        answers.append((status, ", ".join(sorted(kinds)), _text(answer) + headers))
    summary = f"<code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}"
    return f"<details><summary>{summary}</summary>{''.join(parts)}{_table(answers)}</details>"


def _fields(schema: Mapping[str, Any]) -> str:
    needed = schema.get("required", ())
    return _table(
        (name, _kind(field) + (", required" if name in needed else ""), _text(field))
        for name, field in schema.get("properties", {}).items()
    )


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a few words; empty for one that says nothing."""
    if name := schema.get("$ref", "").rpartition("/")[2]:
        return f'<a href="#{escape(name)}">{escape(name)}</a>'
    if "anyOf" in schema:
        return " or ".join(_kind(part) for part in schema["anyOf"])
    if "enum" in schema:
        return " | ".join(escape(str(value)) for value in schema["enum"])
    words = escape(str(schema.get("format", schema.get("type", ""))))
    if "items" in schema:
        words += f" of {_kind(schema['items'])}"
    if "minimum" in schema or "maximum" in schema:
        words += f", {schema.get('minimum', '')} to {schema.get('maximum', '')}"
    return words + (
        f", {escape(str(schema['default']))} when left out" if schema.get("default") else ""
    )


def _text(node: Mapping[str, Any]) -> str:
    """The description of a node, its blank lines and backticks read as in Markdown."""
    paragraphs = escape(node.get("description", "")).split("\n\n")
    marked = (re.sub("`([^`]+)`", r"<code>\1</code>", words) for words in paragraphs if words)
    return "".join(f"<p>{words}</p>" for words in marked)


def _table(rows: Iterable[tuple[str, str, str]]) -> str:
    """Names, which are escaped here, each with a kind and a text in HTML."""
    lines = [
        f"<tr><th><code>{escape(name)}</code></th><td>{kind}</td><td>{text}</td></tr>"
        for name, kind, text in rows
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""
