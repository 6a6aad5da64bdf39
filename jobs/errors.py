"""Everything that can go wrong with a job, as exceptions that turn into problem details.

`type`, `title`, `detail` and the extra members are those of RFC 9457; the HTTP status is the
service's business. What a failed job keeps as its error is the same thing, frozen: a `Problem`.
"""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, JsonValue


class Problem(BaseModel):
    """Problem details without the status: a slug, a title, a sentence and any further members."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    detail: str

    @classmethod
    def of(cls, error: JobsError) -> Self:
        return cls.model_validate(
            {**error.extra, "type": error.type, "title": error.title, "detail": error.detail}
        )


class JobsError(Exception):
    """The root. `detail` is one sentence with the wrong value and what would be right.

    Keyword arguments become extra members of the problem: limits, retry_after (seconds), state.
    """

    type: ClassVar[str] = "internal-error"
    title: ClassVar[str] = "Something went wrong"

    def __init__(self, detail: str, **extra: JsonValue) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra: dict[str, JsonValue] = extra

    def problem(self) -> Problem:
        return Problem.of(self)


class InvalidSettings(JobsError):
    type = "invalid-settings"
    title = "A setting is wrong"


class QueueUnavailable(JobsError):
    type = "queue-unavailable"
    title = "The job queue cannot be reached"


class QueueFull(JobsError):
    type = "queue-full"
    title = "The job queue is full"


class QuotaExceeded(JobsError):
    """One key or address has as many jobs waiting as it may; others may still submit."""

    type = "quota-exceeded"
    title = "Too many jobs of this client wait"


class StoreUnavailable(JobsError):
    type = "store-unavailable"
    title = "The image store cannot be used"


class BlobNotFound(JobsError):
    type = "blob-not-found"
    title = "The stored image is gone"


class JobNotFound(JobsError):
    type = "job-not-found"
    title = "No such job"


class RecordUnreadable(JobsError):
    """The record of a job was written by a version that this one does not understand."""


class JobExists(JobsError):
    type = "job-exists"
    title = "The job's id is taken"


class IdempotencyMismatch(JobsError):
    type = "idempotency-mismatch"
    title = "The idempotency key was used for another request"


class IdempotencyPending(JobsError):
    type = "idempotency-in-progress"
    title = "The first request with this idempotency key is still being handled"


class KeyNotFound(JobsError):
    type = "key-not-found"
    title = "No such API key"


class BadCursor(JobsError):
    type = "bad-cursor"
    title = "The cursor is not one of this server's"


class WrongState(JobsError):
    """The job is not in a state in which this can happen to it; `extra["state"]` says which."""

    type = "wrong-state"
    title = "The job is in another state"


class JobEnded(WrongState):
    """The job succeeded, failed, was canceled or expired: nothing changes it any more."""

    type = "job-ended"
    title = "The job has ended"


class ImageError(JobsError):
    """The uploaded file is at fault: trying again cannot help."""

    type = "image-unreadable"
    title = "The image cannot be read"


class UnsupportedFormat(ImageError):
    type = "image-format-unsupported"
    title = "The image's format is not supported"


class ImageTruncated(ImageError):
    type = "image-truncated"
    title = "The image is cut short"


class ImageAnimated(ImageError):
    type = "image-animated"
    title = "The image has more than one frame"


class ImageTooLarge(ImageError):
    type = "image-too-large"
    title = "The image has too many pixels"


class OutputTooLarge(ImageError):
    type = "output-too-large"
    title = "The result would have too many pixels"


class UploadTooLarge(ImageError):
    type = "upload-too-large"
    title = "The file is too large"


class JobFault(JobsError):
    """The service is at fault, not the image: the job may be submitted again."""

    type = "internal-error"
    title = "The job failed"


class WorkerLost(JobFault):
    type = "worker-lost"
    title = "The worker was lost"


class JobTimedOut(JobFault):
    type = "job-timed-out"
    title = "The job took too long"


class OutOfMemory(JobFault):
    type = "out-of-memory"
    title = "The worker's memory does not suffice"


class QueueTimedOut(JobFault):
    type = "queue-timed-out"
    title = "The job waited too long"
