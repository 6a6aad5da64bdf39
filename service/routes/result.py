"""GET /jobs/{id}/result: the upscaled image, whole or a part of it."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from jobs.errors import BlobNotFound
from jobs.schema import Job, JobState, ResultInfo
from jobs.store import file_fields
from service.admission import ReaderDep, services_of
from service.middleware import is_head
from service.openapi import header, problems
from service.problems import HTTPError, root_path
from service.routes.jobs import ETAG, HeldStream, JobId, has_etag, retry_after
from service.schema import JobView

# First and last byte, or how many at the end.
_BYTES = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))", re.IGNORECASE)
Direct = Annotated[
    bool, Query(description="The service sends the image itself, where it would give a link (307)")
]
router = APIRouter(tags=["jobs"])

IMAGE = {
    f"image/{kind}": {"schema": {"type": "string", "format": "binary"}}
    for kind in ("png", "webp", "jpeg", "tiff", "avif")
}


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
        307: {
            "description": "The image is in its store; the link works for a while, without a key.",
            "headers": {"Location": header("The link.")},
        },
        304: {"description": "The image is the one named in If-None-Match."},
        **problems(
            401,
            404,
            _409="The job has not ended (see Retry-After), or ended without a result.",
            _410="The result has expired.",
            _416="The result has no byte in this range.",
            _429="Too many requests or transfers; see Retry-After.",
            _503="Redis or the image store is away.",
        ),
    },
)
async def get_result(
    request: Request, job_id: JobId, caller: ReaderDep, direct: Direct = False
) -> Response:
    """The upscaled image. Its ETag is the sha256 of the file; one Range at a time is served."""
    job = await services_of(request).jobs.get(job_id, caller.owner)
    return await send_result(request, job, caller.client, direct=direct)


async def send_result(request: Request, job: Job, client: str, *, direct: bool) -> Response:
    """The answer with a job's result, counted as a transfer of the client, or where it leads."""
    services, result = services_of(request), _result(request, job)
    headers = {
        "ETag": f'"{result.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": f"private, max-age={_seconds_left(result)}, immutable",
        "Vary": "Authorization, X-API-Key",
        **file_fields(job, result.media_type),
    }
    if has_etag(request, headers["ETag"]):
        return Response(status_code=304, headers=headers)
    link_s = min(services.settings.links_s, _seconds_left(result))
    if link_s and not (direct or is_head(request)):
        link = await services.store_threads.run(partial(services.store.link, result.key, link_s))
        return Response(status_code=307, headers={"Location": link, "Cache-Control": "no-store"})
    part = _byte_range(request, headers["ETag"], result.bytes)
    start, end = part or (0, result.bytes)
    headers["Content-Length"] = str(end - start)
    status = 200
    if part is not None:
        status = 206
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{result.bytes}"
    missing = HTTPError("result-expired", f"The result of job {job.id} is gone.")
    if is_head(request):
        if not await services.store_threads.run(partial(services.store.exists, result.key)):
            raise missing
        return Response(status_code=status, headers=headers)
    async with AsyncExitStack() as stack:
        stack.enter_context(services.transfers.slot(client))
        try:
            stream = partial(services.store.stream, result.key, part)
            pieces = await services.store_threads.run(stream)
        except BlobNotFound:
            raise missing from None
        # A client that leaves half way must not leave a file open.
        stack.callback(pieces.close)
        content = services.store_threads.iterate(pieces)
        return HeldStream(content, stack.pop_all(), status, headers)


def _byte_range(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """The bytes from and up to but without, that Range asks for, or None for the whole.

    Several ranges at once, other units and nonsense get the whole, as RFC 9110 allows (section
    14.2). Raises HTTPError for a range that has no byte of the file.
    """
    # A part only of what the client has the rest of (section 13.1.5: the strong comparison).
    if request.headers.get("if-range", etag) != etag:
        return None
    field = request.headers.get("range", "")
    match = _BYTES.fullmatch(field.replace(" ", ""))
    if match is None:
        return None
    first, last, suffix = match.groups()
    if suffix:
        start, end = max(0, size - int(suffix)), size
    elif last and int(last) < int(first):
        return None
    else:
        start, end = int(first), min(size, int(last or size) + 1)
    if start >= end:
        raise HTTPError(
            "range-not-satisfiable",
            f"The range {field} has no byte of the result, which has {size}.",
            {"Content-Range": f"bytes */{size}"},
            size=size,
        )
    return start, end


def _result(request: Request, job: Job) -> ResultInfo:
    """The result's file; raises HTTPError when there is none."""
    if job.state is JobState.SUCCEEDED and job.result is not None:
        return job.result
    if job.state is JobState.EXPIRED:
        raise HTTPError(
            "result-expired",
            f"The result of job {job.id} has expired; submit the image again.",
            expired_at=job.expires_at.isoformat() if job.expires_at else None,
        )
    if not job.state.is_final:
        raise HTTPError(
            "result-not-ready",
            f"Job {job.id} is {job.state}; its result comes when it has succeeded.",
            state=job.state.value,
            retry_after=retry_after(job),
        )
    view = JobView.of(job, root_path(request))
    detail = f"Job {job.id} is {job.state} and has no result."
    raise HTTPError("no-result", detail, state=job.state.value, error=view.error)


def _seconds_left(result: ResultInfo) -> int:
    if result.expires_at is None:
        return 0
    return max(0, int((result.expires_at - datetime.now(UTC)).total_seconds()))
