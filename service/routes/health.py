"""Whether the process lives and whether it is any use: /livez, /readyz."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from jobs.errors import QueueUnavailable
from service.errors import NotReady
from service.openapi import problems
from service.schema import ComponentView, ReadyView
from service.serving import Serving
from service.state import Services, ServicesDep

__all__ = ["router"]

router = APIRouter(tags=["health"])

RETRY_S = 5


class LiveView(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


@router.get("/livez", summary="Does the process answer?")
async def livez() -> LiveView:
    """Asks nothing of anybody: a failure means that the process should be started anew."""
    return LiveView()


@router.get(
    "/readyz",
    summary="Would an upload be worked on?",
    responses=problems(_503="Something is missing; `components` says what."),
)
def readyz(services: ServicesDep) -> ReadyView:
    """Redis answers, the image store takes images, and a live worker serves the default preset."""
    components = _components(services)
    missing = [f"{name} {part.detail}" for name, part in components.items() if not part.ready]
    if missing:
        raise NotReady(
            "; ".join(missing) + ".",
            components={name: part.model_dump() for name, part in components.items()},
            retry_after=RETRY_S,
        )
    return ReadyView(status="ready", components=components)


def _components(services: Services) -> dict[str, ComponentView]:
    works = services.probe.works()
    store = ComponentView(ready=works, detail="takes images" if works else "takes no images")
    try:
        workers = services.queue.workers()
    except QueueUnavailable:
        return {
            "redis": ComponentView(ready=False, detail="does not answer"),
            "store": store,
            "worker": ComponentView(ready=False, detail="is not known while Redis is away"),
        }
    preset = services.settings.preset
    workers = [worker for worker in workers if worker.preset == preset]
    ready = sum(worker.ready for worker in workers)
    if ready:
        said = f"{ready} serving {preset}"
    elif (reason := Serving.of(workers).reasons.get(preset)) is not None:
        said = f"for {preset} is not ready: {reason}"
    elif conditions := [worker.condition for worker in workers if worker.reason is None]:
        said = f"for {preset} is {conditions[0]}"
    else:
        said = f"for {preset} is missing: start one with `stablesr worker`"
    return {
        "redis": ComponentView(ready=True, detail="answers"),
        "store": store,
        "worker": ComponentView(ready=ready > 0, detail=said),
    }
