"""GET /jobs/{id}/result: the upscaled image, whole or a part of it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import PurePath
from urllib.parse import quote

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jobs.errors import BlobNotFound
from jobs.schema import Job, JobState, ResultInfo
from service.admission import ReaderDep
from service.answers import ETAG, known, retry_after, root
from service.errors import NoResult, ResultExpired, ResultNotReady
from service.middleware import is_head
from service.openapi import header, problems
from service.ranges import Range, wanted_range
from service.routes.jobs import JobId
from service.schema import JobView
from service.state import Services, ServicesDep

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

IMAGE = {
    f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
    for kind in ("png", "webp", "jpeg", "tiff")
}


class Download(StreamingResponse):
    """The pieces of a file; gives back what it holds, whatever ends it."""

    def __init__(
        self,
        pieces: Generator[bytes, None, None],
        held: ExitStack,
        status: int,
        headers: dict[str, str],
    ) -> None:
        super().__init__(pieces, status_code=status, headers=headers)
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await super().__call__(scope, receive, send)


@router.get(
    "/jobs/{job_id}/result",
    response_class=Response,
    summary="Fetch the result",
    responses={
        200: {
            "description": "The image.",
            "headers": {
                **ETAG,
                "Accept-Ranges": header("`bytes`: a Range is answered with 206."),
                "Content-Disposition": header("A name for the file."),
            },
            "content": IMAGE,
        },
        206: {
            "description": "The part of the image that Range asks for.",
            "headers": {**ETAG, "Content-Range": header("Which part of how much.")},
            "content": IMAGE,
        },
        304: {"description": "The image is the one named in If-None-Match."},
        **problems(
            _401="An API key is needed, or the one given is wrong.",
            _404="There is no such job, or it was forgotten.",
            _409="The job has not ended (see Retry-After), or ended without a result.",
            _410="The result has expired.",
            _416="The result has no byte in this range.",
            _429="Too many requests or transfers; see Retry-After.",
            _503="Redis or the image store is away.",
        ),
    },
)
async def get_result(
    request: Request, job_id: JobId, services: ServicesDep, caller: ReaderDep
) -> Response:
    """The upscaled image. Its ETag is the sha256 of the file; one Range at a time is served."""
    job = await run_sync(services.queue.get, job_id, caller.owner)
    result = _result(request, job)
    headers = {
        "ETag": f'"{result.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={_seconds_left(result)}, immutable",
        "Vary": "Authorization, X-API-Key",
        "Content-Disposition": _disposition(job, result),
    }
    if known(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    # A part only of what the client has the rest of (RFC 9110, 13.1.5: the strong comparison).
    if request.headers.get("if-range", headers["ETag"]) == headers["ETag"]:
        part = wanted_range(request.headers.get("range"), result.bytes)
    else:
        part = None
    if part is None:
        headers["Content-Length"] = str(result.bytes)
    else:
        headers["Content-Length"] = str(part.end - part.start)
        headers["Content-Range"] = part.content_range
    headers["Content-Type"] = result.media_type
    status = 200 if part is None else 206
    if is_head(request):
        await run_sync(_look, services, job, result)
        return Response(status_code=status, headers=headers)
    with ExitStack() as held:
        held.enter_context(services.transfers.one(request.state.client_id))
        pieces = await run_sync(_open, services, job, result, part)
        # Whoever leaves half way must not leave a file open.
        held.callback(pieces.close)
        return Download(pieces, held.pop_all(), status, headers)


def _open(
    services: Services, job: Job, result: ResultInfo, part: Range | None
) -> Generator[bytes, None, None]:
    start, end = (0, None) if part is None else (part.start, part.end)
    try:
        return services.store.stream(result.key, start, end)
    except BlobNotFound:
        raise _gone(job) from None


def _look(services: Services, job: Job, result: ResultInfo) -> None:
    if not services.store.exists(result.key):
        raise _gone(job)


def _gone(job: Job) -> ResultExpired:
    return ResultExpired(f"The result of job {job.id} is gone.")


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
            retry_after=retry_after(job),
        )
    view = JobView.of(job, root(request))
    raise NoResult(
        f"Job {job.id} is {job.state} and has no result.", state=job.state.value, error=view.error
    )


def _seconds_left(result: ResultInfo) -> int:
    if result.expires_at is None:
        return 0
    return max(0, int((result.expires_at - datetime.now(UTC)).total_seconds()))


def _disposition(job: Job, result: ResultInfo) -> str:
    """The upload's name with the scale (RFC 6266): photo.jpg at 4 becomes photo-4x.png."""
    stem = PurePath(job.input.filename or job.id).stem
    extension = result.media_type.rpartition("/")[2].replace("jpeg", "jpg")
    name = f"{stem}-{job.parameters.scale:g}x.{extension}"
    plain = "".join(
        letter if letter.isascii() and letter.isprintable() and letter not in '"\\%' else "_"
        for letter in name
    )
    # What UTF-8 cannot say, a name from a broken form, must not end the answer.
    encoded = quote(name.encode("utf-8", "replace"), safe="")
    return f"inline; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
