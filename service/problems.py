"""Every error as RFC 9457 problem details, with its HTTP status.

An error's slug becomes a status and a `type` that can be looked up, `/problems/{slug}`. Its extra
members (limits, errors, state, ...) stay as they are; `retry_after` is also a header. What only the
service refuses is an HTTPError; the other errors are in `jobs.errors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote

import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from jobs.errors import JobsError

log = structlog.stdlib.get_logger(__name__)

PROBLEM_JSON = "application/problem+json"

# Slug, status and title of what only the service refuses.
_KINDS = {
    "malformed-form": (400, "The form cannot be read"),
    "malformed-json": (400, "The JSON cannot be read"),
    "malformed-header": (400, "A header field cannot be used"),
    "unauthorized": (401, "An API key is needed"),
    "foreign-origin": (403, "Pages of other origins change nothing here"),
    "insufficient-scope": (403, "The API key is for something else"),
    "model-not-found": (404, "There is no such model"),
    "upload-stalled": (408, "The upload stopped"),
    "no-direct-uploads": (409, "The image store gives no links"),
    "no-result": (409, "The job has no result"),
    "result-not-ready": (409, "The result is not ready"),
    "result-expired": (410, "The result has expired"),
    "not-multipart": (415, "The request is neither a form nor JSON"),
    "unsupported-encoding": (415, "The body is compressed"),
    "range-not-satisfiable": (416, "The range is outside of the result"),
    "foreign-host": (421, "The service does not answer under this name"),
    "image-empty": (422, "The image is empty"),
    "job-failed": (422, "The job failed"),
    "image-url-failed": (422, "The image cannot be fetched"),
    "image-url-refused": (422, "The image's URL is not called"),
    "invalid-parameters": (422, "A parameter is wrong"),
    "rate-limited": (429, "Too many requests"),
    "too-many-fetches": (429, "Too many images are fetched at once"),
    "too-many-streams": (429, "Too many open streams"),
    "too-many-transfers": (429, "Too many uploads and downloads at once"),
    "not-ready": (503, "The service is not ready"),
    "preset-not-served": (503, "No worker serves the preset"),
}
# What of `jobs.errors` may reach a client.
_SLUGS = {
    404: "job-not-found",
    409: "idempotency-in-progress job-exists wrong-state",
    413: "upload-too-large",
    422: "bad-cursor idempotency-mismatch image-animated image-format-unsupported image-too-large "
    "image-truncated image-unreadable output-too-large",
    429: "quota-exceeded",
    500: "internal-error",
    503: "queue-full queue-unavailable queue-unsuitable store-unavailable",
}
STATUSES: Mapping[str, int] = {
    **{slug: status for status, slugs in _SLUGS.items() for slug in slugs.split()},
    **{slug: status for slug, (status, _) in _KINDS.items()},
}
"""The status of every error that may reach a client; what is not here is a defect, a 500."""

# Said instead of the error's own detail, which names addresses and folders: that goes to the log.
PUBLIC_DETAILS: Mapping[str, str] = {
    "queue-unavailable": "The job queue does not answer at the moment; try again shortly.",
    "store-unavailable": "The image store cannot be used at the moment; try again shortly.",
}


class HTTPError(JobsError):
    """An error of one of the kinds above, where needed with header fields for its answer."""

    def __init__(
        self, slug: str, detail: str, headers: Mapping[str, str] | None = None, **extra: JsonValue
    ) -> None:
        super().__init__(detail, **extra)
        self.type, self.title = slug, _KINDS[slug][1]
        self.headers = dict(headers or {})


class AuthenticationError(HTTPError):
    """No key, or a wrong one (RFC 6750, section 3)."""

    def __init__(self, detail: str, *, key_is_wrong: bool = False) -> None:
        challenge = 'Bearer realm="stablesr"' + (', error="invalid_token"' if key_is_wrong else "")
        super().__init__("unauthorized", detail, {"WWW-Authenticate": challenge})


class InvalidParameters(HTTPError):
    """`errors` lists the faults: field, detail, and minimum, maximum or allowed."""

    def __init__(
        self, errors: Sequence[Mapping[str, JsonValue]], detail: str | None = None
    ) -> None:
        faults = (f"{error['field']} {error['detail']}".strip() for error in errors)
        detail = detail or "; ".join(faults) + "."
        super().__init__("invalid-parameters", detail, errors=[dict(error) for error in errors])

    @classmethod
    def of(cls, field: str, detail: str) -> Self:
        """One fault."""
        return cls([{"field": field, "detail": detail}])


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
    """A problem as the answer; `extra` are its further members, beside those of the error."""

    media_type = PROBLEM_JSON

    def __init__(
        self,
        scope: Scope,
        status: int,
        detail: str,
        error: JobsError | None = None,
        *,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        extra = extra or dict[str, Any](error.extra if error else {})
        headers = dict(headers or (error.headers if isinstance(error, HTTPError) else {}))
        if (seconds := extra.get("retry_after")) is not None:
            headers["Retry-After"] = str(max(1, round(seconds)))
        root = root_path(scope)
        content = {
            **extra,
            # Without a type of its own the status says it all.
            "type": f"{root}/problems/{error.type}" if error else "about:blank",
            "title": error.title if error else HTTPStatus(status).phrase,
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


def titles() -> dict[str, str]:
    """The title of every type of problem there is; a type's title is that of its first class."""
    titles = {slug: title for slug, (_, title) in _KINDS.items()}
    kinds: list[type[JobsError]] = [JobsError]
    for kind in kinds:
        titles.setdefault(kind.type, kind.title)
        kinds += kind.__subclasses__()
    return titles


def defect(scope: Scope) -> ProblemResponse:
    """The answer to a defect; the log has the rest under the request's id."""
    detail = "The server met an error it did not expect; its log has it under the request_id."
    return ProblemResponse(scope, 500, detail, JobsError(detail))


def respond(request: Request, error: JobsError) -> Response:
    """The answer to an error."""
    status = STATUSES.get(error.type, 500)
    if status == 500:
        log.error("unexpected error", exc_info=error)
        return defect(request.scope)
    if status > 500:
        log.warning("unavailable", type=error.type, detail=error.detail)
    detail = PUBLIC_DETAILS.get(error.type, error.detail)
    return ProblemResponse(request.scope, status, detail, error)


def _http_exception(request: Request, error: HTTPException) -> Response:
    """What the framework itself refuses: mostly unknown paths and methods."""
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


def _request_validation_error(request: Request, error: RequestValidationError) -> Response:
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


HANDLERS: dict[Any, Any] = {
    JobsError: respond,
    HTTPException: _http_exception,
    RequestValidationError: _request_validation_error,
    ClientDisconnect: _client_disconnect,
}
"""Answers every error of an application with problem details."""
