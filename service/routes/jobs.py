"""/jobs: all jobs of a client, one of them, its end and that of its images on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Annotated
from urllib.parse import urlencode

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Path, Query, Request, Response
from starlette.responses import ContentStream, StreamingResponse
from starlette.types import Receive, Scope, Send

from jobs.errors import JobEnded
from jobs.listing import Cursor
from jobs.schema import Job, JobState
from service.admission import ReaderDep, admit, services_of
from service.openapi import header, problems
from service.problems import root_path
from service.schema import JobsView, JobView

router = APIRouter(tags=["jobs"])

# Asked more often than this, or less, a client would waste requests or its user's time.
SOONEST_S, LATEST_S = 1, 10

ETAG = {"ETag": header("Names this state of the answer; send it as If-None-Match.")}
RETRY_AFTER = {"Retry-After": header("While not ended: seconds until asking again.", "integer")}


JobId = Annotated[str, Path(description="The job's id, as `POST /upscale` gave it")]
Limit = Annotated[int, Query(ge=1, le=100, description="Jobs a page, at most")]
State = Annotated[JobState | None, Query(description="Only jobs in this state")]
After = Annotated[
    str | None,
    Query(
        max_length=200,
        description="From `next` of the page before",
        json_schema_extra={"format": "cursor"},
    ),
]


def answer(
    request: Request, job: Job, *, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The job as a response with its ETag, or 304 to a GET that knows this state already."""
    # The queue moves without the record, so its revision alone does not tell all changes.
    fields = {**(headers or {}), "ETag": f'"{job.revision}.{job.queue_position or 0}"'}
    if not job.state.is_final:
        fields["Retry-After"] = str(retry_after(job))
    if request.method == "GET" and has_etag(request, fields["ETag"]):
        return Response(status_code=304, headers=fields)
    body = JobView.of(job, root_path(request)).model_dump_json()
    return Response(body, status_code=status, headers=fields, media_type="application/json")


def retry_after(job: Job) -> int:
    """Seconds until a look is worth it: half of what is left, or a second a job in front."""
    if job.progress is not None and job.progress.eta_seconds is not None:
        seconds: float = job.progress.eta_seconds / 2
    else:
        seconds = job.queue_position or SOONEST_S
    return min(max(math.ceil(seconds), SOONEST_S), LATEST_S)


def has_etag(request: Request, etag: str) -> bool:
    """Whether If-None-Match names this ETag (RFC 9110, 13.1.2: the weak comparison)."""
    field = request.headers.get("if-none-match", "")
    tags = [tag.strip().removeprefix("W/") for tag in field.split(",")]
    return etag in tags or tags == ["*"]


class HeldStream(StreamingResponse):
    """A body in pieces that gives back what it holds, whatever ends it, even before it began."""

    def __init__(
        self, content: ContentStream, stack: AsyncExitStack, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(content, status_code=status, headers=headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._stack.aclose()


@router.get(
    "/jobs",
    response_model=JobsView,
    summary="List your jobs",
    responses={
        200: {"headers": {"Link": header('The next page, as `rel="next"` (RFC 8288).')}},
        **problems(
            401, 429, 503, _422="A parameter is wrong, or the cursor is not one of this server's."
        ),
    },
)
def list_jobs(
    request: Request,
    caller: ReaderDep,
    limit: Limit = 20,
    state: State = None,
    cursor: After = None,
) -> Response:
    """The jobs of the asking key, newest first; without keys, all that were submitted without one.

    A page may hold fewer jobs than `limit`, even none, while `next` leads on. Jobs that come
    meanwhile do not shift the pages.
    """
    after = None if cursor is None else Cursor.parse(cursor)
    queue, root = services_of(request).queue, root_path(request)
    page = queue.page(caller.owner, limit=limit, state=state, cursor=after)
    view = JobsView(jobs=[JobView.of(job, root) for job in page.jobs], next=None)
    headers = {}
    if page.next is not None:
        query = {"limit": str(limit), "cursor": str(page.next)}
        if state is not None:
            query["state"] = state.value
        view.next = f"{root}/jobs?{urlencode(query)}"
        headers["Link"] = f'<{view.next}>; rel="next"'
    return Response(view.model_dump_json(), headers=headers, media_type="application/json")


@router.get(
    "/jobs/{job_id}",
    response_model=JobView,
    summary="Look at a job",
    responses={
        200: {"headers": {**ETAG, **RETRY_AFTER}},
        304: {"description": "Nothing changed since the ETag in If-None-Match."},
        **problems(401, 404, 429, 503),
    },
)
async def get_job(request: Request, job_id: JobId) -> Response:
    """The job now. A job whose result has expired is still shown for a day, as `expired`."""
    reader = services_of(request).jobs
    # Clients poll: the admission and the job are one call to Redis.
    caller, raw = await admit(request, command=lambda _: reader.command(job_id))
    return answer(request, await reader.job_of(raw, job_id, caller.owner))


@router.delete(
    "/jobs/{job_id}",
    response_model=JobView,
    summary="Cancel a job, or remove its images",
    responses={
        200: {
            "description": "The job was waiting and is canceled; or it had ended, and its images "
            "are removed."
        },
        202: {
            "description": "The job runs; it stops at its next step.",
            "model": JobView,
            "headers": RETRY_AFTER,
        },
        **problems(401, 404, 429, _503="Redis or the image store is away."),
    },
)
async def delete_job(request: Request, job_id: JobId, caller: ReaderDep) -> Response:
    """Cancels a job that waits or runs; removes the images of one that has ended, which is then
    `expired` if it had succeeded, and else stays as it is. Asking again is no error."""
    services = services_of(request)
    try:
        job = await run_sync(services.queue.cancel, job_id, caller.owner)
    except JobEnded:
        job = await services.store_threads.run(
            partial(services.queue.purge, services.store, job_id)
        )
    return answer(request, job, status=200 if job.state.is_final else 202)
