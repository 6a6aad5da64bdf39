"""What a client's calls can end with; files that cannot be read or written raise OSError."""

from __future__ import annotations

from collections.abc import Mapping

from .schema import Job, Problem


class ClientError(Exception):
    """The base of all errors of the client."""


class Unreachable(ClientError):
    """No server answers, or an outage outlasted the retries."""


class Refused(ClientError):
    """The server refused the request; `problem` (RFC 9457) has its status and its reason."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Unauthorized(Refused):
    """401, 403: the key is missing, unknown, or not allowed to do this."""


class NotFound(Refused):
    """404, 410: there is no such job (any more), or its result has expired."""


class Busy(Refused):
    """429, 503: full, or asked too often, for longer than the retries last."""


REFUSALS: Mapping[int, type[Refused]] = {
    **{401: Unauthorized, 403: Unauthorized, 404: NotFound, 410: NotFound},
    **{429: Busy, 503: Busy},
}
"""The class of a refusal by its status; for all others Refused."""


class JobFailed(ClientError):
    """The job failed, expired or was canceled; its `error` says why."""

    def __init__(self, job: Job) -> None:
        ends = {"failed": "failed", "canceled": "was canceled", "expired": "has expired"}
        reason = "" if job.error is None else f": {job.error}"
        super().__init__(f"The job {job.id} {ends.get(job.state, f'is {job.state}')}{reason}")
        self.job = job


class TimedOut(ClientError):
    """The caller's timeout is over; the job, as it was last seen, goes on."""

    def __init__(self, job: Job, seconds: float) -> None:
        super().__init__(f"The job {job.id} is still {job.state} after {seconds:g} seconds.")
        self.job = job


class DownloadFailed(ClientError):
    """The bytes that arrived are not the result that the job announced."""


class UnexpectedAnswer(ClientError):
    """The answer is not what this service sends: a page of another server, for one."""
