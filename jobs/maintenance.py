"""Results expire, lost jobs end, blobs are removed.

Every worker and every service process runs `Maintenance` about every maintenance_s, so that a job
ends although no worker serves its preset any more. A job stays on the agenda of `jobs.job_store`
until all of it is done; one with which something is wrong is put off, and keeps no other from its
turn. What Redis has forgotten is found in the image store, whose names are gone through slowly.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter
from redis import Redis
from redis.exceptions import RedisError

from models.presets import PRESETS

from .connection import as_text, lock, queue_errors
from .errors import JobNotFound, JobsError, QueueTimedOut, StoreUnavailable, WorkerLost, WrongState
from .job_store import AGENDA_KEY, LOOK_AGAIN_S, TOMBSTONE_S, JobStore, queue_key, record_key
from .queue import UPLOAD_GRACE_S
from .recovery import LeaseReaper
from .remote_store import NO_ANSWER
from .rq_adapter import TaskJob, open_queue, restore, withdraw
from .schema import Job, JobState
from .store import BlobStore, input_key, job_id_of, result_key

logger = logging.getLogger(__name__)

_LOCK_KEY = "stablesr:sweeping"
_LOCK_S = 30
# A store that is slow to fail must not make a sweep outlast its lock by much.
_SWEEP_S = 20.0
_BATCH = 500
# The name in the store after which its next page begins, and how long it rests at the end.
WALK_KEY, _END, _REST_S = "stablesr:walk", "end", 3600
# A blob that no job is known for is older than this before it is removed. A day, so that a Redis
# that came up empty by mistake does no harm before it is noticed.
FORGOTTEN_S = 86_400
_UPLOAD = re.compile(input_key("[0-9a-f]{32}"))
# When a job is looked at again with which something was wrong.
_PUT_OFF_S = 600
# RQ has given up on the job, or never heard of it: nothing will run it any more.
_DEAD = frozenset({b"failed", b"stopped", b"canceled", b"finished"})
_ACTIVE = frozenset(state.value.encode() for state in JobState if not state.is_final)


def sweep(connection: Redis, store: BlobStore) -> Counts[str]:
    """Looks at every job whose time on the agenda has come, for 20 seconds at most; then at some
    blobs, whether their jobs are known.

    Of several processes one sweeps, the others return at once. Raises QueueUnavailable; what was
    not done then is done by the next sweep.

    Returns how many jobs' blobs were removed (`removals`), how many jobs failed that no worker
    would have run any more (`failures`), how many are put off (`put_off`), how many files were
    removed to which a dead writer had added nothing for UPLOAD_GRACE_S (`leftovers`), how many
    images of jobs that had been accepted and that Redis has lost (`forgotten`), how many blobs of
    which it knows nothing else (`strays`), and how many jobs were in no queue (`restored`).
    """
    swept = Counts[str]()
    with queue_errors(connection), lock(connection, _LOCK_KEY, _LOCK_S) as is_mine:
        if not is_mine:
            return swept
        jobs = JobStore(connection)
        now, end = jobs.now().timestamp(), time.monotonic() + _SWEEP_S
        try:
            for raw in _due(jobs, connection, now, swept):
                if time.monotonic() > end:
                    break
                swept[_look_at_safely(raw, jobs, connection, store, now)] += 1
            swept["leftovers"] = store.remove_staged(idle_s=UPLOAD_GRACE_S)
            swept += _walk(connection, store, end)
        except StoreUnavailable as error:
            logger.warning("What is left in the image store waits: %s", error.detail)
    del swept[""]
    return swept


def _due(jobs: JobStore, connection: Redis, now: float, swept: Counts[str]) -> Iterator[bytes]:
    """The jobs whose time has come, each of which must be taken off the agenda or put to a later
    time; but for those that wait or run as they should, of which there may be thousands."""
    while True:
        batch: Any = connection.zrangebyscore(AGENDA_KEY, "-inf", now, start=0, num=_BATCH)
        with connection.pipeline(transaction=False) as pipe:
            for job_id in (raw.decode(errors="replace") for raw in batch):
                pipe.hget(record_key(job_id), "state")
                pipe.ttl(record_key(job_id))
                pipe.hmget(TaskJob.key_for(job_id), "status", "origin")
            answers = iter(pipe.execute())
        looks = zip(batch, answers, answers, answers, strict=True)
        well = {
            raw: as_text(origin or b"")
            for raw, state, ttl, (status, origin) in looks
            if state in _ACTIVE and _runs(ttl, status)
        }
        swept["restored"] += _restore(jobs, connection, well)
        if well:
            connection.zadd(AGENDA_KEY, dict.fromkeys(well, now + LOOK_AGAIN_S), xx=True)
        yield from (raw for raw in batch if raw not in well)
        if len(batch) < _BATCH:
            return


def _restore(jobs: JobStore, connection: Redis, origins: Mapping[bytes, str]) -> int:
    """Gives back to their queues those of the active jobs, each with its queue's name, that are in
    no place any more; how many. Nearly all wait in their queue's sorted set."""
    presets = {raw: origin.removeprefix("stablesr:") for raw, origin in origins.items()}
    with connection.pipeline(transaction=False) as pipe:
        for raw, preset in presets.items():
            pipe.zscore(queue_key(preset), raw)
        scores = pipe.execute()
    count = 0
    for (raw, preset), score in zip(presets.items(), scores, strict=True):
        job_id = as_text(raw)
        if score is None and restore(open_queue(preset, connection), job_id):
            logger.warning("Job %s was in no queue; it is first in its own again.", job_id)
            with suppress(JobNotFound, WrongState):
                jobs.requeue(job_id)
            count += 1
    return count


