"""How we use RQ: JSON instead of pickle, and jobs that run nothing but our task.

RQ imports whatever dotted path a job in Redis names, also for callbacks, and sends webhooks to any
address, so a writer of Redis could run code in a worker. `TaskJob` refuses other names when they
are used, not when the job is read: an exception in RQ's dequeue ends the worker.

RQ scores leases and pauses with the clock of the host that writes them. Here Redis' clock does it,
so that the clocks of hosts cannot disagree about a job; and a job waits out its pause without RQ's
scheduler, a process of its own.
"""

from __future__ import annotations

import logging
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue, Retry
from rq.exceptions import AbandonedJobError
from rq.executions import Execution, ExecutionRegistry
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty

from . import fair_queue
from .connection import queue_errors
from .errors import JobFault, JobNotFound, WorkerLost, WrongState
from .job_store import QUEUE_TTL_S, JobStore, queue_key, record_key
from .schema import JobState
from .settings import Settings

SERIALIZER = JSONSerializer

# All that a worker may be asked to run.
UPSCALE = "worker.tasks.upscale"

# The end of a lease whose own worker gives it up.
GIVEN_UP = 1

# KEYS: the leases.  ARGV: the lease, its seconds, NX or XX.
_RENEW = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
return redis.call('ZADD', KEYS[1], ARGV[3], string.format('%.3f', now + ARGV[2]), ARGV[1])
"""
# KEYS: the paused jobs.  ARGV: job id, seconds.
_PAUSE = "redis.call('ZADD', KEYS[1], redis.call('TIME')[1] + ARGV[2], ARGV[1])"
# KEYS: the paused jobs, queue.  The one that waited longest comes to the front last.
_REQUEUE_DUE = """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', redis.call('TIME')[1])
for i = #due, 1, -1 do
    redis.call('LPUSH', KEYS[2], due[i])
    redis.call('ZREM', KEYS[1], due[i])
end
return #due
"""

# KEYS: queue, waiting jobs, paused jobs, RQ's job.  ARGV: job id.
_WITHDRAW = """
local id = ARGV[1]
local count = redis.call('LREM', KEYS[1], 1, id)
count = count + redis.call('ZREM', KEYS[2], id) + redis.call('ZREM', KEYS[3], id)
if count > 0 then redis.call('DEL', KEYS[4]) end
return count
"""

# KEYS: queue, waiting, paused, on their way, leases; the record, RQ's job.  ARGV: job id.
_RESTORE = """
local id, state = ARGV[1], redis.call('HGET', KEYS[6], 'state')
if state ~= 'queued' and state ~= 'processing' then return 0 end
if redis.call('LPOS', KEYS[1], id) or redis.call('ZSCORE', KEYS[2], id)
    or redis.call('ZSCORE', KEYS[3], id) or redis.call('LPOS', KEYS[4], id) then return 0 end
