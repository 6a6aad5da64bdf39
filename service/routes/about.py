"""Where to start: GET /, the page for a browser, and what a problem's `type` points to."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict

from service import reference
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
    return HTMLResponse(_reference(request.app), headers=reference.HEADERS)


@lru_cache(maxsize=1)
def _reference(app: FastAPI) -> str:
    return reference.page(app.openapi())


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
