"""Waiting for a job's end inside a request, without a thread, and only while the client does."""

from __future__ import annotations

import anyio
from anyio.to_thread import run_sync
from fastapi import Request

from jobs.errors import JobNotFound, QueueUnavailable
from jobs.schema import Job
from service.errors import TooManyStreams
from service.listener import LOOK_S
from service.state import Services

__all__ = ["wait_for_end"]


async def wait_for_end(
    request: Request, services: Services, job: Job, seconds: int
) -> tuple[Job, bool]:
    """The job when it has ended, or as it is after so many seconds or when the client has left.

    The request's body must have been read. The second value says whether there was a place to
    wait at all: with too many waiting requests the job comes back at once.
    """
    try:
        with services.streams.one(request.state.client_id):
            return await _wait(request, services, job, seconds), True
    except TooManyStreams:
        return job, False


async def _wait(request: Request, services: Services, job: Job, seconds: int) -> Job:
    latest = job

    async def look_until_ended(scope: anyio.CancelScope) -> None:
        nonlocal latest
        with services.listener.watch(job.id, ends_only=True) as watch:
            while not services.listener.leaving:
                watch.renew()
                try:
                    latest = await run_sync(services.queue.get, job.id, job.owner)
                except JobNotFound:
                    break
                except QueueUnavailable:
                    # The job is safe; waiting on is what was asked for.
                    pass
                if latest.state.ended:
                    break
                await watch.moved(LOOK_S)
        scope.cancel()

    async def notice_leaving(scope: anyio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look_until_ended, tasks.cancel_scope)
            tasks.start_soon(notice_leaving, tasks.cancel_scope)
    return latest
