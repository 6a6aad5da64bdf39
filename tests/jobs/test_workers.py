"""The register of workers in a real Redis."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from redis import Redis

from jobs.queue import JobQueue
from jobs.settings import Settings
from jobs.workers import Capacity, WorkerInfo, Workers

from .conftest import Submit, run


@pytest.fixture
def workers(connection: Redis) -> Workers:
    return Workers(connection, ttl_s=60)


TINY = WorkerInfo(name="b", preset="tiny", device="cpu", state="idle", slots=2)
TURBO = WorkerInfo(name="a", preset="stablesr-turbo", device="cuda:0", state="starting")


def names(found: Sequence[WorkerInfo]) -> list[str]:
    return [info.name for info in found]


def test_workers_are_listed_by_name(workers: Workers, queue: JobQueue) -> None:
    assert queue.capacity().workers == []
    workers.heartbeat(TINY)
    workers.heartbeat(TURBO)
    assert names(queue.capacity().workers) == ["a", "b"]


def test_a_worker_is_ready_once_its_model_is_loaded(workers: Workers, queue: JobQueue) -> None:
    workers.heartbeat(TURBO)
    assert not queue.capacity().workers[0].ready
    workers.heartbeat(TURBO.model_copy(update={"state": "busy", "running": 1}))
    (info,) = queue.capacity().workers
    assert info.ready
    assert info.running == 1
    assert not TURBO.model_copy(update={"state": "stopping"}).ready


def test_a_worker_without_weights_is_not_ready_and_tells_why(
    workers: Workers, queue: JobQueue
) -> None:
    workers.heartbeat(TINY.model_copy(update={"state": "not_ready", "reason": "no room"}))
    (info,) = queue.capacity().workers
    assert (info.ready, info.reason) == (False, "no room")
    workers.heartbeat(TINY)
    assert queue.capacity().workers[0].reason is None


def test_a_heartbeat_lets_the_worker_live_on(
    workers: Workers, queue: JobQueue, connection: Redis
) -> None:
    workers.heartbeat(TINY)
    first = queue.capacity().workers[0].last_seen
    connection.expire("stablesr:worker:b", 5)
    workers.heartbeat(TINY)
    assert connection.ttl("stablesr:worker:b") > 50
    last = queue.capacity().workers[0].last_seen
    assert first is not None
    assert last is not None
    assert last > first


def test_a_silent_worker_is_forgotten_and_comes_back_whole(
    workers: Workers, queue: JobQueue, connection: Redis
) -> None:
    workers.heartbeat(TINY)
    connection.delete("stablesr:worker:b")  # what its time to live does
    assert queue.capacity().workers == []
    assert connection.zcard("stablesr:workers") == 0
    workers.heartbeat(TINY)
    assert queue.capacity().workers[0].slots == 2


def test_a_worker_that_leaves_is_gone_at_once(workers: Workers, queue: JobQueue) -> None:
    workers.heartbeat(TINY)
    workers.unregister("b")
    workers.unregister("b")
    assert queue.capacity().workers == []


def test_a_worker_that_cannot_be_read_is_passed_over(
    workers: Workers, queue: JobQueue, connection: Redis
) -> None:
    workers.heartbeat(TINY)
    connection.set("stablesr:worker:z", b"{}")
    connection.zadd("stablesr:workers", {"z": 1})
    assert names(queue.capacity().workers) == ["b"]


def test_capacity_has_what_waits_and_forgets_silent_workers(
    settings: Settings, submit: Submit, connection: Redis
) -> None:
    for _ in range(2):
        submit()
    workers = Workers(connection, ttl_s=60)
    for name in ("live", "silent"):
        workers.heartbeat(WorkerInfo(name=name, preset="tiny", device="cpu", state="idle"))
    connection.delete("stablesr:worker:silent")
    [answer] = run(settings, lambda client: client.call(Capacity.command("")))
    capacity = Capacity.of(answer)
    assert (capacity.waiting, capacity.lengths["tiny"]) == (2, 2)
    assert [worker.name for worker in capacity.workers] == ["live"]
    assert connection.zrange("stablesr:workers", 0, -1) == [b"live"]
