"""The application: routes, middleware, and what lives as long as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio
import structlog
from anyio.to_thread import run_sync
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from jobs import tracing
from jobs.errors import QueueUnavailable
from jobs.maintenance import Maintenance
from jobs.settings import Settings
from jobs.store import BlobStore
from service import compat, problems
from service.admission import Services
from service.listener import Listener
from service.metrics import ServiceCollector, ServiceMetrics
from service.middleware import RequestEnvelope
from service.openapi import DescribedAPI
from service.routes import about, events, jobs, result, status, upscale
from service.webhooks import Sender

log = structlog.stdlib.get_logger(__name__)

# How late a job may fail that waits and has a deadline.
DEADLINES_S = 1.0
# What pages of other origins may send beside the plainest fields, and read.
REQUEST_FIELDS = """
Authorization Content-Type Idempotency-Key If-None-Match If-Range Last-Event-ID Prefer Range
X-API-Key X-Request-ID
"""
ANSWER_FIELDS = """
Content-Disposition Content-Range ETag Idempotent-Replayed Location Preference-Applied RateLimit
RateLimit-Policy Retry-After X-Request-ID
"""
DESCRIPTION = """\
Upscales images with StableSR. Upload an image, get a job, ask for it until it has ended or listen
to its events, fetch the result. Errors are problem details (RFC 9457). HEAD is answered wherever
GET is.
"""


def create_app(settings: Settings) -> FastAPI:
    """The service under these settings; nothing is connected before its lifespan begins.

    A Redis that is away at the start is no error: requests are answered with 503 until it comes.
    Raises StoreUnavailable from the lifespan when the image store cannot be opened.
    """
    app = DescribedAPI(
        title="StableSR",
        version=version("stablesr-server"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        exception_handlers=problems.HANDLERS,
        # A path has one spelling; sending on from /jobs/ to /jobs would lose an upload's body.
        redirect_slashes=False,
        # Its spans have paths and queries in them; those of `RequestEnvelope` have not.
        telemetry={"tracing": False},
    )
    app.state.settings = settings
    app.state.listener = Listener(settings)
    app.state.metrics = ServiceMetrics()
    for routes in (upscale, jobs, result, events, status, about):
        app.include_router(routes.router)
    for protocol in settings.protocols:
        app.include_router(compat.ROUTERS[protocol])
    if settings.protocols:
        app.include_router(compat.OUTPUTS)
    if origins := settings.allowed_origins:
        # Without credentials: keys are sent by the page's own code.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=REQUEST_FIELDS.split(),
            expose_headers=ANSWER_FIELDS.split(),
        )
    app.add_middleware(RequestEnvelope, metrics=app.state.metrics, settings=settings)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[dict[str, Services]]:
    settings: Settings = app.state.settings
    metrics: ServiceMetrics = app.state.metrics
    end_traces = tracing.start("stablesr-service")
    store = await run_sync(BlobStore.open, settings)
    services = Services(settings, store, app.state.listener)
    connection, redis = services.connection, services.redis
    sender = Sender(connection, settings, app.root_path, metrics.webhook_attempts, compat.MESSAGES)
    maintenance = Maintenance(connection, store, metrics.sweep)
    collector = ServiceCollector(connection, redis, services.streams, services.transfers)
    metrics.registry.register(collector)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(services.listener.run)
            # Says in the log what is wrong from the start.
            tasks.start_soon(services.store_probe.fault)
            tasks.start_soon(sender.run)
            await run_sync(redis.look)
            tasks.start_soon(_every, settings.maintenance_s, redis.look)
            tasks.start_soon(_every, settings.maintenance_s, maintenance.run)
            tasks.start_soon(_every, DEADLINES_S, services.queue.fail_overdue)
            yield {"services": services}
            tasks.cancel_scope.cancel()
    finally:
        metrics.registry.unregister(collector)
        await run_sync(connection.close)
        await services.client.close()
        await run_sync(end_traces)


async def _every(interval_s: float, action: Callable[[], object]) -> None:
    """What needs no worker, about every `interval_s`; ends after its round."""
    while True:
        await anyio.sleep(interval_s)
        try:
            await run_sync(action)
        except QueueUnavailable as error:
            log.debug("left for the next time", reason=error.detail)
