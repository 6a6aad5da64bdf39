"""Tells the record how far a job is, and learns there whether to go on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from jobs.errors import JobNotFound, QueueUnavailable, WrongState
from jobs.job_store import JobStore
from jobs.schema import Progress, Stage, Timings
from models.sampling import Step
from worker.errors import Canceled, LeaseLost

__all__ = ["Reporter"]

# Seconds between two notes of progress, between two looks while waiting, and before trying again
# a Redis that did not answer.
NOTE_S = 0.25
LOOK_S = 1.0
AGAIN_S = 2.0

# Where each stage lies on the way from 0 to 1; denoising moves through its part step by step.
BEGINS: dict[Stage, float] = {
    "load": 0.0,
    "encode": 0.02,
    "denoise": 0.05,
    "decode": 0.9,
    "save": 0.97,
}

log = structlog.get_logger(__name__)


class Reporter:
    """The progress of one run. Progress that cannot be written is left out, the job goes on.

    Every method raises Canceled when the job was canceled, LeaseLost when the record says that
    it is not this worker's any more, and what `check` raises.
    """

    def __init__(
        self, records: JobStore, job_id: str, worker: str, check: Callable[[], None]
    ) -> None:
        self._records = records
        self._job_id = job_id
        self._worker = worker
        self._check = check
        self._progress = self._noted = Progress(stage="load")
        self._next_note = 0.0
        self._next_look = 0.0
        self._since = 0.0
        self.seconds: dict[Stage, float] = {}

    @property
    def timings(self) -> Timings:
        """Seconds of each stage so far; the records add waiting and total."""
        told = {name: self.seconds.get(name, 0.0) for name in ("load", "encode", "denoise")}
        return Timings(**told, decode=self.seconds.get("decode", 0.0))

    @contextmanager
    def stage(self, name: Stage, *, steps: int = 0) -> Iterator[None]:
        """The block is this stage: noted at once, and timed."""
        self._check()
        self._note(Progress(stage=name, steps=steps, fraction=BEGINS[name]))
        started = time.monotonic()
        self._since = started
        yield
        self.seconds[name] = time.monotonic() - started

    def on_step(self, step: Step) -> None:
        """Before each denoising step: `step.step` of them are done."""
        self._check()
        now = time.monotonic()
        done, steps = step.step, step.steps
        begin, end = BEGINS["denoise"], BEGINS["decode"]
        self._progress = Progress(
            stage="denoise",
            step=done,
            steps=steps,
            fraction=begin + (end - begin) * done / steps,
            eta_seconds=(now - self._since) / done * (steps - done) if done else None,
        )
        if now >= self._next_note:
            self._note(self._progress)

    def on_part(self, done: float) -> None:
        """Between two parts of encoding or decoding, `done` of which is done, 0 to 1."""
        stage = self._progress.stage
        begin, end = BEGINS[stage], min(b for b in BEGINS.values() if b > BEGINS[stage])
        self._progress = Progress(stage=stage, fraction=begin + (end - begin) * done)
        self.poll()

    def poll(self) -> None:
        """While a step is awaited."""
        self._check()
        now = time.monotonic()
        if self._progress is not self._noted and now >= self._next_note:
            self._note(self._progress)
        if now < self._next_look:
            return
        self._next_look = now + LOOK_S
        try:
            stop = self._records.cancel_requested(self._job_id)
        except QueueUnavailable:
            self._next_look = now + AGAIN_S
            return
        if stop:
            # Noting the same progress again tells a cancel from a lost job.
            self._note(self._progress)

    def _note(self, progress: Progress) -> None:
        self._progress = progress
        now = time.monotonic()
        self._next_note = now + NOTE_S
        try:
            job = self._records.progress(self._job_id, progress, worker=self._worker)
        except QueueUnavailable as error:
            self._next_note = now + AGAIN_S
            log.warning("progress not noted", job=self._job_id, reason=error.detail)
            return
        except (WrongState, JobNotFound) as error:
            raise LeaseLost(error.detail) from error
        self._noted = progress
        if job.cancel_requested:
            raise Canceled(f"Job {self._job_id} was canceled.")
