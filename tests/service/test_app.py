"""Redis or the store is away: 503 with when to come back, nothing lost, and all well afterwards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.errors import QueueUnavailable
from jobs.job_store import AGENDA_KEY
from jobs.maintenance import sweep
from jobs.queue import JobQueue
from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from tests.redis_proxy import RedisProxy
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, Leftovers, eventually, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A Redis of this test alone, to be taken away."""
    with RedisServer() as server:
        yield server


@pytest.fixture
def own_settings(settings: Settings, own_redis: RedisServer) -> Settings:
    return settings.model_copy(update={"redis_url": own_redis.url})


@pytest.fixture
def own_client(own_settings: Settings, leftovers: Leftovers) -> Iterator[httpx.Client]:
    with serving(own_settings) as client:
        yield client


def test_without_redis_every_use_is_503_and_with_it_all_is_well_again(
    own_client: httpx.Client, own_redis: RedisServer, own_settings: Settings
) -> None:
    job = upload(own_client, PNG).json()["id"]

    own_redis.kill()
    started = time.monotonic()
    for method, path in [
        ("GET", f"/jobs/{job}"),
        ("GET", f"/jobs/{job}/result"),
        ("DELETE", f"/jobs/{job}"),
        ("GET", "/models"),
    ]:
        body = problem(own_client.request(method, path), 503, "queue-unavailable")
        assert body["retry_after"]
        assert "127.0.0.1" not in str(body["detail"])
    problem(upload(own_client, PNG), 503, "queue-unavailable")
    ready = problem(own_client.get("/readyz"), 503, "not-ready")
    assert not ready["components"]["redis"]["ready"]
    assert own_client.get("/livez").status_code == 200
    assert time.monotonic() - started < 10, "a refusal must not keep its client waiting"
    stored = [path.name for path in own_settings.blob_root.rglob("*") if path.is_file()]
    assert stored == [job]

    own_redis.start()
    assert own_client.get(f"/jobs/{job}").json()["state"] == "queued"
    assert upload(own_client, PNG).status_code == 202
    with own_redis.connect() as connection:
        FakeWorker(connection, own_settings).appear()
    assert own_client.get("/readyz").status_code == 200


def test_a_redis_that_hangs_is_waited_for_once(
    own_client: httpx.Client, own_redis: RedisServer, own_settings: Settings
) -> None:
    """Each of the calls that a request makes would otherwise wait for an answer of its own."""
    job = upload(own_client, PNG).json()["id"]
    with own_redis.hanging():
        seconds = []
        for method, path in [
            ("GET", f"/jobs/{job}"),
            ("DELETE", f"/jobs/{job}"),
            ("GET", "/models"),
            ("GET", "/jobs"),
        ]:
            started = time.monotonic()
            problem(own_client.request(method, path), 503, "queue-unavailable")
            seconds.append(time.monotonic() - started)
        started = time.monotonic()
        problem(upload(own_client, PNG), 503, "queue-unavailable")
        problem(own_client.get("/readyz"), 503, "not-ready")
        seconds.append(time.monotonic() - started)
        assert max(seconds) < 3, seconds
        assert min(seconds) < 0.5, "no request profited from another's wait"
        assert own_client.get("/livez").status_code == 200
    eventually(lambda: own_client.get(f"/jobs/{job}").status_code == 200)
    assert own_client.get(f"/jobs/{job}").json()["state"] == "queued"
    assert upload(own_client, PNG).status_code == 202
    assert len([path for path in own_settings.blob_root.rglob("*") if path.is_file()]) == 2


def test_the_service_starts_without_redis_and_works_once_it_comes(
    own_settings: Settings, own_redis: RedisServer
) -> None:
    own_redis.kill()
    with serving(own_settings) as client:
        problem(upload(client, PNG), 503, "queue-unavailable")
        own_redis.start()
        assert upload(client, PNG).status_code == 202


def test_a_job_whose_answer_redis_lost_keeps_its_image_and_is_what_the_same_key_finds(
    settings: Settings, redis_server: RedisServer
) -> None:
    with (
        RedisProxy(redis_server.port) as proxy,
        serving(settings.model_copy(update={"redis_url": proxy.url})) as client,
    ):

        def upload_once() -> httpx.Response:
            return client.post(
                "/upscale",
                files={"image": ("photo.png", PNG)},
                headers={"Idempotency-Key": "the-same"},
            )

        proxy.lose_answer()
        problem(upload_once(), 503, "queue-unavailable")
        assert proxy.lost.is_set()
        again = upload_once()
        assert again.status_code == 202
        assert BlobStore.open(settings).get(input_key(again.json()["id"])) == PNG
        [job] = client.get("/jobs").json()["jobs"]
        assert (job["id"], job["state"]) == (again.json()["id"], "queued")


