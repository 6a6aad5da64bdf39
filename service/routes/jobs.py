"""/jobs: all jobs of a client, one of them, and its end on demand."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Path, Query, Request, Response

from jobs.listing import Cursor
from jobs.schema import JobState
from service.admission import ReaderDep
from service.answers import ETAG, RETRY_AFTER, answer, root
from service.openapi import header, problems
from service.schema import JobsView, JobView
from service.state import ServicesDep

__all__ = ["JobId", "router"]

router = APIRouter(tags=["jobs"])

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


@router.get(
    "/jobs",
    summary="List your jobs",
    responses={
        200: {"headers": {"Link": header('The next page, as `rel="next"` (RFC 8288).')}},
        **problems(
            _401="An API key is needed, or the one given is wrong.",
            _422="A parameter is wrong, or the cursor is not one of this server's.",
            _429="Too many requests; see Retry-After.",
            _503="Redis is away.",
        ),
    },
)
def list_jobs(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: ReaderDep,
    limit: Limit = 20,
    state: State = None,
    cursor: After = None,
) -> JobsView:
    """The jobs of the asking key, newest first; without keys, all that were submitted without one.

    A page may hold fewer jobs than `limit`, even none, while `next` leads on: of a rare state in
    a long list. Jobs that come meanwhile do not shift the pages.
    """
    after = None if cursor is None else Cursor.parse(cursor)
    page = services.queue.page(caller.owner, limit=limit, state=state, cursor=after)
    following = None
    if page.next is not None:
        query = {"limit": str(limit), "cursor": str(page.next)}
        if state is not None:
            query["state"] = state.value
        following = f"{root(request)}/jobs?{urlencode(query)}"
        response.headers["Link"] = f'<{following}>; rel="next"'
    jobs = [JobView.of(job, root(request)) for job in page.jobs]
    return JobsView(jobs=jobs, next=following)


@router.get(
    "/jobs/{job_id}",
    response_model=JobView,
    summary="Look at a job",
    responses={
        200: {"headers": {**ETAG, **RETRY_AFTER}},
        304: {"description": "Nothing changed since the ETag in If-None-Match."},
        **problems(
            _401="An API key is needed, or the one given is wrong.",
            _404="There is no such job, or it was forgotten.",
            _429="Too many requests; see Retry-After.",
            _503="Redis is away.",
        ),
    },
)
def get_job(request: Request, job_id: JobId, services: ServicesDep, caller: ReaderDep) -> Response:
    """The job now. A job whose result has expired is still shown for a day, as `expired`."""
    return answer(request, services.queue.get(job_id, caller.owner))


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
            _401="An API key is needed, or the one given is wrong.",
            _404="There is no such job, or it was forgotten.",
            _409="The job has ended; an ended job never changes.",
            _429="Too many requests; see Retry-After.",
            _503="Redis is away.",
        ),
    },
)
def cancel_job(
    request: Request, job_id: JobId, services: ServicesDep, caller: ReaderDep
) -> Response:
    """Cancels a job; asking again while it is being stopped is no error."""
    job = services.queue.cancel(job_id, caller.owner)
    return answer(request, job, status=200 if job.state.ended else 202)
