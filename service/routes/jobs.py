"""/jobs/{id}: how a job is, its result, and its end on demand."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Request, Response
from starlette.responses import StreamingResponse

from jobs.errors import BlobNotFound
from jobs.schema import Job, JobState, ResultInfo
from service.errors import NoResult, ResultExpired, ResultNotReady
from service.openapi import header, problems
from service.schema import JobView
from service.state import ServicesDep

__all__ = ["answer", "root", "router"]

router = APIRouter(tags=["jobs"])

JobId = Annotated[str, Path(description="The job's id, as `POST /upscale` gave it")]
# Asked more often than this, or less, a client would waste requests or its user's time.
SOONEST_S, LATEST_S = 1, 10

ETAG = {"ETag": header("Names this state of the answer; send it as If-None-Match.")}
RETRY_AFTER = {"Retry-After": header("While not ended: seconds until asking again.", "integer")}


@router.get(
    "/jobs/{job_id}",
    response_model=JobView,
    summary="Look at a job",
    responses={
        200: {"headers": {**ETAG, **RETRY_AFTER}},
        304: {"description": "Nothing changed since the ETag in If-None-Match."},
        **problems(_404="There is no such job, or it was forgotten.", _503="Redis is away."),
    },
)
def get_job(request: Request, job_id: JobId, services: ServicesDep) -> Response:
    """The job now. A job whose result has expired is still shown for a day, as `expired`."""
    return answer(request, services.queue.get(job_id))


@router.get(
    "/jobs/{job_id}/result",
    response_class=Response,
    summary="Fetch the result",
    responses={
        200: {
            "description": "The image.",
            "headers": {**ETAG, "Content-Disposition": header("A name for the file.")},
            "content": {
                f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
                for kind in ("png", "webp", "jpeg")
            },
        },
        304: {"description": "The image is the one named in If-None-Match."},
        **problems(
            _404="There is no such job, or it was forgotten.",
            _409="The job has not ended (see Retry-After), or ended without a result.",
            _410="The result has expired.",
            _503="Redis or the image store is away.",
        ),
    },
)
def get_result(request: Request, job_id: JobId, services: ServicesDep) -> Response:
    """The upscaled image. Its ETag is the sha256 of the file."""
    job = services.queue.get(job_id)
    result = _result(request, job)
    headers = {
        "ETag": f'"{result.sha256}"',
        "Cache-Control": f"private, max-age={_seconds_left(result)}, immutable",
    }
    if _matches(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    try:
        pieces = services.store.stream(result.key)
    except BlobNotFound:
        raise ResultExpired(f"The result of job {job.id} is gone.") from None
    headers["Content-Length"] = str(result.bytes)
    headers["Content-Disposition"] = _disposition(job, result)
    return StreamingResponse(pieces, media_type=result.media_type, headers=headers)


@router.delete(
    "/jobs/{job_id}",
    response_model=JobView,
    summary="Cancel a job",
    responses={
        200: {"description": "The job was waiting and is canceled."},
        202: {
            "description": "The job runs; it stops at its next step.",
            "model": JobView,
            "headers": RETRY_AFTER,
        },
        **problems(
            _404="There is no such job, or it was forgotten.",
            _409="The job has ended; an ended job never changes.",
            _503="Redis is away.",
        ),
    },
)
def cancel_job(request: Request, job_id: JobId, services: ServicesDep) -> Response:
    """Cancels a job; asking again while it is being stopped is no error."""
    job = services.queue.cancel(job_id)
    return answer(request, job, status=200 if job.state.ended else 202)


def answer(
    request: Request, job: Job, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The job as a response with its ETag, or 304 to a GET that knows this state already."""
    view = JobView.of(job, root(request))
    body = view.model_dump_json().encode()
    # The queue position moves without the record: only the whole body tells all changes.
    sent = {
        **(headers or {}),
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Cache-Control": "private, no-cache",
    }
    if not job.state.ended:
        sent["Retry-After"] = str(_retry_after(job))
    if request.method == "GET" and _matches(request, sent["ETag"]):
        return Response(status_code=304, headers=sent)
    return Response(body, status_code=status, headers=sent, media_type="application/json")


def root(request: Request) -> str:
    """The path under which the service is mounted; empty without a proxy's prefix."""
    path: str = request.scope.get("root_path", "")
    return path


def _retry_after(job: Job) -> int:
    """Seconds until a look is worth it: half of what is left, or a second a job in front."""
    if job.progress is not None and job.progress.eta_seconds is not None:
        wanted: float = job.progress.eta_seconds / 2
    else:
        wanted = job.queue_position or SOONEST_S
    return min(max(math.ceil(wanted), SOONEST_S), LATEST_S)


def _result(request: Request, job: Job) -> ResultInfo:
    """The result's file; raises ResultNotReady, NoResult or ResultExpired."""
    if job.state is JobState.SUCCEEDED and job.result is not None:
        return job.result
    if job.state is JobState.EXPIRED:
        raise ResultExpired(
            f"The result of job {job.id} has expired; submit the image again.",
            expired_at=job.expires_at.isoformat() if job.expires_at else None,
        )
    if not job.state.ended:
        raise ResultNotReady(
            f"Job {job.id} is {job.state}; its result comes when it has succeeded.",
            state=job.state.value,
            retry_after=_retry_after(job),
        )
    view = JobView.of(job, root(request))
    raise NoResult(
        f"Job {job.id} is {job.state} and has no result.", state=job.state.value, error=view.error
    )


def _seconds_left(result: ResultInfo) -> int:
    if result.expires_at is None:
        return 0
    return max(0, int((result.expires_at - datetime.now(UTC)).total_seconds()))


def _matches(request: Request, etag: str) -> bool:
    """Whether If-None-Match names this ETag (RFC 9110, 13.1.2: the weak comparison)."""
    given = request.headers.get("if-none-match", "")
    tags = [tag.strip().removeprefix("W/") for tag in given.split(",")]
    return etag in tags or tags == ["*"]


def _disposition(job: Job, result: ResultInfo) -> str:
    """The upload's name with the scale: photo.jpg at 4 becomes photo-4x.png."""
    stem = PurePath(job.input.filename or job.id).stem
    extension = result.media_type.rpartition("/")[2].replace("jpeg", "jpg")
    name = f"{stem}-{job.parameters.scale:g}x.{extension}"
    plain = name.encode("ascii", "replace").decode().replace('"', "_").replace("\\", "_")
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
