"""What is served and how the service is: /models, /metrics, /livez, /readyz."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import wraps
from typing import Any, Literal, TypeVar
from weakref import WeakKeyDictionary

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from jobs.errors import QueueUnavailable
from jobs.formats import FORMATS
from jobs.workers import Capacity
from models.geometry import MAX_CANVAS
from models.parameters import MAX_SCALE, UpscaleParameters
from models.presets import PRESETS
from service.admission import ObserverDep, Services, services_of
from service.openapi import problems
from service.problems import HTTPError
from service.readiness import Serving
from service.schema import ComponentView, ModelsView, ModelView, ReadyView

router = APIRouter()

# How long an answer stands that every client may ask for, without a key and uncounted.
SHARED_S = 1.0
View = TypeVar("View")


def shared(
    view: Callable[[Request], Coroutine[Any, Any, View]],
) -> Callable[[Request], Awaitable[View]]:
    """Makes a route of a view that says the same to all: it is asked once at a time, and its answer
    or error is that of every request until SHARED_S after it was asked."""
    answers = WeakKeyDictionary[Any, tuple[float, asyncio.Task[View]]]()

    @wraps(view)
    async def route(request: Request) -> View:
        now = time.monotonic()
        start, answer = answers.get(request.app, (now, None))
        if answer is None or (answer.done() and now - start >= SHARED_S):
            # A task of its own: the client that asked first may leave.
            answer = asyncio.create_task(view(request))
            answers[request.app] = now, answer
        return await asyncio.shield(answer)

    return route


@router.get("/models", tags=["models"], summary="List the presets", responses=problems(503))
@shared
async def list_models(request: Request) -> ModelsView:
    """Every preset that `POST /upscale` knows, and whether a worker serves it now."""
    services = services_of(request)
    settings = services.settings
    capacity = await run_sync(services.queue.capacity)
    serving = Serving(capacity.workers, capacity.paused)
    reasons = serving.delays | serving.reasons
    models = [
        ModelView(
            **vars(preset),
            tile_size=preset.tile,
            scale_max=MAX_SCALE,
            default=preset.name == settings.preset,
            available=preset.name in serving.available,
            reason=reasons.get(preset.name),
        )
        for preset in PRESETS.values()
    ]
    return ModelsView(
        models=models,
        formats=list(FORMATS),
        max_upload_bytes=settings.max_upload_bytes,
        max_input_pixels=settings.max_input_pixels,
        max_output_pixels=settings.max_output_pixels,
        max_canvas_pixels=min(settings.max_output_pixels, MAX_CANVAS),
        tile_overlap=UpscaleParameters.model_fields["tile_overlap"].default,
    )


@router.get(
    "/metrics",
    tags=["health"],
    response_class=Response,
    summary="Figures for Prometheus",
    responses={
        200: {
            "description": "The text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(401, 429, _503="Redis is away, and with it who may ask."),
    },
)
def metrics(request: Request, caller: ObserverDep) -> Response:
    """Of the whole service, not of the asking key; the scope `jobs` has no access.

    The queue and the workers' figures are the same at every process of the service.
    """
    registry: CollectorRegistry = request.app.state.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class LiveView(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


@router.get("/livez", tags=["health"], summary="Does the process answer?")
async def livez() -> LiveView:
    """Asks nothing of anybody: a failure means that the process should be started anew."""
    return LiveView()


@router.get(
    "/readyz",
    tags=["health"],
    summary="Would an upload be worked on?",
    responses=problems(_503="Something is missing; `components` says what."),
)
@shared
async def readyz(request: Request) -> ReadyView:
    """Redis takes jobs and keeps them, the image store takes images, and a live worker serves the
    default preset."""
    services = services_of(request)
    fault = await services.store_probe.fault()
    return await run_sync(_readiness, services, fault)


def _readiness(services: Services, fault: str | None) -> ReadyView:
    preset = services.settings.preset
    store = ComponentView(ready=fault is None, detail=fault or "takes images")
    state = services.redis.look()
    redis = ComponentView(ready=state.ready, detail=state.detail)
    try:
        capacity = services.queue.capacity()
    except QueueUnavailable:
        worker = ComponentView(ready=False, detail="is not known while Redis is away")
        if state.ready:
            redis = ComponentView(ready=False, detail="does not answer")
    else:
        worker = _worker(preset, capacity)
    components = {"redis": redis, "store": store, "worker": worker}
    missing = [f"{name} {part.detail}" for name, part in components.items() if not part.ready]
    if missing:
        raise HTTPError(
            "not-ready",
            "; ".join(missing) + ".",
            components={name: part.model_dump() for name, part in components.items()},
            retry_after=5,
        )
    return ReadyView(status="ready", components=components)


def _worker(preset: str, capacity: Capacity) -> ComponentView:
    workers = [worker for worker in capacity.workers if worker.preset == preset]
    if ready := sum(worker.ready for worker in workers):
        # Uploads are taken in, so a proxy is to go on sending them.
        pause = ", which is paused" * (preset in capacity.paused)
        return ComponentView(ready=True, detail=f"{ready} serving {preset}{pause}")
    if reason := Serving(workers).reasons.get(preset):
        detail = f"is not ready: {reason}"
    elif conditions := [worker.condition for worker in workers if worker.reason is None]:
        detail = f"is {conditions[0]}"
    else:
        detail = "is missing: start one with `stablesr worker`"
    return ComponentView(ready=False, detail=f"for {preset} {detail}")
