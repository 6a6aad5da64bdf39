"""What a client's call can end with.

    ClientError
    ├── Unreachable           nobody answers at the address, or an outage outlasted the patience
    ├── Refused               the server answered with a problem (RFC 9457): `.problem`
    │   ├── Unauthorized      401, 403: the key is missing, wrong, or not for this
    │   ├── NotFound          404, 410: no such job, or its result has expired
    │   └── Busy              429, 503: full or asked too often, for longer than the patience
    ├── JobFailed             the job ended without a result: `.job`, whose `error` says why
    ├── TimedOut              the caller's own `timeout` ran out: `.job` goes on
    ├── DownloadFailed        a result that arrived is not the one that was announced
    └── UnexpectedAnswer      an answer that this service does not give: another server?

Files that cannot be read or written raise OSError as usual.
"""

from __future__ import annotations

from client.schema import Job, Problem

__all__ = [
    "Busy",
    "ClientError",
    "DownloadFailed",
    "JobFailed",
    "NotFound",
    "Refused",
    "TimedOut",
    "Unauthorized",
    "UnexpectedAnswer",
    "Unreachable",
]


class ClientError(Exception):
    """Whatever a call of the client can end with, beside OSError."""


class Unreachable(ClientError):
    """No server answers."""


class Refused(ClientError):
    """The server said no; `problem` has its words, its status and what else it told."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class Unauthorized(Refused):
    """The key is missing, unknown, or not allowed to do this."""


class NotFound(Refused):
    """There is no such job (any more), or its result has expired."""


class Busy(Refused):
    """The server is full or was asked too often, and stayed so."""


class JobFailed(ClientError):
    """The job failed, expired or was canceled."""

    def __init__(self, job: Job) -> None:
        said = "" if job.error is None else f": {job.error}"
        super().__init__(f"The job {job.id} {_ENDED.get(job.state, f'is {job.state}')}{said}")
        self.job = job


class TimedOut(ClientError):
    """The caller's time is over; the job, as it was last seen, goes on."""

    def __init__(self, job: Job, seconds: float) -> None:
        super().__init__(f"The job {job.id} is still {job.state} after {seconds:g} seconds.")
        self.job = job


class DownloadFailed(ClientError):
    """The bytes that arrived are not the result that the job announced."""


class UnexpectedAnswer(ClientError):
    """The answer is not what this service says: a page of another server, for one."""


_ENDED = {"failed": "failed", "canceled": "was canceled", "expired": "has expired"}
