"""What the operator of a service does with the jobs of all its clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from redis import Redis
from redis.client import Pipeline

from .connection import connect, queue_errors, seconds_of
from .errors import BlobNotFound, WrongState
from .job_store import AGENDA_KEY, JobStore, job_in, record_key
from .keys import Keys
from .listing import walk
from .queue import JobQueue
from .rq_adapter import TaskJob, enqueue, open_queue, runs
from .schema import ANYONE, Job, JobState, Origin
from .settings import Settings
from .store import BlobStore, input_key

# An image that is due to be removed so soon may be gone before its job is queued.
MARGIN_S = 60


class Operator:
    """Blocking. Acts on the Redis and the image store that the settings name.

    Every method raises QueueUnavailable; those that take a job's id raise JobNotFound.
    """

    def __init__(self, settings: Settings, connection: Redis | None = None) -> None:
        self._settings = settings
        self._connection = connection if connection is not None else connect(settings)
        self._queue = JobQueue(settings, self._connection)

    def jobs(
        self, state: JobState | None = None, preset: str | None = None, owner: str | None = None
    ) -> Iterator[Job]:
        """Those of one owner or all, the newest first, read as they are needed."""
        # Keys stay listed when they have ended, so these are all owners.
        keys = Keys(self._connection).list() if owner is None else []
        owners = [owner or ANYONE, *(key.id for key in keys)]
        jobs = walk(self._connection, owners, state=state)
        return (job for job in jobs if preset in (None, job.preset))

    def get(self, job_id: str) -> Job:
        """The job as it is now, with its place in the queue."""
        return JobStore(self._connection).get(job_id)

    def cancel(self, job_id: str) -> Job:
        """Cancels a waiting job, marks a running one to be stopped; raises JobEnded."""
        return self._queue.cancel(job_id, self.get(job_id).owner)

    def retry(self, job_id: str) -> Job:
        """Queues a failed job again under its id, as if new, also where the queue is full.

        Of several calls at once, one does. Raises WrongState for any other state and while the
        worker still has it, BlobNotFound where its image is gone, StoreUnavailable.
        """
        records, store = JobStore(self._connection), BlobStore.open(self._settings)
        job = records.get(job_id)
        queue = open_queue(job.preset, self._connection)
        has_image = store.exists(input_key(job_id))

        def add(pipe: Pipeline) -> None:
            # Again where the job was changed after these looks at it.
            due, time = self._connection.zscore(AGENDA_KEY, job_id), self._connection.time()
            state = records.get(job_id).state
            if state is not JobState.FAILED:
                raise WrongState(
                    f"Job {job_id} is {state}; only a failed one runs again.", state=state
                )
            if not has_image or due is None or due < seconds_of(time) + MARGIN_S:
                raise BlobNotFound(
                    f"The image of job {job_id} is gone from {store.place}, or about to be; "
                    "submit it again."
                )
            if self._connection.zcard(runs(queue, job_id)):
                raise WrongState(
                    f"Job {job_id} has failed, but its worker still has it; try again in a minute.",
                    state=state,
                )
            pipe.multi()
            records.retry(pipe, job_id)
            # RQ forgets that it failed before.
            pipe.delete(TaskJob.key_for(job_id))
            pipe.zrem(queue.failed_job_registry.key, job_id)
            enqueue(queue, pipe, job_id, self._settings)

        keys = record_key(job_id), runs(queue, job_id)
        with queue_errors(self._connection):
            answers: Any = self._connection.transaction(add, *keys)
        return job_in(job_id, answers[0])

    def purge(self, job_id: str) -> Job:
        """Removes an ended job's images and its record. See `JobQueue.purge`."""
        job = self._queue.purge(BlobStore.open(self._settings), job_id)
        JobStore(self._connection).forget(job_id, Origin(owner=job.owner))
        return job

    def close(self) -> None:
        self._connection.close()
