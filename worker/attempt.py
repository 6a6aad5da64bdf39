"""One attempt at one job: whose the job is, how far it is, and whether to go on."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

from jobs.errors import JobNotFound, JobTimedOut, QueueUnavailable, WrongState
from jobs.job_store import JobStore
from jobs.schema import Job, Progress, Stage, Timings
from jobs.settings import Settings
from jobs.store import BlobStore
from jobs.tracing import AttemptSpans
from models.pipeline import StableSR
from models.sampling import Step
from worker.device_lock import DeviceLock
from worker.engine import Engine
from worker.heartbeat import Feed, Watchdog
from worker.metrics import WorkerMetrics

# Seconds between two writes of progress, between two looks while waiting, and before trying again
# a Redis that did not answer: for progress, and for what must be written.
WRITE_S = 0.25
LOOK_S = 1.0
RETRY_S = 2.0
REDIS_RETRY_S = 0.5
REDIS_LOG_S = 30.0

# Where each stage lies on the way from 0 to 1; denoising moves through its part step by step.
FRACTIONS: dict[Stage, tuple[float, float]] = {
    "load": (0.0, 0.02),
    "encode": (0.02, 0.05),
    "denoise": (0.05, 0.9),
    "decode": (0.9, 0.97),
    "save": (0.97, 1.0),
}

log = structlog.get_logger(__name__)


class Interruption(Exception):
    """The process is asked to leave; the job goes back to the front of the queue."""


class Cancellation(Exception):
    """The job was canceled while it ran."""


class LeaseLost(Exception):
    """The job is not this attempt's any more: nothing may be written."""


@dataclass(eq=False)
class Process:
    """What all slots of a worker process share.

    `lose` ends the process because its device is of no use any more, and `on_stall` because a call
    does not come back.
    """

    settings: Settings
    records: JobStore
    store: BlobStore
    model: StableSR
    metrics: WorkerMetrics
    lose: Callable[[str], None]
    on_stall: Callable[[str, float], None]

    def __post_init__(self) -> None:
        self.leaving = threading.Event()
        """Set when the process is asked to end: it takes no further job"""
        self.leave_by = math.inf
        """When the jobs in hand must have ended, by the steady clock"""
        self.awaiting_store: set[Attempt] = set()
        self.tail_rate = 0.0
        """Seconds that decoding and storing took for each pixel of the last result"""
        self.watchdog = Watchdog(self.settings.step_timeout_s, self.on_stall)
        self.device = DeviceLock(offload=self.model.offload)
        self.engine = Engine(
            self.model.predict,
            max_tiles=self.model.tile_batch,
            watch=self.watchdog.watch,
            device=self.device,
            metrics=self.metrics,
        )

    def leave(self, within_s: float = math.inf) -> None:
        """Take no further job; those in hand that will not end within that time are given back."""
        self.leave_by = time.monotonic() + within_s
        self.leaving.set()


