"""Finds the jobs of workers that died, and hands them out again.

RQ has maintenance of its own, which does not suit here: it runs between two jobs only, so not while
every slot is busy; it holds a lock for 15 minutes when it is interrupted; its failure callbacks
need the main thread; and it fails a job that was lost between the queue and its start.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from redis import Redis
from redis.exceptions import LockError
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.executions import ExecutionRegistry
from rq.job import Job
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.utils import parse_composite_key
from rq.worker_registration import clean_worker_registry

from .connection import as_text
from .errors import JobFault, JobNotFound, WrongState
from .records import Records
from .rq_job import NoDeathPenalty, TaskJob

__all__ = ["Recovery"]

# Whoever is killed in its round holds the others up so long: a round takes milliseconds.
LOCK_S = 5
# A job is between the queue and its start for a few milliseconds. One that was seen there twice,
# this far apart, was lost with its worker.
STUCK_S = 15.0

logger = logging.getLogger(__name__)

# KEYS: intermediate list, queue.  ARGV: job id.  Moved only if it is still there, and once.
_PUT_BACK = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""


class Recovery:
    """Recovery for one queue; many processes have one, and a lock lets one at a time run."""

    def __init__(self, queue: Queue, connection: Redis, *, stuck_s: float = STUCK_S) -> None:
        self._queue = queue
        self._connection = connection
        self._stuck_s = stuck_s
        self._records = Records(connection)
        self._put_back = connection.register_script(_PUT_BACK)
        self._first_seen: dict[str, float] = {}

    def run(self) -> None:
        """Give every job whose lease has run out its next attempt, or fail it after the last.

        Raises:
            RedisError, QueueUnavailable.
        """
        lock = self._connection.lock(f"stablesr:recovering:{self._queue.name}", timeout=LOCK_S)
        if not lock.acquire(blocking=False):
            return
        try:
            self._leases()
            self._intermediate()
        finally:
            try:
                lock.release()
            except LockError:
                # It ran out before the work was done: another process may have begun meanwhile,
                # and each step above is safe to do twice.
                logger.warning("Recovery took longer than its lock, which lasts %d s.", LOCK_S)

    def tidy(self) -> None:
        """Forget failed jobs whose time is over, and workers that are gone."""
        FailedJobRegistry(queue=self._queue, job_class=TaskJob).cleanup()
        clean_worker_registry(self._queue)

    def _leases(self) -> None:
        # Its failure callback, jobs.callbacks.on_failure, moves the record.
        registry = StartedJobRegistry(
            queue=self._queue, job_class=TaskJob, death_penalty_class=NoDeathPenalty
        )
        lost = registry.get_expired_job_ids()
        if lost:
            logger.warning(
                "Workers were lost, their jobs are handed out again: %s", ", ".join(lost)
            )
            self._forget_executions(registry)
            registry.cleanup()

    def _forget_executions(self, registry: StartedJobRegistry) -> None:
        """RQ keeps a lost execution's name for a minute longer than what it names, and a worker's
        loop that ends the job's next attempt within it would fail."""
        now = self._connection.time()[0]
        lost: Any = self._connection.zrangebyscore(registry.key, 0, now)
        for entry in lost:
            job_id, execution_id = parse_composite_key(as_text(entry))
            executions = ExecutionRegistry(job_id, self._connection)
            self._connection.zrem(executions.key, execution_id)

    def _intermediate(self) -> None:
        """Jobs that were taken from the queue by a worker that died before it began them."""
        waiting = set(self._queue.intermediate_queue.get_job_ids())
        self._first_seen = {id: at for id, at in self._first_seen.items() if id in waiting}
        if not waiting:
            return
        started = set(self._queue.started_job_registry.get_job_ids(cleanup=False))
        now = time.monotonic()
        for job_id in waiting - started:
            if now - self._first_seen.setdefault(job_id, now) >= self._stuck_s:
                self._restore(job_id)
                del self._first_seen[job_id]

    def _restore(self, job_id: str) -> None:
        try:
            job: Job | None = TaskJob.fetch(job_id, self._connection, self._queue.serializer)
        except NoSuchJobError:
            job = None
        # A job that RQ cannot even read would end every loop that takes it from the queue.
        except Exception:
            logger.exception("Job %s cannot be read in the queue.", job_id)
            job = None
            self._fail(job_id)
        if job is None:
            self._queue.intermediate_queue.remove(job_id)
            return
        keys = [self._queue.intermediate_queue_key, self._queue.key]
        if self._put_back(keys=keys, args=[job_id]):
            logger.warning("Job %s waits again, its worker was lost before it began.", job_id)

    def _fail(self, job_id: str) -> None:
        problem = JobFault("The queue's entry for the job cannot be read; submit the image again.")
        try:
            self._records.fail(job_id, problem.problem())
        except (JobNotFound, WrongState):
            # Nobody waits for it.
            logger.info("Job %s has no record to fail.", job_id)
