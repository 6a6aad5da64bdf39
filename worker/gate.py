"""Lets a job that was lost once run alone.

When a process dies with several jobs in it, nobody knows whose fault it was, and all of them have
used up an attempt. Run together again, the guilty one would take the others with it a second time
and for good. So a second attempt waits until the other slots of its process are done, and runs
with the door shut: a job can fail by its own fault only. Of two such jobs the second does not
wait, or it would be in the process when the first one kills it: it is refused and goes back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Gate", "GateTaken"]

POLL_S = 0.2


class GateTaken(Exception):
    """Another job that must be alone has the gate; this one is to be given back, unbegun."""


class Gate:
    """Many jobs at once, or one alone. One that wants to be alone goes before newcomers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = 0

    @property
    def open(self) -> bool:
        """Whether a job that does not need to be alone could enter now."""
        return not self._alone

    @contextmanager
    def enter(
        self, *, alone: bool, poll: Callable[[], None], patience_s: float = 0.0
    ) -> Iterator[None]:
        """Wait for the turn, then hold it; what `poll` raises while waiting is raised here.

        `patience_s`: for so long who must be alone keeps nobody out, but waits for a moment when
        nobody is inside.

        Raises:
            GateTaken: this job must be alone, and another one that must be is inside or waits.
        """
        if alone:
            with self._entered_alone(poll, patience_s):
                yield
            return
        with self._changed:
            while self._alone:
                self._wait(poll)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def _entered_alone(self, poll: Callable[[], None], patience_s: float) -> Iterator[None]:
        deadline = time.monotonic() + patience_s
        with self._changed:
            while self._inside and time.monotonic() < deadline:
                self._wait(poll)
            if self._alone:
                raise GateTaken
            self._alone += 1
        try:
            with self._changed:
                while self._inside:
                    self._wait(poll)
            yield
        finally:
            with self._changed:
                self._alone -= 1
                self._changed.notify_all()

    def _wait(self, poll: Callable[[], None]) -> None:
        self._changed.wait(POLL_S)
        poll()
