"""A preset whose workers have no weights, and what the service says of that."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.fair_queue import pause, resume
from jobs.settings import Settings
from tests.service.harness import FakeWorker, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")
PRESET = "stablesr-512"
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
