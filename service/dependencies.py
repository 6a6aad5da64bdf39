"""What the routes share while the application lives, and who may come in.

The key is checked and the request counted before a byte of its body is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from jobs.idempotency import Idempotency
from jobs.queue import JobQueue
from jobs.settings import Settings
from jobs.store import BlobStore
from service.auth import ANONYMOUS, Authenticator, Caller, token_of
from service.errors import Unauthorized
from service.listener import Listener
from service.ratelimit import ConcurrencyLimiter, Policy, RateLimits, client_of
from service.readiness import Serving, StoreProbe

__all__ = ["ReaderDep", "Services", "ServicesDep", "UploaderDep", "root"]


@dataclass(frozen=True)
class Services:
    """All but the listener and the limiters block: routes that use them run in threads."""

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


def _services(request: Request) -> Services:
    services = request.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(_services)]


def _admit(request: Request, services: Services, policy: Callable[[Caller], Policy]) -> Caller:
    address = None if request.client is None else request.client.host
    try:
        caller = services.authenticator.caller(token_of(request.headers))
    except Unauthorized:
        # Guesses cost a lookup each: they are counted too, by address.
        services.limits.hit(services.limits.reads(ANONYMOUS), client_of(ANONYMOUS, address))
        raise
    client = client_of(caller, address)
    # For the answer, whatever it will be, and for the request's line in the log.
    request.state.headers = services.limits.hit(policy(caller), client)
    request.state.key = caller.owner or None
    request.state.client_id = client
    return caller


def _reader(request: Request, services: ServicesDep) -> Caller:
    return _admit(request, services, services.limits.reads)


def _uploader(request: Request, services: ServicesDep) -> Caller:
    return _admit(request, services, services.limits.uploads)


ReaderDep = Annotated[Caller, Depends(_reader)]
UploaderDep = Annotated[Caller, Depends(_uploader)]


def root(request: Request) -> str:
    """The path under which the service is mounted; empty without a proxy's prefix."""
    path: str = request.scope.get("root_path", "")
    return path
