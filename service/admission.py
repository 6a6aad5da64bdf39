"""Who asks, and what the routes share while the application lives.

The key is checked and the request counted before a byte of its body is read.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from starlette.datastructures import Headers

from jobs.connection import Command, LoopClient
from jobs.errors import QueueUnavailable
from jobs.idempotency import Idempotency
from jobs.keys import KeyInfo, Keys
from jobs.queue import JobQueue, JobReader
from jobs.schema import ANYONE
from jobs.settings import Settings
from jobs.store import BlobStore
from service.errors import AuthenticationError
from service.listener import Listener
from service.ratelimit import ConcurrencyLimiter, RateLimits, client_key
from service.readiness import StoreProbe

# A revoked key works for at most this long.
CACHE_S = 3.0
# Enough for every key in use; more are guesses, and forgetting them all costs a lookup each.
CACHE_SIZE = 2000


@dataclass(frozen=True)
class Caller:
    """`owner` is the key's id, or ANYONE without a key; limits as in `jobs.keys`.

    `client` is what is counted: the key, else the address.
    """

    owner: str
    client: str
    max_queued: int | None = None
    per_minute: int | None = None


@dataclass(frozen=True)
class Services:
    """`queue`, `store`, `idempotency` and `probe` block: routes use them in threads."""

    settings: Settings
    redis: LoopClient
    queue: JobQueue
    jobs: JobReader
    store: BlobStore
    authenticator: Authenticator
    idempotency: Idempotency
    limits: RateLimits
    listener: Listener
    # Event streams, and uploads that wait for their job.
    streams: ConcurrencyLimiter
    # Uploads that are received and results that are sent.
    transfers: ConcurrencyLimiter
    probe: StoreProbe


def services_of(request: Request) -> Services:
    """What the application of a request has been running since its start."""
    services = request.state.services
    assert isinstance(services, Services)
    return services


class Authenticator:
    """Looks keys up in Redis and remembers them for some seconds. Used on the loop only."""

    def __init__(self, keys: Keys, *, key_is_required: bool) -> None:
        self._keys = keys
        self._key_is_required = key_is_required
        # By digest: a key in clear text lives no longer than its request.
        self._cache: dict[bytes, tuple[float, KeyInfo | None]] = {}
        self._any_key: tuple[float | None, bool] = (None, False)

    async def key(self, headers: Headers) -> KeyInfo | None:
        """The key of a request; None where it has none and needs none.

        Raises AuthenticationError for a wrong key, and for none while keys are required;
        QueueUnavailable.
        """
        token = _token(headers)
        if token is None or not (Keys.looks_like_one(token) or await self.requires_key()):
            if await self.requires_key():
                raise AuthenticationError(
                    "An API key is needed: `Authorization: Bearer ssr_...` or `X-API-Key: ssr_...`."
                )
            return None
        info = await self._find(token)
        if info is None:
            raise AuthenticationError(
                "The API key is not known here, or it was revoked.", key_is_wrong=True
            )
        return info

    async def requires_key(self) -> bool:
        """Whether requests without a key are refused: by the settings, or a key was ever made."""
        if self._key_is_required:
            return True
        until, any_key = self._any_key
        if until is None or until <= time.monotonic():
            try:
                any_key = await run_sync(self._keys.any)
            except QueueUnavailable:
                # What needs Redis fails by itself; what does not may go on as it was.
                if until is None:
                    raise
                return any_key
            self._any_key = (time.monotonic() + CACHE_S, any_key)
        return any_key

    async def _find(self, token: str) -> KeyInfo | None:
        digest = hashlib.sha256(token.encode()).digest()
        now = time.monotonic()
        until, info = self._cache.get(digest, (0.0, None))
        if until > now:
            return info
        info = await run_sync(self._keys.find, token)
        if len(self._cache) >= CACHE_SIZE:
            self._cache.clear()
        self._cache[digest] = (now + CACHE_S, info)
        return info


def _token(headers: Headers) -> str | None:
    """The credential of a request: `Authorization: Bearer`, else `X-API-Key`; None without one.

    Other schemes are not for us but, say, for a proxy in front.
    """
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    return headers.get("x-api-key")


async def admit(
    request: Request, *, upload: bool = False, command: Callable[[Caller], Command] | None = None
) -> tuple[Caller, Any]:
    """The caller of a request that is counted, and the answer to a command for Redis.

    Both take one call. Raises AuthenticationError, RateLimitError; with a command also
    QueueUnavailable.
    """
    services = services_of(request)
    limits = services.limits
    address = None if request.client is None else request.client.host
    try:
        key = await services.authenticator.key(request.headers)
    except AuthenticationError:
        # Guesses cost a lookup each: they are counted too, by address.
        await limits.hit(limits.reads(None), client_key(ANYONE, address))
        raise
    if key is None:
        caller = Caller(ANYONE, client_key(ANYONE, address))
    else:
        caller = Caller(key.id, client_key(key.id, address), key.max_queued, key.per_minute)
        # For the request's line in the log.
        request.state.key = key.id
    policy = (limits.uploads if upload else limits.reads)(caller.per_minute)
    answer = None
    if command is None:
        fields = await limits.hit(policy, caller.client)
    elif policy.per_minute:
        count = limits.command(policy, caller.client)
        counts, answer = await services.redis.call(count, command(caller))
        fields = limits.fields(policy, counts)
    else:
        fields = ()
        [answer] = await services.redis.call(command(caller))
    # For the answer, whatever it will be.
    request.state.headers = fields
    return caller, answer


async def _reader(request: Request) -> Caller:
    caller, _ = await admit(request)
    return caller


ReaderDep = Annotated[Caller, Depends(_reader)]
