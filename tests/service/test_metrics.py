"""GET /metrics: the queue, the workers and the requests, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from jobs.figures import Figures
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


def test_the_parts_of_a_jobs_way_are_histograms_up_to_half_an_hour(
    client: httpx.Client, worker: FakeWorker, redis: Redis
) -> None:
    job = upload(client, PNG).json()["id"]
    redis.hset(f"stablesr:job:{job}", "created_at", str(redis.time()[0] - 1000))
    worker.start(job)
    worker.succeed(job, PNG)
    scrape = Scrape(client)
    name = "stablesr_job_seconds"
    assert scrape.value(f"{name}_bucket", part="queue", le="600.0") == 0
    assert scrape.value(f"{name}_bucket", part="queue", le="1200.0") == 1
    assert scrape.value(f"{name}_bucket", part="queue", le="1800.0") == 1
    assert scrape.value(f"{name}_bucket", part="denoise", le="1.0") == 0
    assert scrape.value(f"{name}_bucket", part="denoise", le="2.0") == 1
    assert scrape.value(f"{name}_sum", part="denoise") == 1.5
    total = scrape.value(f"{name}_sum", part="total")
    assert total is not None
    assert total >= 1000
    assert scrape.value(f"{name}_count", part="total") == 1


def test_a_workers_figures_and_memory_are_told(
    client: httpx.Client, worker: FakeWorker, redis: Redis
) -> None:
    worker.appear(state="busy", running=2)
    figures = Figures()
    figures.inc("stablesr_tiles_total", 6)
    figures.observe("stablesr_batch_fill", 0.75)
    figures.observe("stablesr_step_seconds", 0.04)
    figures.set("stablesr_worker_memory_bytes", 123, kind="allocated")
    figures.flush(redis, worker.info.name, ttl_s=60)
    # What was told once is not told again.
    figures.flush(redis, worker.info.name, ttl_s=60)
    scrape = Scrape(client)
    assert scrape.value("stablesr_workers", preset="tiny", state="busy") == 1
    assert scrape.value("stablesr_running_jobs", preset="tiny") == 2
    assert scrape.value("stablesr_tiles_total") == 6
    assert scrape.value("stablesr_batch_fill_sum") == 0.75
    assert scrape.value("stablesr_step_seconds_bucket", le="0.05") == 1
    memory = {"kind": "allocated", "worker": worker.info.name}
    assert scrape.value("stablesr_worker_memory_bytes", **memory) == 123


def test_what_a_dead_worker_counted_stays_and_what_it_had_goes(
    client: httpx.Client, worker: FakeWorker, redis: Redis
) -> None:
    worker.appear()
    figures = Figures()
    figures.inc("stablesr_tiles_total", 6)
    figures.set("stablesr_worker_memory_bytes", 123, kind="allocated")
    figures.flush(redis, worker.info.name, ttl_s=60)
    worker.leave()
    scrape = Scrape(client)
    assert scrape.value("stablesr_tiles_total") == 6
    assert scrape.value("stablesr_worker_memory_bytes") is None


def test_figures_that_could_not_be_written_are_written_later(redis: Redis) -> None:
    figures = Figures()
    figures.inc("stablesr_tiles_total", 2)
    with RedisServer() as server:
        away = server.connect()
    with away, pytest.raises(Exception, match="does not answer"):
        figures.flush(away, "w", ttl_s=60)
    figures.inc("stablesr_tiles_total", 3)
    figures.flush(redis, "w", ttl_s=60)
    assert redis.hget("stablesr:figures", "stablesr_tiles_total") == b"5"


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
