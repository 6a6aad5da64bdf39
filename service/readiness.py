"""Which presets the live workers serve, whether the image store takes an image, and its threads.

A worker without the weights of its preset is not ready and says why in the register.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from typing import TypeVar

import anyio
import structlog
from anyio.to_thread import run_sync

from jobs.errors import StoreUnavailable
from jobs.store import BlobStore
from jobs.workers import WorkerInfo
from service.problems import HTTPError

log = structlog.stdlib.get_logger(__name__)

# Asked more often, the last answer is repeated: the route needs no key, and each try is a write.
REMEMBER_S = 5.0
PAUSED = "it is paused; jobs are taken in and wait"
# How long a request waits for a try, which others may have begun.
PROBE_S = 3.0
# Threads: enough to fill a disk or a line; uploads that wait have their bodies on disk.
THREADS = 20
# How long a request waits for a thread: all are busy for longer only if the store hangs.
WAIT_S = 2.0

T = TypeVar("T")


class Serving:
    """What the workers of one moment serve, by preset.

    `live` are the presets of workers that take jobs, start or stop: their jobs need only wait.
    `available` are those whose jobs a worker takes now. `reasons` says why none of a preset's
    workers can serve it, `delays` why they do not yet: also a pause by the operator.
    """

    def __init__(self, workers: Sequence[WorkerInfo], paused: Collection[str] = ()) -> None:
        self.live = {worker.preset for worker in workers if worker.reason is None}
        self.available = {worker.preset for worker in workers if worker.ready}.difference(paused)
        self.reasons, self.delays = dict[str, str](), dict.fromkeys(paused, PAUSED)
        for worker in workers:
            if worker.reason is not None and worker.preset not in self.live:
                self.reasons[worker.preset] = worker.reason
            if worker.state == "compiling" and worker.preset not in self.available:
                self.delays.setdefault(worker.preset, f"its worker is {worker.condition}")

    def check(self, preset: str) -> None:
        """Raises HTTPError when its workers cannot serve it; without any, one may start. As only
        the operator can help, the problem has no `retry_after`."""
        if reason := self.reasons.get(preset):
            detail = f"{preset} is not served: {reason}."
            raise HTTPError(
                "preset-not-served", detail, preset=preset, served=[*sorted(self.available)]
            )


class StoreProbe:
    """Tries whether a blob can be written and removed, once at a time. Used on the loop only."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._limiter = anyio.CapacityLimiter(1)
        self._try: asyncio.Task[str | None] | None = None
        self._began = -math.inf
        self._fault: str | None = None

    async def fault(self) -> str | None:
        """What the store does instead, now or some seconds ago; None while it takes images."""
        now = time.monotonic()
        if self._try is None or (self._try.done() and now - self._began > REMEMBER_S):
            self._began = now
            self._try = asyncio.create_task(self._try_out())
        await asyncio.wait([self._try], timeout=PROBE_S)
        if self._try.done():
            return self._try.result()
        return f"has given no answer for {time.monotonic() - self._began:.0f} seconds"

    async def _try_out(self) -> str | None:
        fault = None
        try:
            await run_sync(self._store.try_out, limiter=self._limiter)
        except StoreUnavailable as error:
            fault = error.clause
            if fault != self._fault:
                log.error("store does not work", place=self._store.place, detail=error.detail)
        if fault is None and self._fault is not None:
            log.info("store works again", place=self._store.place)
        self._fault = fault
        return fault


class StoreThreads:
    """Threads for the image store alone, so that a store that hangs holds no others.

    All other blocking calls share the 40 threads of the event loop. A request that needs no store
    must not wait until one is free of a call that hangs. Used on the loop only.
    """

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(THREADS)
        self._all = anyio.CapacityLimiter(math.inf)

    async def run(self, call: Callable[[], T]) -> T:
        """What the call returns; raises StoreUnavailable when no thread is free in time."""
        holder = object()
        try:
            with anyio.fail_after(WAIT_S):
                await self._limiter.acquire_on_behalf_of(holder)
        except TimeoutError:
            raise StoreUnavailable(
                f"The image store keeps all {THREADS} threads busy that there are for it.",
                retry_after=5,
            ) from None
        try:
            # A request that is given up meanwhile waits for its call: it may hold what that uses.
            return await run_sync(call, limiter=self._all)
        finally:
            self._limiter.release_on_behalf_of(holder)

    async def iterate(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        """The pieces of a blob, which has begun, so that it waits for a thread as it must."""
        while (piece := await run_sync(next, pieces, None, limiter=self._limiter)) is not None:
            yield piece
