"""How many jobs one client may have waiting: no one fills the queue for all others."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys
from jobs.settings import Settings
from tests.service.harness import FakeWorker, problem, serving
from tests.service.pictures import picture

PNG = picture("PNG")
ADA, BOB = "198.51.100.1", "198.51.100.2"


@pytest.fixture
def crowded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A service with room for many jobs, of which each client may have two."""
    monkeypatch.setattr(Settings, "max_queued_each", 2)
    changes = {"max_queued": 100, "trusted_proxies": "127.0.0.1"}
    with serving(settings.model_copy(update=changes)) as client:
        yield client


def post(client: httpx.Client, address: str, **headers: str) -> httpx.Response:
    """An upload from this address, as a proxy says it."""
    return client.post(
        "/upscale",
        files={"image": ("photo.png", PNG)},
        headers={"X-Forwarded-For": address, **headers},
    )


def test_an_address_has_only_so_many_jobs_waiting(
    crowded: httpx.Client, redis: Redis, settings: Settings
) -> None:
    jobs = [post(crowded, ADA).json()["id"] for _ in range(2)]
    answer = post(crowded, ADA)
    body = problem(answer, 429, "quota-exceeded")
    assert body["limit"] == 2
    assert "this address" in body["detail"]
    assert answer.headers["Retry-After"]
    assert post(crowded, BOB).status_code == 202
    # A running job does not wait; one that was given back does.
    worker = FakeWorker(redis, settings)
    worker.start(jobs[0])
    assert post(crowded, ADA).status_code == 202
    worker.requeue(jobs[0])
    problem(post(crowded, ADA), 429, "quota-exceeded")
    # Jobs without a key are everybody's to see and to cancel; their count is the address's.
    for job in jobs:
        assert crowded.delete(f"/jobs/{job}").status_code == 200
    assert post(crowded, ADA).status_code == 202
    problem(post(crowded, ADA), 429, "quota-exceeded")


def test_a_key_without_a_number_of_its_own_has_the_servers(
    crowded: httpx.Client, redis: Redis
) -> None:
    _, general = Keys(redis).create("Ada")
    _, own = Keys(redis).create("Bob", max_queued=3)
    for key, most in ((general, 2), (own, 3)):
        for number in range(most):
            assert post(crowded, f"198.51.100.{number}", **{"X-API-Key": key}).status_code == 202
        body = problem(post(crowded, ADA, **{"X-API-Key": key}), 429, "quota-exceeded")
        assert body["limit"] == most


def test_one_client_may_fill_a_short_queue(settings: Settings, redis: Redis) -> None:
    with serving(settings.model_copy(update={"max_queued": 9})) as client:
        assert {post(client, ADA).status_code for _ in range(9)} == {202}
        problem(post(client, ADA), 503, "queue-full")
