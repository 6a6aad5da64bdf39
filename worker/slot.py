"""One slot: room for one job at a time, on a thread of its own."""

from __future__ import annotations

import threading
import time

import structlog
from redis import Redis
from rq import Queue

from worker.context import Process
from worker.worker import SlotWorker

__all__ = ["Slot"]

# A loop that ran so long was well: the next one begins soon after it.
STEADY_S = 60.0
LONGEST_WAIT_S = 8.0

log = structlog.get_logger(__name__)


class Slot:
    """A thread that runs worker loops, one after the other until the process leaves.

    A loop ends when Redis goes away in the middle of something; the next one starts afresh.
    """

    def __init__(self, process: Process, queue: Queue, connection: Redis, name: str) -> None:
        self._process = process
        self._queue = queue
        self._connection = connection
        self._name = name
        self.worker: SlotWorker | None = None
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def busy(self) -> bool:
        worker = self.worker
        return worker is not None and worker.work_in_hand is not None

    @property
    def ending(self) -> bool:
        """Whether the job in hand is being brought to its end by the slot itself."""
        worker = self.worker
        work = worker.work_in_hand if worker is not None else None
        return work is not None and work.run.settled_by == "slot"

    def leave(self) -> None:
        if self.worker is not None:
            self.worker.leave()

    def _run(self) -> None:
        loops, failures = 0, 0
        while not self._process.leaving.is_set():
            began = time.monotonic()
            try:
                self._loop(f"{self._name}.{loops}")
            # Redis that cannot be reached when a loop begins or ends, mostly; whatever it is, the
            # slot must not be lost to it.
            except Exception as error:
                log.warning("worker loop ended", slot=self._name, reason=str(error))
            finally:
                self.worker = None
            loops += 1
            failures = 0 if time.monotonic() - began > STEADY_S else failures + 1
            self._process.leaving.wait(min(0.5 * 2**failures, LONGEST_WAIT_S))

    def _loop(self, name: str) -> None:
        self.worker = SlotWorker(self._process, self._queue, self._connection, name)
        if self._process.leaving.is_set():
            return
        self.worker.work(logging_level=None)
