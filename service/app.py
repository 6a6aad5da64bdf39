"""The application: routes, middleware, and what lives as long as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI

from jobs.connection import CircuitBreaker, LoopClient, connect
from jobs.idempotency import Idempotency
from jobs.keys import Keys
from jobs.maintenance import Maintenance
from jobs.queue import JobQueue, JobReader
from jobs.settings import Settings
from jobs.store import BlobStore
from service import problems
from service.admission import Authenticator, Services
from service.errors import TooManyStreams, TooManyTransfers
from service.listener import Listener
from service.metrics import ServiceCollector, ServiceMetrics
from service.middleware import RequestEnvelope
from service.openapi import describe
from service.ratelimit import ConcurrencyLimiter, RateLimits
from service.readiness import StoreProbe
from service.routes import about, events, jobs, result, status, upscale
from service.webhooks import Sender

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
    app = FastAPI(
        title="StableSR",
        version=_version(),
        description=DESCRIPTION,
        lifespan=_lifespan(settings),
        redoc_url=None,
        # A path has one spelling; sending on from /jobs/ to /jobs would lose an upload's body.
        redirect_slashes=False,
    )
    app.state.listener = Listener(settings)
    app.state.metrics = ServiceMetrics()
    for routes in (upscale, jobs, result, events, status, about):
        app.include_router(routes.router)
    problems.install(app)
    app.add_middleware(RequestEnvelope, metrics=app.state.metrics, settings=settings)
    app.openapi = describe(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Services]]:
        store = await run_sync(BlobStore.open, settings)
        # One for everything: what one use of it learns of a Redis that hangs, all know.
        breaker = CircuitBreaker()
        connection = connect(settings, breaker=breaker)
        client = LoopClient(settings, breaker)
        queue = JobQueue(settings, connection)
        services = Services(
            settings=settings,
            redis=client,
            queue=queue,
            jobs=JobReader(client, queue),
            store=store,
            authenticator=Authenticator(Keys(connection), key_is_required=settings.require_key),
            idempotency=Idempotency(connection),
            limits=RateLimits(settings, client),
            listener=app.state.listener,
            streams=ConcurrencyLimiter(
                settings.max_streams,
                settings.max_each,
                kind="streams",
                advice="try again later, or ask for the job instead",
                error=TooManyStreams,
            ),
            transfers=ConcurrencyLimiter(
                settings.max_transfers,
                settings.max_each,
                kind="transfers",
                advice="try again later",
                error=TooManyTransfers,
            ),
            probe=StoreProbe(store),
        )
        metrics: ServiceMetrics = app.state.metrics
        sender = Sender(connection, settings, app.root_path, metrics.webhook_attempts)
        maintenance = Maintenance(connection, store, metrics.put_off)
        collector = ServiceCollector(connection, services.streams, services.transfers)
        metrics.registry.register(collector)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(services.listener.run)
                tasks.start_soon(sender.run)
                tasks.start_soon(_maintain, maintenance, settings.maintenance_s)
                yield {"services": services}
                tasks.cancel_scope.cancel()
        finally:
            metrics.registry.unregister(collector)
            await run_sync(connection.close)
            await client.close()

    return lifespan


async def _maintain(maintenance: Maintenance, interval_s: float) -> None:
    """Maintenance about every interval_s, which needs no worker; ends after the round in hand."""
    while True:
        await anyio.sleep(interval_s)
        await run_sync(maintenance.run)


def _version() -> str:
    try:
        return version("stablesr-server")
    except PackageNotFoundError:
        # A source tree that is run without being installed.
        return "0"
