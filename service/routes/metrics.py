"""GET /metrics: figures for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from service.admission import ReaderDep
from service.openapi import problems

__all__ = ["router"]

router = APIRouter(tags=["health"])


@router.get(
    "/metrics",
    response_class=Response,
    summary="Figures for Prometheus",
    responses={
        200: {
            "description": "The text format of Prometheus.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **problems(
            _401="An API key is needed, or the one given is wrong.",
            _429="Too many requests; see Retry-After.",
            _503="Redis is away, and with it who may ask.",
        ),
    },
)
def metrics(request: Request, caller: ReaderDep) -> Response:
    """Of the whole service, not of the asking key; where keys are asked for, any key will do.

    The queue and the workers' figures are the same at every process of the service.
    """
    registry: CollectorRegistry = request.app.state.metrics.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
