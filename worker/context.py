"""What a task finds around it: the process it runs in and the run it belongs to.

RQ calls a task by its dotted path with a job's id and nothing else; the rest is passed here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from jobs.job_store import JobStore
from jobs.settings import Settings
from jobs.store import BlobStore
from worker.device_lock import DeviceLock
from worker.engine import Engine
from worker.errors import Interrupted, LeaseLost, TimedOut
from worker.metrics import WorkerMetrics
from worker.model import Upscaler
from worker.watchdog import Watchdog

__all__ = ["Process", "Run", "current_run", "entered"]

Settler = Literal["slot", "supervisor"]


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
    model: Upscaler
    engine: Engine
    metrics: WorkerMetrics
    watchdog: Watchdog
    leaving: threading.Event
    lose: Callable[[str], None]
    device: DeviceLock = field(default_factory=DeviceLock)


@dataclass(eq=False)
class Run:
    """One attempt at one job, on one slot. `last` says that no further attempt follows."""

    process: Process
    job_id: str
    worker: str
    alone: bool = False
    last: bool = False
    lost: threading.Event = field(default_factory=threading.Event)
    _started: float | None = None
    settled_by: Settler | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """The time a job may take counts from here, not from when it began to wait for its turn."""
        self._started = time.monotonic()

    def check(self) -> None:
        """Whether to go on; called between steps and while waiting.

        Raises:
            LeaseLost, Interrupted, TimedOut.
        """
        if self.lost.is_set():
            raise LeaseLost(f"Job {self.job_id} was given to another worker.")
        if self.process.leaving.is_set():
            raise Interrupted(f"Job {self.job_id} goes back to the queue.")
        limit = self.process.settings.job_timeout_s
        if self._started is not None and time.monotonic() - self._started > limit:
            raise TimedOut(f"Job {self.job_id} ran out of time.")

    def settle(self, by: Settler = "slot") -> bool:
        """Claim the right to say how this run ended, and learn who has it.

        The slot claims it when the run comes to an end, the supervisor when the process must end
        before the slot has got there. The first claim holds: True for whoever made it.
        """
        with self._lock:
            self.settled_by = self.settled_by or by
            return self.settled_by == by


_current: ContextVar[Run] = ContextVar("run")


def current_run() -> Run:
    """The run of the calling thread. Raises LookupError outside of one."""
    return _current.get()


@contextmanager
def entered(run: Run) -> Iterator[None]:
    """Make `run` the calling thread's."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)
