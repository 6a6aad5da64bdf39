"""A real RQ worker on our queue: only our tasks run, and the record follows each attempt."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import SimpleWorker
from rq.utils import current_timestamp

from jobs.callbacks import on_failure
from jobs.queue import JobQueue
from jobs.records import Records
from jobs.rq_job import SERIALIZER, TaskJob, open_queue, run_again
from jobs.schema import JobState, ResultInfo, Timings

from . import fake_tasks
from .conftest import Submit


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
    path = f"{fake_tasks.__name__}.{name}"
    monkeypatch.setattr("jobs.rq_job.UPSCALE", path)
    monkeypatch.setattr("jobs.rq_job.TASKS", frozenset({path}))


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
    job = queue.get(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.type == "internal-error"
    assert fake_tasks.__name__ not in job.error.detail


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
    worker: Worker,
    submit: Submit,
    ran: list[str],
    queue: JobQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task(monkeypatch, "fail")
    job_id = submit()
    worker.work(burst=True, max_jobs=1)
    waiting = queue.get(job_id)
    assert (waiting.state, waiting.queue_position) == (JobState.QUEUED, 1)
    worker.work(burst=True)
    assert ran == [job_id, job_id]
    job = queue.get(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.type == "internal-error"
    assert "disk" not in job.error.detail


def abandon(
    worker: Worker, records: Records, before: Callable[[str], object] | None = None
) -> None:
    """A worker takes the next job, begins, and dies; the next maintenance finds out.

    before is done to the job between the two.
    """
    queue = worker.queues[0]
    taken = worker.dequeue_job_and_maintain_ttl(None)
    assert taken is not None
    rq_job = taken[0]
    worker.prepare_execution(rq_job)
    worker.prepare_job_execution(rq_job, remove_from_intermediate_queue=True)
    records.start(rq_job.id, worker.name)
    if before is not None:
        before(rq_job.id)
    queue.started_job_registry.cleanup(timestamp=current_timestamp() + 100_000)


def test_a_lost_workers_job_runs_again_once_and_first(
    worker: Worker, submit: Submit, queue: JobQueue, records: Records
) -> None:
    lost, behind = submit(), submit()
    abandon(worker, records)
    assert queue.get(lost).state is JobState.QUEUED
    assert queue.get(lost).queue_position == 1
    assert queue.get(behind).queue_position == 2
    abandon(worker, records)
    job = queue.get(lost)
    assert (job.state, job.attempt) == (JobState.FAILED, 2)
    assert job.error is not None
    assert job.error.type == "worker-lost"
    assert queue.queued("tiny") == 1


def test_a_job_canceled_while_its_worker_was_lost_does_not_run_again(
    worker: Worker, submit: Submit, queue: JobQueue, records: Records
) -> None:
    job_id = submit()
    abandon(worker, records, before=queue.cancel)
    assert queue.get(job_id).state is JobState.CANCELED
    assert queue.queued("tiny") == 0


def test_a_job_that_succeeded_before_its_attempt_was_called_lost_stays_so(
    worker: Worker, submit: Submit, queue: JobQueue, records: Records, result: ResultInfo
) -> None:
    job_id = submit()
    abandon(worker, records, before=lambda one: records.succeed(one, result, Timings()))
    assert queue.get(job_id).state is JobState.SUCCEEDED
    assert queue.queued("tiny") == 0


def test_a_lost_worker_that_fails_late_does_not_touch_the_next_ones_run(
    submit: Submit, queue: JobQueue, records: Records, connection: Redis
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
    records: Records,
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
