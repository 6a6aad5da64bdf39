"""POST /upscale: an image becomes a job."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from jobs.errors import QueueFull
from jobs.schema import Origin
from jobs.settings import Settings
from service.admission import UploaderDep
from service.answers import RETRY_AFTER, answer, root
from service.auth import Caller
from service.openapi import REQUEST_HEADERS, UPLOAD_BODY, header, problems
from service.parameters import check_query
from service.preferences import idempotency_key, wanted_wait
from service.schema import JobView
from service.state import Services, ServicesDep
from service.submission import submit
from service.uploads import check_head, received
from service.waiting import wait_for_end

__all__ = ["router"]

router = APIRouter(tags=["jobs"])

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
            _400="The form is broken, or a header field.",
            _401="An API key is needed, or the one given is wrong.",
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
async def upscale(request: Request, services: ServicesDep, caller: UploaderDep) -> Response:
    """Takes one image and how to upscale it, and answers with the job at once, or with
    `Prefer: wait=N` when it has ended, after N seconds (at most 60) at the latest.

    Fields that are left out, or empty, take the preset's defaults; without `preset` it is the one
    that `GET /models` calls the default. Unknown fields, fields given twice and parameters in the
    URL are refused, so that nothing asked for is silently ignored.

    With an `Idempotency-Key` the same request can be sent again without making another job.
    """
    settings = services.settings
    check_query(request.query_params)
    check_head(request, settings.max_upload_bytes)
    key, seconds = idempotency_key(request.headers), wanted_wait(request.headers)
    origin = _origin(request, settings, caller)
    await run_sync(_check_any_room, services, origin, key)
    with services.transfers.one(request.state.client_id):
        body = received(request, settings.max_upload_bytes, settings.upload_timeout_s)
        async with body as upload:
            job, replayed = await run_sync(submit, services, upload, origin, key)
    headers = {"Location": f"{root(request)}/jobs/{job.id}"}
    if replayed:
        headers["Idempotent-Replayed"] = "true"
    if seconds is not None:
        job, waited = await wait_for_end(request, services, job, seconds)
        if waited:
            headers["Preference-Applied"] = f"wait={seconds}"
    ended = job.state.ended and seconds is not None
    return answer(request, job, status=200 if ended else 202, headers=headers)


def _origin(request: Request, settings: Settings, caller: Caller) -> Origin:
    most = settings.max_queued_each if caller.max_queued is None else caller.max_queued
    return Origin(
        caller.owner,
        most or None,
        request.scope["state"]["request_id"],
        client=request.state.client_id,
    )


def _check_any_room(services: Services, origin: Origin, key: str | None) -> None:
    """Refuses before the body is read when no queue that is served has room, or none for the key.

    Which preset is meant, the body says; so this can only tell when all of them are full. What
    needs no room is not refused for it: a request whose job was made already.
    """
    queue = services.queue
    if key is not None and services.idempotency.made(origin.owner, key):
        return
    queue.check_quota(origin)
    full: QueueFull | None = None
    for preset in services.serving().live | {services.settings.preset}:
        try:
            queue.check_room(preset)
        except QueueFull as error:
            full = error
        else:
            return
    if full is not None:
        raise full
