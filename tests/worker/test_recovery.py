"""Jobs of workers that died, on a real Redis with RQ's own lists."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import JobStatus

from jobs.connection import as_text, connect
from jobs.records import Records
from jobs.rq_job import TaskJob, open_queue
from jobs.schema import JobState
from tests.worker.processes import House
from worker.recovery import Recovery


@pytest.fixture
def connection(house: House) -> Iterator[Redis]:
    with connect(house.settings) as made:
        yield made


@pytest.fixture
def queue(connection: Redis) -> Queue:
    return open_queue("tiny", connection)


def begin(queue: Queue, job_id: str, *, waits: bool = False) -> None:
    """Take the job from the queue and begin it, as a worker does that then dies.

    `waits`: it died while the job waited for its turn in the process, not begun.
    """
    connection = queue.connection
    taken = connection.lmove(queue.key, queue.intermediate_queue_key)
    assert taken == job_id.encode()
    job = TaskJob.fetch(job_id, connection, queue.serializer)
    with connection.pipeline() as pipe:
        Execution.create(job, ttl=60, pipeline=pipe, worker_name="dead")
        job.prepare_for_execution("dead", pipeline=pipe)
        pipe.lrem(queue.intermediate_queue_key, 1, job_id)
        pipe.execute()
    if not waits:
        Records(connection).start(job_id, "dead")


def expire_leases(queue: Queue) -> None:
    key = queue.started_job_registry.key
    for entry in queue.connection.zrange(key, 0, -1):
        queue.connection.zadd(key, {as_text(entry): 1})


def test_a_job_whose_lease_ran_out_waits_again_before_all_others(
    house: House, queue: Queue, connection: Redis
) -> None:
    job_id = house.submit()
    begin(queue, job_id)
    others = [house.submit(), house.submit()]
    expire_leases(queue)
    Recovery(queue, connection).run()
    assert house.job(job_id).state is JobState.QUEUED
    assert queue.get_job_ids() == [job_id, *others]
    assert TaskJob.fetch(job_id, connection, queue.serializer).retries_left == 0


def test_a_job_that_was_lost_twice_fails(house: House, queue: Queue, connection: Redis) -> None:
    job_id = house.submit()
    recovery = Recovery(queue, connection)
    for _ in range(2):
        begin(queue, job_id)
        expire_leases(queue)
        recovery.run()
    job = house.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.type == "worker-lost"
    assert queue.get_job_ids() == []


def test_a_job_that_waits_in_a_process_when_another_kills_it_loses_no_attempt(
    house: House, queue: Queue, connection: Redis
) -> None:
    job_id = house.submit()
    recovery = Recovery(queue, connection)
    begin(queue, job_id)
    expire_leases(queue)
    recovery.run()
    for _ in range(3):
        # Its last attempt waits to be alone, and a job beside it takes the process down.
        begin(queue, job_id, waits=True)
        expire_leases(queue)
        recovery.run()
        assert house.job(job_id).state is JobState.QUEUED
        assert TaskJob.fetch(job_id, connection, queue.serializer).retries_left == 0
    begin(queue, job_id)
    expire_leases(queue)
    recovery.run()
    assert house.job(job_id).state is JobState.FAILED


def test_a_lease_that_holds_is_left_alone(house: House, queue: Queue, connection: Redis) -> None:
    job_id = house.submit()
    begin(queue, job_id)
    Recovery(queue, connection).run()
    assert house.job(job_id).state is JobState.PROCESSING
    assert queue.get_job_ids() == []


def test_a_job_that_was_canceled_before_its_worker_died_is_not_run_again(
    house: House, queue: Queue, connection: Redis
) -> None:
    job_id = house.submit()
    begin(queue, job_id)
    house.queue.cancel(job_id)
    expire_leases(queue)
    Recovery(queue, connection).run()
    assert house.job(job_id).state is JobState.CANCELED


def test_a_job_lost_between_the_queue_and_its_start_loses_no_attempt(
    house: House, queue: Queue, connection: Redis
) -> None:
    job_id, other = house.submit(), house.submit()
    connection.lmove(queue.key, queue.intermediate_queue_key)
    recovery = Recovery(queue, connection, stuck_s=0)
    recovery.run()
    assert queue.get_job_ids() == [job_id, other]
    assert connection.llen(queue.intermediate_queue_key) == 0
    job = TaskJob.fetch(job_id, connection, queue.serializer)
    assert job.retries_left == 1
    assert job.get_status() is JobStatus.QUEUED


def test_a_job_on_its_way_from_the_queue_to_its_start_is_left_alone(
    house: House, queue: Queue, connection: Redis
) -> None:
    house.submit()
    connection.lmove(queue.key, queue.intermediate_queue_key)
    recovery = Recovery(queue, connection)
    recovery.run()
    recovery.run()
    assert connection.llen(queue.intermediate_queue_key) == 1


def test_an_entry_that_cannot_be_read_is_taken_out_and_its_job_failed(
    house: House, queue: Queue, connection: Redis
) -> None:
    job_id = house.submit()
    connection.hset(TaskJob.key_for(job_id), "created_at", "yesterday")
    connection.lmove(queue.key, queue.intermediate_queue_key)
    Recovery(queue, connection, stuck_s=0).run()
    assert connection.llen(queue.intermediate_queue_key) == 0
    assert queue.get_job_ids() == []
    job = house.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.type == "internal-error"


def test_an_entry_of_a_job_that_is_gone_is_taken_out(
    house: House, queue: Queue, connection: Redis
) -> None:
    connection.rpush(queue.intermediate_queue_key, "0" * 32)
    Recovery(queue, connection, stuck_s=0).run()
    assert connection.llen(queue.intermediate_queue_key) == 0


def test_one_process_at_a_time_recovers(house: House, queue: Queue, connection: Redis) -> None:
    job_id = house.submit()
    begin(queue, job_id)
    expire_leases(queue)
    recovery = Recovery(queue, connection)
    with connection.lock("stablesr:recovering:stablesr:tiny", timeout=30):
        recovery.run()
        assert house.job(job_id).state is JobState.PROCESSING
    recovery.run()
    assert house.job(job_id).state is JobState.QUEUED


def test_tidying_forgets_failed_jobs_whose_time_is_over(queue: Queue, connection: Redis) -> None:
    key = queue.failed_job_registry.key
    connection.zadd(key, {"0" * 32: 1})
    Recovery(queue, connection).tidy()
    assert connection.zcard(key) == 0
