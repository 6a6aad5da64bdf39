"""The service under a real server on a real socket, and a worker that does as it is told."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from redis import Redis

from jobs.errors import Problem
from jobs.job_store import JobStore
from jobs.schema import Job, Progress, ResultInfo, Timings
from jobs.settings import Settings
from jobs.store import BlobStore, result_key
from jobs.workers import WorkerInfo, Workers
from service.run import server


def plain_client(url: str | httpx.URL = "", **options: Any) -> httpx.Client:
    """A client without TLS: reading the authorities' certificates takes longer than a test."""
    return httpx.Client(base_url=url, verify=False, **{"timeout": 30, **options})


@contextmanager
def serving(settings: Settings, *, root_path: str = "") -> Iterator[httpx.Client]:
    """A client of the service, which runs in a thread until the block ends.

    root_path is the prefix that a proxy in front has taken off.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        # From here on connections wait for the server instead of being refused.
        listener.listen(64)
        running = server(settings)
        running.config.root_path = root_path
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        port = listener.getsockname()[1]
        try:
            with plain_client(f"http://127.0.0.1:{port}") as client:
                yield client
        finally:
            running.should_exit = True
            thread.join(timeout=30)
            assert not thread.is_alive(), "the server did not stop"


class FakeWorker:
    """Moves jobs along with the calls that a real worker makes, without upscaling anything."""

    def __init__(self, connection: Redis, settings: Settings) -> None:
        self._workers = Workers(connection, ttl_s=settings.worker_ttl_s)
        self._records = JobStore(connection)
        self._store = BlobStore.open(settings)
        self.info = WorkerInfo(name="fake", preset=settings.preset, device="cpu", state="idle")

    def appear(self, **changes: object) -> None:
        self._workers.heartbeat(self.info.model_copy(update=changes))

    def leave(self) -> None:
        self._workers.unregister(self.info.name)

    def start(self, job_id: str) -> Job:
        return self._records.start(job_id, self.info.name)

    def progress(self, job_id: str, progress: Progress) -> Job:
        return self._records.progress(job_id, progress)

    def succeed(self, job_id: str, content: bytes) -> Job:
        key = result_key(job_id)
        self._store.put(key, content)
        result = ResultInfo(
            width=96,
            height=64,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            media_type="image/png",
            key=key,
        )
        return self._records.succeed(job_id, result, Timings(denoise=1.5))

    def lose_result(self, job_id: str) -> None:
        self._store.delete(result_key(job_id))

    def fail(self, job_id: str, problem: Problem) -> Job:
        return self._records.fail(job_id, problem)

    def requeue(self, job_id: str) -> Job:
        return self._records.requeue(job_id)

    def stop(self, job_id: str) -> Job:
        return self._records.stop(job_id)

    def expire(self, job_id: str) -> Job:
        return self._records.expire(job_id)


@dataclass(frozen=True)
class Leftovers:
    """What a refused upload must not leave: blobs, temporary files, keys in Redis."""

    blobs: Path
    temporary: Path
    redis: Redis | None

    def found(self) -> list[str]:
        names = [str(path) for path in self.blobs.rglob("*") if path.is_file()]
        names += [str(path) for path in self.temporary.rglob("*")]
        # An unnamed temporary file shows only as an open descriptor.
        for descriptor in Path("/proc/self/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except FileNotFoundError:
                continue
            if target.startswith(str(self.temporary)):
                names.append(target)
        if self.redis is not None:
            names += [str(key) for key in self.redis.keys("*job*")]
            names += [str(key) for key in self.redis.keys("*:queue:*")]
        return names


def eventually(true: Callable[[], bool], seconds: float = 10) -> None:
    """Returns as soon as it is true: for what no event announces, such as a closed descriptor."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"still not so after {seconds:g} seconds"
        time.sleep(0.01)


def problem(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem in a response, checked for what every problem has."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["type"] == (slug if slug == "about:blank" else f"/problems/{slug}")
    assert body["status"] == status
    assert body["instance"] == response.request.url.path
    assert body["request_id"] == response.headers["X-Request-ID"]
    assert body["title"]
    assert body["detail"]
    assert "Traceback" not in response.text
    if "retry_after" in body:
        assert int(response.headers["Retry-After"]) >= 1
    return body


def upload(
    client: httpx.Client, data: bytes, name: str = "photo.png", **fields: Any
) -> httpx.Response:
    """`POST /upscale` with one file and these fields."""
    return client.post("/upscale", files={"image": (name, data)}, data=fields)
