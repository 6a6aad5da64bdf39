"""How much one client may ask for: requests a minute, and requests that are open at once.

A client is a key or, without one, an address. Requests are counted in a moving window in Redis,
shared by all service processes. The answer says what is left, in the header fields of
draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` and `RateLimit`.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis import Redis

from jobs.errors import JobsError
from jobs.settings import Settings
from service.auth import Caller
from service.errors import RateLimited

__all__ = ["ConcurrencyLimiter", "Policy", "RateLimits", "client_of"]

log = structlog.stdlib.get_logger(__name__)

WINDOW_S = 60
# A key with a number of its own for uploads reads in proportion.
READS_AN_UPLOAD = 10


@dataclass(frozen=True)
class Policy:
    """One limit by name: `uploads` or `reads`, so many a minute; 0 is no limit."""

    name: str
    per_minute: int


def client_of(caller: Caller, address: str | None) -> str:
    """Who is counted: the key, else the address; of IPv6 the /64 that one household has."""
    if caller.owner:
        return f"key:{caller.owner}"
    try:
        parsed = ipaddress.ip_address(address or "")
    except ValueError:
        # A Unix socket has none: all its clients are one.
        return "address:none"
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        network = ipaddress.ip_network((parsed, 64), strict=False)
        return f"address:{mapped or network.network_address}"
    return f"address:{parsed}"


class RateLimits:
    """Blocking: call it from threads. Counts nothing while Redis is away, when nothing works."""

    def __init__(self, settings: Settings, connection: Redis) -> None:
        self._settings = settings
        storage = RedisStorage(
            settings.redis_url,
            connection_pool=connection.connection_pool,
            key_prefix="stablesr:rate",
            wrap_exceptions=True,
        )
        self._limiter = MovingWindowRateLimiter(storage)

    def uploads(self, caller: Caller) -> Policy:
        key_limit = caller.per_minute
        return Policy(
            "uploads", self._settings.uploads_per_minute if key_limit is None else key_limit
        )

    def reads(self, caller: Caller) -> Policy:
        limit, key_limit = self._settings.reads_per_minute, caller.per_minute
        if limit and key_limit is not None:
            limit = max(limit, READS_AN_UPLOAD * key_limit)
        return Policy("reads", limit)

    def hit(self, policy: Policy, client: str) -> Mapping[str, str]:
        """Counts a request; the header fields that tell what is left.

        Raises RateLimited, with the same fields, when nothing was.
        """
        if not policy.per_minute:
            return {}
        item = RateLimitItemPerMinute(policy.per_minute)
        try:
            allowed = self._limiter.hit(item, policy.name, client)
            stats = self._limiter.get_window_stats(item, policy.name, client)
        except StorageError as error:
            log.warning("requests are not counted", reason=str(error.storage_error))
            return {}
        left = max(0, stats.remaining)
        seconds = max(1, math.ceil(stats.reset_time - time.time()))
        headers = {
            "RateLimit-Policy": f'"{policy.name}";q={policy.per_minute};w={WINDOW_S}',
            "RateLimit": f'"{policy.name}";r={left};t={seconds}',
        }
        if not allowed:
            raise RateLimited(
                f"{policy.per_minute} {policy.name} a minute are allowed, and they are used up; "
                f"try again in {seconds} seconds.",
                headers,
                limit=policy.per_minute,
                retry_after=seconds,
            )
        return headers


class ConcurrencyLimiter:
    """Counts what is open in this process, in total and of each client. Used on the loop only.

    The share of one client is what keeps the service open to all others: each stream or transfer
    holds a socket, a transfer also a file, and one client could otherwise take them all.
    """

    def __init__(
        self, limit: int, client_limit: int, *, kind: str, advice: str, error: type[JobsError]
    ) -> None:
        """`kind` is what is counted; a full server's `error` gives the `advice`."""
        self._limit = limit
        self._client_limit = client_limit
        self._kind, self._advice, self._error = kind, advice, error
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        return self._open.total()

    @contextmanager
    def slot(self, client: str) -> Iterator[None]:
        """Holds a slot as long as the block runs; raises the error."""
        if self._open[client] >= self._client_limit:
            raise self._error(
                f"{self._client_limit} {self._kind} of one client may be open at once; "
                "let one end first.",
                limit=self._client_limit,
                retry_after=5,
            )
        if self.open >= self._limit:
            raise self._error(
                f"All {self._limit} {self._kind} of this server are in use; {self._advice}.",
                limit=self._limit,
                retry_after=10,
            )
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            # A counter keeps its zeros, and clients are many.
            self._open += Counter()
