"""Which Redis suits a queue, and what is said of one that does not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError

from jobs import redis_probe
from jobs.connection import connect, queue_errors
from jobs.errors import InvalidSettings, QueueUnsuitable
from jobs.job_store import JobStore
from jobs.queue import JobQueue
from jobs.redis_probe import RedisProbe, check_kind, inspect
from jobs.schema import ImageInfo, new_job_id
from jobs.settings import Settings
from models.parameters import UpscaleParameters
from tests.redis_server import RedisServer


@contextmanager
def configured(connection: Redis, **values: Any) -> Iterator[None]:
    before: Any = {name: connection.config_get(name.replace("_", "-")) for name in values}
    for name, value in values.items():
        connection.config_set(name.replace("_", "-"), value)
    try:
        yield
    finally:
        for found in before.values():
            for name, value in found.items():
                connection.config_set(name, value)


@pytest.fixture(scope="module")
def other() -> Iterator[RedisServer]:
    """A server with users of its own."""
    with RedisServer() as server:
        yield server


def test_a_redis_that_evicts_nothing_is_ready(connection: Redis) -> None:
    state = inspect(connection)
    assert (state.ready, state.detail, state.policy) == (True, "answers", "noeviction")


@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-lru", "volatile-ttl"])
def test_a_redis_that_may_evict_is_refused_unless_that_is_allowed(
    connection: Redis, settings: Settings, policy: str
) -> None:
    with configured(connection, maxmemory_policy=policy):
        probe = RedisProbe(connection, settings)
        probe.check()
        said = f"may evict jobs: its maxmemory-policy is {policy}"
        assert probe.look().detail == f"{said} and must be noeviction"
        with pytest.raises(QueueUnsuitable, match=f"No job is taken while Redis {said}"):
            probe.check()
        allowed = RedisProbe(connection, settings.model_copy(update={"allow_eviction": True}))
        state = allowed.look()
        assert (state.ready, state.may_evict, state.detail) == (True, True, f"answers, but {said}")
        allowed.check()


@pytest.mark.parametrize(
    ("rules", "policy"),
    [("-info", "allkeys-lru"), ("-config", "allkeys-lru"), ("-info -config", "")],
)
def test_a_policy_is_asked_for_in_two_ways_and_when_both_are_forbidden_said_so_once(
    other: RedisServer,
    settings: Settings,
    rules: str,
    policy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    with other.connect() as root, configured(root, maxmemory_policy="allkeys-lru"):
        root.execute_command(
            "ACL", "SETUSER", "ada", "reset", "on", ">x", "~*", "+@all", *rules.split()
        )
        url = f"redis://ada:x@127.0.0.1:{other.port}"
        with connect(Settings(redis_url=url)) as limited:
            probe = RedisProbe(limited, settings)
            state = probe.look()
            probe._due = 0
            probe.look()
    assert state.policy == policy
    assert len(caplog.records) == 1
    if not policy:
        assert state.ready
        assert "neither by INFO nor by CONFIG GET" in caplog.text


def test_a_full_redis_takes_no_writes_and_is_read_all_the_same(connection: Redis) -> None:
    with configured(connection, maxmemory=1):
        state = inspect(connection)
        with pytest.raises(QueueUnsuitable, match="memory"), queue_errors(connection):
            connection.eval("return redis.call('SET', KEYS[1], 1)", 1, "x")
    assert (state.ready, state.detail) == (False, "takes no writes: its memory (maxmemory) is full")
    assert inspect(connection).ready


def test_a_replica_is_called_so_until_it_is_promoted(other: RedisServer) -> None:
    with other.connect() as connection:
        # Of a primary that is not there, which makes no difference.
        connection.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            state = inspect(connection)
            with pytest.raises(QueueUnsuitable, match="is a read-only"), queue_errors(connection):
                connection.eval("return redis.call('SET', KEYS[1], 1)", 1, "x")
        finally:
            connection.execute_command("REPLICAOF", "NO", "ONE")
        assert (state.ready, state.detail) == (False, "is a read-only replica")
        assert inspect(connection).ready


def test_a_cluster_is_refused_at_the_start_and_by_each_request() -> None:
    with RedisServer("--cluster-enabled", "yes") as server, server.connect() as connection:
        settings = Settings(redis_url=server.url)
        with pytest.raises(InvalidSettings, match="Redis Cluster; the service needs a single"):
            check_kind(settings)
        for slots in (False, True):
            if slots:
                every = [str(slot) for slot in range(16384)]
                connection.execute_command("CLUSTER", "ADDSLOTS", *every)
                while "cluster_state:ok" not in str(connection.execute_command("CLUSTER", "INFO")):
                    pass
            assert inspect(connection).detail.startswith("is a Redis Cluster")
            with pytest.raises(QueueUnsuitable, match="is a Redis Cluster"):
                JobStore(connection).expire("x")


def test_service_and_worker_do_not_start_on_a_cluster() -> None:
    with RedisServer("--cluster-enabled", "yes") as server:
        for command, status in (("serve", 2), ("worker", 1)):
            ended = subprocess.run(
                [sys.executable, "-m", "cli", command],
                env={**os.environ, "STABLESR_REDIS_URL": server.url, "STABLESR_PORT": "0"},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert ended.returncode == status
            assert "STABLESR_REDIS_URL leads to what is a Redis Cluster" in ended.stderr


def test_a_user_with_the_rights_of_the_file_can_queue_a_job(
    other: RedisServer, image: ImageInfo
) -> None:
    """`make redis-kinds` does all the rest as that user."""
    rules = (Path(__file__).parents[2] / "configs" / "redis-user.acl").read_text().split()
    with other.connect() as root:
        root.execute_command("ACL", "SETUSER", "bob", "reset", "on", ">x", *rules)
    settings = Settings(redis_url=f"redis://bob:x@127.0.0.1:{other.port}")
    queue = JobQueue(settings)
    job = queue.submit(new_job_id(), UpscaleParameters(seed=1), image)
    assert queue.cancel(job.id).state == "canceled"
    queue.close()
    with connect(settings) as connection:
        assert inspect(connection).ready
        with pytest.raises(NoPermissionError):
            connection.get("another")


def test_a_redis_that_is_away_is_no_reason_not_to_start(settings: Settings) -> None:
    away = Settings(redis_url="redis://127.0.0.1:1")
    check_kind(away)
    with connect(away) as connection:
        assert RedisProbe(connection, away).look().detail == "does not answer"


def test_many_looks_are_one(
    connection: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = RedisProbe(connection, settings)
    monkeypatch.setattr(redis_probe, "REMEMBER_S", 3600)
    probe.look()
    before: Any = connection.info("commandstats")
    assert probe.look().ready
    after: Any = connection.info("commandstats")
    assert after["cmdstat_set"]["calls"] == before["cmdstat_set"]["calls"]
