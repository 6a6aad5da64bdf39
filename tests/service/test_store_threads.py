"""A store that gives no answer: uploads are refused in time, and nothing else waits for it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import anyio
import httpx
import pytest
from redis import Redis

from jobs.errors import StoreUnavailable
from jobs.settings import Settings
from service import store_threads
from service.store_threads import StoreThreads
from tests.s3_server import S3Server, environment, silence
from tests.service.harness import FakeWorker, eventually, plain_client, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")
ANSWER_S = 4.0


def at(url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """These settings with S3 at this address as the store, which has four seconds for an answer."""
    monkeypatch.setattr("jobs.store.ANSWER_S", ANSWER_S)
    monkeypatch.setattr("service.store_threads.WAIT_S", ANSWER_S)
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    changes = {"blob_url": "s3://bucket/images", "max_connections": 4000}
    return settings.model_copy(update=changes)


def transfers(client: httpx.Client) -> float:
    """Uploads that the service has in hand."""
    [line] = re.findall("^stablesr_transfers_open (.*)$", client.get("/metrics").text, re.MULTILINE)
    return float(line)


@pytest.fixture
def silent(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[httpx.Client]:
    """The service of a store that gives no answer."""
    with silence() as url:
        settings = at(url, settings, monkeypatch)
        FakeWorker(redis, settings.model_copy(update={"blob_url": None})).appear()
        with serving(settings) as client:
            yield client


def test_what_needs_no_store_does_not_wait_for_one_that_hangs(silent: httpx.Client) -> None:
    def post(_: int) -> httpx.Response:
        with plain_client(silent.base_url) as client:
            return upload(client, PNG)

    with ThreadPoolExecutor(45) as pool:
        posts = [pool.submit(post, number) for number in range(45)]
        eventually(lambda: transfers(silent) == 45)
        for path in ("/jobs", "/models", "/livez", "/jobs/none") * 5:
            silent.get(path)
        assert not any(post.done() for post in posts), "an upload was answered before a reader was"
        for done in as_completed(posts):
            assert problem(done.result(), 503, "store-unavailable")["retry_after"] == 5
    # Now the silence is known, and a body is not even read.
    began = time.monotonic()
    problem(upload(silent, PNG), 503, "store-unavailable")
    assert time.monotonic() - began < ANSWER_S / 2


def test_readiness_is_answered_while_its_probe_hangs(
    silent: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.readiness.PROBE_S", 0.1)
    monkeypatch.setattr("service.readiness.REMEMBER_S", 0.5)

    def detail(_: int) -> str:
        with plain_client(silent.base_url) as client:
            body = problem(client.get("/readyz"), 503, "not-ready")
        return str(body["components"]["store"]["detail"])

    with ThreadPoolExecutor(45) as pool:
        details = list(pool.map(detail, range(45)))
    assert {text.rpartition(" for ")[0] for text in details} == {"has given no answer"}
    silent.get("/jobs")
    monkeypatch.setattr("service.readiness.PROBE_S", 30.0)
    assert detail(0) == "gives no answer"


def test_a_missing_bucket_is_said_and_the_service_is_ready_once_it_is_there(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.readiness.REMEMBER_S", 0.0)
    with S3Server() as s3:
        FakeWorker(redis, settings).appear()
        with serving(at(s3.url, settings, monkeypatch)) as client:
            body = problem(client.get("/readyz"), 503, "not-ready")
            assert body["detail"] == "store takes no images (NoSuchBucket)."
            problem(upload(client, PNG), 503, "store-unavailable")
            s3.bucket("bucket")
            assert client.get("/readyz").status_code == 200
            job = upload(client, PNG).json()["id"]
            assert s3.names("bucket") == [f"images/inputs/{job}"]
        s3.clear()


def test_when_all_threads_hang_a_call_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_threads, "THREADS", 2)
    monkeypatch.setattr(store_threads, "WAIT_S", 0.1)

    async def main() -> None:
        threads, began, ends = StoreThreads(), anyio.Semaphore(0), anyio.Event()

        async def hang() -> None:
            began.release()
            await ends.wait()

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(threads.run, lambda: anyio.from_thread.run(hang))
                await began.acquire()
            with pytest.raises(StoreUnavailable, match="all 2 threads"):
                await threads.run(lambda: None)
            ends.set()
        assert await threads.run(lambda: 7) == 7

    anyio.run(main)
