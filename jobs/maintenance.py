"""Results expire, lost jobs end, blobs are removed.

Every worker and every service process runs `Maintenance` about every maintenance_s, so that a job
ends although no worker serves its preset any more. A job stays on the agenda of `jobs.job_store`
until all of it is done; one with which something is wrong is put off, and keeps no other from its
turn.
"""

from __future__ import annotations

import logging
import time
from collections import Counter as Counts
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from redis import Redis
from redis.exceptions import RedisError

from models.presets import PRESETS

from .connection import as_text, lock, queue_errors
from .errors import JobNotFound, JobsError, QueueTimedOut, StoreUnavailable, WorkerLost, WrongState
from .job_store import AGENDA_KEY, LOOK_AGAIN_S, TOMBSTONE_S, JobStore, record_key
from .queue import UPLOAD_GRACE_S
from .recovery import LeaseReaper
from .rq_adapter import TaskJob, open_queue
from .schema import Job, JobState
from .store import BlobStore, input_key, result_key

logger = logging.getLogger(__name__)

_LOCK_KEY = "stablesr:sweeping"
_LOCK_S = 30
# A store that is slow to fail must not make a sweep outlast its lock by much.
_SWEEP_S = 20.0
_BATCH = 500
# When a job is looked at again with which something was wrong.
_PUT_OFF_S = 600
# RQ has given up on the job, or never heard of it: nothing will run it any more.
_DEAD = frozenset({b"failed", b"stopped", b"canceled", b"finished"})


def sweep(connection: Redis, store: BlobStore) -> Counts[str]:
    """Looks at every job whose time on the agenda has come; at most 500 a call.

    Of several processes one sweeps, the others return at once. Raises QueueUnavailable; what was
    not done then is done by the next sweep.

    Returns how many jobs' blobs were removed (`removals`), how many jobs failed that no worker
    would have run any more (`failures`), how many are put off (`put_off`), and how many files were
    removed to which a dead writer had added nothing for UPLOAD_GRACE_S (`leftovers`).
    """
    swept = Counts[str]()
    with queue_errors(connection), lock(connection, _LOCK_KEY, _LOCK_S) as is_mine:
        if not is_mine:
            return swept
        jobs = JobStore(connection)
        now, end = jobs.now().timestamp(), time.monotonic() + _SWEEP_S
        due: Any = connection.zrangebyscore(AGENDA_KEY, "-inf", now, start=0, num=_BATCH)
        for raw in due:
            if time.monotonic() > end:
                break
            try:
                if end_of_job := _look_at(as_text(raw), jobs, connection, store, now):
                    swept[end_of_job] += 1
            # Whatever is wrong with this job or its blobs. Where Redis is away, putting off raises.
            except Exception as error:
                is_known = isinstance(error, JobsError)
                logger.error("Job %r is put off: %s", raw, error, exc_info=not is_known)
                connection.zadd(AGENDA_KEY, {raw: now + _PUT_OFF_S}, xx=True)
                swept["put_off"] += 1
        try:
            swept["leftovers"] = store.remove_staged(idle_s=UPLOAD_GRACE_S)
        except StoreUnavailable as error:
            logger.warning("Files whose writer is gone are left: %s", error.detail)
    return swept


def _look_at(
    job_id: str, jobs: JobStore, connection: Redis, store: BlobStore, now: float
) -> str | None:
    """What `sweep` counts the job as."""
    job = None
    with suppress(JobNotFound):
        job = jobs.get(job_id)
    if job is None or job.state.is_final:
        store.delete(input_key(job_id), result_key(job_id))
        connection.zrem(AGENDA_KEY, job_id)
        return "removals"
    fault = _loss_of(job, connection, now)
    if fault is None:
        connection.zadd(AGENDA_KEY, {job_id: now + LOOK_AGAIN_S})
        return None
    with suppress(JobNotFound, WrongState):
        jobs.fail(job_id, fault.problem())
        logger.error("Job %s failed: %s", job_id, fault)
        # It takes no place in the queue any more; a worker that has it finds that it has ended.
        open_queue(job.preset, connection).remove(job_id)
        return "failures"
    return None


def _loss_of(job: Job, connection: Redis, now: float) -> JobsError | None:
    """Why no worker will ever run the job, or None while one may."""
    status: Any = connection.hget(TaskJob.key_for(job.id), "status")
    # Each move gives a record a life of as long as a job may wait and TOMBSTONE_S.
    is_stale = connection.ttl(record_key(job.id)) <= TOMBSTONE_S
    if job.state is JobState.QUEUED and (is_stale or (status is None and job.attempt == 0)):
        seconds = now - job.created_at.timestamp()
        return QueueTimedOut(
            f"No worker for {job.preset} took the job in {seconds:.0f} seconds; "
            "see whether one runs, and submit the image again."
        )
    if is_stale or status is None or status in _DEAD:
        return WorkerLost("The worker that ran the job was lost; submit the image again.")
    return None


def put_off_counter(registry: CollectorRegistry) -> Counter:
    """What `Maintenance` counts, for a process's metrics."""
    return Counter("stablesr_sweep_put_off", "Jobs put off by a sweep", registry=registry)


class Maintenance:
    """All that must happen, for every preset. Blocking; several processes may have one each."""

    def __init__(self, connection: Redis, store: BlobStore, put_off: Counter) -> None:
        reapers = [LeaseReaper(open_queue(preset, connection), connection) for preset in PRESETS]
        self._steps: list[Callable[[], object]] = [
            *(reaper.run for reaper in reapers),
            *(reaper.tidy for reaper in reapers),
            lambda: put_off.inc(sweep(connection, store)["put_off"]),
        ]

    def run(self) -> None:
        """One round; what cannot be done now is left for the next one."""
        for step in self._steps:
            try:
                step()
            except (RedisError, JobsError) as error:
                logger.warning("Maintenance is left for the next time: %s", error)
                return
            # A defect in one step must not keep the others from being done.
            except Exception:
                logger.exception("Unexpected error in maintenance.")
