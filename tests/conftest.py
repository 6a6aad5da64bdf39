"""What every folder's tests share: a real Redis, nothing else."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

# Before anything imports torch: servers, workers and this process share few cores, and OpenMP's
# threads would spin on them while they wait.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from tests.redis_server import RedisServer


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell starts what runs in its background with SIGINT ignored, and every process that
    such a test run starts would inherit that: a test could not interrupt it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
