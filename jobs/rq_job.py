"""How we use RQ: JSON instead of pickle, and jobs that run nothing but our tasks.

RQ imports whatever dotted path a job in Redis names, calls callbacks the same way and sends
webhooks to any address, so whoever can write to Redis could run code in a worker. `TaskJob` looks
each name up in `jobs.tasks` first. It refuses when the name is used, not when the job is read:
reading happens in RQ's dequeue, where an exception ends the worker.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import Redis
from rq import Queue, Retry
from rq.job import Job
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty

from . import tasks

__all__ = [
    "SERIALIZER",
    "ForbiddenTask",
    "NoDeathPenalty",
    "TaskJob",
    "open_queue",
    "queue_name",
    "run_again",
]

SERIALIZER = JSONSerializer


class ForbiddenTask(Exception):
    """A job in Redis names something that is not on the closed list of `jobs.tasks`."""


class TaskJob(Job):
    """RQ's job, limited to the tasks and callbacks of `jobs.tasks`."""

    @property
    def func(self) -> Callable[..., Any]:
        if self.instance is not None or self.func_name not in tasks.TASKS:
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
        if name and name not in tasks.CALLBACKS:
            raise ForbiddenTask(f"Job {self.id} names {name!r}, which is not a callback.")


class NoDeathPenalty(BaseDeathPenalty):
    """No limit at all. RQ's use signals, which threads have not got, or throw an exception into
    the thread at any bytecode, which would leave locks and device memory in any state."""

    def setup_death_penalty(self) -> None:
        pass

    def cancel_death_penalty(self) -> None:
        pass


def queue_name(preset: str) -> str:
    """One queue a preset, as a worker serves one preset and RQ is safe with one queue only."""
    return f"stablesr:{preset}"


def open_queue(preset: str, connection: Redis) -> Queue:
    """The RQ queue of a preset, alike on both sides: serializer and job class."""
    return Queue(
        queue_name(preset), connection=connection, serializer=SERIALIZER, job_class=TaskJob
    )


def run_again() -> Retry:
    """What a task returns to go back to the front of the queue without losing an attempt.

    For a worker that is asked to stop; the task calls Records.requeue first. RQ counts these
    apart from attempts that failed.
    """
    return Retry(max=1000, interval=0, enqueue_at_front=True)
