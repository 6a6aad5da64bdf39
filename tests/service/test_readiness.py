"""A preset whose workers have no weights, a store that gives no answer: what the service says, and
that nothing else waits for it."""

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
from jobs.fair_queue import pause, resume
from jobs.settings import Settings
from service.readiness import StoreThreads
from tests.s3_server import S3Server, environment, silence
from tests.service.harness import FakeWorker, eventually, plain_client, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")
PRESET = "stablesr-512"
ANSWER_S = 4.0
REASON = "the licence of its weights is not accepted"


@pytest.fixture(scope="module")
def service(service: tuple[Settings, httpx.Client]) -> Iterator[tuple[Settings, httpx.Client]]:
    """The same server with another preset of its own."""
    settings = service[0].model_copy(update={"preset": PRESET})
    with serving(settings) as client:
        yield settings, client


@pytest.fixture
def unready(worker: FakeWorker) -> FakeWorker:
    """A worker that has no weights."""
    worker.appear(state="not_ready", reason=REASON)
    return worker


@pytest.fixture
def second(settings: Settings, redis: Redis) -> FakeWorker:
    """Another worker, not yet there."""
    worker = FakeWorker(redis, settings)
    worker.info = worker.info.model_copy(update={"name": "second"})
    return worker


@pytest.mark.parametrize("fields", [{}, {"preset": PRESET}])
def test_a_request_for_the_preset_is_refused_with_the_reason(
    client: httpx.Client, unready: FakeWorker, second: FakeWorker, fields: dict[str, str]
) -> None:
    second.appear(preset="tiny")
    answer = upload(client, PNG, **fields)
    body = problem(answer, 503, "preset-not-served")
    assert body["detail"] == f"{PRESET} is not served: {REASON}."
    assert body["served"] == ["tiny"]
    # Only the operator can change it, so a client is not told to wait.
    assert "Retry-After" not in answer.headers
    # The other preset is served, when it is named.
    assert upload(client, PNG, preset="tiny").json()["preset"] == "tiny"


def test_a_repeated_request_gets_its_job_whatever_is_served_by_now(
    client: httpx.Client, worker: FakeWorker
) -> None:
    files, headers = {"image": ("photo.png", PNG)}, {"Idempotency-Key": "k-1"}
    fields = {"preset": PRESET, "scale": 2}

    def post() -> httpx.Response:
        return client.post("/upscale", files=files, data=fields, headers=headers)

    first = post().json()
    worker.appear(state="not_ready", reason=REASON)
    again = post()
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_request_for_a_preset_without_any_worker_waits_for_one(
    client: httpx.Client, unready: FakeWorker
) -> None:
    assert upload(client, PNG, preset="stablesr-turbo").status_code == 202


def test_the_models_say_why(client: httpx.Client, unready: FakeWorker, second: FakeWorker) -> None:
    second.appear(preset="tiny")
    models = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert [name for name, model in models.items() if model["default"]] == [PRESET]
    assert [name for name, model in models.items() if model["available"]] == ["tiny"]
    reasons = {name: model["reason"] for name, model in models.items() if model["reason"]}
    assert reasons == {PRESET: REASON}


def test_the_service_is_not_ready_and_says_why(client: httpx.Client, unready: FakeWorker) -> None:
    body = problem(client.get("/readyz"), 503, "not-ready")
    said = f"for {PRESET} is not ready: {REASON}"
    assert body["components"]["worker"] == {"ready": False, "detail": said}
    assert body["detail"] == f"worker {said}."


def test_a_preset_whose_worker_compiles_is_not_ready_and_it_is_said_how_far_it_is(
    client: httpx.Client, worker: FakeWorker
) -> None:
    worker.appear(state="compiling", compiled=(1, 4))
    said = "compiling (1 of 4 sizes of network calls are ready)"
    body = problem(client.get("/readyz"), 503, "not-ready")
    assert body["components"]["worker"]["detail"] == f"for {PRESET} is {said}"
    models = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert not models[PRESET]["available"]
    assert models[PRESET]["reason"] == f"its worker is {said}"
    # Its jobs need only wait.
    assert upload(client, PNG, preset=PRESET).status_code == 202


@pytest.mark.parametrize("state", ["starting", "idle", "stopping"])
def test_a_worker_with_the_weights_takes_jobs_beside_one_without(
    client: httpx.Client, unready: FakeWorker, second: FakeWorker, state: str
) -> None:
    """Also before it is ready: then jobs need only wait."""
    second.appear(state=state)
    assert not any(model["reason"] for model in client.get("/models").json()["models"])
    assert upload(client, PNG).json()["preset"] == PRESET
    ready = client.get("/readyz").json()["components" if state == "idle" else "detail"]
    assert (f"1 serving {PRESET}" if state == "idle" else f"for {PRESET} is {state}") in str(ready)


def test_without_any_worker_jobs_wait_for_the_servers_own_preset(client: httpx.Client) -> None:
    assert upload(client, PNG).json()["preset"] == PRESET


def test_missing_weights_of_another_preset_are_not_the_servers(
    client: httpx.Client, second: FakeWorker
) -> None:
    second.appear(preset="stablesr-turbo", state="not_ready", reason=REASON)
    models = client.get("/models").json()["models"]
    assert [model["name"] for model in models if model["reason"]] == ["stablesr-turbo"]
    assert upload(client, PNG).json()["preset"] == PRESET
    problem(upload(client, PNG, preset="stablesr-turbo"), 503, "preset-not-served")


def test_full_queues_of_all_that_is_served_are_told_before_the_upload_is_read(
    client: httpx.Client, settings: Settings, second: FakeWorker
) -> None:
    second.appear(preset="tiny")
    # Were it read, this body would be refused as no form.
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for preset in ("tiny", PRESET):
        answer = client.post("/upscale", content=b"", headers=form)
        assert answer.status_code != 503, "one of the queues has room"
        for _ in range(settings.max_queued):
            assert upload(client, PNG, preset=preset).status_code == 202
    problem(client.post("/upscale", content=b"", headers=form), 503, "queue-full")


def test_a_paused_preset_takes_uploads_in_and_says_that_it_is_paused(
    client: httpx.Client, worker: FakeWorker, redis: Redis
) -> None:
    worker.appear(preset=PRESET)
    pause(redis, PRESET)
    assert upload(client, PNG).json()["state"] == "queued"
    models = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert (models[PRESET]["available"], "is paused" in models[PRESET]["reason"]) == (False, True)
    ready = client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json()["components"]["worker"]["detail"] == f"1 serving {PRESET}, which is paused"
    resume(redis, PRESET)
    models = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert (models[PRESET]["available"], models[PRESET]["reason"]) == (True, None)


def at(url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """These settings with S3 at this address as the store, which has four seconds for an answer."""
    monkeypatch.setattr("jobs.store.ANSWER_S", ANSWER_S)
    monkeypatch.setattr("service.readiness.WAIT_S", ANSWER_S)
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
    monkeypatch.setattr("service.readiness.THREADS", 2)
    monkeypatch.setattr("service.readiness.WAIT_S", 0.1)

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
