"""What nobody asks for but must happen: results expire, lost jobs end, blobs are removed.

Workers call `sweep` about every maintenance_s. It takes jobs from the agenda of `jobs.records`
when their time has come; a crash half way leaves them there for the next sweep.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from redis import Redis
from rq.job import Job as RqJob

from .connection import as_text, queue_errors
from .errors import JobNotFound, JobsError, QueueTimedOut, WorkerLost, WrongState
from .records import AGENDA_KEY, LOOK_AGAIN_S, Records
from .schema import Job, JobState
from .store import BlobStore, input_key, result_key

__all__ = ["Swept", "sweep"]

logger = logging.getLogger(__name__)

_LOCK_KEY = "stablesr:sweeping"
_LOCK_S = 30
_BATCH = 500
# RQ has given up on the job, or never heard of it: nothing will run it any more.
_DEAD = frozenset({b"failed", b"stopped", b"canceled", b"finished"})


@dataclass(slots=True)
class Swept:
    """What a sweep did: jobs whose blobs were removed, results expired, lost jobs failed."""

    removed: int = 0
    expired: int = 0
    failed: int = 0


def sweep(connection: Redis, store: BlobStore) -> Swept:
    """Looks at every job whose time on the agenda has come; at most 500 a call.

    Several workers may call it: one sweeps, the others return at once. Raises QueueUnavailable
    and StoreUnavailable; what was not done then is done by the next sweep.
    """
    swept = Swept()
    with queue_errors(connection):
        if not connection.set(_LOCK_KEY, b"1", nx=True, ex=_LOCK_S):
            return swept
        try:
            records = Records(connection)
            now = records.now().timestamp()
            due = connection.zrangebyscore(AGENDA_KEY, "-inf", now, start=0, num=_BATCH)
            for raw in due:
                _look_at(as_text(raw), records, connection, store, now, swept)
        finally:
            connection.delete(_LOCK_KEY)
    return swept


def _look_at(
    job_id: str, records: Records, connection: Redis, store: BlobStore, now: float, swept: Swept
) -> None:
    try:
        job = records.get(job_id)
    except JobNotFound:
        job = None
    if job is not None and not job.state.ended:
        fault = _lost(job, connection, now)
        if fault is None:
            connection.zadd(AGENDA_KEY, {job_id: now + LOOK_AGAIN_S})
            return
        try:
            records.fail(job_id, fault.problem())
        except (JobNotFound, WrongState):
            return
        swept.failed += 1
        logger.error("Job %s failed: %s", job_id, fault)
        return
    if job is not None and job.state is JobState.EXPIRED:
        swept.expired += 1
    store.delete(input_key(job_id), result_key(job_id))
    connection.zrem(AGENDA_KEY, job_id)
    swept.removed += 1


def _lost(job: Job, connection: Redis, now: float) -> JobsError | None:
    """Why nobody will ever run the job, or None while somebody may."""
    raw = connection.hget(RqJob.key_for(job.id), "status")
    waited = now - job.created_at.timestamp()
    if raw is None and job.attempt == 0:
        return QueueTimedOut(
            f"No worker for {job.preset} took the job in {waited:.0f} seconds; "
            "see whether one runs, and submit the image again."
        )
    if raw is None or raw in _DEAD:
        return WorkerLost("The worker that ran the job was lost; submit the image again.")
    return None
