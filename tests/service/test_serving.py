"""A server whose own preset has no weights, and what it says of that."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from tests.service.harness import FakeWorker, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")
WANTED = "stablesr-512"
REASON = "the licence of its weights is not accepted"


@pytest.fixture(scope="module")
def service(service: tuple[Settings, httpx.Client]) -> Iterator[tuple[Settings, httpx.Client]]:
    """The same server with another preset of its own."""
    settings = service[0].model_copy(update={"preset": WANTED})
    with serving(settings) as client:
        yield settings, client


@pytest.fixture
def stand_in(worker: FakeWorker) -> FakeWorker:
    """A worker that serves tiny because it has no weights."""
    worker.info = worker.info.model_copy(
        update={"preset": "tiny", "instead_of": WANTED, "reason": REASON}
    )
    worker.appear()
    return worker


@pytest.fixture
def second(settings: Settings, redis: Redis) -> FakeWorker:
    """Another worker, not yet there."""
    worker = FakeWorker(redis, settings)
    worker.info = worker.info.model_copy(update={"name": "second"})
    return worker


def test_a_request_that_names_no_preset_gets_the_one_that_is_served(
    client: httpx.Client, stand_in: FakeWorker
) -> None:
    job = upload(client, PNG).json()
    assert job["preset"] == job["parameters"]["preset"] == "tiny"
    assert job["parameters"]["steps"] == 1


def test_a_repeated_request_gets_its_job_whatever_is_served_by_now(
    client: httpx.Client, worker: FakeWorker
) -> None:
    files, headers = {"image": ("photo.png", PNG)}, {"Idempotency-Key": "k-1"}
    fields = {"preset": WANTED, "scale": 2}

    def post() -> httpx.Response:
        return client.post("/upscale", files=files, data=fields, headers=headers)

    first = post().json()
    worker.info = worker.info.model_copy(
        update={"preset": "tiny", "instead_of": WANTED, "reason": REASON}
    )
    worker.appear()
    again = post()
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_request_for_the_missing_preset_is_refused_with_the_reason(
    client: httpx.Client, stand_in: FakeWorker
) -> None:
    answer = upload(client, PNG, preset=WANTED)
    body = problem(answer, 503, "preset-not-served")
    assert body["detail"] == f"tiny is served instead of {WANTED}: {REASON}."
    assert body["served"] == ["tiny"]
    # Only the operator can change it, so a client is not told to wait.
    assert "Retry-After" not in answer.headers


def test_a_request_for_a_preset_that_no_worker_speaks_of_waits_for_one(
    client: httpx.Client, stand_in: FakeWorker
) -> None:
    assert upload(client, PNG, preset="stablesr-turbo").status_code == 202


def test_the_models_say_what_is_served_instead_and_why(
    client: httpx.Client, stand_in: FakeWorker
) -> None:
    body = client.get("/models").json()
    assert body["fallback"] == {"wanted": WANTED, "served": "tiny", "reason": REASON}
    models = {model["name"]: model for model in body["models"]}
    assert [name for name, model in models.items() if model["default"]] == ["tiny"]
    assert [name for name, model in models.items() if model["available"]] == ["tiny"]
    reasons = {name: model["reason"] for name, model in models.items() if model["reason"]}
    assert reasons == {WANTED: REASON}


def test_the_service_is_ready_and_says_with_what(
    client: httpx.Client, stand_in: FakeWorker
) -> None:
    worker = client.get("/readyz").json()["components"]["worker"]
    assert worker == {"ready": True, "detail": f"1 serving tiny instead of {WANTED}: {REASON}"}
    stand_in.appear(state="starting")
    body = problem(client.get("/readyz"), 503, "not-ready")
    assert body["components"]["worker"]["detail"] == "for tiny is starting"


def test_a_preset_whose_worker_compiles_is_not_ready_and_it_is_said_how_far_it_is(
    client: httpx.Client, worker: FakeWorker
) -> None:
    worker.appear(preset=WANTED, state="compiling", compiled=(1, 4))
    said = "compiling (1 of 4 sizes of network calls are ready)"
    body = problem(client.get("/readyz"), 503, "not-ready")
    assert body["components"]["worker"]["detail"] == f"for {WANTED} is {said}"
    models = {model["name"]: model for model in client.get("/models").json()["models"]}
    assert not models[WANTED]["available"]
    assert models[WANTED]["reason"] == f"its worker is {said}"
    # Its jobs need only wait.
    assert upload(client, PNG, preset=WANTED).status_code == 202


@pytest.mark.parametrize("state", ["starting", "compiling", "idle", "stopping"])
def test_a_worker_of_the_servers_own_preset_ends_the_fallback(
    client: httpx.Client, stand_in: FakeWorker, second: FakeWorker, state: str
) -> None:
    """Also before it is ready: what it will do soon is not done worse at once."""
    second.appear(state=state)
    assert client.get("/models").json()["fallback"] is None
    assert upload(client, PNG).json()["preset"] == WANTED
    assert upload(client, PNG, preset=WANTED).status_code == 202


def test_without_any_worker_jobs_wait_for_the_servers_own_preset(client: httpx.Client) -> None:
    assert client.get("/models").json()["fallback"] is None
    assert upload(client, PNG).json()["preset"] == WANTED


def test_a_fallback_for_another_preset_is_not_the_servers(
    client: httpx.Client, second: FakeWorker
) -> None:
    second.appear(preset="tiny", instead_of="stablesr-turbo", reason=REASON)
    body = client.get("/models").json()
    assert body["fallback"] is None
    assert [model["name"] for model in body["models"] if model["reason"]] == ["stablesr-turbo"]
    assert upload(client, PNG).json()["preset"] == WANTED
    problem(upload(client, PNG, preset="stablesr-turbo"), 503, "preset-not-served")


def test_a_full_queue_of_the_fallback_is_told_before_the_upload_is_read(
    client: httpx.Client, settings: Settings, stand_in: FakeWorker
) -> None:
    for _ in range(settings.max_queued):
        assert upload(client, PNG).status_code == 202
    # Were it read, this body would be refused as no form.
    answer = client.post(
        "/upscale", content=b"", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    problem(answer, 503, "queue-full")
