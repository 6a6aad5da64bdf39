"""Where to start: GET / and what a problem's `type` points to."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path, Request, Response
from pydantic import BaseModel, ConfigDict

from service.answers import root
from service.openapi import problems
from service.problems import STATUSES, problem_type, titles
from service.routes.page import page, wants_page

__all__ = ["router"]

router = APIRouter(tags=["about"])


class AboutView(BaseModel):
    """The service and the paths to begin with."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "StableSR",
                "version": "0.1.0",
                "links": {"docs": "/docs", "openapi": "/openapi.json", "upscale": "/upscale"},
            }
        }
    )

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
    summary="Where to start",
    response_model=AboutView,
    responses={200: {"content": {"text/html": {}}}},
)
async def about(request: Request) -> AboutView | Response:
    """The service's name, its version and the paths to begin with; a browser gets the page."""
    if wants_page(request):
        return page(request)
    paths = {
        "docs": "/docs",
        "openapi": "/openapi.json",
        "upscale": "/upscale",
        "models": "/models",
        "ready": "/readyz",
    }
    return AboutView(
        name=request.app.title,
        version=request.app.version,
        links={name: root(request) + path for name, path in paths.items()},
    )


@router.get(
    "/problems/{slug}",
    summary="Look up a problem's type",
    responses=problems(_404="There is no such type of problem."),
)
async def problem(
    request: Request, slug: Annotated[str, Path(description="The last part of a problem's `type`")]
) -> ProblemTypeView:
    """What the `type` of a problem points to."""
    known = titles()
    if slug not in known:
        raise HTTPException(404)
    return ProblemTypeView(
        type=problem_type(slug, request.scope), title=known[slug], status=STATUSES.get(slug)
    )
