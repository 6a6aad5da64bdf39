"""Jobs of workers that died run again, by leases that Redis' clock measures."""

from __future__ import annotations

import time
from typing import Any
from unittest.mock import Mock

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from redis.exceptions import ConnectionError
from rq.executions import Execution
from rq.job import JobStatus

from jobs.connection import as_text, seconds_of
from jobs.fair_queue import dispatch
from jobs.job_store import AGENDA_KEY, TOMBSTONE_S, JobStore, record_key
from jobs.maintenance import Maintenance, SweepMetrics
from jobs.queue import JobQueue
from jobs.recovery import LeaseReaper
from jobs.rq_adapter import GIVEN_UP, FairQueue, TaskJob, open_queue, requeue_due
from jobs.schema import ImageInfo, JobState, ResultInfo, Timings, new_job_id
from jobs.store import BlobStore
from models.parameters import UpscaleParameters

from .conftest import Submit, failed, waiting_ids


@pytest.fixture
def rq(connection: Redis) -> FairQueue:
    return open_queue("tiny", connection)


def begin(rq: FairQueue, job_id: str, *, waits: bool = False) -> None:
    """Take the job from the queue and begin it, as a worker does that then dies.

    `waits`: it died while the job waited for its turn in the process, not begun.
    """
    connection = rq.connection
    dispatch(connection, rq.preset)
    taken = connection.lmove(rq.key, rq.intermediate_queue_key)
    assert taken == job_id.encode()
    job = TaskJob.fetch(job_id, connection, rq.serializer)
    assert isinstance(job, TaskJob)
    job.lease_s = 60
    with connection.pipeline() as pipe:
        Execution.create(job, ttl=600, pipeline=pipe, worker_name="dead")
        job.prepare_for_execution("dead", pipeline=pipe)
        pipe.lrem(rq.intermediate_queue_key, 1, job_id)
        pipe.execute()
    if not waits:
        JobStore(connection).start(job_id, "dead")


def expire_leases(rq: FairQueue) -> None:
    key = rq.started_job_registry.key
    for entry in rq.connection.zrange(key, 0, -1):
        rq.connection.zadd(key, {as_text(entry): GIVEN_UP})


def end_pauses(rq: FairQueue) -> None:
    """The jobs that wait for another attempt are due."""
    key = rq.scheduled_job_registry.key
    for entry in rq.connection.zrange(key, 0, -1):
        rq.connection.zadd(key, {as_text(entry): 0})
    requeue_due(rq)


def lease_ends(rq: FairQueue, after_s: float) -> None:
    """All leases end so many seconds after now, by Redis' clock."""
    key, now = rq.started_job_registry.key, seconds_of(rq.connection.time())
    for entry in rq.connection.zrange(key, 0, -1):
        rq.connection.zadd(key, {as_text(entry): now + after_s})


def ends(connection: Redis, key: str) -> list[float]:
    """The scores of a sorted set."""
    pairs: Any = connection.zrange(key, 0, -1, withscores=True)
    return [score for _, score in pairs]


