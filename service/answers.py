"""Jobs as responses, alike wherever one is answered: ETag, Retry-After, what may be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping

from fastapi import Request, Response

from jobs.schema import Job
from service.openapi import header
from service.schema import JobView

__all__ = ["ETAG", "RETRY_AFTER", "answer", "known", "retry_after", "root"]

# Asked more often than this, or less, a client would waste requests or its user's time.
SOONEST_S, LATEST_S = 1, 10

ETAG = {"ETag": header("Names this state of the answer; send it as If-None-Match.")}
RETRY_AFTER = {"Retry-After": header("While not ended: seconds until asking again.", "integer")}


def answer(
    request: Request, job: Job, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The job as a response with its ETag, or 304 to a GET that knows this state already."""
    # The queue moves without the record, so its revision alone does not tell all changes.
    sent = {**(headers or {}), "ETag": f'"{job.revision}.{job.queue_position or 0}"'}
    if not job.state.ended:
        sent["Retry-After"] = str(retry_after(job))
    if request.method == "GET" and known(request, sent["ETag"]):
        return Response(status_code=304, headers=sent)
    body = JobView.of(job, root(request)).model_dump_json()
    return Response(body, status_code=status, headers=sent, media_type="application/json")


def root(request: Request) -> str:
    """The path under which the service is mounted; empty without a proxy's prefix."""
    path: str = request.scope.get("root_path", "")
    return path


def retry_after(job: Job) -> int:
    """Seconds until a look is worth it: half of what is left, or a second a job in front."""
    if job.progress is not None and job.progress.eta_seconds is not None:
        wanted: float = job.progress.eta_seconds / 2
    else:
        wanted = job.queue_position or SOONEST_S
    return min(max(math.ceil(wanted), SOONEST_S), LATEST_S)


def known(request: Request, etag: str) -> bool:
    """Whether If-None-Match names this ETag (RFC 9110, 13.1.2: the weak comparison)."""
    given = request.headers.get("if-none-match", "")
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return etag in tags or tags == ["*"]
