"""RQ behind its adapter: only our tasks run, the record follows each attempt, and jobs of workers
that died run again."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from rq import Queue, SimpleWorker
from rq.executions import Execution
from rq.job import JobStatus

from jobs.connection import as_text
from jobs.job_store import AGENDA_KEY, TOMBSTONE_S, JobStore, record_key
from jobs.maintenance import Maintenance, SweepMetrics
from jobs.queue import JobQueue
from jobs.rq_adapter import SERIALIZER, LeaseReaper, TaskJob, on_failure, open_queue, run_again
from jobs.schema import ImageInfo, JobState, ResultInfo, Timings, new_job_id
from jobs.store import BlobStore
from models.parameters import UpscaleParameters

from . import fake_tasks
from .conftest import Submit, failed


class Worker(SimpleWorker):
    def _install_signal_handlers(self) -> None:
        """Left alone: the test runner has its own."""


@pytest.fixture(autouse=True)
def ran() -> Iterator[list[str]]:
    fake_tasks.ran.clear()
    yield fake_tasks.ran
    fake_tasks.ran.clear()


@pytest.fixture
def worker(connection: Redis) -> Worker:
    return Worker(
        [open_queue("tiny", connection)],
        connection=connection,
        serializer=SERIALIZER,
        job_class=TaskJob,
    )


def task(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("jobs.rq_adapter.UPSCALE", f"{fake_tasks.__name__}.{name}")


def test_a_listed_task_runs_and_leaves_nothing_in_rq(
    worker: Worker,
    submit: Submit,
    ran: list[str],
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task(monkeypatch, "run")
    job_id = submit()
    assert worker.work(burst=True)
    assert ran == [job_id]
    assert connection.keys("rq:job:*") == []
    assert connection.keys("rq:results:*") == []


def test_a_task_that_is_not_listed_does_not_run(
    worker: Worker, submit: Submit, ran: list[str], queue: JobQueue, connection: Redis
) -> None:
    job_id = submit()
    evil: list[Any] = [f"{fake_tasks.__name__}.run", None, [job_id], {}]
    connection.hset(TaskJob.key_for(job_id), "data", zlib.compress(json.dumps(evil).encode()))
    worker.work(burst=True)
    assert ran == []
    error = failed(queue.get(job_id))
    assert error.type == "internal-error"
    assert fake_tasks.__name__ not in error.detail


def test_a_pickled_job_does_not_run_and_the_worker_lives_on(
    worker: Worker,
    submit: Submit,
    ran: list[str],
    queue: JobQueue,
    connection: Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task(monkeypatch, "run")
    evil, good = submit(), submit()
    owned = tmp_path / "owned"
    pickled = f"cos\nsystem\n(S'touch {owned}'\ntR.".encode()
    connection.hset(TaskJob.key_for(evil), mapping={"data": pickled, "meta": pickled})
    worker.work(burst=True)
    assert not owned.exists()
    assert ran == [good]
    assert queue.get(evil).state is JobState.FAILED


def test_a_job_that_the_version_before_queued_has_its_failure_callback(
    submit: Submit, connection: Redis
) -> None:
    job_id = submit()
    connection.hset(TaskJob.key_for(job_id), "failure_callback_name", "jobs.callbacks.on_failure")
    assert TaskJob.fetch(job_id, connection, SERIALIZER).failure_callback is on_failure


@pytest.mark.parametrize("field", ["success_callback_name", "failure_callback_name"])
def test_a_callback_that_is_not_listed_does_not_run(
    field: str,
    worker: Worker,
    submit: Submit,
    ran: list[str],
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task(monkeypatch, "fail" if field.startswith("failure") else "run")
    job_id = submit()
    connection.hset(TaskJob.key_for(job_id), field, f"{fake_tasks.__name__}.callback")
    worker.work(burst=True)
    assert job_id in ran
    assert "callback" not in ran


def test_a_webhook_written_into_a_job_is_not_called(
    worker: Worker, submit: Submit, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    task(monkeypatch, "run")
    called: list[Any] = []
    monkeypatch.setattr("rq.webhook.urlopen", called.append)
    hook = {"url": "http://127.0.0.1:9/", "job_status": "finished"}
    connection.hset(TaskJob.key_for(submit()), "webhooks", json.dumps([hook]))
    worker.work(burst=True)
    assert called == []


def test_a_fault_is_tried_twice_and_then_told(
    worker: Worker, submit: Submit, ran: list[str], queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    task(monkeypatch, "fail")
    job_id = submit()
    worker.work(burst=True, max_jobs=1)
    waiting = queue.get(job_id)
    assert (waiting.state, waiting.queue_position) == (JobState.QUEUED, 1)
    worker.work(burst=True)
    assert ran == [job_id, job_id]
    error = failed(queue.get(job_id))
    assert error.type == "internal-error"
    assert "disk" not in error.detail


def test_a_lost_worker_that_fails_late_does_not_touch_the_next_ones_run(
    submit: Submit, queue: JobQueue, records: JobStore, connection: Redis
) -> None:
    job_id = submit()
    rq_job = TaskJob.fetch(job_id, connection=connection, serializer=SERIALIZER)
    rq_job.worker_name = "w1"
    records.start(job_id, "w1")
    records.requeue(job_id)
    records.start(job_id, "w2")
    on_failure(rq_job, connection, OSError, OSError("late"), None)
    assert not rq_job.should_retry
    assert (queue.get(job_id).state, queue.get(job_id).worker) == (JobState.PROCESSING, "w2")


def test_a_task_can_go_back_to_the_front_without_losing_an_attempt(
    worker: Worker,
    submit: Submit,
    queue: JobQueue,
    records: JobStore,
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leave(job_id: str) -> Any:
        records.start(job_id, "w1")
        records.requeue(job_id)
        return run_again()

    task(monkeypatch, "run")
    monkeypatch.setattr(fake_tasks, "run", leave)
    first, second = submit(), submit()
    for _ in range(3):
        worker.work(burst=True, max_jobs=1)
        assert queue.get(first).queue_position == 1
        assert queue.get(second).queue_position == 2
    rq_job = TaskJob.fetch(first, connection=connection, serializer=SERIALIZER)
    assert rq_job.retries_left == 1
    assert queue.get(first).attempt == 3


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
        JobStore(connection).start(job_id, "dead")


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
    LeaseReaper(rq, connection).run()
    assert queue.get(job_id).state is JobState.QUEUED
    assert rq.get_job_ids() == [job_id, *others]
    assert TaskJob.fetch(job_id, connection, rq.serializer).retries_left == 0


def test_a_job_that_was_lost_twice_fails(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    reaper = LeaseReaper(rq, connection)
    for _ in range(2):
        begin(rq, job_id)
        expire_leases(rq)
        reaper.run()
    assert failed(queue.get(job_id)).type == "worker-lost"
    assert queue.get(job_id).attempt == 2
    assert rq.get_job_ids() == []


def test_a_job_that_waits_in_a_process_when_another_kills_it_loses_no_attempt(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    reaper = LeaseReaper(rq, connection)
    begin(rq, job_id)
    expire_leases(rq)
    reaper.run()
    for _ in range(3):
        # Its last attempt waits to be alone, and a job beside it takes the process down.
        begin(rq, job_id, waits=True)
        expire_leases(rq)
        reaper.run()
        assert queue.get(job_id).state is JobState.QUEUED
        assert TaskJob.fetch(job_id, connection, rq.serializer).retries_left == 0
    begin(rq, job_id)
    expire_leases(rq)
    reaper.run()
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
    LeaseReaper(rq, connection).run()
    assert job.get_executions() == []


def test_a_lease_that_holds_is_left_alone(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    begin(rq, job_id)
    LeaseReaper(rq, connection).run()
    assert queue.get(job_id).state is JobState.PROCESSING
    assert rq.get_job_ids() == []


@pytest.mark.parametrize("state", [JobState.CANCELED, JobState.SUCCEEDED])
def test_a_job_that_was_to_be_canceled_or_succeeded_before_its_worker_died_is_not_run_again(
    state: JobState,
    queue: JobQueue,
    submit: Submit,
    records: JobStore,
    result: ResultInfo,
    rq: Queue,
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
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id, other = submit(), submit()
    connection.lmove(rq.key, rq.intermediate_queue_key)
    reaper = LeaseReaper(rq, connection, stuck_s=0)
    reaper.run()
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
    reaper = LeaseReaper(rq, connection)
    reaper.run()
    reaper.run()
    assert connection.llen(rq.intermediate_queue_key) == 1


def test_an_entry_that_cannot_be_read_is_taken_out_and_its_job_failed(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    job_id = submit()
    connection.hset(TaskJob.key_for(job_id), "created_at", "yesterday")
    connection.lmove(rq.key, rq.intermediate_queue_key)
    LeaseReaper(rq, connection, stuck_s=0).run()
    assert connection.llen(rq.intermediate_queue_key) == 0
    assert rq.get_job_ids() == []
    assert failed(queue.get(job_id)).type == "internal-error"


def test_an_entry_of_a_job_that_is_gone_is_taken_out(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
) -> None:
    connection.rpush(rq.intermediate_queue_key, "0" * 32)
    LeaseReaper(rq, connection, stuck_s=0).run()
    assert connection.llen(rq.intermediate_queue_key) == 0


def test_one_process_at_a_time_recovers(
    queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
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
    rq: Queue, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Killed workers' jobs wait for the next round: every second of this comes on top.
    left: list[int] = []
    reaper = LeaseReaper(rq, connection)
    monkeypatch.setattr(
        reaper, "_leases", lambda: left.append(connection.pttl(f"stablesr:recovering:{rq.name}"))
    )
    reaper.run()
    assert 0 < left[0] <= 5000


def test_tidying_forgets_failed_jobs_whose_time_is_over(rq: Queue, connection: Redis) -> None:
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
    for state in (JobState.QUEUED, JobState.FAILED):
        begin(lost, job_id)
        expire_leases(lost)
        maintenance.run()
        assert queue.get(job_id).state is state


def test_a_job_that_waits_again_and_is_taken_by_nobody_fails_in_the_end(
    store: BlobStore, queue: JobQueue, submit: Submit, rq: Queue, connection: Redis
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
