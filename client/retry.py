"""When to try again, how long to wait before, and when to stop.

Two kinds of "not now" have a patience each. An outage: nobody answers, the connection breaks, a
proxy has nothing behind it. And a server that is there and says when to come again (`Retry-After`
with 429 or 503). Pauses of an outage grow and are drawn at random, so that many clients of a
server that comes back do not all come at once.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Callable
from dataclasses import dataclass

from client.errors import Refused, Unreachable

__all__ = ["AGAIN", "Clock", "OutOfTime", "Patience", "Tries", "retry_after_s"]

AGAIN = frozenset({408, 429, 502, 503, 504})
"""The answers after which the same request may come to another one."""


@dataclass(frozen=True)
class Patience:
    """How long a client tries again, in seconds."""

    outage_s: float = 60.0
    """When nobody answers."""
    busy_s: float = 120.0
    """When the server says to come again."""
    shortest_pause_s: float = 0.25
    longest_pause_s: float = 5.0


@dataclass(frozen=True)
class Clock:
    """The time in seconds and chance, 0 to 1; a test has its own."""

    now: Callable[[], float]
    chance: Callable[[], float]


class OutOfTime(Exception):
    """The caller's deadline has come. Never leaves the package."""


class Tries:
    """The tries of one call: asked after each failure how long to pause before the next.

    Args:
        deadline: the clock's time of the last try, which comes then if no pause ends before.
    """

    def __init__(self, patience: Patience, clock: Clock, deadline: float | None = None) -> None:
        self._patience = patience
        self._clock = clock
        self._deadline = deadline
        self.reset()

    def reset(self) -> None:
        """What was asked for has come: the next failure is the first again."""
        self._since: float | None = None
        self._pause = self._patience.shortest_pause_s

    def pause_after(self, error: Unreachable | Refused, *, again: frozenset[int] = AGAIN) -> float:
        """The seconds to wait before the next try.

        Raises:
            Unreachable, Refused: `error` itself, when it is final or patience has run out.
            OutOfTime: the deadline has come.
        """
        now = self._clock.now()
        since = self._since = now if self._since is None else self._since
        asked = None
        if isinstance(error, Refused):
            if error.problem.status not in again:
                raise error
            asked = error.problem.retry_after
            if asked is None and error.problem.slug:
                # The service itself speaks, and names no time: it will not pass by waiting.
                raise error
        if asked is None:
            # Between half of it and all of it.
            pause = self._pause * (1 + self._clock.chance()) / 2
            self._pause = min(2 * self._pause, self._patience.longest_pause_s)
            limit = self._patience.outage_s
        else:
            # Never sooner than asked, unless for a last look at the deadline.
            pause = max(asked, self._patience.shortest_pause_s) * (1 + self._clock.chance() / 10)
            limit = self._patience.busy_s
        if now + pause - since > limit:
            raise error
        if self._deadline is None:
            return pause
        if (left := self._deadline - now) <= 0:
            raise OutOfTime
        return min(pause, left)


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for (a number or a date), None without one."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        at = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, at.timestamp() - time.time())
