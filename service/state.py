"""What the routes share while the application lives: settings, queue, store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from jobs.idempotency import Idempotency
from jobs.queue import JobQueue
from jobs.settings import Settings
from jobs.store import BlobStore
from service.auth import Authenticator
from service.listener import Listener
from service.places import Places
from service.probe import StoreProbe
from service.ratelimit import RateLimits
from service.serving import Serving

__all__ = ["Services", "ServicesDep"]


@dataclass(frozen=True)
class Services:
    """All but listener and places block: routes that use them run in threads."""

    settings: Settings
    queue: JobQueue
    store: BlobStore
    authenticator: Authenticator
    idempotency: Idempotency
    limits: RateLimits
    listener: Listener
    streams: Places
    transfers: Places
    probe: StoreProbe

    def serving(self) -> Serving:
        """What the workers serve now; raises QueueUnavailable."""
        return Serving.of(self.queue.workers())


def _services(request: Request) -> Services:
    services = request.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(_services)]
