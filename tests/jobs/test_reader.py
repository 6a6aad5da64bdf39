"""What the event loop reads of a job is what the queue tells of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import pytest
from redis import Redis

from jobs.connection import CircuitBreaker, LoopClient
from jobs.errors import JobNotFound, QueueUnavailable, RecordUnreadable
from jobs.job_store import JobStore, record_key
from jobs.queue import JobQueue, JobReader
from jobs.schema import Job, JobState, ResultInfo, Timings
from jobs.settings import Settings
from jobs.workers import Capacity, WorkerInfo, Workers
from tests.redis_server import RedisServer

from .conftest import Submit

T = TypeVar("T")
Use = Callable[[LoopClient], Coroutine[Any, Any, T]]


def run(settings: Settings, use: Use[T]) -> T:
    async def main() -> T:
        client = LoopClient(settings, CircuitBreaker())
        try:
            return await use(client)
        finally:
            await client.close()

    return asyncio.run(main())


def read(settings: Settings, queue: JobQueue, job_id: str, owner: str = "") -> Job:
    return run(settings, lambda client: JobReader(client, queue).get(job_id, owner))


def test_a_job_is_read_as_the_queue_has_it_in_every_state(
    settings: Settings, queue: JobQueue, submit: Submit, records: JobStore, connection: Redis
) -> None:
    first, second = submit(), submit()
    assert read(settings, queue, second) == queue.get(second)
    assert read(settings, queue, second).queue_position == 2
    records.start(first, "w")
    assert read(settings, queue, first) == queue.get(first)
    result = ResultInfo(width=1, height=1, bytes=1, sha256="0", media_type="image/png", key="k")
    records.succeed(first, result, Timings())
    assert read(settings, queue, first) == queue.get(first)
    connection.hset(record_key(first), "keep_s", 0)
    assert read(settings, queue, first).state is JobState.EXPIRED


def test_a_job_of_another_owner_is_unknown(
    settings: Settings, queue: JobQueue, submit: Submit
) -> None:
    job_id = submit()
    for owner, name in (("other", job_id), ("", "nothing")):
        with pytest.raises(JobNotFound):
            read(settings, queue, name, owner)


@pytest.mark.parametrize(
    "fields", [{"parameters": "{}{}"}, {"created_at": "soon"}, {"worker": b"\xff"}]
)
def test_a_record_that_cannot_be_read_is_no_missing_job(
    settings: Settings, queue: JobQueue, submit: Submit, connection: Redis, fields: dict[Any, Any]
) -> None:
    job_id = submit()
    connection.hset(record_key(job_id), mapping=fields)
    with pytest.raises(RecordUnreadable):
        read(settings, queue, job_id)


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


def test_a_redis_that_hangs_is_waited_for_a_while_and_a_busy_loop_is_not_its_fault(
    settings: Settings, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.connection.TICK_S", 0.1)

    async def hang(client: LoopClient) -> float:
        await client.call(("PING",))
        start = time.monotonic()
        with server.hanging():
            for _ in range(2):
                # The second call is not made.
                with pytest.raises(QueueUnavailable):
                    await client.call(("PING",))
        return time.monotonic() - start

    async def busy(client: LoopClient) -> list[Any]:
        call = asyncio.create_task(client.call(("PING",)))
        await asyncio.sleep(0)
        time.sleep(0.6)
        return await call

    assert 0.3 < run(settings, hang) < 3
    assert run(settings, busy) == [b"PONG"]
