"""`stablesr drain` as an operator types it."""

from __future__ import annotations

from redis import Redis
from typer.testing import CliRunner, Result

from cli.main import app
from jobs.workers import WorkerInfo, Workers


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
