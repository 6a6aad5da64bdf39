"""What is served and how the service is: /models, /metrics, /livez, /readyz."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from jobs.errors import QueueUnavailable
from jobs.formats import FORMATS
from jobs.workers import WorkerInfo
from models.parameters import MAX_SCALE
from models.presets import PRESETS
from service.admission import ReaderDep, services_of
from service.openapi import problems
from service.problems import HTTPError
from service.readiness import Serving, store_works
from service.schema import ComponentView, ModelsView, ModelView, ReadyView

router = APIRouter()


@router.get("/models", tags=["models"], summary="List the presets", responses=problems(503))
def list_models(request: Request) -> ModelsView:
    """Every preset that `POST /upscale` knows, and whether a worker serves it now."""
    services = services_of(request)
    settings = services.settings
    serving = Serving(services.queue.workers())
    reasons = serving.delays | serving.reasons
    models = [
        ModelView(
            **vars(preset),
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
def metrics(request: Request, caller: ReaderDep) -> Response:
    """Of the whole service, not of the asking key; where keys are asked for, any key will do.

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
def readyz(request: Request) -> ReadyView:
    """Redis takes jobs and keeps them, the image store takes images, and a live worker serves the
    default preset."""
    services = services_of(request)
    works, preset = store_works(services.store), services.settings.preset
    store = ComponentView(ready=works, detail="takes images" if works else "takes no images")
    state = services.redis.look()
    redis = ComponentView(ready=state.ready, detail=state.detail)
    try:
        workers = [w for w in services.queue.workers() if w.preset == preset]
    except QueueUnavailable:
        worker = ComponentView(ready=False, detail="is not known while Redis is away")
        if state.ready:
            redis = ComponentView(ready=False, detail="does not answer")
    else:
        worker = _worker(preset, workers)
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


def _worker(preset: str, workers: Sequence[WorkerInfo]) -> ComponentView:
    if ready := sum(worker.ready for worker in workers):
        return ComponentView(ready=True, detail=f"{ready} serving {preset}")
    if reason := Serving(workers).reasons.get(preset):
        detail = f"is not ready: {reason}"
    elif conditions := [worker.condition for worker in workers if worker.reason is None]:
        detail = f"is {conditions[0]}"
    else:
        detail = "is missing: start one with `stablesr worker`"
    return ComponentView(ready=False, detail=f"for {preset} {detail}")