class Attempt:
    """`last`: no further one follows; `alone`: no other job may run beside it.

    How it ended says who is first: the slot (`claim`), the supervisor of a process that must end
    (`take_back`), or the queue, which gives a job away when its lease runs out (`lease_lost`).

    Progress that cannot be written is left out, and the job goes on. `stage`, `on_step`,
    `on_progress` and `poll` raise Cancellation when the job was canceled, LeaseLost when the record
    says that it is not this worker's any more, and what `check` raises.
    """

    def __init__(
        self, process: Process, job_id: str, worker: str, *, alone: bool = False, last: bool = False
    ) -> None:
        self.process, self.job_id, self.worker = process, job_id, worker
        self.alone, self.last = alone, last
        self.lease_lost = self.settled = self._expires = False
        self.spans = AttemptSpans()
        self._lock = threading.Lock()
        self._deadline = math.inf
        self._progress = self._in_record = Progress(stage="load")
        self._next_write = self._next_look = self._stage_start = 0.0
        self._seconds: dict[Stage, float] = {}
        self._feed: Feed = lambda: None
        # Of the last step: when, how many are left, seconds a step so far. Then of what follows:
        # its estimated end.
        self._pace: tuple[float, int, float] | None = None
        self._pixels, self._tail_end = 0.0, math.inf

    def start(self) -> Job:
        """The job's record, from now on of this attempt; the time that a job may take counts from
        here, not from when it began to wait for its turn."""
        start, limit = time.monotonic(), self.process.settings.job_timeout_s
        self._deadline = start + limit
        job = self._persist(self.process.records.start)
        self.spans.start(job)
        if job.deadline is not None and job.started_at is not None:
            # Of the job itself, whatever attempt it is in; both are by the Redis server's clock.
            remaining_s = (job.deadline - job.started_at).total_seconds()
            self._deadline = start + min(limit, remaining_s)
            self._expires = remaining_s < limit
        self._pixels = job.input.width * job.input.height * job.parameters.scale**2
        return job

    def check(self) -> None:
        """Whether to go on; called between steps and while waiting.

        Raises:
            LeaseLost, Interruption, JobTimedOut.
        """
        self._check_lease()
        now, process = time.monotonic(), self.process
        if process.leaving.is_set() and now + self._seconds_left(now) > process.leave_by:
            raise Interruption(f"Job {self.job_id} goes back to the queue.")
        if now > self._deadline:
            if self._expires:
                raise JobTimedOut("The job had not ended by the time that its `expires_in` says.")
            limit = self.process.settings.job_timeout_s
            raise JobTimedOut(
                f"The job ran for its limit of {limit} seconds without an end; "
                "a smaller image, scale or number of steps takes less.",
                limit_seconds=limit,
            )

    def _seconds_left(self, now: float) -> float:
        """Until the job's end at its own pace; infinite before that is known."""
        if self._tail_end < math.inf:
            return max(0.0, self._tail_end - now)
        if self._pace is None:
            return math.inf
        at, steps, step_s = self._pace
        # A step that takes longer than those before it is the better estimate.
        return steps * max(step_s, now - at) + self._pixels * self.process.tail_rate

    @contextmanager
    def awaiting_store(self) -> Iterator[None]:
        """The block's time counts neither for the job's limit nor as a part of its stage."""
        start, deadline = time.monotonic(), self._deadline
        self._deadline = math.inf
        self.process.awaiting_store.add(self)
        try:
            yield
        finally:
            self.process.awaiting_store.discard(self)
            seconds = time.monotonic() - start
            self._deadline = deadline + seconds
            self._stage_start += seconds

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
        job = self._persist(transition, *arguments)
        self.spans.describe(state=job.state.value)
        return job

    def _persist(self, transition: Callable[..., Job], *arguments: object) -> Job:
        """Waits for a Redis that is away, however long: no other worker can take the job, and once
        it is back the lease says whether this attempt still counts."""
        log_at = 0.0
        while True:
            try:
                return transition(self.job_id, *arguments, worker=self.worker)
            except QueueUnavailable as error:
                if time.monotonic() > log_at:
                    log.warning(
                        "redis is away, the job waits", job=self.job_id, reason=error.detail
                    )
                    log_at = time.monotonic() + REDIS_LOG_S
                time.sleep(REDIS_RETRY_S)
                if not self.settled:
                    self._check_lease()

    # Progress

    @property
    def timings(self) -> Timings:
        """Seconds of each stage so far; the records add waiting and total."""
        return Timings(**{name: s for name, s in self._seconds.items() if name != "save"})

    @contextmanager
    def stage(self, name: Stage, *, steps: int = 0) -> Iterator[None]:
        """The block is this stage: written at once, timed, and watched."""
        self.check()
        self._write(Progress(stage=name, steps=steps, fraction=FRACTIONS[name][0]))
        now = self._stage_start = time.monotonic()
        if name == "decode":
            self._tail_end = now + self._pixels * self.process.tail_rate
        with self.process.watchdog.watch(name) as self._feed, self.spans.part(name):
            yield
        self._seconds[name] = time.monotonic() - self._stage_start
        if name == "save":
            seconds = self._seconds["decode"] + self._seconds["save"]
            self.process.tail_rate = seconds / self._pixels

    def on_step(self, step: Step) -> None:
        """Before each denoising step: `step.step` of them are done."""
        count, steps = step.step, step.steps
        now = time.monotonic()
        step_s = (now - self._stage_start) / count if count else math.inf
        self._pace = now, steps - count, step_s
        eta = step_s * (steps - count) if count else None
        self.on_progress(count / steps, step=count, steps=steps, eta_seconds=eta)

    def on_progress(
        self, share: float, *, step: int = 0, steps: int = 0, eta_seconds: float | None = None
    ) -> None:
        """Of the stage, that share is done, 0 to 1."""
        stage = self._progress.stage
        start, end = FRACTIONS[stage]
        self._progress = Progress(
            stage=stage,
            step=step,
            steps=steps,
            fraction=start + (end - start) * share,
            eta_seconds=eta_seconds,
        )
        self.poll()

    def poll(self) -> None:
        """While something is awaited."""
        self._feed()
        self.check()
        now = time.monotonic()
        if self._progress is not self._in_record and now >= self._next_write:
            self._write(self._progress)
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        try:
            if self.process.records.cancel_requested(self.job_id):
                # Writing the same progress again tells a cancel from a lost job.
                self._write(self._progress)
        except QueueUnavailable:
            self._next_look = now + RETRY_S

    def _write(self, progress: Progress) -> None:
        self._progress = progress
        now = time.monotonic()
        self._next_write = now + WRITE_S
        try:
            job = self.process.records.progress(self.job_id, progress, worker=self.worker)
        except QueueUnavailable as error:
            self._next_write = now + RETRY_S
            log.warning("progress not written", job=self.job_id, reason=error.detail)
            return
        except (WrongState, JobNotFound) as error:
            raise LeaseLost(error.detail) from error
        self._in_record = progress
        self._next_look = now + LOOK_S
        if job.cancel_requested:
            raise Cancellation(f"Job {self.job_id} was canceled.")
