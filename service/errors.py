"""What only the service refuses, with its status; the other errors are in `jobs.errors`, and their
statuses in `service.problems`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import JsonValue

from jobs.errors import ImageError, JobsError


class OpenAddress(JobsError):
    """Raised at the start, never in an answer."""

    type, title = "open-address", "The service would be open to others"


class ImageEmpty(ImageError):
    type, title = "image-empty", "The image is empty"


class HTTPError(JobsError):
    """An error with a status and, where it needs them, header fields of its answer."""

    status: ClassVar[int]

    def __init__(
        self, detail: str, headers: Mapping[str, str] | None = None, **extra: JsonValue
    ) -> None:
        super().__init__(detail, **extra)
        self.headers = dict(headers or {})


class MalformedForm(HTTPError):
    type, title, status = "malformed-form", "The form cannot be read", 400


class MalformedHeader(HTTPError):
    type, title, status = "malformed-header", "A header field cannot be used", 400


class AuthenticationError(HTTPError):
    """No key, or a wrong one (RFC 6750, section 3)."""

    type, title, status = "unauthorized", "An API key is needed", 401

    def __init__(self, detail: str, *, key_is_wrong: bool = False) -> None:
        challenge = 'Bearer realm="stablesr"' + (', error="invalid_token"' if key_is_wrong else "")
        super().__init__(detail, {"WWW-Authenticate": challenge})


class ForeignOrigin(HTTPError):
    type, title, status = "foreign-origin", "Pages of other origins change nothing here", 403


class UploadTimeout(HTTPError):
    type, title, status = "upload-stalled", "The upload stopped", 408


class NoResult(HTTPError):
    """The job ended without a result; `extra["state"]` says how, `extra["error"]` why."""

    type, title, status = "no-result", "The job has no result", 409


class ResultNotReady(HTTPError):
    type, title, status = "result-not-ready", "The result is not ready", 409


class ResultGone(HTTPError):
    type, title, status = "result-expired", "The result has expired", 410


class NotMultipart(HTTPError):
    type, title, status = "not-multipart", "The request is not a form with a file", 415


class UnsupportedEncoding(HTTPError):
    type, title, status = "unsupported-encoding", "The body is compressed", 415


class RangeNotSatisfiable(HTTPError):
    type, title, status = "range-not-satisfiable", "The range is outside of the result", 416


class ForeignHost(HTTPError):
    type, title = "foreign-host", "The service does not answer under this name"
    status = 421


class InvalidParameters(HTTPError):
    """`errors` lists the faults: field, detail, and minimum, maximum or allowed."""

    type, title, status = "invalid-parameters", "A parameter is wrong", 422

    def __init__(
        self, errors: Sequence[Mapping[str, JsonValue]], detail: str | None = None
    ) -> None:
        faults = (f"{error['field']} {error['detail']}".strip() for error in errors)
        detail = detail or "; ".join(faults) + "."
        super().__init__(detail, errors=[dict(error) for error in errors])


class RateLimitError(HTTPError):
    type, title, status = "rate-limited", "Too many requests", 429


class TooManyStreams(HTTPError):
    type, title, status = "too-many-streams", "Too many open streams", 429
    kind, advice = "streams", "try again later, or ask for the job instead"


class TooManyTransfers(HTTPError):
    type, title, status = "too-many-transfers", "Too many uploads and downloads at once", 429
    kind, advice = "transfers", "try again later"


class NotReady(HTTPError):
    """`extra["components"]` says for each part whether it is ready and what is missing."""

    type, title, status = "not-ready", "The service is not ready", 503


class PresetUnavailable(HTTPError):
    """Only the operator can help, so without `retry_after`; `extra["served"]` lists the others."""

    type, title, status = "preset-not-served", "No worker serves the preset", 503
