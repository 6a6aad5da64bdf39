"""The application: routes, middleware, and what lives as long as it does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypedDict

from anyio.to_thread import run_sync
from fastapi import FastAPI

from jobs.queue import JobQueue
from jobs.settings import Settings
from jobs.store import BlobStore
from service import problems
from service.middleware import CatchAll, LingeringClose, RequestId
from service.openapi import describe
from service.routes import about, health, jobs, models, upscale
from service.state import Services

__all__ = ["create_app"]

DESCRIPTION = """\
Upscales images with StableSR. Upload an image, get a job, ask for it until it has ended, fetch
the result. Errors are problem details (RFC 9457).
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
    )
    for routes in (upscale, jobs, models, health, about):
        app.include_router(routes.router)
    problems.install(app)
    # The last added is the outermost.
    app.add_middleware(CatchAll)
    app.add_middleware(LingeringClose)
    app.add_middleware(RequestId)
    app.openapi = describe(app)  # type: ignore[method-assign]  # FastAPI's documented way
    return app


def _lifespan(settings: Settings) -> Callable[[FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[State]:
        store = await run_sync(BlobStore.open, settings)
        queue = JobQueue(settings)
        try:
            yield State(services=Services(settings=settings, queue=queue, store=store))
        finally:
            await run_sync(queue.close)

    return lifespan


def _version() -> str:
    try:
        return version("stablesr-server")
    except PackageNotFoundError:
        # A source tree that is run without being installed.
        return "0"
