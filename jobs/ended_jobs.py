"""What can be done with a job that has ended: its images go at once, or it runs once more."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.client import Pipeline

from .connection import queue_errors, seconds_of
from .errors import BlobNotFound, WrongState
from .job_store import AGENDA_KEY, JobStore, job_in, record_key
from .rq_adapter import enqueue_anew, open_queue, runs
from .schema import Job, JobState
from .settings import Settings
from .store import BlobStore, input_key, result_key

# An image that is due to be removed so soon may be gone before its job is queued.
MARGIN_S = 60


def purge(connection: Redis, store: BlobStore, job_id: str) -> Job:
    """Removes the images of an ended job, which is then `expired` if it had succeeded.

    Raises JobNotFound, WrongState for a job that has not ended, QueueUnavailable, and
    StoreUnavailable, after which the sweep of `jobs.maintenance` removes them.
    """
    job = JobStore(connection).purge(job_id)
    # The job stays on the agenda: where this store is not the service's, the sweep's is.
    store.delete(input_key(job_id), result_key(job_id))
    return job


def retry(connection: Redis, store: BlobStore, settings: Settings, job_id: str) -> Job:
    """Queues a failed job again under its id, as if new, also where the queue is full.

    Of several calls at once, one does. Raises JobNotFound, WrongState for any other state and while
    the worker still has it, BlobNotFound where its image is gone, QueueUnavailable,
    StoreUnavailable.
    """
    records = JobStore(connection)
    job = records.get(job_id)
    queue = open_queue(job.preset, connection)
    has_image = store.exists(input_key(job_id))

    def enqueue(pipe: Pipeline) -> None:
        # Again where the job was changed after these looks at it.
        due, time = connection.zscore(AGENDA_KEY, job_id), connection.time()
        state = records.get(job_id).state
        if state is not JobState.FAILED:
            raise WrongState(f"Job {job_id} is {state}; only a failed one runs again.", state=state)
        if not has_image or due is None or due < seconds_of(time) + MARGIN_S:
            raise BlobNotFound(
                f"The image of job {job_id} is gone from {store.place}, or about to be; "
                "submit it again."
            )
        if connection.zcard(runs(queue, job_id)):
            raise WrongState(
                f"Job {job_id} has failed, but its worker still has it; try again in a minute.",
                state=state,
            )
        pipe.multi()
        records.retry(pipe, job_id)
        enqueue_anew(queue, pipe, job_id, settings)

    keys = record_key(job_id), runs(queue, job_id)
    with queue_errors(connection):
        answers: Any = connection.transaction(enqueue, *keys)
    return job_in(job_id, answers[0])
