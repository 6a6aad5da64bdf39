"""How we use RQ: JSON instead of pickle, and jobs that run nothing but our tasks.

RQ imports whatever dotted path a job in Redis names, calls callbacks the same way and sends
webhooks to any address, so whoever can write to Redis could run code in a worker. `TaskJob` looks
each name up in a closed list first. It refuses when the name is used, not when the job is read:
reading happens in RQ's dequeue, where an exception ends the worker.

Besides this adapter RQ is known to `jobs.recovery`, to `jobs.callbacks`, which it calls, and to the
worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Callback, Queue, Retry
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty

from .settings import Settings

__all__ = [
    "ATTEMPTS",
    "QUEUE_TTL_S",
    "SERIALIZER",
    "ForbiddenTask",
    "NoDeathPenalty",
    "Queue",
    "TaskJob",
    "enqueue",
    "open_queue",
    "run_again",
    "withdraw",
]

SERIALIZER = JSONSerializer
# A job whose worker was lost runs once more; a job whose image is bad never does.
ATTEMPTS = 2
CALLBACK_TIMEOUT_S = 30
# How long a job may wait for a worker.
QUEUE_TTL_S = 7 * 86_400

# The closed list of what a worker may be asked to run.
UPSCALE = "worker.tasks.upscale"
ON_FAILURE = "jobs.callbacks.on_failure"
TASKS = frozenset({UPSCALE})
CALLBACKS = frozenset({ON_FAILURE})


class ForbiddenTask(Exception):
    """A job in Redis names something that is not on the closed list."""


class TaskJob(Job):
    """RQ's job, limited to our tasks and callbacks."""

    @property
    def func(self) -> Callable[..., Any]:
        if self.instance is not None or self.func_name not in TASKS:
            raise ForbiddenTask(f"Job {self.id} names {self.func_name!r}, which is not a task.")
        function: Callable[..., Any] = super().func
        return function

    @property
    def success_callback(self) -> Any:
        self._check_callback(self._success_callback_name)
        return super().success_callback

    @property
    def failure_callback(self) -> Any:
        self._check_callback(self._failure_callback_name)
        return super().failure_callback

    @property
    def stopped_callback(self) -> Any:
        self._check_callback(self._stopped_callback_name)
        return super().stopped_callback

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """Nothing: RQ's webhooks would call whatever address a job in Redis names."""

    def _check_callback(self, name: str | None) -> None:
        if name and name not in CALLBACKS:
            raise ForbiddenTask(f"Job {self.id} names {name!r}, which is not a callback.")


class NoDeathPenalty(BaseDeathPenalty):
    """No limit at all. RQ's use signals, which threads have not got, or throw an exception into
    the thread at any bytecode, which would leave locks and device memory in any state."""

    def setup_death_penalty(self) -> None:
        pass

    def cancel_death_penalty(self) -> None:
        pass


def open_queue(preset: str, connection: Redis) -> Queue:
    """The RQ queue of a preset, alike on both sides: serializer and job class.

    One queue a preset, as a worker serves one preset and RQ is safe with one queue only.
    """
    name = f"stablesr:{preset}"
    return Queue(name, connection=connection, serializer=SERIALIZER, job_class=TaskJob)


def enqueue(queue: Queue, pipe: Pipeline, job_id: str, settings: Settings) -> None:
    """Adds to a transaction that the job waits in the queue."""
    queue.enqueue_call(
        UPSCALE,
        args=(job_id,),
        job_id=job_id,
        timeout=settings.job_timeout_s,
        ttl=QUEUE_TTL_S,
        # RQ's own account of a job that went well is of no use.
        result_ttl=0,
        failure_ttl=settings.result_ttl_s,
        retry=Retry(max=ATTEMPTS - 1, interval=0, enqueue_at_front=True),
        on_failure=Callback(ON_FAILURE, timeout=CALLBACK_TIMEOUT_S),
        pipeline=pipe,
    )


def withdraw(queue: Queue, job_id: str) -> bool:
    """Takes a waiting job out of RQ; False when a worker has it already."""
    if not queue.connection.lrem(queue.key, 1, job_id):
        return False
    job = queue.fetch_job(job_id)
    if job is not None:
        job.delete(remove_from_queue=False)
    return True


def run_again() -> Retry:
    """What a task returns to go back to the front of the queue without losing an attempt.

    For a worker that is asked to stop; the task calls Records.requeue first. RQ counts these
    apart from attempts that failed.
    """
    return Retry(max=1000, interval=0, enqueue_at_front=True)
