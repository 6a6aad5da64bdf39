"""The HTTP API of a Cog container: POST and PUT /predictions, their cancel, /health-check.

An output is a data URI where its request waited, and else an address.
"""

from __future__ import annotations

from typing import Any

from anyio.to_thread import run_sync
from fastapi import Request, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue

import service.compat.protocol as protocol
from jobs.errors import QueueFull, QueueUnavailable
from jobs.schema import Job, JobState
from service import waiting
from service.admission import ReaderDep, services_of
from service.compat.protocol import fault
from service.compat.replicate import INPUT, details, inputs
from service.readiness import Serving
from service.routes import outputs
from service.routes.status import shared

router = protocol.router("cog", protocol.field_list("body", "input"))
BODY = protocol.body("input", input=INPUT, webhook={"type": "string"})


def prediction(job: Job, base: str, secret: str, name: JsonValue = None) -> dict[str, Any]:
    """A job as a prediction; `name` is the client's own id for it."""
    return {"id": name or job.id, **details(job), "output": outputs.address(job, base, secret)}


@router.post("/predictions", openapi_extra=BODY)
async def predict(request: Request) -> Response:
    """Answers when the job has ended; with `Prefer: respond-async` at once, with 202."""
    return await _predict(request, None)


@router.put("/predictions/{name}", openapi_extra=BODY)
async def predict_once(request: Request, name: str) -> Response:
    """The same request again, under the same id, finds the same job."""
    return await _predict(request, name)


async def _predict(request: Request, name: str | None) -> Response:
    is_async = "respond-async" in waiting.preferences(request.headers)
    base = outputs.base_of(request)
    async with protocol.receive(request, name and f"cog {name}") as (intake, document):
        services = intake.services
        if (own_id := document.get("id") or name) != (name or own_id):
            raise fault("id", f"must be that of the path, {name}, or left out")
        values, webhook = inputs(document, "id", "created_at")
        # The same request, waiting or not, is the same job.
        limit = None if is_async or name else waiting.patience(services)
        ours = {"webhook_url": webhook, "expires_in": limit}
        job = await protocol.submit(intake, values, f"cog {base}", ours)
    secret = await outputs.secret_of(services, job.owner)
    if is_async:
        return JSONResponse(prediction(job, base, secret, own_id), 202)
    if name is None:
        [job] = await waiting.ends_of(request, intake.origin.client, job)
    else:
        job = await waiting.wait_for_end(request, services, job, 10 * waiting.patience(services))
    content = prediction(job, base, secret, own_id)
    if job.state is not JobState.SUCCEEDED or job.result is None:
        return JSONResponse(content)
    content["output"] = f"data:{job.result.media_type};base64,{outputs.mark(job.id)}"
    return await outputs.inline(services, intake.origin.client, content, job)


@router.post("/predictions/{name}/cancel")
async def cancel(request: Request, name: str, caller: ReaderDep) -> Response:
    """By the client's own id, or the job's."""
    services = services_of(request)
    job_id = await run_sync(services.idempotency.job_id, caller.owner, f"cog {name}") or name
    await waiting.cancel(services, await services.jobs.get(job_id, caller.owner))
    return JSONResponse({})


@router.get("/health-check")
@shared
async def health_check(request: Request) -> dict[str, Any]:
    """Always 200; `status` says how the service is."""
    services = services_of(request)
    preset = services.settings.preset
    try:
        capacity = await run_sync(services.queue.capacity)
        services.queue.check_room(preset, capacity.lengths[preset])
    except QueueFull:
        return {"status": "BUSY"}
    except QueueUnavailable:
        return {"status": "UNHEALTHY"}
    serving = Serving(capacity.workers)
    if reason := serving.reasons.get(preset):
        return {"status": "SETUP_FAILED", "setup": {"status": "failed", "logs": reason}}
    return {"status": "READY" if preset in serving.available else "STARTING"}
