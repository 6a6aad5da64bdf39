"""The service of `tests.service`, with a proxy before it."""

from __future__ import annotations

from tests.service.conftest import quiet, redis, settings, temporary, worker

__all__ = ["quiet", "redis", "settings", "temporary", "worker"]
