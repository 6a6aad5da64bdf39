"""fal's queue, and its run that waits (fal-client of PyPI, @fal-ai/client of npm).

Both are hosts there and paths here: FAL_QUEUE_RUN_HOST=HOST/fal/queue, FAL_RUN_HOST=HOST/fal/run.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse

import service.compat.protocol as protocol
from jobs.schema import Job, JobState
from service import waiting
from service.admission import services_of
from service.compat.protocol import OWNER, JobDep, Values, fault, preset_of
from service.problems import HTTPError
from service.routes.jobs import retry_after
from service.submission import Intake

router = protocol.router("fal", protocol.field_list("body"), prefix="/fal")
BODY = protocol.body(image_url={"type": "string", "description": "An address, or a data URI"})
REQUEST = f"/queue/{OWNER}/{{preset}}/requests/{{job_id}}"


async def _submit(request: Request, preset: str, limit: int | None = None) -> tuple[Intake, Job]:
    headers = request.headers
    if text := headers.get("x-fal-request-timeout"):
        try:
            limit = math.ceil(float(text))
        except (ValueError, OverflowError):
            raise fault("X-Fal-Request-Timeout", f"must be seconds; got {text[:80]}") from None
    priority = headers.get("x-fal-queue-priority")
    ours: Values = {"expires_in": limit, "priority": priority, "preset": preset}
    async with protocol.receive(request) as (intake, values):
        return intake, await protocol.submit(intake, values, "fal", ours)


def _status(request: Request, job: Job) -> dict[str, Any]:
    here = f"{protocol.base_of(request)}/fal/queue/{OWNER}/{job.preset}/requests/{job.id}"
    urls = {"response_url": here, "status_url": f"{here}/status", "cancel_url": f"{here}/cancel"}
    content: dict[str, Any] = {"request_id": job.id, **urls, "status": "COMPLETED", "logs": []}
    if job.state is JobState.QUEUED:
        content |= {"status": "IN_QUEUE", "queue_position": (job.queue_position or 1) - 1}
    elif job.state is JobState.PROCESSING:
        content["status"] = "IN_PROGRESS"
    elif job.timings is not None:
        content["metrics"] = {"inference_time": job.timings.total - job.timings.queue}
    if job.error is not None:
        content |= {"error": job.error.detail, "error_type": job.error.type}
    return content


async def _result(request: Request, job: Job) -> Response:
    result = waiting.check_success(job).result
    assert result is not None
    image = {
        **{"url": await protocol.address_of(request, job), "content_type": result.media_type},
        **{"file_name": protocol.file_name(result.media_type), "file_size": result.bytes},
        **{"width": result.width, "height": result.height},
    }
    headers = {"x-fal-request-id": job.id}
    return JSONResponse({"image": image, "seed": job.seed}, headers=headers)


@router.post("/queue/{owner}/{name}", openapi_extra=BODY)
async def submit(request: Request, owner: str, name: str) -> Response:
    """The body is the input."""
    _, job = await _submit(request, preset_of(owner, name))
    return JSONResponse(_status(request, job))


@router.post("/run/{owner}/{name}", openapi_extra=BODY)
async def run(request: Request, owner: str, name: str) -> Response:
    """Answers with the result; a client that leaves cancels its request."""
    limit = waiting.patience(services_of(request))
    intake, job = await _submit(request, preset_of(owner, name), limit)
    [job] = await waiting.ends_of(request, intake.origin.client, job)
    return await _result(request, job)


@router.get(REQUEST + "/status")
async def get_status(request: Request, preset: str, job: JobDep) -> Response:
    """IN_QUEUE, IN_PROGRESS or COMPLETED, which a failure is too."""
    return JSONResponse(_status(request, job))


@router.get(REQUEST)
async def get_result(request: Request, preset: str, job: JobDep) -> Response:
    """The output; what a failed request says is 422."""
    if not job.state.is_final:
        detail = f"Request {job.id} is {job.state}; ask again when it is COMPLETED."
        raise HTTPError("result-not-ready", detail, retry_after=retry_after(job))
    return await _result(request, job)


@router.put(REQUEST + "/cancel", status_code=202)
async def cancel(request: Request, preset: str, job: JobDep) -> Response:
    """400 for one that has ended."""
    if job.state.is_final:
        return JSONResponse({"status": "ALREADY_COMPLETED"}, 400)
    await waiting.cancel(services_of(request), job)
    return JSONResponse({"status": "CANCELLATION_REQUESTED"}, 202)