def test_a_lease_lasts_from_redis_time_whatever_the_time_of_the_host(
    submit: Submit, rq: FairQueue, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rq.registry.current_timestamp", lambda: 1)
    job_id = submit()
    begin(rq, job_id)
    job = TaskJob.fetch(job_id, connection, rq.serializer)
    assert isinstance(job, TaskJob)
    job.lease_s = 90
    [end] = ends(connection, rq.started_job_registry.key)
    assert end == pytest.approx(seconds_of(connection.time()) + 60, abs=2)
    [execution] = job.get_executions()
    with connection.pipeline() as pipe:
        execution.heartbeat(job.started_job_registry, 600, pipe)
        pipe.execute()
    [end] = ends(connection, rq.started_job_registry.key)
    assert end == pytest.approx(seconds_of(connection.time()) + 90, abs=2)


def test_a_lease_that_ran_out_during_an_outage_may_be_renewed_after_it(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    reaper = LeaseReaper(rq, connection, patience_s=0.2)
    lease_ends(rq, -30)
    reaper.run()
    lease_ends(rq, -29)  # Renewed, and over again: as long as that goes on, its worker lives.
    time.sleep(0.3)
    reaper.run()
    assert queue.get(job_id).state is JobState.PROCESSING
    time.sleep(0.3)
    reaper.run()
    assert queue.get(job_id).state is JobState.QUEUED


def test_what_was_seen_before_redis_was_away_does_not_count(
    queue: JobQueue,
    submit: Submit,
    rq: FairQueue,
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job_id = submit()
    begin(rq, job_id)
    reaper = LeaseReaper(rq, connection, patience_s=0.2)
    lease_ends(rq, -1)
    reaper.run()
    time.sleep(0.3)
    with monkeypatch.context() as away:
        away.setattr(connection, "pipeline", Mock(side_effect=ConnectionError))
        with pytest.raises(ConnectionError):
            reaper.run()
    reaper.run()
    assert queue.get(job_id).state is JobState.PROCESSING


def test_the_lease_of_an_execution_that_was_lost_takes_nothing_from_the_one_that_runs(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    key = rq.started_job_registry.key
    connection.zadd(key, {f"{job_id}:stale": GIVEN_UP})
    LeaseReaper(rq, connection).run()
    assert queue.get(job_id).state is JobState.PROCESSING
    assert connection.zcard(key) == 1


def test_the_last_attempt_follows_after_its_pause_and_can_be_canceled_before(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    first, second = submit(), submit()
    reaper = LeaseReaper(rq, connection)
    for _ in range(2):
        for job_id in waiting_ids(connection):
            begin(rq, job_id)
        expire_leases(rq)
        reaper.run()
    paused = rq.scheduled_job_registry.key
    assert waiting_ids(connection) == []
    for end in ends(connection, paused):
        assert end == pytest.approx(seconds_of(connection.time()) + 10, abs=2)
    assert queue.get(first).state is JobState.QUEUED
    assert queue.cancel(first).state is JobState.CANCELED
    behind = submit()
    reaper.run()
    assert waiting_ids(connection) == [behind]
    connection.zadd(paused, {second: int(seconds_of(connection.time()))})
    reaper.run()
    assert waiting_ids(connection) == [second, behind]
    assert connection.zcard(paused) == 0
    job = TaskJob.fetch(second, connection, rq.serializer)
    assert isinstance(job, TaskJob)
    assert (job.retries_left, job.failures, job.get_status()) == (0, 2, JobStatus.QUEUED)


def test_a_job_whose_lease_ran_out_waits_again_before_all_others(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    others = [submit(), submit()]
    expire_leases(rq)
    LeaseReaper(rq, connection).run()
    assert queue.get(job_id).state is JobState.QUEUED
    assert waiting_ids(connection) == [job_id, *others]
    assert TaskJob.fetch(job_id, connection, rq.serializer).retries_left == 1


def test_a_job_that_was_lost_in_every_attempt_fails(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    reaper = LeaseReaper(rq, connection)
    for _ in range(3):
        end_pauses(rq)
        begin(rq, job_id)
        expire_leases(rq)
        reaper.run()
    assert failed(queue.get(job_id)).type == "worker-lost"
    assert queue.get(job_id).attempt == 3
    assert waiting_ids(connection) == []


def test_a_job_that_waits_in_a_process_when_another_kills_it_loses_no_attempt(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    reaper = LeaseReaper(rq, connection)
    begin(rq, job_id)
    expire_leases(rq)
    reaper.run()
    for _ in range(3):
        # Its attempt waits to be alone, and a job beside it takes the process down.
        end_pauses(rq)
        begin(rq, job_id, waits=True)
        expire_leases(rq)
        reaper.run()
        assert queue.get(job_id).state is JobState.QUEUED
        assert TaskJob.fetch(job_id, connection, rq.serializer).retries_left == 1
    for state in (JobState.QUEUED, JobState.FAILED):
        end_pauses(rq)
        begin(rq, job_id)
        expire_leases(rq)
        reaper.run()
        assert queue.get(job_id).state is state


def test_the_next_attempt_does_not_meet_the_lost_one(
    submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    job = TaskJob.fetch(job_id, connection, rq.serializer)
    [execution] = job.get_executions()
    connection.delete(execution.key)  # what its time to live does
    expire_leases(rq)
    LeaseReaper(rq, connection).run()
    assert job.get_executions() == []


def test_a_lease_that_holds_is_left_alone(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    LeaseReaper(rq, connection).run()
    assert queue.get(job_id).state is JobState.PROCESSING
    assert waiting_ids(connection) == []


@pytest.mark.parametrize("state", [JobState.CANCELED, JobState.SUCCEEDED])
def test_a_job_that_was_to_be_canceled_or_succeeded_before_its_worker_died_is_not_run_again(
    state: JobState,
    queue: JobQueue,
    submit: Submit,
    records: JobStore,
    result: ResultInfo,
    rq: FairQueue,
    connection: Redis,
) -> None:
    job_id = submit()
    begin(rq, job_id)
    if state is JobState.CANCELED:
        queue.cancel(job_id)
    else:
        records.succeed(job_id, result, Timings())
    expire_leases(rq)
    LeaseReaper(rq, connection).run()
    assert queue.get(job_id).state is state
    assert rq.count == 0


def test_a_job_lost_between_the_queue_and_its_start_loses_no_attempt(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id, other = submit(), submit()
    connection.lmove(rq.key, rq.intermediate_queue_key)
    reaper = LeaseReaper(rq, connection, stuck_s=0)
    reaper.run()
    assert waiting_ids(connection) == [job_id, other]
    assert connection.llen(rq.intermediate_queue_key) == 0
    job = TaskJob.fetch(job_id, connection, rq.serializer)
    assert job.retries_left == 2
    assert job.get_status() is JobStatus.QUEUED


def test_a_job_on_its_way_from_the_queue_to_its_start_is_left_alone(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    submit()
    connection.lmove(rq.key, rq.intermediate_queue_key)
    reaper = LeaseReaper(rq, connection)
    reaper.run()
    reaper.run()
    assert connection.llen(rq.intermediate_queue_key) == 1


def test_an_entry_that_cannot_be_read_is_taken_out_and_its_job_failed(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    connection.hset(TaskJob.key_for(job_id), "created_at", "yesterday")
    connection.lmove(rq.key, rq.intermediate_queue_key)
    LeaseReaper(rq, connection, stuck_s=0).run()
    assert connection.llen(rq.intermediate_queue_key) == 0
    assert waiting_ids(connection) == []
    assert failed(queue.get(job_id)).type == "internal-error"


def test_an_entry_of_a_job_that_is_gone_is_taken_out(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    connection.rpush(rq.intermediate_queue_key, "0" * 32)
    LeaseReaper(rq, connection, stuck_s=0).run()
    assert connection.llen(rq.intermediate_queue_key) == 0


def test_one_process_at_a_time_recovers(
    queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    expire_leases(rq)
    reaper = LeaseReaper(rq, connection)
    with connection.lock("stablesr:recovering:stablesr:tiny", timeout=30):
        reaper.run()
        assert queue.get(job_id).state is JobState.PROCESSING
    reaper.run()
    assert queue.get(job_id).state is JobState.QUEUED


def test_a_process_that_is_killed_in_its_round_holds_the_others_up_for_seconds_only(
    rq: FairQueue, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed workers' jobs wait for the next round: every second of this comes on top.
    left: list[int] = []
    reaper = LeaseReaper(rq, connection)
    monkeypatch.setattr(
        reaper, "_leases", lambda: left.append(connection.pttl(f"stablesr:recovering:{rq.name}"))
    )
    reaper.run()
    assert 0 < left[0] <= 5000


def test_tidying_forgets_failed_jobs_whose_time_is_over(rq: FairQueue, connection: Redis) -> None:
    key = rq.failed_job_registry.key
    connection.zadd(key, {"0" * 32: 1})
    LeaseReaper(rq, connection).tidy()
    assert connection.zcard(key) == 0


@pytest.mark.parametrize("preset", ["stablesr-512", "stablesr-face"])
def test_maintenance_finds_jobs_that_were_lost_with_the_last_worker_of_any_preset(
    preset: str, store: BlobStore, image: ImageInfo, queue: JobQueue, connection: Redis
) -> None:
    lost = open_queue(preset, connection)
    job_id = queue.submit(new_job_id(), UpscaleParameters(preset=preset), image).id
    maintenance = Maintenance(connection, store, SweepMetrics(CollectorRegistry()))
    for state in (JobState.QUEUED, JobState.QUEUED, JobState.FAILED):
        end_pauses(lost)
        begin(lost, job_id)
        expire_leases(lost)
        maintenance.run()
        assert queue.get(job_id).state is state


def test_a_job_that_waits_again_and_is_taken_by_nobody_fails_in_the_end(
    store: BlobStore, queue: JobQueue, submit: Submit, rq: FairQueue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    expire_leases(rq)
    maintenance = Maintenance(connection, store, SweepMetrics(CollectorRegistry()))
    maintenance.run()
    assert queue.get(job_id).state is JobState.QUEUED
    # As much of its record's life is left as when it has not moved for queue_ttl_s.
    connection.expire(record_key(job_id), TOMBSTONE_S)
    connection.zadd(AGENDA_KEY, {job_id: 0})
    maintenance.run()
    assert failed(queue.get(job_id)).type == "queue-timed-out"
    assert rq.count == 0
