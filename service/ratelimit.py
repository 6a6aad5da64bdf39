"""How much one client may ask for: requests a minute, and requests that are open at once.

A client is a key or, without one, an address. Requests are counted in a moving window in Redis,
shared by all service processes. The answer says what is left, in the header fields of
draft-ietf-httpapi-ratelimit-headers: `RateLimit-Policy` and `RateLimit`.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from jobs.connection import Command, LoopClient
from jobs.errors import JobsError, QueueUnavailable
from jobs.settings import Settings
from service.errors import RateLimitError

log = structlog.stdlib.get_logger(__name__)

WINDOW_S = 60
# A key with a number of its own for uploads reads in proportion.
READS_AN_UPLOAD = 10

# The moments of the requests in the window, the newest first, in microseconds of Redis' clock.
# Counts one more if it fits, and answers what is left and when the oldest leaves, in one call.
WINDOW = """
local clock = redis.call('TIME')
local now, limit = clock[1] * 1000000 + clock[2], tonumber(ARGV[1])
local window = ARGV[2] * 1000000
local oldest = redis.call('LINDEX', KEYS[1], -1)
while oldest and oldest + window <= now do
    redis.call('RPOP', KEYS[1])
    oldest = redis.call('LINDEX', KEYS[1], -1)
end
local remaining = limit - redis.call('LLEN', KEYS[1])
if remaining > 0 then
    redis.call('LPUSH', KEYS[1], string.format('%.0f', now))
    redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return {remaining, math.ceil(((oldest or now) + window - now) / 1000000)}
"""


Fields = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Policy:
    """One limit by name: `uploads` or `reads`, so many a minute; 0 is no limit."""

    name: str
    per_minute: int


def client_key(owner: str, address: str | None) -> str:
    """The client that a request is counted for: the key's owner, else the address."""
    return f"key:{owner}" if owner else address_key(address)


def address_key(address: str | None) -> str:
    """The client of an address; of IPv6 the /64 that one household has."""
    try:
        ip = ipaddress.ip_address(address or "")
    except ValueError:
        # A Unix socket has none: all its clients are one.
        return "address:none"
    if isinstance(ip, ipaddress.IPv6Address):
        network = ipaddress.ip_network((ip, 64), strict=False)
        return f"address:{ip.ipv4_mapped or network.network_address}"
    return f"address:{ip}"


class RateLimits:
    """Counts nothing while Redis is away, when nothing works."""

    def __init__(self, settings: Settings, client: LoopClient) -> None:
        self._settings = settings
        self._client = client

    def uploads(self, key_limit: int | None) -> Policy:
        return Policy(
            "uploads", self._settings.uploads_per_minute if key_limit is None else key_limit
        )

    def reads(self, key_limit: int | None) -> Policy:
        limit = self._settings.reads_per_minute
        if limit and key_limit is not None:
            limit = max(limit, READS_AN_UPLOAD * key_limit)
        return Policy("reads", limit)

    async def hit(self, policy: Policy, client: str) -> Fields:
        """Counts a request; the header fields that tell what is left.

        Raises RateLimitError, with the same fields, when nothing was.
        """
        if not policy.per_minute:
            return ()
        try:
            [answer] = await self._client.call(self.command(policy, client))
        except QueueUnavailable as error:
            log.warning("requests are not counted", reason=error.detail)
            return ()
        return self.fields(policy, answer)

    def command(self, policy: Policy, client: str) -> Command:
        """What `hit` asks Redis, for a call that asks for more."""
        key = f"stablesr:rate:{policy.name}:{client}"
        return ("EVAL", WINDOW, 1, key, policy.per_minute, WINDOW_S)

    def fields(self, policy: Policy, answer: Sequence[int]) -> Fields:
        """What `hit` makes of the answer."""
        name, limit = policy.name, policy.per_minute
        remaining, seconds = answer
        headers = {
            "RateLimit-Policy": f'"{name}";q={limit};w={WINDOW_S}',
            "RateLimit": f'"{name}";r={max(0, remaining - 1)};t={seconds}',
        }
        if remaining < 1:
            raise RateLimitError(
                f"{limit} {name} a minute are allowed, and they are used up; "
                f"try again in {seconds} seconds.",
                headers,
                limit=limit,
                retry_after=seconds,
            )
        return [(field.lower().encode(), value.encode()) for field, value in headers.items()]


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
