"""The service of `tests.service`, for uploads that mean harm."""

from __future__ import annotations

from tests.service.conftest import client, leftovers, quiet, redis, settings, temporary

__all__ = ["client", "leftovers", "quiet", "redis", "settings", "temporary"]
