"""Connections to the primary that Sentinel names at the moment.

Each new connection asks for it. What one of them hears, all of this process go by: a server that
hung and comes back goes on as a primary for some seconds, and a worker that took a job from the
new one must not hear from the old one that there is no such job.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from typing import Any

from redis import sentinel
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import SSLConnection as AsyncSSLConnection
from redis.asyncio import sentinel as async_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.connection import SSLConnection
from redis.exceptions import ConnectionError
from redis.retry import Retry

from .redis_url import RedisTarget

# A Sentinel that hangs must leave time for the next one within a request.
SENTINEL_S = 0.3

Address = tuple[str, int]
# By the Sentinels and their name for the primary: the address last heard of it.
_primaries: dict[tuple[tuple[Address, ...], str], Address] = {}


def _options(target: RedisTarget, retry: Retry | AsyncRetry) -> Mapping[str, Any]:
    return {
        "socket_connect_timeout": SENTINEL_S,
        "socket_timeout": SENTINEL_S,
        "retry": retry,
        **target.sentinel_options,
    }


def _check(connection: Any) -> None:
    """Raises ConnectionError for one to a server that is not the primary any more; its pool, which
    asks whether there is something to read before it hands it out, then connects it anew."""
    primary = _primaries.get(connection.connection_pool.sentinel_manager.key)
    if primary not in (None, (connection.host, connection.port)):
        raise ConnectionError("Another server is the primary by now.")


class PrimaryConnection(sentinel.SentinelManagedConnection):
    """Closed by an error while it is read, as redis-py's others are: its own for Sentinel stays
    open after a timeout, is used for a server that hangs again, and may read the answer to others.
    """

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        return super().read_response(*arguments, **{"disconnect_on_error": True, **options})

    def can_read(self, timeout: float = 0) -> bool:
        _check(self)
        return bool(super().can_read(timeout))


class PrimarySSLConnection(PrimaryConnection, SSLConnection):
    """The same with TLS."""


class Sentinels(sentinel.Sentinel):
    """Asked by one thread at a time: redis-py puts the one that answered first by swapping two of
    its list, and two threads that do so at once lose one for good. No connection is kept."""

    def __init__(self, target: RedisTarget) -> None:
        options = _options(target, Retry(NoBackoff(), 0))
        kind = PrimarySSLConnection if target.options.get("ssl") else PrimaryConnection
        super().__init__(  # type: ignore[no-untyped-call]  # redis-py's has no types
            target.sentinels, sentinel_kwargs=options, connection_class=kind, **target.options
        )
        self.key = target.sentinels, target.primary
        self._lock = threading.Lock()

    def discover_master(self, service_name: str) -> Any:
        with self._lock:
            try:
                address = super().discover_master(service_name)  # type: ignore[no-untyped-call]  # as above
            finally:
                self.close()
        _primaries[self.key] = address
        return address


class AsyncPrimaryConnection(async_sentinel.SentinelManagedConnection):
    """Not used for a server that was the primary."""

    async def can_read(self) -> bool:
        _check(self)
        return await super().can_read()


class AsyncPrimarySSLConnection(AsyncPrimaryConnection, AsyncSSLConnection):
    """The same with TLS."""


class AsyncSentinels(async_sentinel.Sentinel):
    """As `Sentinels`, for an event loop, where two tasks lose one."""

    def __init__(self, target: RedisTarget) -> None:
        options = _options(target, AsyncRetry(NoBackoff(), 0))
        kind = AsyncPrimarySSLConnection if target.options.get("ssl") else AsyncPrimaryConnection
        super().__init__(  # type: ignore[no-untyped-call]  # as above
            target.sentinels, sentinel_kwargs=options, connection_class=kind, **target.options
        )
        self.key = target.sentinels, target.primary
        self._lock = asyncio.Lock()

    async def discover_master(self, service_name: str) -> Any:
        async with self._lock:
            try:
                address = await super().discover_master(service_name)
            finally:
                for one in self.sentinels:
                    await one.aclose()
        _primaries[self.key] = address
        return address


class BlockingSentinelPool(async_sentinel.SentinelConnectionPool, BlockingConnectionPool):
    """Waits for a connection while all are in use, as redis-py's own pool for Sentinel does not."""
