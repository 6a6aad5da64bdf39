"""Hands out again the jobs of lost workers, and those whose pause before a further attempt is over.

This replaces RQ's own maintenance, which runs between two jobs only, so not while every slot is
busy; holds a lock for 15 minutes when it is interrupted; needs the main thread for its failure
callbacks; fails a job that was lost between the queue and its start; and goes by the clock of the
host that looks.

A lease that has run out is not taken at once: after an outage all have, and the process that is
back first would take the jobs of all others, who run them still. It must be seen so in every round
of patience_s, in which live workers renew theirs; rounds before an outage do not count.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import AbandonedJobError, NoSuchJobError
from rq.executions import ExecutionRegistry
from rq.job import JobStatus
from rq.job_lifecycle import record_job_failure
from rq.registry import FailedJobRegistry
from rq.utils import parse_composite_key
from rq.worker_registration import clean_worker_registry

from .connection import as_text, lock, seconds_of
from .errors import JobFault, JobNotFound, QueueUnavailable, WrongState
from .job_store import JobStore
from .rq_adapter import GIVEN_UP, TaskJob, on_failure, requeue_due
from .settings import PATIENCE_S

_UNREADABLE = JobFault("The queue's entry for the job cannot be read; submit the image again.")
# So long a process that is killed in its round, of milliseconds, holds the others up.
LOCK_S = 5
# A job is between the queue and its start for a few milliseconds. One that was seen there for so
# long was lost with its worker.
STUCK_S = 15.0

# KEYS: intermediate list, queue.  ARGV: job id.  Moved only if it is still there, and once.
_PUT_BACK = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[1])
return 1
"""

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


def _overdue(since: dict[Item, float], items: Iterable[Item], seconds: float) -> list[Item]:
    """Those of a round's items that were in every round for so long, by this process's steady
    clock; `since` holds when each was seen first."""
    now = time.monotonic()
    first = {item: since.get(item, now) for item in items}
    since.clear()
    since.update(first)
    return [item for item, start in first.items() if now - start >= seconds]


class LeaseReaper:
    """Hands out again the jobs of lost workers, for one queue, in one process at a time."""

    def __init__(
        self,
        queue: Queue,
        connection: Redis,
        *,
        patience_s: float = PATIENCE_S,
        stuck_s: float = STUCK_S,
    ) -> None:
        self._queue = queue
        self._connection = connection
        self._store = JobStore(connection)
        self._put_back = connection.register_script(_PUT_BACK)
        # A lease with its end: one that was renewed meanwhile is another. Rounds are not quite
        # regular, and the second one after it was seen first is to count.
        self._patience_s, self._stuck_s = 0.9 * patience_s, stuck_s
        self._expired: dict[tuple[str, float], float] = {}
        self._stuck: dict[str, float] = {}

    def run(self) -> None:
        """Give every job of a lost worker its next attempt, or fail it after the last.

        Raises RedisError, QueueUnavailable.
        """
        name = f"stablesr:recovering:{self._queue.name}"
        try:
            with lock(self._connection, name, LOCK_S) as is_mine:
                if is_mine:
                    requeue_due(self._queue)
                    self._leases()
                    self._intermediate()
        except (RedisError, QueueUnavailable):
            self._expired.clear()
            self._stuck.clear()
            raise

    def tidy(self) -> None:
        """Forget failed jobs whose time is over, and workers that are gone."""
        FailedJobRegistry(queue=self._queue, job_class=TaskJob).cleanup()
        clean_worker_registry(self._queue)

    def _leases(self) -> None:
        key = self._queue.started_job_registry.key
        with self._connection.pipeline() as pipe:
            pipe.zrange(key, 0, -1, withscores=True)
            pipe.time()
            raw, clock = pipe.execute()
        leases, now = {as_text(entry): end for entry, end in raw}, seconds_of(clock)
        expired = {(entry, end) for entry, end in leases.items() if end <= now}
        lost = {entry for entry, _ in _overdue(self._expired, expired, self._patience_s)}
        lost |= {entry for entry, end in expired if end <= GIVEN_UP}
        running = {parse_composite_key(entry)[0] for entry in leases.keys() - lost}
        # Each comes to the front: the one that was silent first, last.
        for entry in sorted(lost, key=leases.__getitem__, reverse=True):
            job_id, execution_id = parse_composite_key(entry)
            with self._connection.pipeline() as pipe:
                if job_id not in running:
                    self._hand_out(job_id, pipe)
                pipe.zrem(key, entry)
                # RQ keeps a lost execution's name for longer than what it names, at which a worker
                # that ends the job's next attempt would fail.
                pipe.zrem(ExecutionRegistry(job_id, self._connection).key, execution_id)
                pipe.execute()

    def _hand_out(self, job_id: str, pipe: Any) -> None:
        """Adds to a transaction what becomes of a job whose only lease ran out."""
        with suppress(NoSuchJobError):
            job = TaskJob.fetch(job_id, self._connection, self._queue.serializer)
            # Of one that has ended, or waits again, the lease is a remainder.
            if job.get_status(refresh=False) is not JobStatus.STARTED:
                return
            logger.warning("Job %s: its worker %s was lost.", job_id, job.worker_name)
            on_failure(job, self._connection, AbandonedJobError)
            if job.retries_left:
                job.retry(self._queue, pipe)
            else:
                record_job_failure(job, "its worker was lost", pipe)

    def _intermediate(self) -> None:
        """Jobs that were taken from the queue by a worker that died before it began them."""
        waiting = set(self._queue.intermediate_queue.get_job_ids())
        if waiting:
            waiting -= set(self._queue.started_job_registry.get_job_ids(cleanup=False))
        for job_id in _overdue(self._stuck, waiting, self._stuck_s):
            self._restore(job_id)

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
