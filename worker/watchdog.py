"""Ends the process when something it waits for does not come back.

A hung device call cannot be interrupted from Python: no signal handler and no exception in
another thread gets between its bytecodes. What can be done is to end the process, whose jobs the
queue then gives to another worker, or to this one after its restart.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog

__all__ = ["EXIT_STALLED", "Watchdog", "end_process"]

EXIT_STALLED = 70
"""The exit code of a process that its watchdog ended."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class _Watched:
    what: str
    since: float
    limit_s: float


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
        self._watched: dict[int, _Watched] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._count = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    @contextmanager
    def watch(self, what: str) -> Iterator[Callable[[], None]]:
        """The block ends within the limit, or the process does.

        A block that takes long by right calls what is yielded whenever it has come further: the
        limit counts anew from there.
        """
        with self._lock:
            self._count += 1
            ticket = self._count
            self._watched[ticket] = _Watched(what, time.monotonic(), self._limit_s)

        def renew() -> None:
            with self._lock:
                self._watched[ticket] = _Watched(what, time.monotonic(), self._limit_s)

        try:
            yield renew
        finally:
            with self._lock:
                del self._watched[ticket]

    def stalled(self) -> tuple[str, float] | None:
        """The first call that is over its limit, with its seconds so far."""
        now = time.monotonic()
        with self._lock:
            for watched in self._watched.values():
                if now - watched.since > watched.limit_s:
                    return watched.what, now - watched.since
        return None

    def _run(self) -> None:
        interval = min(1.0, self._limit_s / 4)
        while not self._stopped.wait(interval):
            found = self.stalled()
            if found is not None:
                self._on_stall(*found)
                return
