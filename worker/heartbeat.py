"""The signs of life of a worker process, from threads that do nothing else; and its end, when
something it waits for does not come back.

A hung device call cannot be interrupted from Python: no signal handler and no exception in
another thread gets between its bytecodes. What can be done is to end the process, whose jobs the
queue then gives to another worker, or to this one after its restart.
"""

from __future__ import annotations

import faulthandler
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import structlog
from redis.exceptions import RedisError

from jobs.errors import JobsError
from jobs.settings import Settings
from jobs.workers import WorkerInfo, Workers, WorkerState
from worker.device import memory_in_use

EXIT_STALLED = 70
"""The exit code of a process that its watchdog ended."""

Feed = Callable[[], None]
"""Says that a call has come further: its limit counts anew from there"""

log = structlog.get_logger(__name__)


def try_to(what: str, action: Callable[[], object]) -> None:
    """Do what is good to do but must not keep the process from going on, or from ending."""
    try:
        action()
    except (RedisError, JobsError) as error:
        log.warning(f"could not {what}", reason=str(error))
    # Without its heartbeat the process would look dead while it works.
    except Exception:
        log.exception(f"unexpected error, could not {what}")


class PeriodicThread(threading.Thread):
    """Calls `action` about every `interval_s`, until stopped; what cannot be done is left for the
    next time."""

    def __init__(self, name: str, interval_s: float, action: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._interval_s = interval_s
        self._action = action
        self._stop_event = threading.Event()

    def stop(self) -> None:
        """Begin no further round, and wait a moment for the one that is under way."""
        self._stop_event.set()
        self.join(1.0)

    def run(self) -> None:
        pause = 0.0
        while not self._stop_event.wait(pause):
            start = time.monotonic()
            try_to(f"do a round of {self.name}", self._action)
            pause = max(0.0, self._interval_s - (time.monotonic() - start))


class Registration:
    """What the register of workers has of this process.

    Args:
        device: what the model runs on.
        running: how many jobs run, and how many of these wait for the image store.
    """

    def __init__(
        self,
        settings: Settings,
        register: Workers,
        device: str,
        running: Callable[[], tuple[int, int]],
    ) -> None:
        self._register = register
        self._running = running
        self.drain_asked = False
        # Two threads write: without it the older state could come last.
        self._lock = threading.Lock()
        self.state: WorkerState = "starting"
        self._compiled: tuple[int, int] | None = None
        self._reason: Callable[[], str] | None = None
        self.info = WorkerInfo(
            name=f"{settings.preset}-{secrets.token_hex(4)}",
            preset=settings.preset,
            device=device,
            slots=settings.slots,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            started_at=datetime.now(UTC),
        )

    def change(
        self,
        state: WorkerState,
        compiled: tuple[int, int] | None = None,
        reason: Callable[[], str] | None = None,
    ) -> None:
        """Write another state at once; `compiled`: how many sizes of calls, of how many; `reason`:
        why it is not ready, asked at each write because it may change."""
        self.state, self._compiled, self._reason = state, compiled, reason
        try_to("register", self.write)

    def write(self) -> None:
        """Write it; to be repeated, or the process is taken for dead."""
        with self._lock:
            state, (running, awaiting_store) = self.state, self._running()
            changes: dict[str, object] = {
                "state": "busy" if running and state == "idle" else state,
                "running": running,
                "awaiting_store": awaiting_store,
                "compiled": self._compiled,
            }
            if state == "not_ready" and self._reason is not None:
                changes["reason"] = self._reason()
            # Before the model is loaded, asking a GPU would begin to use it, from this thread.
            if state in ("idle", "draining", "stopping"):
                changes["memory"] = memory_in_use(self.info.device)
            self.drain_asked = self._register.heartbeat(self.info.model_copy(update=changes))

    def remove(self) -> None:
        """Take the process off the register."""
        try_to("unregister", lambda: self._register.unregister(self.info.name))


def end_process(what: str, seconds: float) -> None:
    """Write where every thread stands, then leave without unwinding: some thread hangs."""
    log.critical("stalled, ending the process", what=what, seconds=round(seconds, 1))
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(EXIT_STALLED)


class Watchdog:
    """Watches any number of calls, from any thread, none of which may be silent over `limit_s`.

    Its thread touches neither Redis nor the device, so that nothing it watches can block it.
    """

    def __init__(
        self, limit_s: float, on_stall: Callable[[str, float], None] = end_process
    ) -> None:
        self._limit_s = limit_s
        self._on_stall = on_stall
        # Of each call the last feed. Changed and copied in one bytecode each, so without a lock.
        self._calls: dict[object, tuple[str, float]] = {}
        self.thread = PeriodicThread("watchdog", min(1.0, limit_s / 4), self._check)

    @contextmanager
    def watch(self, what: str) -> Iterator[Feed]:
        """The block ends, or feeds, within the limit, or the process ends."""
        call = object()

        def feed() -> None:
            self._calls[call] = what, time.monotonic()

        feed()
        try:
            yield feed
        finally:
            del self._calls[call]

    def stall(self) -> tuple[str, float] | None:
        """The first call that is over its limit, with its seconds so far."""
        for what, last_feed in self._calls.copy().values():
            seconds = time.monotonic() - last_feed
            if seconds > self._limit_s:
                return what, seconds
        return None

    def _check(self) -> None:
        if (stall := self.stall()) is not None:
            self._on_stall(*stall)
