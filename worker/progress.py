"""Tells the record and the watchdog how far a job is, and learns whether to go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from jobs.errors import JobNotFound, QueueUnavailable, WrongState
from jobs.schema import Progress, Stage, Timings
from models.sampling import Step
from worker.attempt import Attempt
from worker.errors import Cancellation, LeaseLost

# Seconds between two writes of progress, between two looks while waiting, and before trying again
# a Redis that did not answer.
WRITE_S = 0.25
LOOK_S = 1.0
RETRY_S = 2.0

# Where each stage lies on the way from 0 to 1; denoising moves through its part step by step.
FRACTIONS: dict[Stage, tuple[float, float]] = {
    "load": (0.0, 0.02),
    "encode": (0.02, 0.05),
    "denoise": (0.05, 0.9),
    "decode": (0.9, 0.97),
    "save": (0.97, 1.0),
}

log = structlog.get_logger(__name__)


class Reporter:
    """The progress of one attempt. What cannot be written is left out, the job goes on.

    Every method raises Cancellation when the job was canceled, LeaseLost when the record says that
    it is not this worker's any more, and what `Attempt.check` raises.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._records = attempt.process.quick_records
        self._progress = self._in_record = Progress(stage="load")
        self._next_write = self._next_look = self._stage_start = 0.0
        self._seconds: dict[Stage, float] = {}

    @property
    def timings(self) -> Timings:
        """Seconds of each stage so far; the records add waiting and total."""
        return Timings(**{name: s for name, s in self._seconds.items() if name != "save"})

    @contextmanager
    def stage(self, name: Stage, *, steps: int = 0) -> Iterator[None]:
        """The block is this stage: written at once, timed, and watched."""
        self._attempt.check()
        self._write(Progress(stage=name, steps=steps, fraction=FRACTIONS[name][0]))
        self._stage_start = time.monotonic()
        with self._attempt.process.watchdog.watch(name) as self._feed:
            yield
        self._seconds[name] = time.monotonic() - self._stage_start

    def on_step(self, step: Step) -> None:
        """Before each denoising step: `step.step` of them are done."""
        count, steps = step.step, step.steps
        seconds = time.monotonic() - self._stage_start
        eta = seconds / count * (steps - count) if count else None
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
        self._attempt.check()
        now = time.monotonic()
        if self._progress is not self._in_record and now >= self._next_write:
            self._write(self._progress)
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        try:
            if self._records.cancel_requested(self._attempt.job_id):
                # Writing the same progress again tells a cancel from a lost job.
                self._write(self._progress)
        except QueueUnavailable:
            self._next_look = now + RETRY_S

    def _write(self, progress: Progress) -> None:
        self._progress = progress
        job_id, worker = self._attempt.job_id, self._attempt.worker
        now = time.monotonic()
        self._next_write = now + WRITE_S
        try:
            job = self._records.progress(job_id, progress, worker=worker)
        except QueueUnavailable as error:
            self._next_write = now + RETRY_S
            log.warning("progress not written", job=job_id, reason=error.detail)
            return
        except (WrongState, JobNotFound) as error:
            raise LeaseLost(error.detail) from error
        self._in_record = progress
        self._next_look = now + LOOK_S
        if job.cancel_requested:
            raise Cancellation(f"Job {job_id} was canceled.")
