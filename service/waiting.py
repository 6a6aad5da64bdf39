"""Requests that wait: for a job's end, for an image from elsewhere, while their client does too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from jobs.errors import JobEnded, JobNotFound, QueueUnavailable
from jobs.job_store import QUEUE_TTL_S
from jobs.schema import Job, JobState
from service.admission import Services, services_of
from service.problems import HTTPError

T = TypeVar("T")
# Proxies give a request up after a minute.
MAX_WAIT_S = 50


def preferences(headers: Headers) -> dict[str, str]:
    """What `Prefer` asks for (RFC 7240), by name in small letters; of several the first counts."""
    result = dict[str, str]()
    for preference in ",".join(headers.getlist("prefer")).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        result.setdefault(name.strip().lower(), value.strip().strip('"'))
    return result


def wait_s(headers: Headers) -> int | None:
    """The seconds of `Prefer: wait=N`, at most 50; None without that preference.

    A preference that makes no sense is as none, as the RFC says.
    """
    value = preferences(headers).get("wait", "")
    return min(int(value[:9]), MAX_WAIT_S) if value.isascii() and value.isdigit() else None


async def while_connected(request: Request, call: Callable[[], Awaitable[T]]) -> T:
    """What the call returns or raises; it is canceled, with ClientDisconnect, when the client
    leaves. The request's body must have been read.
    """
    fault: Exception = ClientDisconnect()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_cancel_when_left, request, tasks.cancel_scope)
        try:
            return await call()
        # Whatever it is, leaving the group would wrap it.
        except Exception as error:
            fault = error
        finally:
            tasks.cancel_scope.cancel()
    raise fault


async def _cancel_when_left(request: Request, scope: anyio.CancelScope) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


async def wait_for_end(request: Request, services: Services, job: Job, seconds: float) -> Job:
    """The job when it has ended, or as it is after so many seconds or when the client has left.

    It takes no thread. The request's body must have been read.
    """
    watch = services.listener.watch(job.id, ends_only=True)
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks, aclosing(watch):
            tasks.start_soon(_cancel_when_left, request, tasks.cancel_scope)
            async for _ in watch:
                try:
                    job = await services.jobs.get(job.id, job.owner)
                except QueueUnavailable:
                    # The job is safe; waiting on is what was asked for.
                    continue
                except JobNotFound:
                    break
                if job.state.is_final:
                    break
            tasks.cancel_scope.cancel()
    return job


def patience(services: Services) -> int:
    """Seconds that a job may wait for a worker while its request is held open."""
    return min(services.settings.job_timeout_s, QUEUE_TTL_S)


async def ends_of(request: Request, client: str, *jobs: Job) -> list[Job]:
    """The jobs when all have ended. Raises TooManyOpen, and HTTPError if the client left or this
    server is to stop; then it cancels them, for no client knows them."""
    services, ends = services_of(request), []
    try:
        with services.streams.slot(client):
            for job in jobs:
                # A worker that is lost has its job done again.
                end = await wait_for_end(request, services, job, 10 * patience(services))
                if not end.state.is_final:
                    detail = f"Job {job.id} had not ended when its request did, and is canceled."
                    raise HTTPError("not-ready", detail, retry_after=1)
                ends.append(end)
    except BaseException:
        await cancel(services, *jobs)
        raise
    return ends


async def cancel(services: Services, *jobs: Job) -> None:
    """Cancels those of the jobs that have not ended, whatever ends this request."""
    with anyio.CancelScope(shield=True):
        for job in jobs:
            with suppress(JobEnded, JobNotFound):
                await run_sync(services.queue.cancel, job.id, job.owner)


def check_success(job: Job) -> Job:
    """The same job; raises HTTPError for one that failed or was canceled."""
    if job.state is JobState.SUCCEEDED:
        return job
    detail = job.error.detail if job.error else f"Job {job.id} is {job.state}."
    raise HTTPError("job-failed", detail, cause=job.error.type if job.error else None)
