"""What the operator of a service does with the jobs of all its clients."""

from __future__ import annotations

from collections.abc import Iterator

from .connection import connect
from .ended_jobs import purge, retry
from .job_store import JobStore
from .keys import Keys
from .listing import walk
from .queue import JobQueue
from .schema import ANYONE, Job, JobState, Origin
from .settings import Settings
from .store import BlobStore


class Operator:
    """Blocking. Acts on the Redis and the image store that the settings name.

    Every method raises QueueUnavailable; those that take a job's id raise JobNotFound.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = connect(settings)
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
        """See `jobs.ended_jobs.retry`."""
        store = BlobStore.open(self._settings)
        return retry(self._connection, store, self._settings, job_id)

    def purge(self, job_id: str) -> Job:
        """Removes an ended job's images and its record. See `jobs.ended_jobs.purge`."""
        job = purge(self._connection, BlobStore.open(self._settings), job_id)
        JobStore(self._connection).forget(job_id, Origin(owner=job.owner))
        return job

    def close(self) -> None:
        self._connection.close()
