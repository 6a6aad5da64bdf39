"""What only the HTTP face can refuse; the rest of the tree is in `jobs.errors`.

JobsError
├── MalformedForm        malformed-form
├── InvalidParameters    invalid-parameters
├── NotMultipart         not-multipart
├── UnsupportedEncoding  unsupported-encoding
├── UploadStalled        upload-stalled
├── ImageEmpty           image-empty        (an ImageError)
├── ResultNotReady       result-not-ready
├── NoResult             no-result
├── ResultExpired        result-expired
├── NotReady             not-ready
├── Unauthorized         unauthorized
├── RateLimited          rate-limited
├── RangeNotSatisfiable  range-not-satisfiable
├── MalformedHeader      malformed-header
├── TooManyStreams       too-many-streams
├── TooManyTransfers     too-many-transfers
├── PresetNotServed      preset-not-served
├── ForeignHost          foreign-host
├── ForeignOrigin        foreign-origin
└── OpenAddress          open-address       (at start, never in an answer)
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from jobs.errors import ImageError, JobsError

__all__ = [
    "ForeignHost",
    "ForeignOrigin",
    "ImageEmpty",
    "InvalidParameters",
    "MalformedForm",
    "MalformedHeader",
    "NoResult",
    "NotMultipart",
    "NotReady",
    "OpenAddress",
    "PresetNotServed",
    "RangeNotSatisfiable",
    "RateLimited",
    "ResultExpired",
    "ResultNotReady",
    "TooManyStreams",
    "TooManyTransfers",
    "Unauthorized",
    "UnsupportedEncoding",
    "UploadStalled",
    "WithHeaders",
]


class MalformedForm(JobsError):
    type = "malformed-form"
    title = "The form cannot be read"


class InvalidParameters(JobsError):
    """`extra["errors"]` lists the faults: field, detail, and minimum, maximum or allowed."""

    type = "invalid-parameters"
    title = "A parameter is wrong"


class NotMultipart(JobsError):
    type = "not-multipart"
    title = "The request is not a form with a file"


class UploadStalled(JobsError):
    type = "upload-stalled"
    title = "The upload stopped"


class ImageEmpty(ImageError):
    type = "image-empty"
    title = "The image is empty"


class ResultNotReady(JobsError):
    type = "result-not-ready"
    title = "The result is not ready"


class NoResult(JobsError):
    """The job ended without a result; `extra["state"]` says how, `extra["error"]` why."""

    type = "no-result"
    title = "The job has no result"


class ResultExpired(JobsError):
    type = "result-expired"
    title = "The result has expired"


class NotReady(JobsError):
    """`extra["components"]` says for each part whether it is ready and what is missing."""

    type = "not-ready"
    title = "The service is not ready"


class WithHeaders(JobsError):
    """An error whose answer has header fields of its own."""

    def __init__(
        self, detail: str, headers: Mapping[str, str] | None = None, **extra: JsonValue
    ) -> None:
        super().__init__(detail, **extra)
        self.headers = dict(headers or {})


class Unauthorized(WithHeaders):
    """`given` says that there was a key, and that it was wrong (RFC 6750, section 3)."""

    type = "unauthorized"
    title = "An API key is needed"

    def __init__(self, detail: str, *, given: bool = False) -> None:
        challenge = 'Bearer realm="stablesr"' + (', error="invalid_token"' if given else "")
        super().__init__(detail, {"WWW-Authenticate": challenge})


class RateLimited(WithHeaders):
    type = "rate-limited"
    title = "Too many requests"


class RangeNotSatisfiable(WithHeaders):
    type = "range-not-satisfiable"
    title = "The range is outside of the result"


class UnsupportedEncoding(WithHeaders):
    type = "unsupported-encoding"
    title = "The body is compressed"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, {"Accept-Encoding": "identity"})


class MalformedHeader(JobsError):
    type = "malformed-header"
    title = "A header field cannot be used"


class TooManyStreams(JobsError):
    type = "too-many-streams"
    title = "Too many open streams"


class TooManyTransfers(JobsError):
    type = "too-many-transfers"
    title = "Too many uploads and downloads at once"


class PresetNotServed(JobsError):
    """The preset's workers have no weights for it; `extra["served"]` lists what is served.

    Without `retry_after`: the operator has to do something before trying again can help.
    """

    type = "preset-not-served"
    title = "No worker serves the preset"


class ForeignHost(JobsError):
    type = "foreign-host"
    title = "The service does not answer under this name"


class ForeignOrigin(JobsError):
    type = "foreign-origin"
    title = "Pages of other origins change nothing here"


class OpenAddress(JobsError):
    type = "open-address"
    title = "The service would be open to others"