def _runs(ttl: int, status: bytes | None) -> bool:
    """Whether a worker may run a job whose record lives for so long and that is this to RQ. Each
    move gives a record a life of as long as a job may wait and TOMBSTONE_S."""
    return ttl > TOMBSTONE_S and status is not None and status not in _DEAD


def _look_at_safely(
    raw: bytes, jobs: JobStore, connection: Redis, store: BlobStore, now: float
) -> str:
    """What `sweep` counts the job as; nothing where all is well."""
    try:
        return _look_at(as_text(raw), jobs, connection, store, now)
    # Whatever is wrong with this job or its blobs. Where Redis is away, putting off raises.
    except Exception as error:
        if isinstance(error, StoreUnavailable) and error.clause == NO_ANSWER:
            # Nothing is wrong with the job.
            connection.zadd(AGENDA_KEY, {raw: now + LOOK_AGAIN_S}, xx=True)
            return ""
        logger.error("Job %r is put off: %s", raw, error, exc_info=not isinstance(error, JobsError))
        connection.zadd(AGENDA_KEY, {raw: now + _PUT_OFF_S}, xx=True)
        return "put_off"


def _look_at(job_id: str, jobs: JobStore, connection: Redis, store: BlobStore, now: float) -> str:
    job = None
    with suppress(JobNotFound):
        job = jobs.get(job_id)
    if job is None or job.state.is_final:
        store.delete(input_key(job_id), result_key(job_id))
        connection.zrem(AGENDA_KEY, job_id)
        # An image that was announced, and is no job's, waits in no queue.
        if job is None and any(withdraw(open_queue(name, connection), job_id) for name in PRESETS):
            return _forgotten(job_id)
        return "removals"
    fault = _loss_of(job, connection, now)
    if fault is None:
        connection.zadd(AGENDA_KEY, {job_id: now + LOOK_AGAIN_S})
        return ""
    with suppress(JobNotFound, WrongState):
        jobs.fail(job_id, fault.problem())
        logger.error("Job %s failed: %s", job_id, fault)
        # It takes no place in the queue any more; a worker that has it finds that it has ended.
        withdraw(open_queue(job.preset, connection), job_id)
        return "failures"
    return ""


def _forgotten(job_id: str) -> str:
    logger.error("Job %s was accepted, and Redis has lost it; its image is removed.", job_id)
    return "forgotten"


def _walk(connection: Redis, store: BlobStore, end: float) -> Counts[str]:
    """Removes old blobs of a page of the store's names of which neither a record nor the agenda
    knows: their Redis lost or evicted what it knew."""
    swept = Counts[str]()
    raw: Any = connection.get(WALK_KEY)
    if (after := as_text(raw or b"")) == _END:
        return swept
    blobs, after = store.page(after)
    oldest = time.time() - FORGOTTEN_S
    old = [key for key, written_at in blobs.items() if written_at < oldest]
    with connection.pipeline(transaction=False) as pipe:
        for job_id in map(job_id_of, old):
            pipe.exists(record_key(job_id))
            pipe.zscore(AGENDA_KEY, job_id)
        answers = pipe.execute()
    for key, record, look in zip(old, answers[::2], answers[1::2], strict=True):
        if time.monotonic() > end:
            # What has gone is on the page no more when it is turned to again.
            return swept
        if record or look is not None:
            continue
        store.delete(key)
        swept[_forgotten(job_id_of(key)) if _UPLOAD.fullmatch(key) else "strays"] += 1
    connection.set(WALK_KEY, after or _END, ex=_REST_S)
    return swept


def _loss_of(job: Job, connection: Redis, now: float) -> JobsError | None:
    """Why no worker will ever run the job, or None while one may."""
    status: Any = connection.hget(TaskJob.key_for(job.id), "status")
    ttl: Any = connection.ttl(record_key(job.id))
    if _runs(ttl, status):
        return None
    is_stale = ttl <= TOMBSTONE_S
    if job.state is JobState.QUEUED and (is_stale or (status is None and job.attempt == 0)):
        seconds = now - job.created_at.timestamp()
        return QueueTimedOut(
            f"No worker for {job.preset} took the job in {seconds:.0f} seconds; "
            "see whether one runs, and submit the image again."
        )
    return WorkerLost("The worker that ran the job was lost; submit the image again.")


class SweepMetrics:
    """What `Maintenance` counts, for a process's metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        new = partial(Counter, registry=registry)
        self._counters = {
            "put_off": new("stablesr_sweep_put_off", "Jobs put off by a sweep"),
            "restored": new("stablesr_sweep_restored", "Jobs that were in no queue"),
            "forgotten": new("stablesr_sweep_forgotten", "Accepted jobs that Redis has lost"),
        }

    def note(self, swept: Counts[str]) -> None:
        for name, counter in self._counters.items():
            counter.inc(swept[name])


class Maintenance:
    """All that must happen, for every preset. Blocking; several processes may have one each."""

    def __init__(self, connection: Redis, store: BlobStore, metrics: SweepMetrics) -> None:
        reapers = [LeaseReaper(open_queue(preset, connection), connection) for preset in PRESETS]
        self._steps: list[Callable[[], object]] = [
            *(reaper.run for reaper in reapers),
            *(reaper.tidy for reaper in reapers),
            lambda: metrics.note(sweep(connection, store)),
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
