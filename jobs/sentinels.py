"""Connections to the primary that Sentinel names at the moment.

Each new connection asks for it; a failover breaks those to the server that was the primary.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from redis import sentinel
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import sentinel as async_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from .redis_url import RedisTarget

# A Sentinel that hangs must leave time for the next one within a request.
SENTINEL_S = 0.3


def _options(target: RedisTarget, retry: Retry | AsyncRetry) -> Mapping[str, Any]:
    return {
        "socket_connect_timeout": SENTINEL_S,
        "socket_timeout": SENTINEL_S,
        "retry": retry,
        **target.sentinel_options,
    }


class Sentinels(sentinel.Sentinel):
    """Asked by one thread at a time: redis-py puts the one that answered first by swapping two of
    its list, and two threads that do so at once lose one for good. No connection is kept."""

    def __init__(self, target: RedisTarget) -> None:
        options = _options(target, Retry(NoBackoff(), 0))
        super().__init__(target.sentinels, sentinel_kwargs=options, **target.options)  # type: ignore[no-untyped-call]  # redis-py's has no types
        self._lock = threading.Lock()

    def discover_master(self, service_name: str) -> Any:
        with self._lock:
            try:
                return super().discover_master(service_name)  # type: ignore[no-untyped-call]  # as above
            finally:
                self.close()


class AsyncSentinels(async_sentinel.Sentinel):
    """The same for an event loop, where two tasks lose one."""

    def __init__(self, target: RedisTarget) -> None:
        options = _options(target, AsyncRetry(NoBackoff(), 0))
        super().__init__(target.sentinels, sentinel_kwargs=options, **target.options)  # type: ignore[no-untyped-call]  # redis-py's has no types
        self._lock = asyncio.Lock()

    async def discover_master(self, service_name: str) -> Any:
        async with self._lock:
            try:
                return await super().discover_master(service_name)
            finally:
                for one in self.sentinels:
                    await one.aclose()


class BlockingSentinelPool(async_sentinel.SentinelConnectionPool, BlockingConnectionPool):
    """Waits for a connection while all are in use, as redis-py's own pool for Sentinel does not."""
