"""The queue as the service sees it: submit, look, cancel.

RQ only carries a job's id to a worker of its preset, in the order of `jobs.fair_queue`; the job's
state is its record. A submission is one transaction, so a job either is recorded and queued or
leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import Any

from redis import Redis
from redis.exceptions import WatchError

from models.parameters import UpscaleParameters

from .connection import LoopClient, as_text, connect, queue_errors, seconds_of
from .errors import (
    JobExists,
    JobNotFound,
    QueueFull,
    QueueTimedOut,
    QueueUnavailable,
    QuotaExceeded,
    RecordUnreadable,
    WrongState,
)
from .fair_queue import DEADLINES_KEY
from .job_store import (
    AGENDA_KEY,
    QUEUE_TTL_S,
    JobStore,
    job_in,
    job_read,
    queue_key,
    read_command,
    record_key,
    unknown,
    waiting_key,
)
from .listing import read_page
from .redis_url import parse_redis_url
from .rq_adapter import enqueue, open_queue, withdraw
from .schema import ANYONE, ImageInfo, Job, JobState, Origin, new_record
from .settings import Settings
from .store import BlobStore, input_key, result_key
from .workers import Capacity

UNKNOWN_ORIGIN = Origin()
# An image that no job followed within this time is removed; storing one takes less.
UPLOAD_GRACE_S = 900
# Jobs whose deadline is over that one call looks at, and when at those again that run.
OVERDUE_BATCH = 500
OVERDUE_AGAIN_S = 5
# Below the time that Redis has for an answer.
ACKNOWLEDGED_MS = 700
ACKNOWLEDGED_KEY = "stablesr:acknowledged"
ANNOUNCE = "redis.call('ZADD', KEYS[1], redis.call('TIME')[1] + ARGV[1], ARGV[2])"


class JobQueue:
    """Blocking, safe to share between threads. Every method raises QueueUnavailable."""

    def __init__(self, settings: Settings, connection: Redis | None = None) -> None:
        self._settings = settings
        self._connection = connection if connection is not None else connect(settings)
        self._records = JobStore(self._connection)
        self._replicas = parse_redis_url(settings.redis_url).replicas
        self.page = partial(read_page, self._connection)

    def announce(self, job_id: str) -> None:
        """Says that the image of a job to come is about to be stored.

        Where no job follows in time, the sweep of `jobs.maintenance` finds no record of the id and
        removes the image.
        """
        with queue_errors(self._connection):
            self._connection.eval(ANNOUNCE, 1, AGENDA_KEY, UPLOAD_GRACE_S, job_id)

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
        preset = parameters.preset
        queue = open_queue(preset, self._connection)
        pipe: Any
        with queue_errors(self._connection), self._connection.pipeline() as pipe:
            # Watching also keeps redis-py from sending the transaction twice over a bad line.
            claim, quota_set = origin.claim, waiting_key(origin.quota_key)
            pipe.watch(record_key(job_id), *([] if claim is None else [claim.key]))
            with self._connection.pipeline(transaction=False) as reads:
                reads.exists(record_key(job_id))
                # Without a claim there is none of that name, which users of Redis may ask for.
                reads.get("stablesr:once:" if claim is None else claim.key)
                reads.llen(queue.key)
                reads.zcard(queue_key(preset))
                reads.zcard(quota_set)
                reads.time()
                exists, holder, next_count, later_count, waiting, time = reads.execute()
            if exists:
                raise JobExists(f"There is a job {job_id!r} already.")
            if claim is not None and holder != claim.lease.encode():
                raise QueueUnavailable(
                    f"Storing the image of job {job_id} took longer than its idempotency key "
                    "is kept for it. Submit it again.",
                    retry_after=1,
                )
            self.check_room(preset, next_count + later_count)
            self.check_quota(origin, waiting)
            pipe.multi()
            now, keep_s = seconds_of(time), self._settings.result_ttl_s
            record = new_record(
                parameters, image, origin, now=now, wait_s=QUEUE_TTL_S, keep_s=keep_s
            )
            self._records.create(pipe, job_id, record)
            if claim is not None:
                pipe.set(claim.key, claim.value, ex=claim.ttl_s)
            enqueue(queue, pipe, job_id, self._settings)
            pipe.zcard(quota_set)
            try:
                creation, *_, (length, place), waiting = pipe.execute()
            except WatchError as error:
                raise QueueUnavailable(
                    f"Job {job_id} could not be queued: the connection to Redis broke or the id "
                    "was taken in between. Submit it again.",
                    retry_after=1,
                ) from error
        try:
            # Submissions at the same moment all saw room; those that had none are taken back.
            self.check_room(preset, length - 1)
            self.check_quota(origin, waiting - 1)
        except (QueueFull, QuotaExceeded):
            if withdraw(queue, job_id):
                self._records.forget(job_id, origin)
                raise
        try:
            self.check_replicas(job_id)
        except QueueUnavailable:
            if withdraw(queue, job_id):
                self._records.forget(job_id, origin)
            raise
        return job_in(job_id, creation).model_copy(update={"queue_position": place})

    def check_replicas(self, job_id: str) -> None:
        """Returns once so many replicas as the URL asks for have the job.

        WAIT counts what its own connection wrote, so it follows a write, by which all that was
        written before is acknowledged too, if this server still is the one that has the job.
        """
        if not self._replicas:
            return
        pipe: Any
        with queue_errors(self._connection), self._connection.pipeline(transaction=False) as pipe:
            pipe.exists(record_key(job_id))
            pipe.set(ACKNOWLEDGED_KEY, job_id, ex=60)
            pipe.wait(self._replicas, ACKNOWLEDGED_MS)
            exists, _, count = pipe.execute()
        if exists and count >= self._replicas:
            return
        raise QueueUnavailable(
            f"Job {job_id} is not safe: {count} replicas of Redis acknowledged it within "
            f"{ACKNOWLEDGED_MS} ms, and {self._replicas} must. Submit it again.",
            retry_after=5,
        )

    def get(self, job_id: str, owner: str = ANYONE) -> Job:
        """The job now, with its place in the queue while it waits: 1 is the next to start, or one
        that a worker takes at this moment. Raises JobNotFound, also for a job of another owner."""
        job = self._records.get(job_id)
        if job.owner != owner:
            raise unknown(job_id)
        return job

    def cancel(self, job_id: str, owner: str = ANYONE) -> Job:
        """Cancels a queued job; marks a running one, which its worker stops at the next step.

        Raises JobEnded, and JobNotFound, also for a job of another owner.
        """
        self.get(job_id, owner)
        job = self._records.cancel(job_id)
        if job.state is JobState.CANCELED:
            # Should this fail, the worker that meets the id finds the record canceled.
            withdraw(open_queue(job.preset, self._connection), job_id)
        return job

    def purge(self, store: BlobStore, job_id: str) -> Job:
        """Removes the images of an ended job, which is then `expired` if it had succeeded.

        Raises JobNotFound, WrongState for a job that has not ended, and StoreUnavailable, after
        which the sweep of `jobs.maintenance` removes them.
        """
        job = self._records.purge(job_id)
        # The job stays on the agenda: where this store is not the service's, the sweep's is.
        store.delete(input_key(job_id), result_key(job_id))
        return job

    def check_room(self, preset: str, length: int) -> None:
        """Raises QueueFull when no further job fits beside those that wait for the preset."""
        most = self._settings.max_queued
        if length >= most:
            raise QueueFull(
                f"{most} jobs for {preset} wait already, which is the most; try again later.",
                limit=most,
                retry_after=30,
            )

    def check_quota(self, origin: Origin, waiting: int) -> None:
        """Raises QuotaExceeded when none may follow the jobs of this origin that wait."""
        most = origin.max_queued
        if most is not None and waiting >= most:
            whose = "this key" if origin.owner else "this address"
            raise QuotaExceeded(
                f"{most} jobs of {whose} wait already, which is the most it may have; "
                "try again when one has started, or cancel one.",
                limit=most,
                retry_after=10,
            )

    def fail_overdue(self) -> None:
        """Fails waiting jobs whose deadline is over; running ones their worker stops."""
        with queue_errors(self._connection):
            now = seconds_of(self._connection.time())
            due: Any = self._connection.zrangebyscore(DEADLINES_KEY, "-inf", now, 0, OVERDUE_BATCH)
        for job_id in map(as_text, due):
            with suppress(JobNotFound, RecordUnreadable, WrongState):
                job = self._records.get(job_id)
                if job.state is JobState.PROCESSING:
                    # Its worker may be lost, and it would wait again.
                    with queue_errors(self._connection):
                        self._connection.zadd(DEADLINES_KEY, {job_id: now + OVERDUE_AGAIN_S})
                    continue
                if job.state is JobState.QUEUED and job.deadline is not None:
                    seconds = (job.deadline - job.created_at).total_seconds()
                    reason = f"The job had not ended after {seconds:.0f} seconds, its `expires_in`."
                    self._records.fail(job_id, QueueTimedOut(reason).problem())
                    withdraw(open_queue(job.preset, self._connection), job_id)
            with queue_errors(self._connection):
                self._connection.zrem(DEADLINES_KEY, job_id)

    def capacity(self) -> Capacity:
        """That of clients without a key and an address."""
        return Capacity.read(self._connection)

    def close(self) -> None:
        self._connection.close()


class JobReader:
    """What `JobQueue.get` does, on the event loop."""

    command = staticmethod(read_command)

    def __init__(self, client: LoopClient, queue: JobQueue) -> None:
        self._client = client
        self._queue = queue

    async def get(self, job_id: str, owner: str = ANYONE) -> Job:
        """Raises JobNotFound, QueueUnavailable, RecordUnreadable."""
        [answer] = await self._client.call(self.command(job_id))
        return await self.job_of(answer, job_id, owner)

    async def job_of(self, answer: bytes | None, job_id: str, owner: str) -> Job:
        """What `get` makes of the answer to `command`, which another call may have asked with."""
        job, is_due = job_read(job_id, answer)
        if job.owner != owner:
            raise unknown(job_id)
        # It expires in this moment, which moves the record.
        return await asyncio.to_thread(self._queue.get, job_id, owner) if is_due else job
