"""Where to start: GET /, the page for a browser, and what a problem's `type` points to. And /docs:
/openapi.json as HTML, with no script and nothing of another host.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict

from service.openapi import problems
from service.problems import STATUSES, root_path, titles
from service.routes.jobs import has_etag

router = APIRouter()

Slug = Annotated[str, PathParameter(description="The last part of a problem's `type`")]
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
FILES = {path.name: path.read_bytes() for path in (Path(__file__).parents[1] / "page").iterdir()}
HEADERS = {
    # Asked for again each time: a new version shows at once.
    "Cache-Control": "no-cache",
    # The page's own files and nothing else: no inline script, no other host, no frame around it.
    # Images are shown from memory (blob:), because a request for them may need the key.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "Vary": "Accept",
}
# The page at /docs has the origin of the page that holds a client's key, so nothing may run in it.
REFERENCE_HEADERS = {
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

EXAMPLE: dict[str, Any] = {
    "name": "StableSR",
    "version": "0.2.0",
    "links": {"docs": "/docs", "openapi": "/openapi.json", "upscale": "/upscale"},
}


class AboutView(BaseModel):
    """The service and the paths to begin with."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    name: str
    version: str
    links: dict[str, str]


class ProblemTypeView(BaseModel):
    """What problems of one type have in common; status is null for what only a job fails with."""

    type: str
    title: str
    status: int | None


@router.get(
    "/",
    tags=["about"],
    summary="Where to start",
    response_model=AboutView,
    responses={200: {"content": {"text/html": {}}}},
)
async def about(request: Request) -> AboutView | Response:
    """The service's name, its version and the paths to begin with; a browser gets the page."""
    if "text/html" in request.headers.get("Accept", ""):
        return _file(request, "index.html")
    paths = {
        "docs": "/docs",
        "openapi": "/openapi.json",
        "upscale": "/upscale",
        "models": "/models",
        "ready": "/readyz",
    }
    links = {name: root_path(request) + path for name, path in paths.items()}
    return AboutView(name=request.app.title, version=request.app.version, links=links)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The description at /openapi.json, to be read."""
    return HTMLResponse(_reference(request.app), headers=REFERENCE_HEADERS)


@lru_cache(maxsize=1)
def _reference(app: FastAPI) -> str:
    return reference(app.openapi())


@router.get(
    "/problems/{slug}",
    tags=["about"],
    summary="Look up a problem's type",
    responses=problems(_404="There is no such type of problem."),
)
async def problem(request: Request, slug: Slug) -> ProblemTypeView:
    """What the `type` of a problem points to."""
    title = titles().get(slug)
    if title is None:
        raise HTTPException(404)
    type = f"{root_path(request)}/problems/{slug}"
    return ProblemTypeView(type=type, title=title, status=STATUSES.get(slug))


@router.get(
    "/page/{name}",
    tags=["page"],
    summary="A file of the page",
    response_class=Response,
    responses={
        200: {"content": {media_type: {} for media_type in MEDIA_TYPES.values()}},
        304: {"description": "The file has not changed."},
        **problems(_404="The page has no such file."),
    },
)
async def asset(request: Request, name: str) -> Response:
    """The page's style, scripts and icon."""
    if name not in FILES or name == "index.html":
        raise HTTPException(404)
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    content = FILES[name]
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if has_etag(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=MEDIA_TYPES[Path(name).suffix], headers=headers)


def reference(description: Mapping[str, Any]) -> str:
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