def test_an_image_whose_job_redis_never_took_is_swept(
    client: httpx.Client, settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(queue: JobQueue, *_: object) -> None:
        raise QueueUnavailable("Redis went away in this moment.", retry_after=5)

    monkeypatch.setattr(JobQueue, "submit", lost)
    problem(upload(client, PNG), 503, "queue-unavailable")
    [image] = (settings.blob_root / "inputs").iterdir()
    redis.zadd(AGENDA_KEY, {image.name: 0}, xx=True)
    assert sweep(redis, BlobStore.open(settings))["removals"] == 1
    assert not image.exists()


def test_a_redis_that_takes_no_writes_is_a_503(client: httpx.Client, redis: Redis) -> None:
    """Out of memory, read-only after a failover: it answers PING and is of no use."""
    redis.config_set("maxmemory", "1")
    try:
        answer = upload(client, PNG)
    finally:
        redis.config_set("maxmemory", "0")
    body = problem(answer, 503, "queue-unsuitable")
    assert body["detail"] == "Redis takes no writes: its memory (maxmemory) is full."
    assert upload(client, PNG).status_code == 202


@pytest.mark.parametrize("is_allowed", [False, True])
def test_a_redis_that_may_evict_takes_jobs_only_where_that_is_allowed(
    settings: Settings, redis: Redis, is_allowed: bool
) -> None:
    FakeWorker(redis, settings).appear()
    redis.config_set("maxmemory-policy", "volatile-lru")
    said = "may evict jobs: its maxmemory-policy is volatile-lru"
    try:
        with serving(settings.model_copy(update={"allow_eviction": is_allowed})) as client:
            ready, answer = client.get("/readyz"), upload(client, PNG)
            metrics = client.get("/metrics").text
    finally:
        redis.config_set("maxmemory-policy", "noeviction")
    assert "stablesr_redis_may_evict 1.0" in metrics
    if is_allowed:
        assert ready.json()["components"]["redis"]["detail"] == f"answers, but {said}"
        assert answer.status_code == 202
    else:
        body = problem(ready, 503, "not-ready")
        assert body["components"]["redis"]["detail"] == f"{said} and must be noeviction"
        body = problem(answer, 503, "queue-unsuitable")
        assert body["detail"] == f"No job is taken while Redis {said} and must be noeviction."
        # Only the operator can change it.
        assert "Retry-After" not in answer.headers


def test_a_redis_that_takes_no_writes_is_read_and_not_ready(
    settings: Settings, redis: Redis
) -> None:
    FakeWorker(redis, settings).appear()
    with serving(settings) as client:
        job = upload(client, PNG).json()["id"]
        redis.config_set("maxmemory", "1")
        try:
            with serving(settings) as another:
                body = problem(another.get("/readyz"), 503, "not-ready")
                assert another.get(f"/jobs/{job}").status_code == 200
                assert another.get("/jobs").status_code == 200
        finally:
            redis.config_set("maxmemory", "0")
    said = "takes no writes: its memory (maxmemory) is full"
    assert body["components"]["redis"] == {"ready": False, "detail": said}
    assert body["components"]["worker"]["ready"]


def test_a_store_that_cannot_be_written_is_a_503_and_leaves_no_job(
    client: httpx.Client, settings: Settings, redis: Redis, leftovers: Leftovers
) -> None:
    shutil.rmtree(settings.blob_root)
    settings.blob_root.write_text("a file where the folder should be")
    body = problem(upload(client, PNG), 503, "store-unavailable")
    assert body["retry_after"]
    assert str(settings.blob_root) not in str(body)
    assert redis.keys("*job*") == []
    settings.blob_root.unlink()
    assert leftovers.found() == []
    assert upload(client, PNG).status_code == 202


def test_no_room_for_temporary_files_is_a_503(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    answer = client.post("/upscale", files={"image": ("big.png", bytes(1_500_000))})
    problem(answer, 503, "store-unavailable")


def test_a_service_whose_store_takes_no_images_is_not_ready(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.readiness.REMEMBER_S", 0.0)
    FakeWorker(redis, settings).appear()
    with serving(settings) as client:
        assert client.get("/livez").status_code == 200, "its store is not open yet"
        shutil.rmtree(settings.blob_root)
        settings.blob_root.write_text("a file where the folder should be")
        try:
            body = problem(client.get("/readyz"), 503, "not-ready")
        finally:
            settings.blob_root.unlink()
        assert body["components"]["store"] == {"ready": False, "detail": "takes no images"}
        assert body["components"]["redis"]["ready"]
        assert body["components"]["worker"]["ready"]
    with serving(settings) as client:
        assert client.get("/readyz").json()["components"]["store"]["ready"]
        assert not [path for path in settings.blob_root.rglob("*") if path.is_file()]


def test_a_canceled_jobs_image_is_removed_without_any_worker(
    settings: Settings, redis: Redis
) -> None:
    store = BlobStore.open(settings)
    with serving(settings.model_copy(update={"worker_ttl_s": 1})) as client:
        job = upload(client, picture("PNG")).json()["id"]
        assert store.exists(input_key(job))
        assert client.delete(f"/jobs/{job}").status_code == 200
        eventually(lambda: not store.exists(input_key(job)))
