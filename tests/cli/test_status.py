"""`stablesr status` against a real service."""

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
from jobs.fair_queue import pause
from jobs.keys import Keys
from jobs.settings import Settings
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
