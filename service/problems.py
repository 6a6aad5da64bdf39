"""Every error as RFC 9457 problem details: the one place that knows HTTP statuses.

An error names itself with a slug; here it becomes a status and a `type` that can be looked up,
`/problems/{slug}`. Extra members (limits, errors, state, ...) pass through as they are, and
`retry_after` also becomes the `Retry-After` header.
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
from service.errors import InvalidParameters, WithHeaders

__all__ = [
    "PROBLEM_JSON",
    "STATUSES",
    "FieldError",
    "ProblemDetails",
    "ProblemResponse",
    "install",
    "problem_type",
    "refusal",
    "respond",
    "titles",
    "unexpected",
]

log = structlog.stdlib.get_logger(__name__)

PROBLEM_JSON = "application/problem+json"

STATUSES: Mapping[str, HTTPStatus] = {
    "malformed-form": HTTPStatus.BAD_REQUEST,
    "malformed-header": HTTPStatus.BAD_REQUEST,
    "unauthorized": HTTPStatus.UNAUTHORIZED,
    "foreign-origin": HTTPStatus.FORBIDDEN,
    "job-not-found": HTTPStatus.NOT_FOUND,
    "upload-stalled": HTTPStatus.REQUEST_TIMEOUT,
    "job-ended": HTTPStatus.CONFLICT,
    "job-exists": HTTPStatus.CONFLICT,
    "no-result": HTTPStatus.CONFLICT,
    "result-not-ready": HTTPStatus.CONFLICT,
    "wrong-state": HTTPStatus.CONFLICT,
    "idempotency-in-progress": HTTPStatus.CONFLICT,
    "result-expired": HTTPStatus.GONE,
    "upload-too-large": HTTPStatus(413),
    "not-multipart": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "unsupported-encoding": HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    "range-not-satisfiable": HTTPStatus(416),
    "foreign-host": HTTPStatus.MISDIRECTED_REQUEST,
    "bad-cursor": HTTPStatus(422),
    "idempotency-mismatch": HTTPStatus(422),
    "image-animated": HTTPStatus(422),
    "image-empty": HTTPStatus(422),
    "image-format-unsupported": HTTPStatus(422),
    "image-too-large": HTTPStatus(422),
    "image-truncated": HTTPStatus(422),
    "image-unreadable": HTTPStatus(422),
    "invalid-parameters": HTTPStatus(422),
    "output-too-large": HTTPStatus(422),
    "unknown-preset": HTTPStatus(422),
    "quota-exceeded": HTTPStatus.TOO_MANY_REQUESTS,
    "rate-limited": HTTPStatus.TOO_MANY_REQUESTS,
    "too-many-streams": HTTPStatus.TOO_MANY_REQUESTS,
    "too-many-transfers": HTTPStatus.TOO_MANY_REQUESTS,
    "internal-error": HTTPStatus.INTERNAL_SERVER_ERROR,
    "not-ready": HTTPStatus.SERVICE_UNAVAILABLE,
    "preset-not-served": HTTPStatus.SERVICE_UNAVAILABLE,
    "queue-full": HTTPStatus.SERVICE_UNAVAILABLE,
    "queue-unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
    "store-unavailable": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""The status of every error that may reach a client; what is not here is a defect, a 500."""

# Said instead of the error's own detail, which names addresses and folders: that goes to the log.
GUARDED: Mapping[str, str] = {
    "queue-unavailable": "The job queue does not answer at the moment; try again shortly.",
    "store-unavailable": "The image store cannot be used at the moment; try again shortly.",
}


class FieldError(BaseModel):
    """What is wrong with one field of the form."""

    model_config = ConfigDict(extra="allow")

    field: str
    detail: str


