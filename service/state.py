"""What the routes share while the application lives: settings, queue, store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from jobs.queue import JobQueue
from jobs.settings import Settings
from jobs.store import BlobStore

__all__ = ["Services", "ServicesDep"]


@dataclass(frozen=True)
class Services:
    """Both the queue and the store block: routes that use them run in threads."""

    settings: Settings
    queue: JobQueue
    store: BlobStore


def _services(request: Request) -> Services:
    services = request.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(_services)]
