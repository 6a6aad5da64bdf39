"""Whether the service is of use, and what it says about itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from jobs.workers import Capacity
from models.presets import PRESETS
from tests.service.harness import FakeWorker, problem


def test_a_live_process_says_so(client: httpx.Client) -> None:
    assert client.get("/livez").json() == {"status": "alive"}


def test_without_a_worker_the_service_is_not_ready(client: httpx.Client) -> None:
    body = problem(client.get("/readyz"), 503, "not-ready")
    assert body["components"]["redis"]["ready"]
    assert not body["components"]["worker"]["ready"]
    assert "stablesr worker" in body["detail"]


def test_a_worker_that_waits_or_works_makes_the_service_ready(
    client: httpx.Client, worker: FakeWorker
) -> None:
    for state in ("idle", "busy"):
        worker.appear(state=state)
        answer = client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["status"] == "ready"
        assert answer.json()["components"]["worker"] == {"ready": True, "detail": "1 serving tiny"}


@pytest.mark.parametrize("state", ["starting", "stopping"])
def test_a_worker_that_starts_or_stops_does_not(
    client: httpx.Client, worker: FakeWorker, state: str
) -> None:
    worker.appear(state=state)
    body = problem(client.get("/readyz"), 503, "not-ready")
    assert state in body["components"]["worker"]["detail"]


def test_a_worker_of_another_preset_does_not(client: httpx.Client, worker: FakeWorker) -> None:
    worker.appear(preset="stablesr-turbo")
    problem(client.get("/readyz"), 503, "not-ready")


def test_a_worker_that_left_is_missed(client: httpx.Client, worker: FakeWorker) -> None:
    worker.appear()
    assert client.get("/readyz").status_code == 200
    worker.leave()
    problem(client.get("/readyz"), 503, "not-ready")


@pytest.mark.parametrize("path", ["/models", "/readyz"])
def test_what_needs_no_key_is_asked_for_once_for_all_who_ask_within_a_second(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    questions: list[Capacity] = []
    read = Capacity.read

    def count(connection: Redis) -> Capacity:
        questions.append(read(connection))
        return questions[-1]

    monkeypatch.setattr(Capacity, "read", count)
    # Longer than this test, so that no load makes it fail.
    monkeypatch.setattr("service.routes.status.SHARED_S", 60.0)
    with ThreadPoolExecutor(8) as pool:
        answers = [answer.content for answer in pool.map(client.get, [path] * 40)]
    assert len(answers) == 40
    assert len(questions) <= 1


def test_the_models_are_listed_with_limits_and_licences(
    client: httpx.Client, worker: FakeWorker, settings: Settings
) -> None:
    worker.appear()
    body = client.get("/models").json()
    assert [model["name"] for model in body["models"]] == list(PRESETS)
    assert all(model["licence"] for model in body["models"])
    assert [model["name"] for model in body["models"] if model["default"]] == ["tiny"]
    assert [model["name"] for model in body["models"] if model["available"]] == ["tiny"]
    assert body["max_upload_bytes"] == settings.max_upload_bytes
    assert body["max_canvas_pixels"] == settings.max_output_pixels
    assert body["tile_overlap"] == 32
    sizes = {m["name"]: (m["native"], m["min_canvas_side"], m["tile_size"]) for m in body["models"]}
    assert (sizes["tiny"], sizes["stablesr-768v"]) == ((512, 128, 64), (768, 768, 96))
    assert {"PNG", "JPEG", "WEBP", "TIFF"} <= set(body["formats"])


def test_the_first_page_leads_on(client: httpx.Client) -> None:
    links = client.get("/").json()["links"]
    assert set(links) == {"docs", "openapi", "upscale", "models", "ready"}
    for name in ("docs", "openapi", "models"):
        assert client.get(links[name]).status_code == 200
