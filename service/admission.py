"""Who asks, checked and counted before a byte of the body is read; and what the routes share."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from starlette.datastructures import Headers

from jobs.connection import CircuitBreaker, Command, LoopClient, connect
from jobs.errors import QueueUnavailable
from jobs.idempotency import Idempotency
from jobs.keys import KeyInfo, Keys, Scope
from jobs.queue import JobQueue, JobReader
from jobs.redis_probe import RedisProbe
from jobs.schema import ANYONE
from jobs.settings import Settings
from jobs.store import BlobStore
from service.egress import Egress
from service.listener import Listener
from service.problems import AuthenticationError, HTTPError
from service.ratelimit import ConcurrencyLimiter, RateLimits, address_key
from service.readiness import StoreProbe, StoreThreads

# A revoked key works for at most this long.
CACHE_S = 3.0
# Enough for every key in use; more are guesses, and forgetting them all costs a lookup each.
CACHE_SIZE = 2000


@dataclass(frozen=True)
class Caller:
    """Who asks: a key, or None without one; `client` is what is counted, the key or the address."""

    key: KeyInfo | None
    client: str

    @property
    def owner(self) -> str:
        """The owner of the caller's jobs."""
        return ANYONE if self.key is None else self.key.id


class Services:
    """What an application has been running since its start; nothing is connected by making it.

    `queue`, `store`, `keys`, `idempotency` block: routes use them in threads, the store in its own.

    `streams` are event streams, and uploads that wait for their job; `transfers` are uploads that
    are received, and results that are sent; `fetches` are images that are fetched from elsewhere,
    and wait for others' servers. `readers` are threads that hold a whole body in JSON, twice.
    """

    def __init__(self, settings: Settings, store: BlobStore, listener: Listener) -> None:
        self.settings, self.store, self.listener = settings, store, listener
        # One for everything: what one use of it learns of a Redis that hangs, all know.
        breaker = CircuitBreaker()
        self.connection = connect(settings, breaker=breaker)
        self.client = LoopClient(settings, breaker)
        self.redis = RedisProbe(self.connection, settings)
        self.queue = JobQueue(settings, self.connection)
        self.jobs = JobReader(self.client, self.queue)
        self.store_threads, self.store_probe = StoreThreads(), StoreProbe(store)
        self.keys = Keys(self.connection)
        self.authenticator = Authenticator(self.keys, key_is_required=settings.access == "keys")
        self.idempotency = Idempotency(self.connection)
        self.limits = RateLimits(settings, self.client)
        most, each, later = settings.max_transfers, settings.max_each, "try again later"
        advice = "try again later, or ask for the job instead"
        self.streams = ConcurrencyLimiter("streams", settings.max_streams, each, advice)
        self.transfers = ConcurrencyLimiter("transfers", most, each, later)
        self.fetches = ConcurrencyLimiter("fetches", most, each, later)
        self.egress = Egress(settings)
        self.readers = CapacityLimiter(2)


def services_of(request: Request) -> Services:
    services: Services = request.state.services
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

        Raises AuthenticationError for a wrong key or a missing one, QueueUnavailable.
        """
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        token = rest.strip() if scheme.lower() == "bearer" else headers.get("x-api-key")
        # A token of another form is for others, such as a proxy in front, unless keys are required.
        if token is not None and (Keys.looks_like_one(token) or await self.requires_key()):
            info = await self._find(token)
            if info is None:
                detail = "The API key is not known here, or it was revoked."
                raise AuthenticationError(detail, key_is_wrong=True)
            if info.has_expired:
                detail = f"The API key expired at {info.expires_at:%Y-%m-%d %H:%M} UTC."
                raise AuthenticationError(detail, key_is_wrong=True)
            return info
        if await self.requires_key():
            raise AuthenticationError(
                "An API key is needed: `Authorization: Bearer ssr_...` or `X-API-Key: ssr_...`."
            )
        return None

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


async def admit(
    request: Request,
    *,
    upload: bool = False,
    scope: Scope = "jobs",
    command: Callable[[Caller], Command] | None = None,
) -> tuple[Caller, Any]:
    """The caller of a request that is counted, and the answer to a command for Redis.

    Both take one call. Raises AuthenticationError, HTTPError for a key of another scope and for too
    many, QueueUnavailable.
    """
    services = services_of(request)
    address = None if request.client is None else request.client.host
    try:
        key = await services.authenticator.key(request.headers)
    except AuthenticationError:
        # Guesses cost a lookup each: they are counted too, by address.
        await services.limits.count("reads", address_key(address))
        raise
    if key is None:
        caller = Caller(None, address_key(address))
    else:
        caller = Caller(key, f"key:{key.id}")
        # For the request's line in the log.
        request.state.key = key.id
    # The fields are for the answer, whatever it will be.
    request.state.headers, answer = await services.limits.count(
        "uploads" if upload else "reads",
        caller.client,
        None if key is None else key.per_minute,
        None if command is None else command(caller),
    )
    if key is not None and key.scope not in ("all", scope):
        # RFC 6750, section 3.1.
        fields = {"WWW-Authenticate": 'Bearer realm="stablesr", error="insufficient_scope"'}
        detail = f"The API key is for {key.scope} only; this needs one for {scope}."
        raise HTTPError("insufficient-scope", detail, fields)
    return caller, answer


async def _reader(request: Request) -> Caller:
    return (await admit(request))[0]


async def _observer(request: Request) -> None:
    await admit(request, scope="metrics")


ReaderDep = Annotated[Caller, Depends(_reader)]
ObserverDep = Annotated[None, Depends(_observer)]
