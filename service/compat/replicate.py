"""Replicate's HTTP API: predictions, models, files, webhooks (replicate of PyPI and npm).

A file that is handed in goes back as a data URI, which the clients put into the input.

And the API of a Cog container: POST and PUT /predictions, their cancel, /health-check. An output is
a data URI there where its request waited, and else an address.
"""

from __future__ import annotations

import hashlib
import uuid
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from anyio.to_thread import run_sync
from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import JsonValue
from starlette.datastructures import UploadFile

import service.compat.protocol as protocol
from jobs.errors import QueueFull, QueueUnavailable
from jobs.listing import Cursor
from jobs.schema import ANYONE, Job, JobState
from models.presets import PRESETS
from service import waiting
from service.admission import ReaderDep, admit, services_of
from service.compat.protocol import OWNER, JobDep, Values, fault, preset_of
from service.problems import AuthenticationError, HTTPError
from service.ratelimit import TooManyOpen
from service.readiness import Serving
from service.routes.status import shared
from service.schema import FIELDS
from service.uploads import FORM, check_head, receive_parts

router = protocol.router("replicate", prefix="/v1")
cog = protocol.router("cog", protocol.field_list("body", "input"))

STATUSES = {JobState.QUEUED: "starting", JobState.EXPIRED: "succeeded"}
INPUT = {"type": "object", "description": "image, and the fields of `POST /upscale`"}
BODY = protocol.body("input", input=INPUT, version={"type": "string"}, webhook={"type": "string"})
COG_BODY = protocol.body("input", input=INPUT, webhook={"type": "string"})


def version_of(preset: str) -> str:
    """The id of a preset's one version."""
    return hashlib.sha256(f"{OWNER}/{preset}".encode()).hexdigest()


