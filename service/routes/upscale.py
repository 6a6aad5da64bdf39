"""POST /upscale: an image becomes a job."""

from __future__ import annotations

from typing import BinaryIO

import structlog
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response

from jobs.errors import QueueFull, StoreUnavailable
from jobs.schema import Job, new_job_id
from jobs.store import input_key
from service.images import inspect
from service.openapi import UPLOAD_BODY, header, problems
from service.parameters import check_query, parse
from service.routes.jobs import answer, root
from service.schema import JobView
from service.state import Services, ServicesDep
from service.uploads import Upload, check_head, received

__all__ = ["router"]

log = structlog.stdlib.get_logger(__name__)

router = APIRouter(tags=["jobs"])


@router.post(
    "/upscale",
    status_code=202,
    response_model=JobView,
    summary="Upscale an image",
    response_description="The job is queued; ask for it at `Location`.",
    openapi_extra=UPLOAD_BODY,
    responses={
        202: {
            "headers": {
                "Location": header("The job's path."),
                "Retry-After": header("Seconds until asking for the job is worth it.", "integer"),
            }
        },
        **problems(
            _400="The form is broken.",
            _408="The upload stopped half way.",
            _413="The body is larger than `max_upload_bytes`.",
            _415="The body is not multipart/form-data.",
            _422="The file is not a whole still image within the limits, or a field is wrong.",
            _503="The queue is full, or Redis or the image store is away; see Retry-After.",
        ),
    },
)
async def upscale(request: Request, services: ServicesDep) -> Response:
    """Takes one image and how to upscale it, and answers with the job at once.

    Fields that are left out, or empty, take the preset's defaults. Unknown fields, fields given
    twice and parameters in the URL are refused, so that nothing asked for is silently ignored.
    """
    limit = services.settings.max_upload_bytes
    check_query(request.query_params)
    check_head(request, limit)
    await run_sync(_check_any_room, services)
    async with received(request, limit) as upload:
        job = await run_sync(_submit, services, upload)
    return answer(request, job, status=202, headers={"Location": f"{root(request)}/jobs/{job.id}"})


def _check_any_room(services: Services) -> None:
    """Refuses before the body is read when no queue that is served has room.

    Which preset is meant, the body says; so this can only tell when all of them are full.
    """
    queue = services.queue
    served = {worker.preset for worker in queue.workers()} | {services.settings.preset}
    full: QueueFull | None = None
    for preset in served:
        try:
            queue.check_room(preset)
        except QueueFull as error:
            full = error
        else:
            return
    if full is not None:
        raise full


def _submit(services: Services, upload: Upload) -> Job:
    """Checks everything, then stores the image and queues the job, or leaves nothing behind."""
    parameters = parse(upload.fields, services.settings.preset)
    file: BinaryIO = upload.image.file
    image = inspect(file, upload.image.filename, parameters, services.settings)
    services.queue.check_room(parameters.preset)
    job_id = new_job_id()
    file.seek(0)
    services.queue.announce(job_id)
    try:
        services.store.put(input_key(job_id), file)
        job = services.queue.submit(job_id, parameters, image)
    # Whatever stopped it, an image without a job must not stay.
    except BaseException:
        _forget(services, job_id)
        raise
    log.info("submitted", job=job_id, preset=parameters.preset, bytes=image.bytes)
    return job


def _forget(services: Services, job_id: str) -> None:
    try:
        services.store.delete(input_key(job_id))
    except StoreUnavailable as error:
        # The refusal itself is what the client must hear.
        log.error("an image without a job is left", key=input_key(job_id), detail=error.detail)
