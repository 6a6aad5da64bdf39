"""Jobs of workers that died, on a real Redis with RQ's own lists."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from rq import Queue
from rq.executions import Execution
from rq.job import JobStatus

from jobs.connection import as_text
from jobs.queue import JobQueue
from jobs.records import AGENDA_KEY, TOMBSTONE_S, Records, record_key
from jobs.recovery import Recovery
from jobs.rq_job import TaskJob, open_queue
from jobs.schema import ImageInfo, JobState, new_job_id
from jobs.store import BlobStore
from jobs.upkeep import Upkeep, put_off_counter
from models.parameters import UpscaleParameters

from .conftest import Submit


@pytest.fixture
def rq(connection: Redis) -> Queue:
    return open_queue("tiny", connection)


def begin(rq: Queue, job_id: str, *, waits: bool = False) -> None:
    """Take the job from the queue and begin it, as a worker does that then dies.

    `waits`: it died while the job waited for its turn in the process, not begun.
    """
    connection = rq.connection
    taken = connection.lmove(rq.key, rq.intermediate_queue_key)
    assert taken == job_id.encode()
    job = TaskJob.fetch(job_id, connection, rq.serializer)
    with connection.pipeline() as pipe:
        Execution.create(job, ttl=60, pipeline=pipe, worker_name="dead")
        job.prepare_for_execution("dead", pipeline=pipe)
        pipe.lrem(rq.intermediate_queue_key, 1, job_id)
        pipe.execute()
    if not waits:
        Records(connection).start(job_id, "dead")


def expire_leases(rq: Queue) -> None:
    key = rq.started_job_registry.key
    for entry in rq.connection.zrange(key, 0, -1):
        rq.connection.zadd(key, {as_text(entry): 1})


def test_a_job_whose_lease_ran_out_waits_again_before_all_others(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    others = [submit(), submit()]
    expire_leases(rq)
    Recovery(rq, connection).run()
    assert queue.get(job_id).state is JobState.QUEUED
    assert rq.get_job_ids() == [job_id, *others]
    assert TaskJob.fetch(job_id, connection, rq.serializer).retries_left == 0


def test_a_job_that_was_lost_twice_fails(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    recovery = Recovery(rq, connection)
    for _ in range(2):
        begin(rq, job_id)
        expire_leases(rq)
        recovery.run()
    job = queue.get(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.type == "worker-lost"
    assert rq.get_job_ids() == []


def test_a_job_that_waits_in_a_process_when_another_kills_it_loses_no_attempt(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    recovery = Recovery(rq, connection)
    begin(rq, job_id)
    expire_leases(rq)
    recovery.run()
    for _ in range(3):
        # Its last attempt waits to be alone, and a job beside it takes the process down.
        begin(rq, job_id, waits=True)
        expire_leases(rq)
        recovery.run()
        assert queue.get(job_id).state is JobState.QUEUED
        assert TaskJob.fetch(job_id, connection, rq.serializer).retries_left == 0
    begin(rq, job_id)
    expire_leases(rq)
    recovery.run()
    assert queue.get(job_id).state is JobState.FAILED


def test_the_next_attempt_does_not_meet_the_lost_one(
    submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    job = TaskJob.fetch(job_id, connection, rq.serializer)
    [execution] = job.get_executions()
    connection.delete(execution.key)  # what its time to live does
    expire_leases(rq)
    Recovery(rq, connection).run()
    assert job.get_executions() == []


def test_a_lease_that_holds_is_left_alone(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    Recovery(rq, connection).run()
    assert queue.get(job_id).state is JobState.PROCESSING
    assert rq.get_job_ids() == []


def test_a_job_that_was_canceled_before_its_worker_died_is_not_run_again(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    queue.cancel(job_id)
    expire_leases(rq)
    Recovery(rq, connection).run()
    assert queue.get(job_id).state is JobState.CANCELED


def test_a_job_lost_between_the_queue_and_its_start_loses_no_attempt(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id, other = submit(), submit()
    connection.lmove(rq.key, rq.intermediate_queue_key)
    recovery = Recovery(rq, connection, stuck_s=0)
    recovery.run()
    assert rq.get_job_ids() == [job_id, other]
    assert connection.llen(rq.intermediate_queue_key) == 0
    job = TaskJob.fetch(job_id, connection, rq.serializer)
    assert job.retries_left == 1
    assert job.get_status() is JobStatus.QUEUED


def test_a_job_on_its_way_from_the_queue_to_its_start_is_left_alone(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    submit()
    connection.lmove(rq.key, rq.intermediate_queue_key)
    recovery = Recovery(rq, connection)
    recovery.run()
    recovery.run()
    assert connection.llen(rq.intermediate_queue_key) == 1


def test_an_entry_that_cannot_be_read_is_taken_out_and_its_job_failed(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    connection.hset(TaskJob.key_for(job_id), "created_at", "yesterday")
    connection.lmove(rq.key, rq.intermediate_queue_key)
    Recovery(rq, connection, stuck_s=0).run()
    assert connection.llen(rq.intermediate_queue_key) == 0
    assert rq.get_job_ids() == []
    job = queue.get(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.type == "internal-error"


def test_an_entry_of_a_job_that_is_gone_is_taken_out(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    connection.rpush(rq.intermediate_queue_key, "0" * 32)
    Recovery(rq, connection, stuck_s=0).run()
    assert connection.llen(rq.intermediate_queue_key) == 0


def test_one_process_at_a_time_recovers(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    expire_leases(rq)
    recovery = Recovery(rq, connection)
    with connection.lock("stablesr:recovering:stablesr:tiny", timeout=30):
        recovery.run()
        assert queue.get(job_id).state is JobState.PROCESSING
    recovery.run()
    assert queue.get(job_id).state is JobState.QUEUED


def test_a_process_that_is_killed_in_its_round_holds_the_others_up_for_seconds_only(
    rq: Queue, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed workers' jobs wait for the next round: every second of this comes on top.
    left: list[int] = []
    recovery = Recovery(rq, connection)
    monkeypatch.setattr(
        recovery, "_leases", lambda: left.append(connection.pttl(f"stablesr:recovering:{rq.name}"))
    )
    recovery.run()
    assert 0 < left[0] <= 5000


def test_tidying_forgets_failed_jobs_whose_time_is_over(rq: Queue, connection: Redis) -> None:
    key = rq.failed_job_registry.key
    connection.zadd(key, {"0" * 32: 1})
    Recovery(rq, connection).tidy()
    assert connection.zcard(key) == 0


@pytest.mark.parametrize("preset", ["stablesr-512", "stablesr-face"])
def test_upkeep_finds_jobs_that_were_lost_with_the_last_worker_of_any_preset(
    preset: str,
    store: BlobStore,
    image: ImageInfo,
    queue: JobQueue,
    connection: Redis,
) -> None:
    lost = open_queue(preset, connection)
    job_id = queue.submit(new_job_id(), UpscaleParameters(preset=preset), image).id
    upkeep = Upkeep(connection, store, put_off_counter(CollectorRegistry()))
    for state in (JobState.QUEUED, JobState.FAILED):
        begin(lost, job_id)
        expire_leases(lost)
        upkeep.run()
        assert queue.get(job_id).state is state


def test_a_job_that_waits_again_and_is_taken_by_nobody_fails_in_the_end(
    store: BlobStore,
    queue: JobQueue,
    submit: Submit,
    rq: Queue,
    connection: Redis,
) -> None:
    job_id = submit()
    begin(rq, job_id)
    expire_leases(rq)
    upkeep = Upkeep(connection, store, put_off_counter(CollectorRegistry()))
    upkeep.run()
    assert queue.get(job_id).state is JobState.QUEUED
    # As much of its record's life is left as when it has not moved for queue_ttl_s.
    connection.expire(record_key(job_id), TOMBSTONE_S)
    connection.zadd(AGENDA_KEY, {job_id: 0})
    upkeep.run()
    job = queue.get(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.type == "queue-timed-out"
    assert queue.queued("tiny") == 0
