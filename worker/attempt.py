"""One attempt at one job, and what becomes of the job when it ends.

    the attempt ends with                       the job is      and RQ
    its result                                  succeeded       forgets it
    Cancellation                                canceled        forgets it
    Interruption, DeviceTaken                   queued          runs it again, first in the queue
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
from dataclasses import dataclass, field

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
from jobs.schema import Job
from jobs.settings import Settings
from jobs.store import BlobStore
from models.errors import InvalidOption, MissingTextTower, NotEnoughMemory, NotFinite, ScratchFull
from models.memory import is_out_of_memory
from models.pipeline import StableSR
from worker.device_lock import DeviceLock, DeviceTaken
from worker.engine import Engine
from worker.errors import Cancellation, Interruption, LeaseLost, is_device_lost
from worker.metrics import WorkerMetrics
from worker.watchdog import Watchdog

REDIS_RETRY_S = 0.5

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class Process:
    """What all slots of a worker process share.

    `records` waits some seconds for a Redis that restarts; `quick_records` does not, for what may
    be left out (progress). `lose` ends the process because its device is of no use any more, and
    `on_stall` because a call does not come back.
    """

    settings: Settings
    records: JobStore
    quick_records: JobStore
    store: BlobStore
    model: StableSR
    metrics: WorkerMetrics
    lose: Callable[[str], None]
    on_stall: Callable[[str, float], None]

    def __post_init__(self) -> None:
        self.leaving = threading.Event()
        """Set when the process is asked to end"""
        self.watchdog = Watchdog(self.settings.step_timeout_s, self.on_stall)
        self.device = DeviceLock(offload=self.model.offload)
        self.engine = Engine(
            self.model.predict,
            max_tiles=self.model.tile_batch,
            watch=self.watchdog.watch,
            device=self.device,
            metrics=self.metrics,
        )


@dataclass(eq=False)
class Attempt:
    """`last`: no further one follows; `alone`: no other job may run beside it.

    How it ended says who is first: the slot (`claim`), the supervisor of a process that must end
    (`take_back`), or the queue, which gives a job away when its lease runs out (`lease_lost`).
    """

    process: Process
    job_id: str
    worker: str
    alone: bool = False
    last: bool = False
    lease_lost: bool = False
    settled: bool = False
    _start: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> Job:
        """The job's record, from now on of this attempt; the time that a job may take counts from
        here, not from when it began to wait for its turn."""
        self._start = time.monotonic()
        return self._persist(self.process.records.start)

    def check(self) -> None:
        """Whether to go on; called between steps and while waiting.

        Raises:
            LeaseLost, Interruption, JobTimedOut.
        """
        self._check_lease()
        if self.process.leaving.is_set():
            raise Interruption(f"Job {self.job_id} goes back to the queue.")
        limit = self.process.settings.job_timeout_s
        if self._start is not None and time.monotonic() - self._start > limit:
            raise JobTimedOut(
                f"The job ran for its limit of {limit} seconds without an end; "
                "a smaller image, scale or number of steps takes less.",
                limit_seconds=limit,
            )

    def _check_lease(self) -> None:
        if self.lease_lost:
            raise LeaseLost(f"Job {self.job_id} is not of this attempt any more.")

    def claim(self) -> None:
        """Take the right to say how the attempt ended, for the slot.

        Raises:
            LeaseLost: the job is not this attempt's any more.
        """
        with self._lock:
            self._check_lease()
            self.settled = True

    def take_back(self) -> bool:
        """Take the job from the slot, which will drop what it has; False where it has ended."""
        with self._lock:
            if self.settled or self.lease_lost:
                return False
            self.lease_lost = True
            return True

    def settle(self, transition: Callable[..., Job], *arguments: object) -> Job:
        """Claim the end, and make this transition of the record.

        Raises:
            LeaseLost, WrongState, JobNotFound: the job is not this attempt's any more.
        """
        self.claim()
        return self._persist(transition, *arguments)

    def _persist(self, transition: Callable[..., Job], *arguments: object) -> Job:
        """Waits for a Redis that is being restarted, as long as a lease lasts: after that the queue
        has given the job away, and what this attempt says does not count any more."""
        deadline = time.monotonic() + self.process.settings.worker_ttl_s
        while True:
            try:
                return transition(self.job_id, *arguments, worker=self.worker)
            except QueueUnavailable:
                if time.monotonic() > deadline or self.process.leaving.wait(REDIS_RETRY_S):
                    raise


def conclude(attempt: Attempt, work: Callable[[Attempt], None]) -> Retry | None:
    """Do the work, which settles its result, and what the table above says when it ends otherwise:
    a Retry for RQ, or nothing.

    Raises:
        LeaseLost, WrongState, JobNotFound: the job is not this attempt's any more.
        Exception: as the work did, where a second attempt may mend it.
    """
    process, records = attempt.process, attempt.process.records
    try:
        with process.device.job(alone=attempt.alone, poll=attempt.check):
            work(attempt)
    except DeviceTaken:
        # Not begun, so the record still says queued: only RQ has to be told.
        attempt.claim()
        log.info("job given back, another one runs alone", job=attempt.job_id)
        return run_again()
    except Interruption:
        attempt.settle(records.requeue)
        log.info("job put back", job=attempt.job_id)
        return run_again()
    except Cancellation:
        attempt.settle(records.stop)
        log.info("job canceled", job=attempt.job_id)
    except (LeaseLost, WrongState, JobNotFound):
        raise
    # Every other error of an attempt is the job's failure and not the worker's.
    except Exception as error:
        is_image = isinstance(error, ImageError)
        log.warning("attempt failed", job=attempt.job_id, exc_info=not is_image)
        may_be_mended = (
            isinstance(error, StoreUnavailable | QueueUnavailable)
            or _lacks_memory(error)
            or is_device_lost(error)
        )
        if attempt.last or not may_be_mended:
            attempt.settle(records.fail, _problem(error))
        # After the process was left, the engine has gone.
        if is_device_lost(error) and not process.leaving.is_set():
            process.lose(str(error))
        if may_be_mended:
            raise
    return None


def _lacks_memory(error: Exception) -> bool:
    return is_out_of_memory(error) or isinstance(error, NotEnoughMemory | ScratchFull)


def _problem(error: Exception) -> Problem:
    """What the client is told; the log has the rest."""
    match error:
        case InvalidOption() | MissingTextTower():
            title = "The parameters do not fit"
            return Problem(type="invalid-parameters", title=title, detail=str(error))
        case NotFinite():
            return JobFault(str(error)).problem()
        case StoreUnavailable():
            return StoreUnavailable(
                "The worker could not use the image store, twice; submit the image again later."
            ).problem()
        case _ if _lacks_memory(error):
            return OutOfMemory(
                "The worker has too little memory for this image; ask for a smaller scale."
            ).problem()
        case JobsError() if not isinstance(error, QueueUnavailable):
            return error.problem()
    return JobFault(
        "The worker could not finish the job because of a fault of its own; "
        "its log says more under the job's id."
    ).problem()
