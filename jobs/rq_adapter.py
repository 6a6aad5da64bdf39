"""How we use RQ: JSON instead of pickle, and jobs that run nothing but our task.

RQ imports whatever dotted path a job in Redis names, also for callbacks, and sends webhooks to any
address, so a writer of Redis could run code in a worker. `TaskJob` refuses other names when they
are used, not when the job is read: an exception in RQ's dequeue ends the worker.

`LeaseReaper` replaces RQ's own maintenance, which runs between two jobs only, so not while every
slot is busy; holds a lock for 15 minutes when it is interrupted; needs the main thread for its
failure callbacks; and fails a job that was lost between the queue and its start.
"""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.client import Pipeline
from rq import Queue, Retry
from rq.exceptions import AbandonedJobError, NoSuchJobError
from rq.executions import ExecutionRegistry
from rq.job import Job
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer
from rq.timeouts import BaseDeathPenalty
from rq.utils import parse_composite_key
from rq.worker_registration import clean_worker_registry

from .connection import as_text, lock, queue_errors
from .errors import JobFault, JobNotFound, WorkerLost, WrongState
from .job_store import JobStore
from .schema import JobState
from .settings import Settings

SERIALIZER = JSONSerializer
# A job whose worker was lost runs once more; a job whose image is bad never does.
ATTEMPTS = 2
# How long a job may wait for a worker.
QUEUE_TTL_S = 7 * 86_400

# All that a worker may be asked to run.
UPSCALE = "worker.tasks.upscale"

logger = logging.getLogger(__name__)


class ForbiddenTask(Exception):
    """A job in Redis names another task than ours."""


class TaskJob(Job):
    """RQ's job, limited to our task and callback, whatever the job in Redis names."""

    @property
    def func(self) -> Any:
        if self.instance is not None or self.func_name != UPSCALE:
            raise ForbiddenTask(f"Job {self.id} names {self.func_name!r}, which is not a task.")
        return super().func

    failure_callback = property(lambda self: on_failure)
    success_callback = stopped_callback = property(lambda self: None)

    def send_webhooks(self, status: Any, *, exc_string: str | None = None) -> None:
        """Nothing: RQ's webhooks would call whatever address a job in Redis names."""


class NoDeathPenalty(BaseDeathPenalty):
    """No limit at all. RQ's need signals, or throw an exception into the thread at any bytecode,
    which would leave locks and device memory in any state."""

    def setup_death_penalty(self) -> None:
        pass

    cancel_death_penalty = setup_death_penalty


def open_queue(preset: str, connection: Redis) -> Queue:
    """The RQ queue of a preset: a worker serves one preset, and RQ is safe with one queue only."""
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
        pipeline=pipe,
    )


def runs(queue: Queue, job_id: str) -> str:
    """The Redis key of a sorted set that has members while a worker has the job in hand."""
    return ExecutionRegistry(job_id, queue.connection).key


def enqueue_anew(queue: Queue, pipe: Pipeline, job_id: str, settings: Settings) -> None:
    """The same for a job that failed before, of which RQ forgets that."""
    pipe.delete(TaskJob.key_for(job_id))
    pipe.zrem(queue.failed_job_registry.key, job_id)
    enqueue(queue, pipe, job_id, settings)


def withdraw(queue: Queue, job_id: str) -> bool:
    """Takes a waiting job out of RQ; False when a worker has it already."""
    with queue_errors(queue.connection):
        if not queue.connection.lrem(queue.key, 1, job_id):
            return False
        if (job := queue.fetch_job(job_id)) is not None:
            job.delete(remove_from_queue=False)
    return True


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
    "The worker that ran the job was lost, and so was the one before it; "
    "submit the image again, or ask the operator of the service."
)
_FAULT = JobFault(
    "The worker could not finish the job because of a fault of its own; "
    "its log says more under the job's id."
)
_UNREADABLE = JobFault("The queue's entry for the job cannot be read; submit the image again.")
# So long a process that is killed in its round, of milliseconds, holds the others up.
LOCK_S = 5
# A job is between the queue and its start for a few milliseconds. One that was seen there twice,
# this far apart, was lost with its worker.
STUCK_S = 15.0

# KEYS: intermediate list, queue.  ARGV: job id.  Moved only if it is still there, and once.
_PUT_BACK = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""


class LeaseReaper:
    """Hands out again the jobs of lost workers, for one queue, in one process at a time."""

    def __init__(self, queue: Queue, connection: Redis, *, stuck_s: float = STUCK_S) -> None:
        self._queue = queue
        self._connection = connection
        self._stuck_s = stuck_s
        self._store = JobStore(connection)
        self._put_back = connection.register_script(_PUT_BACK)
        self._first_seen: dict[str, float] = {}

    def run(self) -> None:
        """Give every job whose lease has run out its next attempt, or fail it after the last.

        Raises RedisError, QueueUnavailable.
        """
        name = f"stablesr:recovering:{self._queue.name}"
        with lock(self._connection, name, LOCK_S) as is_mine:
            if is_mine:
                self._leases()
                self._intermediate()

    def tidy(self) -> None:
        """Forget failed jobs whose time is over, and workers that are gone."""
        FailedJobRegistry(queue=self._queue, job_class=TaskJob).cleanup()
        clean_worker_registry(self._queue)

    def _leases(self) -> None:
        # Its failure callback, on_failure, moves the record.
        registry = StartedJobRegistry(
            queue=self._queue, job_class=TaskJob, death_penalty_class=NoDeathPenalty
        )
        job_ids = registry.get_expired_job_ids()
        if not job_ids:
            return
        logger.warning("Workers were lost, their jobs are handed out again: %s", ", ".join(job_ids))
        # RQ keeps a lost execution's name for a minute longer than what it names, at which a worker
        # that ends the job's next attempt within it would fail.
        entries: Any = self._connection.zrangebyscore(registry.key, 0, self._connection.time()[0])
        for entry in entries:
            job_id, execution_id = parse_composite_key(as_text(entry))
            executions = ExecutionRegistry(job_id, self._connection)
            self._connection.zrem(executions.key, execution_id)
        registry.cleanup()

    def _intermediate(self) -> None:
        """Jobs that were taken from the queue by a worker that died before it began them."""
        waiting = set(self._queue.intermediate_queue.get_job_ids())
        self._first_seen = {id: at for id, at in self._first_seen.items() if id in waiting}
        if not waiting:
            return
        running = set(self._queue.started_job_registry.get_job_ids(cleanup=False))
        now = time.monotonic()
        for job_id in waiting - running:
            if now - self._first_seen.setdefault(job_id, now) >= self._stuck_s:
                self._restore(job_id)
                del self._first_seen[job_id]

    def _restore(self, job_id: str) -> None:
        try:
            TaskJob.fetch(job_id, self._connection, self._queue.serializer)
        except NoSuchJobError:
            self._queue.intermediate_queue.remove(job_id)
        # A job that RQ cannot even read would end every loop that takes it from the queue.
        except Exception:
            logger.exception("Job %s cannot be read in the queue.", job_id)
            with suppress(JobNotFound, WrongState):
                self._store.fail(job_id, _UNREADABLE.problem())
            self._queue.intermediate_queue.remove(job_id)
        else:
            keys = [self._queue.intermediate_queue_key, self._queue.key]
            if self._put_back(keys=keys, args=[job_id]):
                logger.warning("Job %s waits again, its worker was lost before it began.", job_id)