def details(job: Job) -> dict[str, Any]:
    """What both say of a job alike; its progress is as tqdm's, which clients read."""
    now, timings, logs = job.progress, job.timings, ""
    if now and now.steps:
        bar = "█" * (10 * now.step // now.steps)
        logs = f"{100 * now.step // now.steps:3}%|{bar:10}| {now.step}/{now.steps}"
    moments = job.model_dump(mode="json", include={"created_at", "started_at", "ended_at"})
    return {
        "status": STATUSES.get(job.state, job.state.value),
        "input": job.parameters.model_dump(mode="json", exclude_none=True),
        "logs": logs,
        "error": job.error and job.error.detail,
        "metrics": {"predict_time": round(timings.total - timings.queue, 3)} if timings else {},
        **{"completed_at": moments.pop("ended_at"), **moments},
    }


def prediction(job: Job, base: str, secret: str) -> dict[str, Any]:
    """A job as a prediction; `base` is the service's address, `secret` its owner's."""
    here = f"{base}/v1/predictions/{job.id}"
    model = {"model": f"{OWNER}/{job.preset}", "version": version_of(job.preset)}
    return {
        **{"id": job.id, **model, **details(job)},
        "output": protocol.address(job, base, secret),
        "urls": {"get": here, "cancel": f"{here}/cancel"},
    }


async def _answer(request: Request, job: Job, status: int = 200) -> Response:
    # Those who poll need none before there is an output.
    secret = await protocol.secret_of(services_of(request), job.owner) if job.result else ""
    return JSONResponse(prediction(job, protocol.base_of(request), secret), status)


def inputs(document: Values, *names: str) -> tuple[Values, JsonValue]:
    """The input of a prediction and its webhook; refuses what is not known, nor among the names."""
    fields = ("input", "webhook", "webhook_completed", "webhook_events_filter", *names)
    for name, value in document.items():
        if name not in fields and value not in (None, False):
            raise fault(name, f"is unknown; known are {', '.join(fields)}")
    if (events := document.get("webhook_events_filter")) not in (None, ["completed"]):
        detail = f"must be ['completed'], the one event that is told; got {str(events)[:80]}"
        raise fault("webhook_events_filter", detail)
    values = document.get("input")
    if not isinstance(values, dict):
        raise fault("input", "must be an object with the image and its fields")
    values = {n: v for n, v in values.items() if (n, v) != ("face_enhance", False)}
    return values, document.get("webhook") or document.get("webhook_completed")


@router.post("/predictions", status_code=201, openapi_extra=BODY)
async def create_prediction(request: Request) -> Response:
    """`version` is the id of a model's version, or `owner/name`."""
    return await _create(request, None)


@router.post("/models/{owner}/{name}/predictions", status_code=201, openapi_extra=BODY)
async def create_prediction_of_model(request: Request, owner: str, name: str) -> Response:
    """With `Prefer: wait` the answer comes with the output, or as `starting` after the wait."""
    return await _create(request, preset_of(owner, name))


async def _create(request: Request, preset: str | None) -> Response:
    async with protocol.receive(request) as (intake, document):
        preset = preset or _preset_of_version(document.get("version"))
        values, webhook = inputs(document, "version")
        name = f"replicate {protocol.base_of(request)}"
        ours = {"preset": preset, "webhook_url": webhook}
        job = await protocol.submit(intake, values, name, ours)
    services = intake.services
    if (wait := waiting.preferences(request.headers).get("wait")) is not None:
        seconds = min(int(wait[:9]), waiting.MAX_WAIT_S) if wait.isdecimal() else waiting.MAX_WAIT_S
        with suppress(TooManyOpen), services.streams.slot(intake.origin.client):
            job = await waiting.wait_for_end(request, services, job, seconds)
        if not job.state.is_final:
            # All else the clients take for the end, and its output for None.
            job = job.model_copy(update={"state": JobState.QUEUED})
    return await _answer(request, job, 201)


def _preset_of_version(version: JsonValue) -> str:
    for preset in PRESETS:
        if version in (version_of(preset), f"{OWNER}/{preset}"):
            return preset
    raise fault("version", f"must be that of a model of {OWNER}; got {str(version)[:80]!r}")


@router.get("/predictions")
async def list_predictions(
    request: Request, caller: ReaderDep, cursor: Annotated[str | None, Query(max_length=200)] = None
) -> Response:
    """The jobs of the asking key, newest first."""
    services, base = services_of(request), protocol.base_of(request)
    after = None if cursor is None else Cursor.parse(cursor)
    page = await run_sync(partial(services.queue.page, caller.owner, limit=20, cursor=after))
    secret = await protocol.secret_of(services, caller.owner)
    following = page.next and f"{base}/v1/predictions?{urlencode({'cursor': str(page.next)})}"
    results = [prediction(job, base, secret) for job in page.jobs]
    return JSONResponse({"results": results, "next": following, "previous": None})


@router.get("/predictions/{job_id}")
async def get_prediction(request: Request, job: JobDep) -> Response:
    """The job now."""
    return await _answer(request, job)


@router.post("/predictions/{job_id}/cancel")
async def cancel_prediction(request: Request, job: JobDep) -> Response:
    """One that runs stops at its next step; one that has ended stays as it is."""
    services = services_of(request)
    await waiting.cancel(services, job)
    return await _answer(request, await services.jobs.get(job.id, job.owner))


def _version(preset: str) -> dict[str, Any]:
    image = {"type": "string", "format": "uri", "description": "An image"}
    schemas = {
        "Input": {"type": "object", "properties": {"image": image, **FIELDS}},
        "Output": {"type": "string", "format": "uri"},
    }
    return {
        "id": version_of(preset),
        "created_at": "2026-01-01T00:00:00Z",
        "cog_version": "0.16.0",
        "openapi_schema": {"openapi": "3.0.2", "components": {"schemas": schemas}},
    }


@router.get("/models/{owner}/{name}")
async def get_model(request: Request, owner: str, name: str, caller: ReaderDep) -> Response:
    """A preset; its owner is `stablesr`."""
    preset = PRESETS[preset_of(owner, name)]
    content = {
        "url": f"{protocol.base_of(request)}/models",
        **{"owner": owner, "name": name, "description": preset.title},
        **{"visibility": "private", "license_url": preset.licence_url, "run_count": 0},
        "latest_version": _version(name),
    }
    return JSONResponse(content)


@router.get("/models/{owner}/{name}/versions/{version}")
async def get_version(owner: str, name: str, version: str, caller: ReaderDep) -> Response:
    """With the schemas of input and output."""
    content = _version(preset_of(owner, name))
    if version != content["id"]:
        raise HTTPError("model-not-found", f"{name} has one version, {content['id']}.")
    return JSONResponse(content)


@router.get("/webhooks/default/secret")
async def get_webhook_secret(request: Request, caller: ReaderDep) -> Response:
    """What the webhooks of the asking key are signed with."""
    if caller.owner == ANYONE:
        raise AuthenticationError("Only an API key has a secret, which signs its webhooks.")
    return JSONResponse({"key": await protocol.secret_of(services_of(request), caller.owner)})


@router.post("/files", status_code=201)
async def create_file(request: Request) -> Response:
    """Gives the file of the part `content` back as a data URI, in `urls.get`; nothing is kept."""
    services = services_of(request)
    caller, _ = await admit(request, upload=True)
    limit, within_s = services.settings.max_upload_bytes, services.settings.upload_timeout_s
    check_head(request, {FORM: limit})
    async with AsyncExitStack() as stack:
        stack.enter_context(services.transfers.slot(caller.client))
        reception = receive_parts(request, limit, within_s, max_files=2)
        file = (await stack.enter_async_context(reception)).get("content")
        if not isinstance(file, UploadFile) or file.size is None:
            raise fault("content", "is missing; it must be a file")
        now = datetime.now(UTC).isoformat()
        content = {
            **{"id": uuid.uuid4().hex, "etag": "", "checksums": {}, "metadata": {}},
            **{"name": file.filename, "content_type": file.content_type, "size": file.size},
            **{"created_at": now, "expires_at": now},
            "urls": {"get": f"data:application/octet-stream;base64,{protocol.mark('content')}"},
        }
        pieces = {
            protocol.mark("content"): (iter(partial(file.file.read, 1 << 20), b""), file.size)
        }
        return protocol.splice(services.store_threads, content, pieces, stack.pop_all(), 201)


def cog_prediction(job: Job, base: str, secret: str, name: JsonValue = None) -> dict[str, Any]:
    """A job as a prediction; `name` is the client's own id for it."""
    return {"id": name or job.id, **details(job), "output": protocol.address(job, base, secret)}


@cog.post("/predictions", openapi_extra=COG_BODY)
async def predict(request: Request) -> Response:
    """Answers when the job has ended; with `Prefer: respond-async` at once, with 202."""
    return await _predict(request, None)


@cog.put("/predictions/{name}", openapi_extra=COG_BODY)
async def predict_once(request: Request, name: str) -> Response:
    """The same request again, under the same id, finds the same job."""
    return await _predict(request, name)


async def _predict(request: Request, name: str | None) -> Response:
    is_async = "respond-async" in waiting.preferences(request.headers)
    base = protocol.base_of(request)
    async with protocol.receive(request, name and f"cog {name}") as (intake, document):
        services = intake.services
        if (own_id := document.get("id") or name) != (name or own_id):
            raise fault("id", f"must be that of the path, {name}, or left out")
        values, webhook = inputs(document, "id", "created_at")
        # The same request, waiting or not, is the same job.
        limit = None if is_async or name else waiting.patience(services)
        ours = {"webhook_url": webhook, "expires_in": limit}
        job = await protocol.submit(intake, values, f"cog {base}", ours)
    secret = await protocol.secret_of(services, job.owner)
    if is_async:
        return JSONResponse(cog_prediction(job, base, secret, own_id), 202)
    if name is None:
        [job] = await waiting.ends_of(request, intake.origin.client, job)
    else:
        job = await waiting.wait_for_end(request, services, job, 10 * waiting.patience(services))
    content = cog_prediction(job, base, secret, own_id)
    if job.state is not JobState.SUCCEEDED or job.result is None:
        return JSONResponse(content)
    content["output"] = f"data:{job.result.media_type};base64,{protocol.mark(job.id)}"
    return await protocol.inline(services, intake.origin.client, content, job)


@cog.post("/predictions/{name}/cancel")
async def cancel(request: Request, name: str, caller: ReaderDep) -> Response:
    """By the client's own id, or the job's."""
    services = services_of(request)
    job_id = await run_sync(services.idempotency.job_id, caller.owner, f"cog {name}") or name
    await waiting.cancel(services, await services.jobs.get(job_id, caller.owner))
    return JSONResponse({})


@cog.get("/health-check")
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
