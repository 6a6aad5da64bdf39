"""The service with every protocol switched on, a key, and a worker that ends each job at once."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from redis import Redis

from jobs.errors import Problem
from jobs.keys import Keys
from jobs.settings import PROTOCOLS, Settings
from jobs.states import CHANNEL
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, serving
from tests.service.pictures import picture

PNG = picture("PNG")
RESULT = picture("PNG", 96, 64)
TEXT = base64.b64encode(PNG).decode()
URI = f"data:image/png;base64,{TEXT}"


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    settings = Settings(
        redis_url=redis_server.url,
        blob_root=tmp_path_factory.mktemp("store") / "blobs",
        max_upload_bytes=2_000_000,
        max_input_pixels=1_000_000,
        max_output_pixels=4_000_000,
        max_queued=1000,
        compat=",".join(PROTOCOLS),
    )
    with serving(settings) as client:
        yield settings, client


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a key was ever made is asked each time: here the tests differ in that."""
    monkeypatch.setattr("service.admission.CACHE_S", 0.0)


@pytest.fixture
def token(redis: Redis) -> str:
    """A key; from now on the service asks for one."""
    return Keys(redis).create("ada")[1]


@pytest.fixture
def keyed(client: httpx.Client, token: str) -> Iterator[httpx.Client]:
    """A client whose key is a bearer's."""
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(base_url=client.base_url, headers=headers, timeout=30) as own:
        yield own


@contextmanager
def ending(redis: Redis, end: Callable[[str], object]) -> Iterator[None]:
    """Calls `end` with the id of each job that comes, until the block ends."""
    channel = redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]  # it has none
    channel.subscribe(CHANNEL)
    channel.get_message(timeout=5)
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            message = channel.get_message(timeout=0.05)
            if message is not None:
                job_id, _, state = message["data"].decode().split(" ")
                if state == "queued":
                    end(job_id)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=10)
        channel.close()


@pytest.fixture
def working(redis: Redis, worker: FakeWorker) -> Iterator[None]:
    """Each job succeeds at once, with RESULT."""

    def succeed(job_id: str) -> None:
        worker.start(job_id)
        worker.succeed(job_id, RESULT)

    worker.appear()
    with ending(redis, succeed):
        yield


@pytest.fixture
def failing(redis: Redis, worker: FakeWorker) -> Iterator[None]:
    """Each job fails at once."""

    def fail(job_id: str) -> None:
        worker.start(job_id)
        problem = Problem(type="out-of-memory", title="Memory", detail="The device is too small.")
        worker.fail(job_id, problem)

    worker.appear()
    with ending(redis, fail):
        yield
