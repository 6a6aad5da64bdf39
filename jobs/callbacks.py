"""What RQ calls when an attempt failed: the record follows, so that it stays the truth."""

from __future__ import annotations

import logging
from types import TracebackType

from redis import Redis
from rq.exceptions import AbandonedJobError
from rq.job import Job

from .errors import JobFault, JobNotFound, WorkerLost, WrongState
from .records import Records
from .rq_job import ForbiddenTask
from .schema import JobState

__all__ = ["on_failure"]

logger = logging.getLogger(__name__)


def on_failure(
    job: Job,
    connection: Redis,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    """Requeues or fails the record of a job whose attempt raised or whose worker was lost.

    RQ calls this on every failed attempt, also when it runs the job again, and decides by
    `retries_left` only afterwards; so a fault that another attempt cannot mend is told to it here.
    Clients are shown what kind of fault it was; the traceback is in the worker's log only.
    """
    if kind is not None and issubclass(kind, ForbiddenTask):
        job.retries_left = 0
    records = Records(connection)
    try:
        if _unbegun(records, job, kind):
            # It was at the gate of a process that another job brought down: no attempt is spent.
            job.retries_left = (job.retries_left or 0) + 1
        if job.retries_left:
            if records.requeue(job.id, worker=job.worker_name).state.ended:
                # It was to be canceled, and now is.
                job.retries_left = 0
            else:
                logger.warning("Job %s runs again: %s", job.id, _name(kind))
        else:
            records.fail(job.id, _fault(kind).problem(), worker=job.worker_name)
            logger.error("Job %s failed: %s", job.id, _name(kind))
    except (JobNotFound, WrongState) as ended:
        # The job ended before its attempt did, or another worker runs it by now: nothing to do,
        # and no reason to run it again.
        job.retries_left = 0
        logger.info("Job %s needs nothing: %s", job.id, ended)


def _unbegun(records: Records, job: Job, kind: type[BaseException] | None) -> bool:
    """Whether the worker was lost before the job began; then the job is not the cause."""
    lost = kind is not None and issubclass(kind, AbandonedJobError)
    return lost and records.get(job.id).state is JobState.QUEUED


def _name(kind: type[BaseException] | None) -> str:
    return "unknown fault" if kind is None else kind.__name__


def _fault(kind: type[BaseException] | None) -> JobFault:
    if kind is not None and issubclass(kind, AbandonedJobError):
        return WorkerLost(
            "The worker that ran the job was lost, and so was the one before it; "
            "submit the image again, or ask whoever runs the service."
        )
    return JobFault(
        "The worker could not finish the job because of a fault of its own; "
        "its log says more under the job's id."
    )
