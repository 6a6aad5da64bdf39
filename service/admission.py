"""Who asks, and what the routes share while the application lives.

The key is checked and the request counted before a byte of its body is read.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import Depends, Request
from starlette.datastructures import Headers

from jobs.errors import QueueUnavailable
from jobs.idempotency import Idempotency
from jobs.keys import KeyInfo, Keys
from jobs.queue import JobQueue
from jobs.schema import ANYONE
from jobs.settings import Settings
from jobs.store import BlobStore
from service.errors import AuthenticationError
from service.listener import Listener
from service.ratelimit import ConcurrencyLimiter, Policy, RateLimits, client_key
from service.readiness import Serving, StoreProbe

__all__ = [
    "Authenticator",
    "ReaderDep",
    "Services",
    "admit_reader",
    "admit_uploader",
    "services_of",
]

# A revoked key works for at most this long.
CACHE_S = 3.0
# Enough for every key in use; more are guesses, and forgetting them all costs a lookup each.
CACHE_SIZE = 2000


@dataclass(frozen=True)
class Caller:
    """The client: `owner` is the key's id, or ANYONE without a key; limits as in `jobs.keys`."""

    owner: str = ANYONE
    max_queued: int | None = None
    per_minute: int | None = None


ANONYMOUS = Caller()


@dataclass(frozen=True)
class Services:
    """All but the listener and the limiters block: routes use them in threads."""

    settings: Settings
    queue: JobQueue
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

    def serving(self) -> Serving:
        """What the workers serve now; raises QueueUnavailable."""
        return Serving.of(self.queue.workers())


def services_of(request: Request) -> Services:
    """What the application of a request has been running since its start."""
    services = request.state.services
    assert isinstance(services, Services)
    return services


class Authenticator:
    """Looks keys up in Redis and remembers them for some seconds.

    Blocking: call it from threads. Safe to share between them.
    """

    def __init__(self, keys: Keys, *, key_is_required: bool) -> None:
        self._keys = keys
        self._key_is_required = key_is_required
        self._lock = threading.Lock()
        # By digest: a key in clear text lives no longer than its request.
        self._cache: dict[bytes, tuple[float, KeyInfo | None]] = {}
        self._any_key: tuple[float | None, bool] = (None, False)

    def caller(self, headers: Headers) -> Caller:
        """The owner of the request's credential.

        Raises AuthenticationError for a wrong key, and for none while keys are required;
        QueueUnavailable.
        """
        token = _token(headers)
        if token is None or not (self.requires_key() or Keys.looks_like_one(token)):
            if self.requires_key():
                raise AuthenticationError(
                    "An API key is needed: `Authorization: Bearer ssr_...` or `X-API-Key: ssr_...`."
                )
            return ANONYMOUS
        info = self._find(token)
        if info is None:
            raise AuthenticationError(
                "The API key is not known here, or it was revoked.", key_is_wrong=True
            )
        return Caller(info.id, info.max_queued, info.per_minute)

    def requires_key(self) -> bool:
        """Whether requests without a key are refused: by the settings, or a key was ever made."""
        if self._key_is_required:
            return True
        until, any_key = self._any_key
        if until is None or until <= time.monotonic():
            try:
                any_key = self._keys.any()
            except QueueUnavailable:
                # What needs Redis fails by itself; what does not may go on as it was.
                if until is None:
                    raise
                return any_key
            self._any_key = (time.monotonic() + CACHE_S, any_key)
        return any_key

    def _find(self, token: str) -> KeyInfo | None:
        digest = hashlib.sha256(token.encode()).digest()
        now = time.monotonic()
        with self._lock:
            until, info = self._cache.get(digest, (0.0, None))
        if until > now:
            return info
        info = self._keys.find(token)
        with self._lock:
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


def _admit(request: Request, policy_of: Callable[[int | None], Policy]) -> Caller:
    services = services_of(request)
    limits = services.limits
    address = None if request.client is None else request.client.host
    try:
        caller = services.authenticator.caller(request.headers)
    except AuthenticationError:
        # Guesses cost a lookup each: they are counted too, by address.
        limits.hit(limits.reads(None), client_key(ANYONE, address))
        raise
    client = client_key(caller.owner, address)
    # For the answer, whatever it will be, and for the request's line in the log.
    request.state.headers = limits.hit(policy_of(caller.per_minute), client)
    request.state.key = caller.owner or None
    request.state.client_id = client
    return caller


def admit_reader(request: Request) -> Caller:
    """What `ReaderDep` does; blocking."""
    return _admit(request, services_of(request).limits.reads)


def admit_uploader(request: Request) -> Caller:
    """The same for a request that is counted as an upload."""
    return _admit(request, services_of(request).limits.uploads)


async def _reader(request: Request) -> Caller:
    return await run_sync(admit_reader, request)


ReaderDep = Annotated[Caller, Depends(_reader)]
