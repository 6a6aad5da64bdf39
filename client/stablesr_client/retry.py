"""When to send a request again, when to ask for a job again, and when to stop.

Two kinds of failure are waited for, each for a time of its own. An outage: no server answers, the
connection breaks, a proxy has no server behind it. And a server that says when to try again
(`Retry-After` with 429 or 503). Pauses of an outage grow and are drawn at random, so that the
clients of a server that comes back do not all come at once.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from stablesr_client.errors import Refused, TimedOut, Unreachable
from stablesr_client.schema import Event, Job

__all__ = ["Attempts", "Clock", "Polling", "RetryPolicy", "retry_after_s"]


@dataclass(frozen=True)
class RetryPolicy:
    """How long a client tries again, in seconds."""

    outage_s: float = 60.0
    """While no server answers."""
    busy_s: float = 120.0
    """While the server says to try again later."""
    shortest_pause_s: float = 0.25
    longest_pause_s: float = 5.0


@dataclass(frozen=True)
class Clock:
    """The time in seconds, and a random number from 0 to 1."""

    now: Callable[[], float]
    chance: Callable[[], float]


class Attempts:
    """The attempts of one call: how long to pause after each failure.

    The timeout of `polling` ends them as well.
    """

    def __init__(self, policy: RetryPolicy, clock: Clock, polling: Polling | None = None) -> None:
        self._policy = policy
        self._clock = clock
        self._polling = polling
        self.reset()

    def reset(self) -> None:
        """The call has got further: the next failure counts as the first."""
        self._start: float | None = None
        self._pause_s = self._policy.shortest_pause_s

    def pause_after(self, error: Unreachable | Refused) -> float:
        """The seconds to wait before the next attempt.

        Raises:
            Unreachable, Refused: `error` itself, which has lasted for too long.
            TimedOut: the timeout of the polling is over.
        """
        now = self._clock.now()
        self._start = now if self._start is None else self._start
        requested_s = error.problem.retry_after if isinstance(error, Refused) else None
        if requested_s is None:
            # Between half of it and all of it.
            pause = self._pause_s * (1 + self._clock.chance()) / 2
            self._pause_s = min(2 * self._pause_s, self._policy.longest_pause_s)
            limit = self._policy.outage_s
        else:
            # Never sooner than the server says.
            pause = max(requested_s, self._policy.shortest_pause_s)
            pause *= 1 + self._clock.chance() / 10
            limit = self._policy.busy_s
        if now + pause - self._start > limit:
            raise error
        return pause if self._polling is None else self._polling.limit(pause)


class Polling:
    """Asking for a job until it has ended, for at most `timeout` seconds; `job` is the newest."""

    def __init__(self, job: Job, policy: RetryPolicy, clock: Clock, timeout: float | None) -> None:
        self.job = job
        self._policy = policy
        self._clock = clock
        self._timeout = math.inf if timeout is None else timeout
        self._end = clock.now() + self._timeout
        self._unchanged_s = self._pause_s = policy.shortest_pause_s
        self._etag: str | None = None
        self._state: str | None = None

    def left_s(self) -> float:
        """The seconds that are left of the timeout."""
        return self._end - self._clock.now()

    def limit(self, pause: float) -> float:
        """The pause, cut so that the last question comes when the timeout ends.

        Raises:
            TimedOut: the timeout is over.
        """
        if (left := self.left_s()) <= 0:
            raise TimedOut(self.job, self._timeout)
        return min(pause, left)

    def pause(self) -> float:
        """The seconds to wait before the next question; raises as `limit`."""
        return self.limit(self._pause_s)

    def headers(self) -> dict[str, str]:
        """The headers of the next question."""
        return {} if self._etag is None else {"If-None-Match": self._etag}

    def update(self, job: Job | None, headers: Mapping[str, str]) -> bool:
        """Takes an answer, None for a job that is as it was; whether it has changed."""
        if job is None:
            self._unchanged_s = min(1.5 * self._unchanged_s, self._policy.longest_pause_s)
        else:
            self.job, self._etag = job, headers.get("ETag")
            self._unchanged_s = self._policy.shortest_pause_s
        requested_s = retry_after_s(headers.get("Retry-After"))
        pause = self._unchanged_s if requested_s is None else requested_s
        pause = max(pause, self._policy.shortest_pause_s)
        self._pause_s = pause * (1 + self._clock.chance() / 10)
        return job is not None

    def event(self) -> Event:
        """What has changed since the last event, as a server with events would send it."""
        name = "progress" if self.job.state == self._state else "state"
        self._state = self.job.state
        return Event(name="end" if self.job.ended else name, job=self.job)


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
