"""RQ behind its adapter: only our tasks run, the record follows each attempt, and jobs of workers
that died run again."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from rq import SimpleWorker

from jobs.fair_queue import dispatch
from jobs.job_store import JobStore
from jobs.queue import JobQueue
from jobs.rq_adapter import (
    SERIALIZER,
    TaskJob,
    on_failure,
    open_queue,
    requeue_due,
    run_again,
)
from jobs.schema import JobState

from . import fake_tasks
from .conftest import Submit, failed


class Worker(SimpleWorker):
    def _install_signal_handlers(self) -> None:
        """Left alone: the test runner has its own."""

    def dequeue_job_and_maintain_ttl(
        self, timeout: int | None, max_idle_time: int | None = None
    ) -> Any:
        dispatch(self.connection, "tiny")
        return super().dequeue_job_and_maintain_ttl(timeout, max_idle_time)


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


def end_pause(job_id: str, connection: Redis) -> None:
    """The job waits for another attempt, and that is due."""
    rq = open_queue("tiny", connection)
    assert connection.zadd(rq.scheduled_job_registry.key, {job_id: 0}, xx=True, ch=True)
    requeue_due(rq)


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
    end_pause(evil, connection)
    worker.work(burst=True)
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


def test_a_fault_is_tried_again_after_each_pause_and_then_told(
    worker: Worker,
    submit: Submit,
    ran: list[str],
    queue: JobQueue,
    connection: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task(monkeypatch, "fail")
    job_id = submit()
    worker.work(burst=True, max_jobs=1)
    waiting = queue.get(job_id)
    assert (waiting.state, waiting.queue_position) == (JobState.QUEUED, 1)
    worker.work(burst=True)
    assert ran == [job_id, job_id]
    assert queue.get(job_id).state is JobState.QUEUED
    end_pause(job_id, connection)
    worker.work(burst=True)
    assert ran == [job_id, job_id, job_id]
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
    assert isinstance(rq_job, TaskJob)
    assert rq_job.failures == 0
    assert queue.get(first).attempt == 3
