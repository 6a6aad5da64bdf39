"""The queue as the service sees it: submit, look, cancel.

RQ only carries a job's id to a worker of its preset; the job's state is its record. A submission
is one transaction, so a job either is recorded and queued or leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis
from redis.exceptions import WatchError

from models.parameters import UpscaleParameters

from .connection import connect, queue_errors
from .errors import JobExists, QueueFull, QueueUnavailable, QuotaExceeded
from .job_store import JobStore, record_key, unknown, waiting_key
from .listing import Cursor, Page, read_page
from .rq_adapter import QUEUE_TTL_S, Queue, enqueue, open_queue, withdraw
from .schema import ANYONE, ImageInfo, Job, JobState, Origin
from .settings import Settings
from .workers import WorkerInfo, Workers

UNKNOWN_ORIGIN = Origin()
# An image that no job followed within this time is removed; storing one takes less.
UPLOAD_GRACE_S = 900


class JobQueue:
    """Blocking: call it from threads. Safe to share between them.

    Every method raises QueueUnavailable when Redis cannot be reached.
    """

    def __init__(self, settings: Settings, connection: Redis | None = None) -> None:
        self._settings = settings
        self._connection = connection if connection is not None else connect(settings)
        self._records = JobStore(self._connection)
        self._workers = Workers(self._connection, ttl_s=settings.worker_ttl_s)
        self._queues: dict[str, Queue] = {}

    def announce(self, job_id: str) -> None:
        """Says that the image of a job to come is about to be stored.

        Called before `inputs/{job_id}` is written, so that it cannot outlive a process that dies
        between storing it and `submit`.
        """
        self._records.announce(job_id, within_s=UPLOAD_GRACE_S)

    def submit(
        self,
        job_id: str,
        parameters: UpscaleParameters,
        image: ImageInfo,
        origin: Origin = UNKNOWN_ORIGIN,
    ) -> Job:
        """Records and queues a job whose image is in the store under `inputs/{job_id}`.

        Raises QueueFull when max_queued jobs of the preset wait, QuotaExceeded when as many of
        the owner wait as it may have, JobExists when the id is taken; then the caller removes the
        image. After QueueUnavailable it must not: the job may be there all the same and only the
        answer lost. The sweep removes an announced image that no job needs.
        """
        settings = self._settings
        queue = self._queue(parameters.preset)
        pipe: Any
        with queue_errors(self._connection), self._connection.pipeline() as pipe:
            # Watching also keeps redis-py from sending the transaction twice over a bad line.
            claim, quota_set = origin.claim, waiting_key(origin.quota_key)
            pipe.watch(record_key(job_id), *([] if claim is None else [claim.key]))
            with self._connection.pipeline(transaction=False) as reads:
                reads.exists(record_key(job_id))
                reads.get("" if claim is None else claim.key)
                reads.llen(queue.key)
                reads.zcard(quota_set)
                reads.time()
                exists, holder, queued, waiting, (seconds, micros) = reads.execute()
            if exists:
                raise JobExists(f"There is a job {job_id!r} already.")
            if claim is not None and holder != claim.lease.encode():
                raise QueueUnavailable(
                    f"Storing the image of job {job_id} took longer than its idempotency key "
                    "is kept for it. Submit it again.",
                    retry_after=1,
                )
            self._check_room(parameters.preset, queued + 1)
            _check_quota(origin, waiting + 1)
            pipe.multi()
            job = self._records.create(
                pipe,
                job_id,
                parameters,
                image,
                origin,
                now=seconds + micros / 1e6,
                wait_s=QUEUE_TTL_S,
                keep_s=settings.result_ttl_s,
            )
            enqueue(queue, pipe, job_id, settings)
            if claim is not None:
                pipe.set(claim.key, claim.value, ex=claim.ttl_s)
            pipe.llen(queue.key)
            pipe.zcard(quota_set)
            try:
                length, waiting = pipe.execute()[-2:]
            except WatchError as error:
                raise QueueUnavailable(
                    f"Job {job_id} could not be queued: the connection to Redis broke or the id "
                    "was taken in between. Submit it again.",
                    retry_after=1,
                ) from error
        try:
            # Submissions at the same moment all saw room; those that had none are taken back.
            self._check_room(parameters.preset, length)
            _check_quota(origin, waiting)
        except (QueueFull, QuotaExceeded):
            if withdraw(queue, job_id):
                self._records.forget(job_id, origin)
                raise
        return job.model_copy(update={"queue_position": length})

    def get(self, job_id: str, owner: str = ANYONE) -> Job:
        """The job now, with its place in the queue while it waits.

        Place 1 is the next to start, or the one that a worker takes at this moment. Raises
        JobNotFound, also for a job of another owner.
        """
        job = self._records.get(job_id)
        if job.owner != owner:
            raise unknown(job_id)
        [with_place] = self._with_places([job])
        return with_place

    def page(
        self,
        owner: str = ANYONE,
        *,
        limit: int,
        state: JobState | None = None,
        cursor: Cursor | None = None,
    ) -> Page:
        """The owner's jobs, newest first, from the cursor on; see `jobs.listing`."""
        page = read_page(self._connection, owner, limit=limit, state=state, cursor=cursor)
        return Page(self._with_places(page.jobs), page.next)

    def cancel(self, job_id: str, owner: str = ANYONE) -> Job:
        """Cancels a job; raises JobNotFound, also for a job of another owner, and JobEnded.

        A queued job comes back canceled and out of the queue; a running one comes back processing
        with cancel_requested, and its worker stops it at the next step.
        """
        if self._records.get(job_id).owner != owner:
            raise unknown(job_id)
        job = self._records.cancel(job_id)
        if job.state is JobState.CANCELED:
            # Should this fail, the worker that meets the id finds the record canceled.
            withdraw(self._queue(job.preset), job_id)
        return job

    def length(self, preset: str) -> int:
        """How many jobs of the preset wait."""
        with queue_errors(self._connection):
            return int(self._connection.llen(self._queue(preset).key))

    def check_quota(self, origin: Origin, waiting: int) -> None:
        """Raises QuotaExceeded when none may follow the jobs of this origin that wait."""
        _check_quota(origin, waiting + 1)

    def check_room(self, preset: str, length: int | None = None) -> None:
        """Raises QueueFull when no further job fits; to be asked before a file is stored."""
        self._check_room(preset, (self.length(preset) if length is None else length) + 1)

    def workers(self, preset: str | None = None) -> list[WorkerInfo]:
        """The live workers, of one preset or all."""
        return self._workers.list(preset)

    def close(self) -> None:
        self._connection.close()

    def _queue(self, preset: str) -> Queue:
        return self._queues.setdefault(preset, open_queue(preset, self._connection))

    def _check_room(self, preset: str, length: int) -> None:
        most = self._settings.max_queued
        if length > most:
            raise QueueFull(
                f"{most} jobs for {preset} wait already, which is the most; try again later.",
                limit=most,
                retry_after=30,
            )

    def _with_places(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs, each queued one with its place."""
        waiting = [job for job in jobs if job.state is JobState.QUEUED]
        if not waiting:
            return [*jobs]
        with queue_errors(self._connection), self._connection.pipeline(transaction=False) as pipe:
            for job in waiting:
                pipe.lpos(self._queue(job.preset).key, job.id)
            places = dict(zip((job.id for job in waiting), pipe.execute(), strict=True))
        return [
            job.model_copy(update={"queue_position": 1 + (places[job.id] or 0)})
            if job.id in places
            else job
            for job in jobs
        ]


def _check_quota(origin: Origin, waiting: int) -> None:
    most = origin.max_queued
    if most is not None and waiting > most:
        whose = "this key" if origin.owner else "this address"
        raise QuotaExceeded(
            f"{most} jobs of {whose} wait already, which is the most it may have; "
            "try again when one has started, or cancel one.",
            limit=most,
            retry_after=10,
        )
