"""Whose picture the device encodes or decodes: one after the other, in the order of asking.

That way the memory of one suffices. But a large picture takes minutes where a small one takes a
second, so between two strips of a large one the small ones that wait step in, each to its end. A
plan counts the memory of one such guest beside the large picture (`models.plan`). Who comes while
guests are at work waits for the next strip: the large picture goes on with every one.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Between", "Turns"]

POLL_S = 0.1

Poll = Callable[[], None]
"""Called now and then while somebody waits; what it raises ends the waiting."""

Between = Callable[[Poll], None]
"""To be called between two strips; returns when the device is the caller's again."""


class _Turn:
    def __init__(self, *, small: bool) -> None:
        self.small = small
        self.granted = threading.Event()

    def wait(self, poll: Poll) -> None:
        while not self.granted.wait(POLL_S):
            poll()


class Turns:
    """Shared by all slots of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[_Turn] = deque()
        # Small ones that were waiting when the picture that has paused came to its last strip.
        self._guests: deque[_Turn] = deque()
        self._paused: _Turn | None = None
        self._working: _Turn | None = None

    @contextmanager
    def turn(self, *, small: bool, poll: Poll) -> Iterator[Between]:
        """Waits for the device, then holds it.

        Args:
            small: whether it may step in between the strips of a picture that is not.
            poll: called while it waits.
        """
        mine = _Turn(small=small)
        try:
            with self._lock:
                self._waiting.append(mine)
                self._next()
            mine.wait(poll)
            yield lambda poll: self._between(mine, poll)
        finally:
            self._leave(mine)

    def _between(self, mine: _Turn, poll: Poll) -> None:
        with self._lock:
            guests = deque(turn for turn in self._waiting if turn.small)
            if mine.small or not guests:
                return
            self._waiting = deque(turn for turn in self._waiting if not turn.small)
            self._guests, self._paused, self._working = guests, mine, None
            mine.granted.clear()
            self._next()
        mine.wait(poll)

    def _leave(self, mine: _Turn) -> None:
        """Wherever it is: an error may have ended its waiting, its pause or its work."""
        with self._lock:
            for line in (self._waiting, self._guests):
                if mine in line:
                    line.remove(mine)
            if self._working is mine:
                self._working = None
            if self._paused is mine:
                self._paused = None
                self._waiting.extendleft(reversed(self._guests))
                self._guests.clear()
            self._next()

    def _next(self) -> None:
        """Lets in who comes next, if nobody works. The lock is held."""
        if self._working is not None:
            return
        if self._guests:
            self._working = self._guests.popleft()
        elif self._paused is not None:
            self._working, self._paused = self._paused, None
        elif self._waiting:
            self._working = self._waiting.popleft()
        if self._working is not None:
            self._working.granted.set()
