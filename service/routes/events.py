"""GET /jobs/{id}/events: what happens to a job, as it happens (Server-Sent Events)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing

import anyio
from fastapi import APIRouter, Request, Response

from jobs.errors import JobNotFound, QueueUnavailable
from jobs.schema import ANYONE
from service.admission import ReaderDep, Services, services_of
from service.middleware import is_head
from service.openapi import problems
from service.problems import AuthenticationError, root_path
from service.routes.jobs import HeldStream, JobId
from service.schema import JobView

router = APIRouter(tags=["jobs"])

# Proxies close a connection on which nothing passes.
HEARTBEAT_S = 15.0
RECONNECT_MS = 2000
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    summary="Follow a job",
    responses={
        200: {
            "description": "Events until the job ends: `state` and `end` carry the job, "
            "`progress` its progress; an event's id is the job's revision.",
            "content": {
                "text/event-stream": {
                    "schema": {
                        "type": "object",
                        "description": "One event; `data` is JSON",
                        "properties": {
                            "id": {"type": "string", "pattern": "^[0-9]+$"},
                            "event": {"type": "string", "enum": ["state", "progress", "end"]},
                            "data": {"type": "string", "contentMediaType": "application/json"},
                            "retry": {"type": "string", "pattern": "^[0-9]+$"},
                        },
                    },
                    "example": "retry: 2000\n\nid: 3\nevent: progress\n"
                    'data: {"stage":"denoise","step":2,"steps":4,"fraction":0.47,'
                    '"eta_seconds":1.5}\n\n',
                }
            },
        },
        204: {"description": "The job has ended, and Last-Event-ID says that this is known."},
        **problems(
            401, 404, 503, _429="Too many requests, or too many open streams; see Retry-After."
        ),
    },
)
async def follow_job(request: Request, job_id: JobId, caller: ReaderDep) -> Response:
    """Server-Sent Events. `state` comes first and whenever the state or the place in the queue
    changes, `progress` in between, `end` last. `Last-Event-ID` resumes: what it names and what
    was before is not told again."""
    services = services_of(request)
    revision = _last_event_id(request)
    job = await services.jobs.get(job_id, caller.owner)
    if job.state.is_final and job.revision == revision:
        return Response(status_code=204)
    if is_head(request):
        return Response(headers=HEADERS)
    async with AsyncExitStack() as stack:
        stack.enter_context(services.streams.slot(caller.client))
        events = _events(request, services, job.id, revision)
        stack.push_async_callback(events.aclose)
        return HeldStream(events, stack.pop_all(), 200, HEADERS)


def _last_event_id(request: Request) -> int:
    """The revision a client knows; what is no revision is none, as of another server."""
    field = request.headers.get("last-event-id", "")
    return int(field) if field.isascii() and field.isdigit() and len(field) < 16 else 0


async def _events(
    request: Request, services: Services, job_id: str, revision: int
) -> AsyncGenerator[str, None]:
    """The stream's text, piece by piece: what is new to a client that knows the job's revision."""
    quiet_since = anyio.current_time()
    known_state: object = None
    known_progress: object = None
    yield f"retry: {RECONNECT_MS}\n\n"
    async with aclosing(services.listener.watch(job_id)) as watch:
        async for _ in watch:
            try:
                # The key may be revoked while the stream is open.
                key = await services.authenticator.key(request.headers)
                job = await services.jobs.get(job_id, ANYONE if key is None else key.id)
            except QueueUnavailable:
                name = None
            except (JobNotFound, AuthenticationError):
                # Asking anew tells the client which of the two.
                return
            else:
                state = job.state, job.cancel_requested, job.attempt, job.queue_position
                if job.state.is_final:
                    name = "end"
                elif known_state is None and job.revision <= revision:
                    name = None
                elif state != known_state:
                    name = "state"
                else:
                    name = "progress" if job.progress not in (None, known_progress) else None
                known_state, known_progress = state, job.progress
            if name is not None:
                content = job.progress if name == "progress" else None
                data = (content or JobView.of(job, root_path(request))).model_dump_json()
                quiet_since = anyio.current_time()
                yield f"id: {job.revision}\nevent: {name}\ndata: {data}\n\n"
            elif anyio.current_time() - quiet_since >= HEARTBEAT_S:
                quiet_since = anyio.current_time()
                yield ": still here\n\n"
            if name == "end":
                return
