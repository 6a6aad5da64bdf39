"""What every folder's tests share: a real Redis, nothing else."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before anything imports torch: servers, workers and this process share few cores, and OpenMP's
# threads would spin on them while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One redis-server for the whole run; a test that stops it starts it again."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty Redis."""
    redis_server.flush()
    return redis_server.url
