"""What STABLESR_REDIS_URL says: one server, or the primary that Sentinel names at the moment.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]                               also rediss://, unix://
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],HOST[:PORT],.../NAME[/DB]   also rediss+sentinel://

`?replicas=N` is ours: a job is accepted once N replicas have it. `sentinel_username` and
`sentinel_password` are for the Sentinels; all other members of the query are redis-py's.

Each new connection to a primary asks for it. What one of them hears, all of this process go by: a
server that hung and comes back goes on as a primary for some seconds, and a worker that took a job
from the new one must not hear from the old one that there is no such job.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from redis import connection, sentinel
from redis.asyncio import BlockingConnectionPool
from redis.asyncio import SSLConnection as AsyncSSLConnection
from redis.asyncio import sentinel as async_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError
from redis.retry import Retry

SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://")
SENTINEL_PORT = 26379
# Without types in redis-py.
_parse_url: Any = connection.parse_url
# A Sentinel that hangs must leave time for the next one within a request.
SENTINEL_S = 0.3

Address = tuple[str, int]
# By the Sentinels and their name for the primary: the address last heard of it.
_primaries: dict[tuple[tuple[Address, ...], str], Address] = {}


@dataclass(frozen=True)
class RedisTarget:
    """`url` is for redis-py. Where there are `sentinels`, (host, port) each, it is empty: then
    `options` are those of the connections to the server that they call `primary`."""

    url: str
    replicas: int
    sentinels: tuple[Address, ...] = ()
    primary: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse_redis_url(url: str) -> RedisTarget:
    """Raises ValueError with a clause, which never repeats a part of the URL: all of it may be a
    password that is not encoded."""
    parts = urlsplit(url)
    members = parts.query.split("&")
    counts = [member.partition("=")[2] for member in members if member.startswith("replicas=")]
    if not all(count.isascii() and count.isdigit() for count in counts):
        raise ValueError("its replicas must be a number")
    query = "&".join(member for member in members if not member.startswith("replicas="))
    replicas = int(counts[-1]) if counts else 0
    scheme, _, is_sentinel = parts.scheme.partition("+")
    try:
        if not is_sentinel:
            plain = parts._replace(query=query).geturl() if counts else url
            _parse_url(plain)
            return RedisTarget(plain, replicas)
        userinfo, at, hosts = parts.netloc.rpartition("@")
        primary, _, database = parts.path.removeprefix("/").partition("/")
        options = _parse_url(f"redis://{userinfo}{at}sentinel/{database}?{query}")
        sentinels = tuple(_address(host) for host in hosts.split(","))
    except ValueError:
        raise ValueError(
            "it must be a URL in which : / @ of a password are written %3A %2F %40, a port is a "
            "number, and only members of redis-py's URLs follow the ?"
        ) from None
    if not primary or not all(host for host, _ in sentinels):
        raise ValueError(
            "it must end with /NAME, as the Sentinels call the primary, after their addresses: "
            "redis+sentinel://HOST:26379,HOST:26379/NAME"
        )
    del options["host"]
    tls = {"ssl": True} if scheme == "rediss" else {}
    # A database with a certificate of a private authority has Sentinels with one of it, too.
    secrets = {name: value for name, value in options.items() if name.startswith("ssl_")}
    for name in ("username", "password"):
        if (value := options.pop(f"sentinel_{name}", None)) is not None:
            secrets[name] = value
    return RedisTarget(
        "", replicas, sentinels, unquote(primary), {**options, **tls}, {**secrets, **tls}
    )


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        host, port = text, str(SENTINEL_PORT)
    return host.strip("[]"), int(port)


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


class PrimarySSLConnection(PrimaryConnection, connection.SSLConnection):
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
