"""Requests that wait: for a job's end, for an image from elsewhere, while their client does too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import anyio
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from jobs.errors import JobNotFound, QueueUnavailable
from jobs.schema import Job
from service.admission import Services

T = TypeVar("T")
# Proxies give a request up after a minute.
MAX_WAIT_S = 50


def wait_s(headers: Headers) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), at most 50; None without that preference.

    A preference that makes no sense is as none, as the RFC says; of several the first counts.
    """
    for preference in ",".join(headers.getlist("prefer")).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        value = value.strip().strip('"')
        if name.strip().lower() == "wait" and value.isascii() and value.isdigit():
            return min(int(value[:9]), MAX_WAIT_S)
    return None


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
