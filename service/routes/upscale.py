"""POST /upscale: an image becomes a job, whose end the request may wait for."""

from __future__ import annotations

import re
from contextlib import aclosing, suppress
from functools import partial

import anyio
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers

from jobs.errors import JobNotFound, QueueUnavailable
from jobs.schema import Job, Origin
from jobs.workers import Capacity
from service.admission import Services, admit, services_of
from service.openapi import REQUEST_HEADERS, UPLOAD_BODY, header, problems
from service.problems import HTTPError, root_path
from service.ratelimit import TooManyOpen
from service.routes.jobs import RETRY_AFTER, answer
from service.schema import JobView
from service.submission import check_capacity, submit
from service.uploads import check_head, receive_form

router = APIRouter(tags=["jobs"])

MAX_WAIT_S = 60
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
HEADERS = {
    "Location": header("The job's path."),
    "Preference-Applied": header("`wait=N` when the request waited for the job's end."),
    "Idempotent-Replayed": header("`true` when an earlier request made the job."),
}


@router.post(
    "/upscale",
    status_code=202,
    response_model=JobView,
    summary="Upscale an image",
    response_description="The job is queued or runs; ask for it at `Location`.",
    openapi_extra={**UPLOAD_BODY, "parameters": REQUEST_HEADERS},
    responses={
        200: {
            "description": "The job has ended, within the time of `Prefer: wait`.",
            "model": JobView,
            "headers": HEADERS,
        },
        202: {"headers": {**HEADERS, **RETRY_AFTER}},
        **problems(
            401,
            _400="The form is broken, or a header field.",
            _408="The upload stopped half way, or took too long.",
            _409="The first request with this Idempotency-Key is still being handled.",
            _413="The body is larger than `max_upload_bytes`.",
            _415="The body is not multipart/form-data, or it is compressed.",
            _422="The file is not a whole still image within the limits, a field is wrong, or the "
            "Idempotency-Key belongs to another request.",
            _429="Too many requests or transfers, or too many jobs of this client wait; see "
            "Retry-After.",
            _503="The queue is full, or Redis or the image store is away; see Retry-After. Or the "
            "worker has no weights for this preset.",
        ),
    },
)
async def upscale(request: Request) -> Response:
    """Takes one image and how to upscale it, and answers with the job at once, or with
    `Prefer: wait=N` when it has ended, after N seconds (at most 60) at the latest.

    Fields that are left out, or empty, take the preset's defaults; without `preset` it is the one
    that `GET /models` calls the default. Unknown fields, fields given twice and parameters in the
    URL are refused, so that nothing asked for is silently ignored.

    With an `Idempotency-Key` the same request can be sent again without making another job.
    """
    services = services_of(request)
    settings = services.settings
    caller, raw = await admit(
        request, upload=True, command=lambda caller: Capacity.command(caller.owner or caller.client)
    )
    check_head(request, settings.max_upload_bytes)
    key, seconds = _idempotency_key(request.headers), _wait_s(request.headers)
    own_limit = None if caller.key is None else caller.key.max_queued
    most = settings.max_queued_each if own_limit is None else own_limit
    request_id = request.state.request_id
    origin = Origin(caller.owner, most or None, request_id, client=caller.client)
    capacity = Capacity.of(raw)
    # What needs no room is not refused for it: a request whose job was made already.
    if key is None or not await run_sync(services.idempotency.has_job, caller.owner, key):
        check_capacity(services, origin, capacity)
    with services.transfers.slot(caller.client):
        body = receive_form(request, settings.max_upload_bytes, settings.upload_timeout_s)
        async with body as upload:
            job, is_replay = await services.store_threads.run(
                partial(submit, services, upload, origin, key, capacity)
            )
    headers = {"Location": f"{root_path(request)}/jobs/{job.id}"}
    if is_replay:
        headers["Idempotent-Replayed"] = "true"
    status = 202
    if seconds is not None:
        with suppress(TooManyOpen), services.streams.slot(caller.client):
            job = await _wait_for_end(request, services, job, seconds)
            headers["Preference-Applied"] = f"wait={seconds}"
        status = 200 if job.state.is_final else 202
    return answer(request, job, status=status, headers=headers)


def _wait_s(headers: Headers) -> int | None:
    """The seconds of `Prefer: wait=N` (RFC 7240), at most 60; None without that preference.

    A preference that makes no sense is as none, as the RFC says; of several the first counts.
    """
    for preference in ",".join(headers.getlist("prefer")).split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        value = value.strip().strip('"')
        if name.strip().lower() == "wait" and value.isascii() and value.isdigit():
            return min(int(value[:9]), MAX_WAIT_S)
    return None


def _idempotency_key(headers: Headers) -> str | None:
    """The `Idempotency-Key` of a request, or None without one; raises HTTPError."""
    keys = headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise HTTPError(
            "malformed-header",
            "Idempotency-Key must be given once, as 1 to 255 visible ASCII characters, such as a "
            "UUID.",
        )
    return keys[0]


async def _wait_for_end(request: Request, services: Services, job: Job, seconds: int) -> Job:
    """The job when it has ended, or as it is after so many seconds or when the client has left.

    It takes no thread. The request's body must have been read.
    """

    async def notice_leaving(scope: anyio.CancelScope) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    watch = services.listener.watch(job.id, ends_only=True)
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tasks, aclosing(watch):
            tasks.start_soon(notice_leaving, tasks.cancel_scope)
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
