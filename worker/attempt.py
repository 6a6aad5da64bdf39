"""One attempt at one job: what it finds around it, and what becomes of the job when it ends.

    the attempt ends with                       the job is      and RQ
    its result                                  succeeded       forgets it
    Cancellation                                    canceled        forgets it
    Interruption, DeviceTaken                    queued          runs it again, first in the queue
    an error that a second attempt may mend     queued          runs it again, alone on its device
        in the last attempt                     failed          forgets it
    another error                               failed          forgets it
    LeaseLost                                   of another attempt, which alone may write

A second attempt may mend the store or Redis out of reach, memory that ran out, and a lost device.
How many attempts there are `jobs.rq_adapter` says; those that a lost worker cost count as well
(its `on_failure`), those that were interrupted do not.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import structlog
from rq import Retry

from jobs.errors import (
    ImageError,
    JobFault,
    JobNotFound,
    JobsError,
    JobTimedOut,
    OutOfMemory,
    Problem,
    QueueUnavailable,
    StoreUnavailable,
    WrongState,
)
from jobs.job_store import JobStore
from jobs.rq_adapter import run_again
from jobs.settings import Settings
from jobs.store import BlobStore
from models.errors import (
    InvalidOption,
    MissingTextTower,
    NotEnoughMemory,
    NotFinite,
    ScratchFull,
)
from models.memory import is_out_of_memory
from models.pipeline import StableSR
from worker.device_lock import DeviceLock, DeviceTaken
from worker.engine import Engine
from worker.errors import Cancellation, Interruption, LeaseLost, TimedOut, is_device_lost
from worker.metrics import WorkerMetrics
from worker.watchdog import Watchdog

REDIS_RETRY_S = 0.5

T = TypeVar("T")

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Process:
    """What all slots of a worker process share.

    `records` waits some seconds for a Redis that restarts; `quick_records` does not, for what may
    be left out (progress). `leaving` is set when the process is asked to end. `lose` ends it
    because its device is of no use any more.
    """

    settings: Settings
    records: JobStore
    quick_records: JobStore
    store: BlobStore
    model: StableSR
    engine: Engine
    metrics: WorkerMetrics
    watchdog: Watchdog
    leaving: threading.Event
    lose: Callable[[str], None]
    device: DeviceLock = field(default_factory=DeviceLock)


@dataclass(eq=False)
class Attempt:
    """One attempt at one job, on one slot. `last` says that no further one follows."""

    process: Process
    job_id: str
    worker: str
    alone: bool = False
    last: bool = False
    lease_lost: threading.Event = field(default_factory=threading.Event)
    settled_by: Literal["slot", "supervisor"] | None = None
    _start: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start_clock(self) -> None:
        """The time a job may take counts from here, not from when it began to wait for its turn."""
        self._start = time.monotonic()

    def check(self) -> None:
        """Whether to go on; called between steps and while waiting.

        Raises:
            LeaseLost, Interruption, TimedOut.
        """
        if self.lease_lost.is_set():
            raise LeaseLost(f"Job {self.job_id} was given to another worker.")
        if self.process.leaving.is_set():
            raise Interruption(f"Job {self.job_id} goes back to the queue.")
        limit = self.process.settings.job_timeout_s
        if self._start is not None and time.monotonic() - self._start > limit:
            raise TimedOut(f"Job {self.job_id} ran out of time.")

    def settle(self, by: Literal["slot", "supervisor"] = "slot") -> bool:
        """Claim the right to say how this attempt ended, and learn which side has it.

        The slot claims it when the attempt comes to an end, the supervisor when the process must
        end before the slot has got there. The first claim holds.
        """
        with self._lock:
            self.settled_by = self.settled_by or by
            return self.settled_by == by

    def settle_or_drop(self) -> None:
        """As `settle`, for the slot.

        Raises:
            LeaseLost: the supervisor was first.
        """
        if not self.settle():
            raise LeaseLost(f"Job {self.job_id} was put back when the process had to end.")

    def persist(self, transition: Callable[[], T]) -> T:
        """Make a transition of the record, waiting for a Redis that is being restarted.

        As long as a lease lasts: after that the queue has given the job away, and what this
        attempt says does not count any more.
        """
        deadline = time.monotonic() + self.process.settings.worker_ttl_s
        while True:
            try:
                return transition()
            except QueueUnavailable:
                if time.monotonic() > deadline or self.process.leaving.wait(REDIS_RETRY_S):
                    raise


CURRENT: ContextVar[Attempt] = ContextVar("attempt")
"""The calling thread's: RQ calls a task with a job's id and nothing else"""


def conclude(attempt: Attempt, work: Callable[[Attempt], None]) -> Retry | None:
    """Do the work, and what the table above says when it ends: a Retry for RQ, or nothing.

    Raises:
        LeaseLost, WrongState, JobNotFound: the job is not this attempt's any more.
        Exception: as the work did, where a second attempt may mend it.
    """
    records, job_id, worker = attempt.process.records, attempt.job_id, attempt.worker
    try:
        with attempt.process.device.job(alone=attempt.alone, poll=attempt.check):
            work(attempt)
    except DeviceTaken:
        # Not begun, so the record still says queued: only RQ has to be told.
        attempt.settle_or_drop()
        log.info("job given back, another one runs alone", job=job_id)
        return run_again()
    except Interruption:
        attempt.settle_or_drop()
        attempt.persist(lambda: records.requeue(job_id, worker=worker))
        log.info("job put back", job=job_id)
        return run_again()
    except Cancellation:
        attempt.settle_or_drop()
        attempt.persist(lambda: records.stop(job_id, worker=worker))
        log.info("job canceled", job=job_id)
    except (LeaseLost, WrongState, JobNotFound):
        raise
    # Every other error of an attempt is the job's failure and not the worker's.
    except Exception as error:
        log.warning("attempt failed", job=job_id, exc_info=not isinstance(error, ImageError))
        if attempt.last or not _may_be_mended(error):
            attempt.settle_or_drop()
            problem = _problem(error, attempt.process.settings)
            attempt.persist(lambda: records.fail(job_id, problem, worker=worker))
        if is_device_lost(error):
            attempt.process.lose(str(error))
        if _may_be_mended(error):
            raise
    return None


def _may_be_mended(error: Exception) -> bool:
    """Whether a second attempt, alone or on another worker, may succeed."""
    unavailable = isinstance(error, StoreUnavailable | QueueUnavailable)
    return unavailable or _lacks_memory(error) or is_device_lost(error)


def _lacks_memory(error: Exception) -> bool:
    return is_out_of_memory(error) or isinstance(error, NotEnoughMemory | ScratchFull)


def _problem(error: Exception, settings: Settings) -> Problem:
    """What the client is told; the log has the rest."""
    if isinstance(error, InvalidOption | MissingTextTower):
        title = "The parameters do not fit"
        return Problem(type="invalid-parameters", title=title, detail=str(error))
    return _public_error(error, settings.job_timeout_s).problem()


def _public_error(error: Exception, limit: int) -> JobsError:
    match error:
        case TimedOut():
            return JobTimedOut(
                f"The job ran for its limit of {limit} seconds without an end; "
                "a smaller image, scale or number of steps takes less.",
                limit_seconds=limit,
            )
        case NotFinite():
            return JobFault(str(error))
        case StoreUnavailable():
            return StoreUnavailable(
                "The worker could not use the image store, twice; submit the image again later."
            )
        case _ if _lacks_memory(error):
            return OutOfMemory(
                "The worker has too little memory for this image; ask for a smaller scale."
            )
        case JobsError() if not isinstance(error, JobFault | QueueUnavailable):
            return error
    return JobFault(
        "The worker could not finish the job because of a fault of its own; "
        "its log says more under the job's id."
    )
