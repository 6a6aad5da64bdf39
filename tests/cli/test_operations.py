"""`stablesr status`, `drain` and `queue` as an operator types them, against a real service."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import structlog
from redis import Redis
from typer.testing import CliRunner, Result

from cli.main import app
from cli.processes import free_port
from jobs.fair_queue import dispatch, pause
from jobs.keys import Keys
from jobs.settings import Settings
from jobs.workers import WorkerInfo, Workers
from tests.service.harness import FakeWorker, serving, upload
from tests.service.pictures import picture


@pytest.fixture
def settings(redis_url: str, tmp_path: Path) -> Settings:
    return Settings(redis_url=redis_url, blob_root=tmp_path / "blobs")


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx.Client]:
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    with serving(settings) as client:
        yield client
    structlog.reset_defaults()


def status(client: httpx.Client, *more: str) -> Result:
    return CliRunner().invoke(app, ["status", "--server", str(client.base_url), *more])


def test_workers_queue_and_jobs_are_shown(client: httpx.Client, settings: Settings) -> None:
    jobs = [upload(client, picture("PNG")).json()["id"] for _ in range(3)]
    with Redis.from_url(settings.redis_url) as redis:
        worker = FakeWorker(redis, settings)
        worker.appear(state="busy", running=1, memory={"allocated": 5 * 2**20})
        worker.start(jobs[0])
        worker.succeed(jobs[0], b"result")
        for job in jobs[:1]:
            # RQ's part is a real worker's business.
            redis.lrem("rq:queue:stablesr:tiny", 1, job)
    shown = status(client)
    assert shown.exit_code == 0, shown.output
    assert "ready: redis answers, store takes images, worker 1 serving tiny" in shown.stdout
    assert "tiny: 1 busy" in shown.stdout
    assert "tiny: 2 jobs, the next one for" in shown.stdout
    assert "memory    fake: allocated 5 MiB" in shown.stdout
    assert "since ever    3 queued, 1 processing, 1 succeeded" in shown.stdout


def test_a_paused_preset_is_shown(client: httpx.Client, settings: Settings) -> None:
    with Redis.from_url(settings.redis_url) as redis:
        pause(redis, "tiny")
        FakeWorker(redis, settings).appear()
    shown = status(client)
    assert "worker 1 serving tiny, which is paused" in shown.stdout
    assert "tiny: 0 jobs, the next one for 0 s; paused" in shown.stdout


def test_a_service_without_a_worker_is_shown_as_not_ready(client: httpx.Client) -> None:
    shown = status(client)
    assert shown.exit_code == 0
    assert "not ready" in shown.stdout
    assert "last minute   nothing" in shown.stdout


def test_where_keys_are_asked_for_one_is_needed(client: httpx.Client, settings: Settings) -> None:
    with Redis.from_url(settings.redis_url) as redis:
        _, key = Keys(redis).create("Ada")
    refused = status(client)
    assert refused.exit_code == 5
    assert "API key is needed" in refused.stderr
    assert status(client, "--api-key", key).exit_code == 0


def test_without_a_server_the_command_says_so() -> None:
    server = f"http://127.0.0.1:{free_port()}"
    answer = CliRunner().invoke(app, ["status", "--server", server])
    assert answer.exit_code == 4
    assert server in answer.stderr


def drain(name: str, url: str) -> Result:
    return CliRunner().invoke(app, ["drain", name], env={"STABLESR_REDIS_URL": url})


def test_a_worker_hears_at_its_next_heartbeat_that_it_is_to_drain(redis_url: str) -> None:
    info = WorkerInfo(name="tiny-1", preset="tiny", device="cpu", state="idle")
    with Redis.from_url(redis_url) as connection:
        workers = Workers(connection, ttl_s=20)
        assert not workers.heartbeat(info)
        done = drain("tiny-1", redis_url)
        assert done.exit_code == 0, done.output
        assert "tiny-1 drains from its next heartbeat on, within 5 s" in done.stderr
        assert workers.heartbeat(info)
        assert not workers.heartbeat(info.model_copy(update={"name": "tiny-2"}))


def test_a_worker_that_is_not_there_is_refused_with_the_names_of_those_that_are(
    redis_url: str,
) -> None:
    info = WorkerInfo(name="tiny-1", preset="tiny", device="cpu", state="idle")
    with Redis.from_url(redis_url) as connection:
        Workers(connection, ttl_s=20).heartbeat(info)
    done = drain("tiny-0", redis_url)
    assert done.exit_code == 2
    assert "no worker 'tiny-0'; running: tiny-1" in done.stderr


def queue(*arguments: str, url: str) -> Result:
    return CliRunner().invoke(app, ["queue", *arguments], env={"STABLESR_REDIS_URL": url})


def test_a_preset_is_paused_and_goes_on(redis_url: str) -> None:
    with Redis.from_url(redis_url) as connection:
        for _ in range(2):
            said = queue("pause", "tiny", url=redis_url)
            assert (said.exit_code, "tiny is paused" in said.stderr) == (0, True)
            assert not dispatch(connection, "tiny")
        assert dispatch(connection, "stablesr-512")
        for _ in range(2):
            assert queue("resume", "tiny", url=redis_url).exit_code == 0
            assert dispatch(connection, "tiny")


def test_an_unknown_preset_is_refused_with_the_known_ones(redis_url: str) -> None:
    said = queue("pause", "huge", url=redis_url)
    assert said.exit_code == 2
    assert "tiny" in said.stderr


def test_without_redis_the_command_says_so() -> None:
    port = free_port()
    said = queue("resume", "tiny", url=f"redis://127.0.0.1:{port}/0")
    assert (said.exit_code, str(port) in said.stderr) == (4, True)
