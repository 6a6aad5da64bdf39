"""Everything that can go wrong with a job, as exceptions that turn into problem details.

`type`, `title`, `detail` and the extra members are those of RFC 9457; the HTTP status is the
service's business. What a failed job keeps as its error is the same thing, frozen: a `Problem`.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, JsonValue


class Problem(BaseModel):
    """Problem details without the status: a slug, a title, a sentence and any further members."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    detail: str


class JobsError(Exception):
    """`detail` is one sentence with the wrong value and what would be right. Keyword arguments
    become extra members of the problem: limits, retry_after (seconds), state."""

    type: str = "internal-error"
    title: str = "Something went wrong"

    def __init__(self, detail: str, **extra: JsonValue) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra: dict[str, JsonValue] = extra

    def problem(self) -> Problem:
        fields = {"type": self.type, "title": self.title, "detail": self.detail}
        return Problem.model_validate({**self.extra, **fields})


class InvalidSettings(JobsError):
    type, title = "invalid-settings", "A setting is wrong"


class QueueUnavailable(JobsError):
    type, title = "queue-unavailable", "The job queue cannot be reached"


class QueueUnsuitable(QueueUnavailable):
    """Redis answers, but jobs cannot be trusted to it."""

    type, title = "queue-unsuitable", "Redis does not suit the job queue"


class QueueFull(JobsError):
    type, title = "queue-full", "The job queue is full"


class QuotaExceeded(JobsError):
    type, title = "quota-exceeded", "Too many jobs of this client wait"


class StoreUnavailable(JobsError):
    """`clause` says what the store does, in words that name no place."""

    type, title = "store-unavailable", "The image store cannot be used"

    def __init__(self, detail: str, *, clause: str = "takes no images", **extra: JsonValue) -> None:
        super().__init__(detail, **extra)
        self.clause = clause


class BlobNotFound(JobsError):
    type, title = "blob-not-found", "The stored image is gone"


class JobNotFound(JobsError):
    type, title = "job-not-found", "No such job"


class RecordUnreadable(JobsError):
    """The record of a job was written by a version that this one does not understand."""


class JobExists(JobsError):
    type, title = "job-exists", "The job's id is taken"


class IdempotencyMismatch(JobsError):
    type, title = "idempotency-mismatch", "The idempotency key was used for another request"


class IdempotencyPending(JobsError):
    type = "idempotency-in-progress"
    title = "The first request with this idempotency key is still being handled"


class KeyNotFound(JobsError):
    type, title = "key-not-found", "No such API key"


class WorkerNotFound(JobsError):
    type, title = "worker-not-found", "No such worker"


class BadCursor(JobsError):
    type, title = "bad-cursor", "The cursor is not one of this server's"


class WrongState(JobsError):
    """The job is not in a state in which this can happen to it; `extra["state"]` says which."""

    type, title = "wrong-state", "The job is in another state"


class JobEnded(WrongState):
    type, title = "job-ended", "The job has ended"


class ImageError(JobsError):
    """The uploaded file is at fault: trying again cannot help."""

    type, title = "image-unreadable", "The image cannot be read"


class UnsupportedFormat(ImageError):
    type, title = "image-format-unsupported", "The image's format is not supported"


class ImageTruncated(ImageError):
    type, title = "image-truncated", "The image is cut short"


class ImageAnimated(ImageError):
    type, title = "image-animated", "The image has more than one frame"


class ImageTooLarge(ImageError):
    type, title = "image-too-large", "The image has too many pixels"


class PageNotFound(ImageError):
    """`extra["errors"]` says so of the field `page`."""

    type, title = "invalid-parameters", "A parameter is wrong"


class OutputTooLarge(ImageError):
    type, title = "output-too-large", "The result would have too many pixels"


class UploadTooLarge(ImageError):
    type, title = "upload-too-large", "The file is too large"


class JobFault(JobsError):
    """The service is at fault, not the image: the job may be submitted again."""

    type, title = "internal-error", "The job failed"


class WorkerLost(JobFault):
    type, title = "worker-lost", "The worker was lost"


class JobTimedOut(JobFault):
    type, title = "job-timed-out", "The job took too long"


class OutOfMemory(JobFault):
    type, title = "out-of-memory", "The worker's memory does not suffice"


class QueueTimedOut(JobFault):
    type, title = "queue-timed-out", "The job waited too long"
