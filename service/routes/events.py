"""GET /jobs/{id}/events: what happens to a job, as it happens (Server-Sent Events)."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import ExitStack

import anyio
import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from jobs.errors import JobNotFound, QueueUnavailable
from jobs.schema import Job
from service.admission import ReaderDep
from service.answers import root
from service.auth import token_of
from service.errors import Unauthorized
from service.listener import Watch
from service.middleware import is_head
from service.openapi import problems
from service.routes.jobs import JobId
from service.schema import JobView
from service.state import Services, ServicesDep

__all__ = ["router"]

log = structlog.stdlib.get_logger(__name__)

router = APIRouter(tags=["jobs"])

# Proxies close a connection on which nothing passes.
HEARTBEAT_S = 15.0
RECONNECT_MS = 2000
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventStream(StreamingResponse):
    """Gives back what it holds, whatever ends it, even before it began."""

    def __init__(self, events: AsyncGenerator[str, None], held: ExitStack) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._events = events
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._held.close()
            with anyio.CancelScope(shield=True):
                await self._events.aclose()


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
            _401="An API key is needed, or the one given is wrong.",
            _404="There is no such job, or it was forgotten.",
            _429="Too many requests, or too many open streams; see Retry-After.",
            _503="Redis is away.",
        ),
    },
)
async def follow_job(
    request: Request, job_id: JobId, services: ServicesDep, caller: ReaderDep
) -> Response:
    """Server-Sent Events. `state` comes first and whenever the state or the place in the queue
    changes, `progress` in between, `end` last. `Last-Event-ID` resumes: what it names and what
    was before is not told again."""
    seen = _last_event_id(request)
    job = await run_sync(services.queue.get, job_id, caller.owner)
    if job.state.ended and job.revision == seen:
        return Response(status_code=204)
    if is_head(request):
        return Response(media_type="text/event-stream", headers=HEADERS)
    with ExitStack() as held:
        held.enter_context(services.streams.one(request.state.client_id))
        watch = held.enter_context(services.listener.watch(job.id))
        told = _Told(root(request), seen)
        return EventStream(_events(request, services, job.id, watch, told), held.pop_all())


def _last_event_id(request: Request) -> int:
    """The revision a client knows; what is no revision is none, as of another server."""
    given = request.headers.get("last-event-id", "")
    return int(given) if given.isascii() and given.isdigit() and len(given) < 16 else 0


async def _events(
    request: Request, services: Services, job_id: str, watch: Watch, told: _Told
) -> AsyncGenerator[str, None]:
    """The stream's text, piece by piece."""

    def look() -> Job:
        # The key may be revoked while the stream is open.
        caller = services.authenticator.caller(token_of(request.headers))
        return services.queue.get(job_id, caller.owner)

    quiet_since = anyio.current_time()
    yield f"retry: {RECONNECT_MS}\n\n"
    while not services.listener.leaving:
        watch.renew()
        try:
            job = await run_sync(look)
        except QueueUnavailable:
            text, ended = "", False
        except (JobNotFound, Unauthorized):
            # Asking anew tells the client which of the two.
            return
        else:
            text, ended = told.news(job), job.state.ended
        if not text and anyio.current_time() - quiet_since >= HEARTBEAT_S:
            text = ": still here\n\n"
        if text:
            quiet_since = anyio.current_time()
            yield text
        if ended:
            return
        await watch.moved()


class _Told:
    """What the client has heard, to tell it only what is new."""

    def __init__(self, root: str, seen: int) -> None:
        self._root = root
        self._seen = seen
        self._state: object = None
        self._progress: object = None

    def news(self, job: Job) -> str:
        """The event to send for the job as it is now, or nothing."""
        state = (job.state, job.cancel_requested, job.attempt, job.queue_position)
        first, self._state, changed = self._state is None, state, state != self._state
        progressed, self._progress = job.progress != self._progress, job.progress
        if job.state.ended:
            return _event("end", job, JobView.of(job, self._root).model_dump_json())
        if first and job.revision <= self._seen:
            return ""
        if changed:
            return _event("state", job, JobView.of(job, self._root).model_dump_json())
        if progressed and job.progress is not None:
            return _event("progress", job, job.progress.model_dump_json())
        return ""


def _event(name: str, job: Job, data: str) -> str:
    return f"id: {job.revision}\nevent: {name}\ndata: {data}\n\n"