for _, lease in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
    if string.sub(lease, 1, #id + 1) == id .. ':' then return 0 end
end
redis.call('LPUSH', KEYS[1], id)
redis.call('HSET', KEYS[7], 'status', 'queued')
return 1
"""

logger = logging.getLogger(__name__)


class ForbiddenTask(Exception):
    """A job in Redis names another task than ours."""


class Leases(StartedJobRegistry):
    """Sorted set: `job:execution` -> when that execution's lease ends, by Redis' clock."""

    lease_s = 0.0

    def add_execution(
        self, execution: Execution, pipeline: Pipeline, ttl: int = 0, xx: bool = False
    ) -> Any:
        """Adds to a transaction that the lease lasts for lease_s from now on."""
        arguments = (execution.composite_key, self.lease_s, "XX" if xx else "NX")
        return pipeline.eval(_RENEW, 1, self.key, *arguments)


class TaskJob(Job):
    """RQ's job, limited to our task and callback, whatever the job in Redis names.

    `lease_s` is set by the slot that runs it.
    """

    lease_s = 0.0

    @property
    def func(self) -> Any:
        if self.instance is not None or self.func_name != UPSCALE:
            raise ForbiddenTask(f"Job {self.id} names {self.func_name!r}, which is not a task.")
        return super().func

    failure_callback = property(lambda self: on_failure)
    success_callback = stopped_callback = property(lambda self: None)

    @property
    def started_job_registry(self) -> Leases:
        leases = Leases(self.origin, self.connection, TaskJob, serializer=self.serializer)
        leases.lease_s = self.lease_s
        return leases

    @property
    def failures(self) -> int:
        """How many attempts are spent."""
        return max(0, len(self.retry_intervals or ()) - (self.retries_left or 0))

    def retry(self, queue: Queue, pipeline: Pipeline) -> None:
        """Adds to a transaction that the next attempt follows, after its pause."""
        pause = self.get_retry_interval()
        if not pause:
            super().retry(queue, pipeline)
            return
        self.retries_left = (self.retries_left or 1) - 1
        self.set_status(JobStatus.QUEUED, pipeline=pipeline)
        self.save(pipeline=pipeline)
        self.cleanup(self.ttl, pipeline=pipeline)
        pipeline.eval(_PAUSE, 1, queue.scheduled_job_registry.key, self.id, pause)

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """Nothing: RQ's webhooks would call whatever address a job in Redis names."""


class NoDeathPenalty(BaseDeathPenalty):
    """No limit at all. RQ's need signals, or throw an exception into the thread at any bytecode,
    which would leave locks and device memory in any state."""

    def setup_death_penalty(self) -> None:
        pass

    cancel_death_penalty = setup_death_penalty


class FairQueue(Queue):
    """RQ's queue, in which new jobs wait for their turn."""

    @property
    def preset(self) -> str:
        return self.name.removeprefix("stablesr:")

    def push_job_id(
        self, job_id: str, pipeline: Pipeline | None = None, at_front: bool = False
    ) -> None:
        if at_front or pipeline is None:
            super().push_job_id(job_id, pipeline, at_front)
        else:
            fair_queue.push(pipeline, self.preset, job_id)


def open_queue(preset: str, connection: Redis) -> FairQueue:
    """The RQ queue of a preset: a worker serves one preset, and RQ is safe with one queue only."""
    name = f"stablesr:{preset}"
    return FairQueue(name, connection=connection, serializer=SERIALIZER, job_class=TaskJob)


def enqueue(queue: Queue, pipe: Pipeline, job_id: str, settings: Settings) -> None:
    """Adds to a transaction that the job waits in the queue; its last answer is that of
    `fair_queue.push`. The record is there already."""
    pauses = settings.retry_pauses
    queue.enqueue_call(
        UPSCALE,
        args=(job_id,),
        job_id=job_id,
        timeout=settings.job_timeout_s,
        ttl=QUEUE_TTL_S,
        # RQ's own account of a job that went well is of no use.
        result_ttl=0,
        failure_ttl=settings.result_ttl_s,
        retry=Retry(len(pauses), pauses, enqueue_at_front=True),
        pipeline=pipe,
    )


def runs(queue: Queue, job_id: str) -> str:
    """The Redis key of a sorted set that has members while a worker has the job in hand."""
    return ExecutionRegistry(job_id, queue.connection).key


def withdraw(queue: FairQueue, job_id: str) -> bool:
    """Takes a waiting job out of RQ; False when a worker has it already."""
    keys = (
        queue.key,
        queue_key(queue.preset),
        queue.scheduled_job_registry.key,
        TaskJob.key_for(job_id),
    )
    with queue_errors(queue.connection):
        return bool(queue.connection.eval(_WITHDRAW, len(keys), *keys, job_id))


def restore(queue: FairQueue, job_id: str) -> bool:
    """Puts a job first in the queue that is in no place where a worker would find it, though it has
    not ended: a Redis that took over had not heard of its last move. Whether it was so."""
    keys = (
        *(queue.key, queue_key(queue.preset)),
        *(queue.scheduled_job_registry.key, queue.intermediate_queue_key),
        *(queue.started_job_registry.key, record_key(job_id), TaskJob.key_for(job_id)),
    )
    with queue_errors(queue.connection):
        return bool(queue.connection.eval(_RESTORE, len(keys), *keys, job_id))


def requeue_due(queue: Queue) -> None:
    """Puts the jobs whose pause is over at the front of the queue. Raises RedisError."""
    keys = (queue.scheduled_job_registry.key, queue.key)
    queue.connection.eval(_REQUEUE_DUE, len(keys), *keys)


def run_again() -> Retry:
    """What a task returns to go back to the front of the queue without losing an attempt, after
    JobStore.requeue: RQ counts these apart from attempts that failed."""
    return Retry(max=1000, interval=0, enqueue_at_front=True)


def on_failure(job: Job, connection: Redis, kind: type[BaseException], *_: object) -> None:
    """Requeues or fails the record of a job whose attempt raised or whose worker was lost.

    RQ calls this on every failed attempt and decides by `retries_left` afterwards whether it runs
    the job again. Clients are shown the kind of fault; the traceback is in the worker's log only.
    """
    worker_lost = issubclass(kind, AbandonedJobError)
    if issubclass(kind, ForbiddenTask):
        job.retries_left = 0
    store = JobStore(connection)
    try:
        if worker_lost and store.get(job.id).state is JobState.QUEUED:
            # It was at the gate of a process that another job brought down: no attempt is spent.
            job.retries_left = (job.retries_left or 0) + 1
        if not job.retries_left:
            fault = _LOST if worker_lost else _FAULT
            store.fail(job.id, fault.problem(), worker=job.worker_name)
            logger.error("Job %s failed: %s", job.id, kind.__name__)
        elif store.requeue(job.id, worker=job.worker_name).state.is_final:
            # It was to be canceled, and now is.
            job.retries_left = 0
        else:
            logger.warning("Job %s runs again: %s", job.id, kind.__name__)
    except (JobNotFound, WrongState) as ended:
        # The job ended before its attempt did, or another worker runs it by now: nothing to do,
        # and no reason to run it again.
        job.retries_left = 0
        logger.info("Job %s needs nothing: %s", job.id, ended)


_LOST = WorkerLost(
    "The worker that ran the job was lost, and so were those before it; "
    "submit the image again, or ask the operator of the service."
)
_FAULT = JobFault(
    "The worker could not finish the job because of a fault of its own; "
    "its log says more under the job's id."
)
