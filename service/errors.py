"""What only the HTTP face can refuse; the rest of the tree is in `jobs.errors`.

JobsError
├── MalformedForm        malformed-form
├── InvalidParameters    invalid-parameters
├── NotMultipart         not-multipart
├── UploadStalled        upload-stalled
├── ImageEmpty           image-empty        (an ImageError)
├── ResultNotReady       result-not-ready
├── NoResult             no-result
├── ResultExpired        result-expired
├── NotReady             not-ready
└── OpenAddress          open-address       (at start, never in an answer)
"""

from __future__ import annotations

from jobs.errors import ImageError, JobsError

__all__ = [
    "ImageEmpty",
    "InvalidParameters",
    "MalformedForm",
    "NoResult",
    "NotMultipart",
    "NotReady",
    "OpenAddress",
    "ResultExpired",
    "ResultNotReady",
    "UploadStalled",
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


class OpenAddress(JobsError):
    type = "open-address"
    title = "The service would be open to others"
