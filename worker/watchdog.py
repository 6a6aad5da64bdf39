"""Ends the process when something it waits for does not come back.

A hung device call cannot be interrupted from Python: no signal handler and no exception in
another thread gets between its bytecodes. What can be done is to end the process, whose jobs the
queue then gives to another worker, or to this one after its restart.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from worker.heartbeat import PeriodicThread

EXIT_STALLED = 70
"""The exit code of a process that its watchdog ended."""

Feed = Callable[[], None]
"""Says that a call has come further: its limit counts anew from there"""

log = structlog.get_logger(__name__)


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