class ProblemDetails(BaseModel):
    """Problem details (RFC 9457). Other members depend on the type: limits, state, components."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {
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
        },
    )

    type: str = Field(description="Names the kind of problem; can be looked up on this server")
    title: str
    status: int
    detail: str
    instance: str = Field(description="The path that was asked for")
    request_id: str | None = Field(None, description="Finds the request in the server's log")
    errors: list[FieldError] | None = None
    retry_after: float | None = Field(None, description="Seconds to wait before trying again")


class ProblemResponse(JSONResponse):
    media_type = PROBLEM_JSON

    def __init__(
        self,
        scope: Scope,
        *,
        status: int,
        type: str,
        title: str,
        detail: str,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        extra = dict(extra or {})
        sent = dict(headers or {})
        if (seconds := extra.get("retry_after")) is not None:
            sent["Retry-After"] = str(max(1, round(seconds)))
        content = {
            **extra,
            "type": type,
            "title": title,
            "status": status,
            "detail": detail,
            "instance": quote(scope.get("root_path", "") + _path(scope)),
            "request_id": scope.get("state", {}).get("request_id"),
        }
        super().__init__(content, status_code=status, headers=sent)

    def render(self, content: Any) -> bytes:
        # Details quote what clients sent; as ASCII even a lone surrogate can be said.
        return json.dumps(content, ensure_ascii=True, allow_nan=False).encode()


def install(app: FastAPI) -> None:
    """Makes every error of `app` answer with problem details."""
    app.add_exception_handler(JobsError, respond)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _request_validation_error)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)


def problem_type(slug: str, scope: Scope) -> str:
    """The `type` of a slug, a URI reference on this server."""
    return f"{scope.get('root_path', '')}/problems/{slug}"


def titles() -> dict[str, str]:
    """The title of every type of problem there is."""

    def of(kind: type[JobsError]) -> dict[str, str]:
        # The root comes last: its own title is that of the type its branches inherit.
        found: dict[str, str] = {}
        for branch in kind.__subclasses__():
            found |= of(branch)
        return found | {kind.type: kind.title}

    return of(JobsError)


def unexpected(scope: Scope) -> ProblemResponse:
    """The answer to an exception nobody expected; the log has the rest under the request's id."""
    return ProblemResponse(
        scope,
        status=HTTPStatus.INTERNAL_SERVER_ERROR,
        type=problem_type(JobsError.type, scope),
        title=JobsError.title,
        detail="The server met an error it did not expect; its log has it under the request_id.",
    )


def refusal(scope: Scope, status: int, detail: str) -> ProblemResponse:
    """A problem that has no type of its own: the status says it all."""
    return ProblemResponse(
        scope,
        status=status,
        type="about:blank",
        title=HTTPStatus(status).phrase,
        detail=detail,
    )


def respond(request: Request, error: Exception) -> Response:
    """The answer to a JobsError."""
    assert isinstance(error, JobsError)
    status = STATUSES.get(error.type)
    if status is None or status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("unexpected error", exc_info=error)
        return unexpected(request.scope)
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("unavailable", type=error.type, detail=error.detail)
    return ProblemResponse(
        request.scope,
        status=status,
        type=problem_type(error.type, request.scope),
        title=error.title,
        detail=GUARDED.get(error.type, error.detail),
        extra=error.extra,
        headers=error.headers if isinstance(error, WithHeaders) else None,
    )


def _http_exception(request: Request, error: Exception) -> Response:
    """What the framework itself refuses: mostly unknown paths and methods."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    detail, extra = error.detail, dict[str, Any]()
    if error.status_code == HTTPStatus.NOT_FOUND:
        detail = f"There is nothing at {request.url.path}; the paths are listed at /openapi.json."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = _methods(request.app.routes, request.scope)
        headers["Allow"] = ", ".join(allowed)
        extra["allowed"] = allowed
        detail = f"{request.method} is not possible here; {' and '.join(allowed)} would be."
    return ProblemResponse(
        request.scope,
        status=error.status_code,
        type="about:blank",
        title=HTTPStatus(error.status_code).phrase,
        detail=detail,
        extra=extra,
        headers=headers,
    )


def _methods(routes: list[BaseRoute], scope: Scope) -> list[str]:
    """The methods of all routes at this path; the framework's own header names one route's."""
    found = [
        method
        for method in ("DELETE", "GET", "OPTIONS", "PATCH", "POST", "PUT")
        if any(route.matches({**scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    # HEAD is answered wherever GET is.
    return sorted([*found, "HEAD"]) if "GET" in found else found


def _request_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors: list[Any] = [
        {"field": ".".join(str(part) for part in fault["loc"][1:]), "detail": fault["msg"]}
        for fault in error.errors()
    ]
    detail = "; ".join(f"{fault['field']}: {fault['detail']}" for fault in errors) + "."
    return respond(request, InvalidParameters(detail, errors=errors))


def _client_disconnect(request: Request, error: Exception) -> Response:
    log.info("the client left during its upload")
    # Nobody reads it.
    return Response(status_code=HTTPStatus.BAD_REQUEST)


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
