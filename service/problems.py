"""Every error as RFC 9457 problem details, with its HTTP status.

An error's slug becomes a status and a `type` that can be looked up, `/problems/{slug}`. Its extra
members (limits, errors, state, ...) stay as they are; `retry_after` is also a header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from jobs.errors import JobsError
from service.errors import HTTPError, InvalidParameters

log = structlog.stdlib.get_logger(__name__)

PROBLEM_JSON = "application/problem+json"

_SLUGS = {
    404: "job-not-found",
    409: "idempotency-in-progress job-ended job-exists wrong-state",
    413: "upload-too-large",
    422: "bad-cursor idempotency-mismatch image-animated image-empty image-format-unsupported "
    "image-too-large image-truncated image-unreadable output-too-large",
    429: "quota-exceeded",
    500: "internal-error",
    503: "queue-full queue-unavailable store-unavailable",
}
STATUSES: Mapping[str, int] = {
    **{slug: status for status, slugs in _SLUGS.items() for slug in slugs.split()},
    **{kind.type: kind.status for kind in HTTPError.__subclasses__()},
}
"""The status of every error that may reach a client; what is not here is a defect, a 500."""

# Said instead of the error's own detail, which names addresses and folders: that goes to the log.
PUBLIC_DETAILS: Mapping[str, str] = {
    "queue-unavailable": "The job queue does not answer at the moment; try again shortly.",
    "store-unavailable": "The image store cannot be used at the moment; try again shortly.",
}


class FieldError(BaseModel):
    """What is wrong with one field of the form."""

    model_config = ConfigDict(extra="allow")

    field: str
    detail: str


EXAMPLE: dict[str, Any] = {
    "type": "/problems/invalid-parameters",
    "title": "A parameter is wrong",
    "status": 422,
    "detail": "fidelity_weight must be between 0 and 1; got 7.",
    "instance": "/upscale",
    "request_id": "0d3c8b8d2f6a4c0f9f3b1f1d5f6a7b8c",
    "errors": [
        {
            "field": "fidelity_weight",
            "detail": "must be between 0 and 1; got 7",
            "minimum": 0,
            "maximum": 1,
        }
    ],
}


class ProblemDetails(BaseModel):
    """Problem details (RFC 9457). Other members depend on the type: limits, state, components."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"example": EXAMPLE})

    type: str = Field(description="Names the kind of problem; can be looked up on this server")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for")
    request_id: str | None = Field(None, description="Finds the request in the server's log")
    errors: list[FieldError] | None = None
    retry_after: float | None = Field(None, description="Seconds to wait before trying again")


class ProblemResponse(JSONResponse):
    """A problem as the answer; `kind` has its type and title, `extra` are its further members."""

    media_type = PROBLEM_JSON

    def __init__(
        self,
        scope: Scope,
        status: int,
        detail: str,
        *,
        kind: type[JobsError] | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        extra, headers = extra or {}, dict(headers or {})
        if (seconds := extra.get("retry_after")) is not None:
            headers["Retry-After"] = str(max(1, round(seconds)))
        root = root_path(scope)
        content = {
            **extra,
            # Without a type of its own the status says it all.
            "type": f"{root}/problems/{kind.type}" if kind else "about:blank",
            "title": kind.title if kind else HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "instance": quote(root + scope["path"].removeprefix(root)),
            "request_id": scope.get("state", {}).get("request_id"),
        }
        super().__init__(content, status_code=status, headers=headers)

    def render(self, content: Any) -> bytes:
        # Details quote what clients sent; as ASCII even a lone surrogate can be said.
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


def root_path(scope: Mapping[str, Any]) -> str:
    """The path under which the service is mounted; empty without a proxy's prefix."""
    return str(scope.get("root_path", ""))


def titles(kind: type[JobsError] = JobsError) -> dict[str, str]:
    """The title of every type of problem there is."""
    branches: dict[str, str] = {}
    for branch in kind.__subclasses__():
        branches |= titles(branch)
    # The root comes last: its own title is that of the type its branches inherit.
    return branches | {kind.type: kind.title}


def install(app: FastAPI) -> None:
    """Makes every error of `app` answer with problem details."""
    app.add_exception_handler(JobsError, respond)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _request_validation_error)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)


def defect(scope: Scope) -> ProblemResponse:
    """The answer to a defect; the log has the rest under the request's id."""
    detail = "The server met an error it did not expect; its log has it under the request_id."
    return ProblemResponse(scope, 500, detail, kind=JobsError)


def respond(request: Request, error: Exception) -> Response:
    """The answer to a JobsError."""
    assert isinstance(error, JobsError)
    status = STATUSES.get(error.type, 500)
    if status == 500:
        log.error("unexpected error", exc_info=error)
        return defect(request.scope)
    if status > 500:
        log.warning("unavailable", type=error.type, detail=error.detail)
    detail = PUBLIC_DETAILS.get(error.type, error.detail)
    headers = error.headers if isinstance(error, HTTPError) else None
    return ProblemResponse(
        request.scope, status, detail, kind=type(error), extra=error.extra, headers=headers
    )


def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: mostly unknown paths and methods."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    detail, extra = error.detail, dict[str, Any]()
    if error.status_code == 404:
        detail = f"There is nothing at {request.url.path}; the paths are listed at /openapi.json."
    elif error.status_code == 405:
        methods = _methods(request.app.routes, request.scope)
        headers["Allow"] = ", ".join(methods)
        extra["allowed"] = methods
        detail = f"{request.method} is not possible here; {' and '.join(methods)} would be."
    return ProblemResponse(request.scope, error.status_code, detail, extra=extra, headers=headers)


def _methods(routes: list[BaseRoute], scope: Scope) -> list[str]:
    """The methods of all routes at this path; the framework's own header names one route's."""
    methods = [
        method
        for method in ("DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    # HEAD is answered wherever GET is.
    return sorted([*methods, "HEAD"]) if "GET" in methods else methods


def _request_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"field": ".".join(str(part) for part in fault["loc"][1:]), "detail": str(fault["msg"])}
        for fault in error.errors()
    ]
    detail = "; ".join(f"{fault['field']}: {fault['detail']}" for fault in errors) + "."
    return respond(request, InvalidParameters(errors, detail))


def _client_disconnect(request: Request, error: Exception) -> Response:
    log.info("the client left during its upload")
    # No client reads it any more.
    return Response(status_code=400)
