"""A real Redis for the folder, empty for each test, and what a job is made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from redis import Redis

from jobs.connection import CircuitBreaker, LoopClient, as_text
from jobs.errors import Problem
from jobs.job_store import JobStore, list_key, queue_key
from jobs.queue import JobQueue
from jobs.schema import ImageInfo, Job, JobState, ResultInfo, new_job_id
from jobs.settings import Settings
from jobs.states import TRANSITIONS, TRANSITIONS_WHEN_MARKED, Event
from jobs.store import BlobStore
from models.parameters import UpscaleParameters
from tests.redis_server import RedisServer

Submit = Callable[[], str]


def next_state(state: JobState, event: Event, *, cancel_requested: bool = False) -> JobState | None:
    """Where the event takes a job by the tables; None where it cannot happen."""
    return (TRANSITIONS_WHEN_MARKED if cancel_requested else TRANSITIONS)[event].get(state)


def failed(job: Job) -> Problem:
    """Why the job failed."""
    assert job.state is JobState.FAILED
    assert job.error is not None
    return job.error


def waiting_ids(connection: Redis, preset: str = "tiny") -> list[str]:
    """The waiting jobs in the order in which they would start."""
    next_ids: Any = connection.lrange(list_key(preset), 0, -1)
    ids: Any = connection.zrange(queue_key(preset), 0, -1)
    return [as_text(job_id) for job_id in (*next_ids, *ids)]


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def settings(server: RedisServer, tmp_path: Path) -> Settings:
    server.flush()
    return Settings(redis_url=server.url, blob_root=tmp_path / "blobs")


@pytest.fixture
def connection(settings: Settings, server: RedisServer) -> Iterator[Redis]:
    """A client beside the code under test, as an operator would have it."""
    with server.connect() as connection:
        yield connection


@pytest.fixture
def records(connection: Redis) -> JobStore:
    return JobStore(connection)


@pytest.fixture
def queue(settings: Settings) -> Iterator[JobQueue]:
    queue = JobQueue(settings)
    yield queue
    queue.close()


@pytest.fixture
def store(settings: Settings) -> BlobStore:
    return BlobStore.open(settings)


@pytest.fixture
def image() -> ImageInfo:
    return ImageInfo(width=64, height=48, format="PNG", media_type="image/png", bytes=1234)


@pytest.fixture
def result() -> ResultInfo:
    return ResultInfo(
        width=256, height=192, bytes=9, sha256="0" * 64, media_type="image/png", key="results/x"
    )


@pytest.fixture
def submit(queue: JobQueue, image: ImageInfo) -> Submit:
    """Submits a job and returns its id."""

    def submit() -> str:
        return queue.submit(new_job_id(), UpscaleParameters(seed=1), image).id

    return submit


T = TypeVar("T")
Use = Callable[[LoopClient], Coroutine[Any, Any, T]]


def run(settings: Settings, use: Use[T]) -> T:
    async def main() -> T:
        client = LoopClient(settings, CircuitBreaker())
        try:
            return await use(client)
        finally:
            await client.close()

    return asyncio.run(main())
