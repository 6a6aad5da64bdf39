"""Threads for the image store alone, so that a store that hangs holds no others.

All other blocking calls share the 40 threads of the event loop. A request that needs no store must
not wait until one is free of a call that hangs.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import anyio
from anyio.to_thread import run_sync

from jobs.errors import StoreUnavailable

# Enough to fill a disk or a line; uploads that wait have their bodies on disk.
THREADS = 20
# How long a request waits for a thread: all are busy for longer only if the store hangs.
WAIT_S = 2.0

T = TypeVar("T")


class StoreThreads:
    """Used on the loop only."""

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
