"""`stablesr status`, `drain`, `queue` and `keys` as an operator types them, on a real Redis."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
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
from tests.redis_server import RedisServer
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


def keys(*arguments: str, url: str, **env: str) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments], env={"STABLESR_REDIS_URL": url, **env})


def test_a_key_is_printed_once_and_works(redis_url: str) -> None:
    made = keys("create", "Ada", "--max-queued", "5", "--per-minute", "30", url=redis_url)
    assert made.exit_code == 0, made.output
    key = made.stdout.strip()
    assert re.fullmatch(r"ssr_[0-9a-f]{8}_[A-Za-z0-9_-]{43}", key)
    with Redis.from_url(redis_url) as connection:
        info = Keys(connection).find(key)
    assert info is not None
    assert (info.name, info.max_queued, info.per_minute) == ("Ada", 5, 30)


def test_the_list_shows_who_has_keys_but_no_secret(redis_url: str) -> None:
    assert "no keys" in keys("list", url=redis_url).stderr
    key = keys("create", "Ada", url=redis_url).stdout.strip()
    listed = keys("list", url=redis_url)
    assert key[4:12] in listed.stdout
    assert "Ada" in listed.stdout
    assert key.split("_", 2)[2] not in listed.output


def test_a_revoked_key_stays_on_the_list(redis_url: str) -> None:
    key = keys("create", "Ada", url=redis_url).stdout.strip()
    assert keys("revoke", key[4:12], url=redis_url).exit_code == 0
    assert keys("revoke", key, url=redis_url).exit_code == 0
    assert "revoked" in keys("list", url=redis_url).stdout
    with Redis.from_url(redis_url) as connection:
        assert Keys(connection).find(key) is None


def test_a_key_may_have_a_scope_and_an_end(redis_url: str) -> None:
    assert keys("create", "Prometheus", "--scope", "metrics", url=redis_url).exit_code == 0
    made = keys("create", "Ada", "--expires-in", "90d", "--scope", "jobs", url=redis_url)
    with Redis.from_url(redis_url) as connection:
        prometheus, ada = Keys(connection).list()
    assert (prometheus.scope, prometheus.expires_at) == ("metrics", None)
    assert ada.expires_at is not None
    assert (ada.scope, ada.expires_at - ada.created_at) == ("jobs", timedelta(days=90))
    listed = keys("list", url=redis_url, COLUMNS="200").stdout
    assert "metrics" in listed
    assert f"valid until {ada.expires_at:%Y-%m-%d}" in listed
    assert made.stdout.strip() not in listed


@pytest.mark.parametrize("life", ["90", "0d", "-1d", "soon", "40000d", ""])
def test_an_end_that_is_no_time_to_come_is_a_wrong_option(redis_url: str, life: str) -> None:
    answer = keys("create", "Ada", "--expires-in", life, url=redis_url)
    assert answer.exit_code == 2
    assert "90d" in answer.stderr


def test_the_webhook_secret_can_be_read_again(redis_url: str) -> None:
    key = keys("create", "Ada", url=redis_url).stdout.strip()
    first = keys("webhook-secret", key[4:12], url=redis_url).stdout
    assert first.startswith("whsec_")
    assert keys("webhook-secret", key[4:12], url=redis_url).stdout == first


@pytest.mark.parametrize("command", ["revoke", "webhook-secret"])
def test_an_unknown_key_is_a_wrong_argument(redis_url: str, command: str) -> None:
    answer = keys(command, "00000000", url=redis_url)
    assert answer.exit_code == 2
    assert "keys list" in answer.stderr


def test_without_redis_the_command_says_where_it_looked() -> None:
    with RedisServer() as server:
        url, port = server.url, server.port
    answer = keys("list", url=url)
    assert answer.exit_code == 4
    assert str(port) in answer.stderr
