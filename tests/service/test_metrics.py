"""GET /metrics: the queue, the workers and the requests, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from jobs.fair_queue import pause
from jobs.keys import Keys
from jobs.settings import Settings
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")


class Scrape:
    """One reading of /metrics."""

    def __init__(self, client: httpx.Client) -> None:
        answer = client.get("/metrics")
        assert answer.status_code == 200, answer.text
        assert answer.headers["Content-Type"].startswith("text/plain")
        self.families = list(text_string_to_metric_families(answer.text))

    def value(self, name: str, **labels: str) -> float | None:
        for family in self.families:
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None


@pytest.fixture
def fresh(settings: Settings) -> Iterator[httpx.Client]:
    """A client of a server that has counted nothing yet."""
    with serving(settings) as client:
        yield client


def test_what_clients_make_up_is_no_label(fresh: httpx.Client) -> None:
    for number in range(20):
        assert fresh.request(f"X{number}", "/livez").status_code == 405
        assert fresh.request(f"X{number}", f"/made/up/{number}").status_code == 404
    scrape = Scrape(fresh)
    [counts] = [one for one in scrape.families if one.name == "stablesr_http_requests"]
    assert {sample.labels["method"] for sample in counts.samples} == {"other"}
    name = "stablesr_http_requests_total"
    assert scrape.value(name, method="other", route="/livez", status="405") == 20
    assert scrape.value(name, method="other", route="other", status="404") == 20


def test_the_queues_depth_and_age_are_told(client: httpx.Client, redis: Redis) -> None:
    assert Scrape(client).value("stablesr_queue_jobs", preset="tiny") == 0
    job = upload(client, PNG).json()["id"]
    upload(client, PNG)
    redis.hset(f"stablesr:job:{job}", "created_at", str(redis.time()[0] - 100))
    scrape = Scrape(client)
    assert scrape.value("stablesr_queue_jobs", preset="tiny") == 2
    age = scrape.value("stablesr_queue_oldest_seconds", preset="tiny")
    assert age is not None
    assert 99 <= age <= 110
    assert scrape.value("stablesr_queue_paused", preset="tiny") == 0
    pause(redis, "tiny")
    assert Scrape(client).value("stablesr_queue_paused", preset="tiny") == 1


def test_jobs_are_counted_by_the_states_they_came_into(
    client: httpx.Client, worker: FakeWorker
) -> None:
    jobs = [upload(client, PNG).json()["id"] for _ in range(3)]
    worker.start(jobs[0])
    worker.succeed(jobs[0], PNG)
    worker.start(jobs[1])
    worker.requeue(jobs[1])
    client.delete(f"/jobs/{jobs[2]}")
    scrape = Scrape(client)
    moves = {"queued": 4, "processing": 2, "succeeded": 1, "canceled": 1}
    for state, count in moves.items():
        assert scrape.value("stablesr_job_moves_total", state=state) == count
        last_minute = scrape.value("stablesr_job_moves_last_minute", state=state)
        assert last_minute is not None
        assert 0 < last_minute <= count


def test_what_never_happened_is_told_as_0_so_that_its_first_time_is_an_increase(
    fresh: httpx.Client,
) -> None:
    scrape = Scrape(fresh)
    for state in ("failed", "expired"):
        assert scrape.value("stablesr_job_moves_total", state=state) == 0
    assert scrape.value("stablesr_webhook_attempts_total", outcome="given_up") == 0


def test_workers_and_their_memory_are_told_while_they_live(
    client: httpx.Client, worker: FakeWorker
) -> None:
    worker.appear(state="busy", running=2, memory={"allocated": 123})
    scrape = Scrape(client)
    assert scrape.value("stablesr_workers", preset="tiny", state="busy") == 1
    assert scrape.value("stablesr_running_jobs", preset="tiny") == 2
    memory = {"kind": "allocated", "worker": worker.info.name}
    assert scrape.value("stablesr_worker_memory_bytes", **memory) == 123
    worker.leave()
    scrape = Scrape(client)
    assert scrape.value("stablesr_workers") is None
    assert scrape.value("stablesr_worker_memory_bytes") is None


def test_every_process_tells_the_same_of_the_queue_and_only_its_own_requests(
    settings: Settings, worker: FakeWorker
) -> None:
    worker.appear(state="busy", running=1)
    with serving(settings) as first, serving(settings) as second:
        upload(first, PNG)
        for client in (first, second):
            scrape = Scrape(client)
            assert scrape.value("stablesr_queue_jobs", preset="tiny") == 1
            assert scrape.value("stablesr_workers", preset="tiny") == 1
            assert scrape.value("stablesr_running_jobs", preset="tiny") == 1
            assert scrape.value("stablesr_job_moves_total", state="queued") == 1
            own = scrape.value("stablesr_http_requests_total", route="/upscale")
            assert own == (1 if client is first else None)


def test_requests_are_counted_by_route_and_never_by_what_clients_make_up(
    fresh: httpx.Client,
) -> None:
    for path in ("/livez", "/jobs/one", "/jobs/two", "/made/up", "/made/up/too"):
        fresh.get(path)
    fresh.head("/livez")
    fresh.request("BREW", "/livez")
    scrape = Scrape(fresh)
    name = "stablesr_http_requests_total"
    assert scrape.value(name, method="GET", route="/livez", status="200") == 1
    assert scrape.value(name, method="HEAD", route="/livez", status="200") == 1
    assert scrape.value(name, method="GET", route="/jobs/{job_id}", status="404") == 2
    assert scrape.value(name, route="other", status="404") == 2
    labels = {
        sample.labels["route"]
        for family in scrape.families
        for sample in family.samples
        if sample.name == name
    }
    assert labels <= {"/livez", "/jobs/{job_id}", "other"}
    assert scrape.value("stablesr_http_request_seconds_count", route="/livez") is not None


def test_without_redis_the_service_still_tells_of_itself(settings: Settings) -> None:
    with RedisServer() as server:
        own = settings.model_copy(update={"redis_url": server.url})
        with serving(own) as client:
            assert Scrape(client).value("stablesr_redis_up") == 1
            server.kill()
            scrape = Scrape(client)
            assert scrape.value("stablesr_redis_up") == 0
            assert scrape.value("stablesr_queue_jobs") is None
            assert scrape.value("stablesr_streams_open") == 0


def test_where_keys_are_asked_for_metrics_need_one_too(settings: Settings, redis: Redis) -> None:
    _, key = Keys(redis).create("Prometheus")
    with serving(settings) as client:
        problem(client.get("/metrics"), 401, "unauthorized")
        assert client.get("/metrics", headers={"X-API-Key": key}).status_code == 200
