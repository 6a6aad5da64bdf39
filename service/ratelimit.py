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
from typing import Any, Literal

import structlog

from jobs.connection import Command, LoopClient
from jobs.errors import QueueUnavailable
from jobs.settings import Settings
from service.problems import HTTPError

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
    -- A Redis whose memory is full counts nothing more, and is read all the same.
    redis.pcall('LPUSH', KEYS[1], string.format('%.0f', now))
    redis.call('EXPIRE', KEYS[1], ARGV[2])
end
return {remaining, math.ceil(((oldest or now) + window - now) / 1000000)}
"""

# Header fields of the answer.
Fields = Sequence[tuple[bytes, bytes]]


def address_key(address: str | None) -> str:
    """The client that a request without a key is counted for; of IPv6 the /64 of one household."""
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
    """Limits by name: `uploads` and `reads`, so many a minute; 0 is no limit."""

    def __init__(self, settings: Settings, client: LoopClient) -> None:
        self._settings = settings
        self._client = client

    async def count(
        self,
        name: Literal["uploads", "reads"],
        client: str,
        key_limit: int | None = None,
        command: Command | None = None,
    ) -> tuple[Fields, Any]:
        """Counts a request: header fields that say what is left, and the answer to `command`.

        Both take one call of Redis. `key_limit` is the number of uploads a minute that the
        client's key has of its own. Raises HTTPError, with the same fields, when nothing was left,
        and QueueUnavailable; without a command nothing is counted while Redis is away.
        """
        uploads, reads = self._settings.uploads_per_minute, self._settings.reads_per_minute
        if name == "uploads":
            limit = uploads if key_limit is None else key_limit
        else:
            limit = max(reads, READS_AN_UPLOAD * (key_limit or 0)) if reads else 0
        key = f"stablesr:rate:{name}:{client}"
        commands: list[Command] = [("EVAL", WINDOW, 1, key, limit, WINDOW_S)] if limit else []
        commands += [] if command is None else [command]
        try:
            answers = await self._client.call(*commands) if commands else []
        except QueueUnavailable as error:
            if command is not None:
                raise
            log.warning("requests are not counted", reason=error.detail)
            return (), None
        fields = _fields(name, limit, *answers[0]) if limit else ()
        return fields, None if command is None else answers[-1]


def _fields(name: str, limit: int, remaining: int, seconds: int) -> Fields:
    fields = {
        "ratelimit-policy": f'"{name}";q={limit};w={WINDOW_S}',
        "ratelimit": f'"{name}";r={max(0, remaining - 1)};t={seconds}',
    }
    if remaining < 1:
        raise HTTPError(
            "rate-limited",
            f"{limit} {name} a minute are allowed, and they are used up; "
            f"try again in {seconds} seconds.",
            fields,
            limit=limit,
            retry_after=seconds,
        )
    return [(field.encode(), value.encode()) for field, value in fields.items()]


class TooManyOpen(HTTPError):
    """What is asked for would be open beside too many others."""


class ConcurrencyLimiter:
    """Counts what is open in this process, in total and of each client. Used on the loop only.

    The share of one client is what keeps the service open to all others: each stream or transfer
    holds a socket, a transfer also a file, and one client could otherwise take them all.
    """

    def __init__(self, kind: str, limit: int, client_limit: int, advice: str) -> None:
        self._kind, self._advice = kind, advice
        self._limit, self._client_limit = limit, client_limit
        self._open: Counter[str] = Counter()

    @property
    def open(self) -> int:
        return self._open.total()

    @contextmanager
    def slot(self, client: str) -> Iterator[None]:
        """Holds a slot as long as the block runs; raises TooManyOpen."""
        kind, limit = self._kind, self._client_limit
        if self._open[client] >= limit:
            detail = f"{limit} {kind} of one client may be open at once; let one end first."
            raise TooManyOpen(f"too-many-{kind}", detail, limit=limit, retry_after=5)
        if self.open >= (limit := self._limit):
            detail = f"All {limit} {kind} of this server are in use; {self._advice}."
            raise TooManyOpen(f"too-many-{kind}", detail, limit=limit, retry_after=10)
        self._open[client] += 1
        try:
            yield
        finally:
            self._open[client] -= 1
            # A counter keeps its zeros, and clients are many.
            self._open += Counter()
