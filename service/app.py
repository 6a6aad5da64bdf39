"""The application: routes, middleware, and what lives as long as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypedDict

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI

from jobs.connection import Breaker, connect
from jobs.idempotency import Idempotency
from jobs.keys import Keys
from jobs.queue import JobQueue
from jobs.settings import Settings
from jobs.store import BlobStore
from jobs.upkeep import Upkeep
from service import problems
from service.auth import Authenticator
from service.authority import KnownAuthority
from service.listener import Listener
from service.metrics import CountRequests, ServiceCollector, ServiceMetrics
from service.middleware import (
    BoundedHead,
    CatchAll,
    HeadAsGet,
    LingeringClose,
    RequestId,
    SafeHeaders,
)
from service.openapi import describe
from service.places import streams, transfers
from service.probe import StoreProbe
from service.ratelimit import RateLimits
from service.routes import about, events, health, jobs, metrics, models, page, result, upscale
from service.state import Services
from service.upkeep import keep_up
from service.webhooks.sender import Sender

__all__ = ["create_app"]

DESCRIPTION = """\
Upscales images with StableSR. Upload an image, get a job, ask for it until it has ended or listen
to its events, fetch the result. Errors are problem details (RFC 9457). HEAD is answered wherever
GET is.
"""


class State(TypedDict):
    services: Services


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
    for routes in (upscale, jobs, result, events, models, metrics, health, about, page):
        app.include_router(routes.router)
    problems.install(app)
    # The last added is the outermost.
    app.add_middleware(HeadAsGet)
    app.add_middleware(CatchAll)
    app.add_middleware(KnownAuthority, settings=settings)
    app.add_middleware(BoundedHead)
    app.add_middleware(LingeringClose)
    app.add_middleware(SafeHeaders)
    app.add_middleware(CountRequests, metrics=app.state.metrics)
    app.add_middleware(RequestId)
    app.openapi = describe(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        store = await run_sync(BlobStore.open, settings)
        # One for everything: what one use of it learns of a Redis that hangs, all know.
        connection = connect(settings, breaker=Breaker())
        limits = RateLimits(settings, connection)
        services = Services(
            settings=settings,
            queue=JobQueue(settings, connection),
            store=store,
            authenticator=Authenticator(Keys(connection), required=settings.require_key),
            idempotency=Idempotency(connection, ttl_s=settings.idempotency_ttl_s),
            limits=limits,
            listener=app.state.listener,
            streams=streams(settings.max_streams, settings.max_streams_each),
            transfers=transfers(settings.max_transfers, settings.max_transfers_each),
            probe=StoreProbe(store),
        )
        metrics: ServiceMetrics = app.state.metrics
        sender = Sender(connection, settings, app.root_path, metrics.webhook_attempts)
        upkeep = Upkeep(settings, connection, store, metrics.put_off)
        collector = ServiceCollector(connection, settings, services.streams, services.transfers)
        metrics.registry.register(collector)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(services.listener.run)
                tasks.start_soon(sender.run)
                tasks.start_soon(keep_up, upkeep, settings.maintenance_s)
                yield State(services=services)
                tasks.cancel_scope.cancel()
        finally:
            metrics.registry.unregister(collector)
            await run_sync(connection.close)

    return lifespan


def _version() -> str:
    try:
        return version("stablesr-server")
    except PackageNotFoundError:
        # A source tree that is run without being installed.
        return "0"
