"""When to send a request again, when to poll a job again, and when to stop.

Two kinds of failure are retried, each for a time of its own: an outage (no server answers, or a
proxy has none behind it) and a server that says when to try again (`Retry-After`). Pauses of an
outage grow and are random, so that the clients of a server do not all return at once.
"""

from __future__ import annotations

import email.utils
import math
import time
from dataclasses import dataclass
from random import random
from time import monotonic

import httpx

from .errors import ClientError, Refused, TimedOut
from .schema import Event, Job

TRANSIENT = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed later. With Retry-After, 409 means that the
first request under the same key is being worked on."""


@dataclass(frozen=True)
class RetryPolicy:
    """How long a client tries again, in seconds."""

    outage_s: float = 60.0
    """While no server answers."""
    busy_s: float = 120.0
    """While the server says to try again later."""
    shortest_pause_s: float = 0.25
    longest_pause_s: float = 5.0


class Polling:
    """The polling of a job for at most `timeout` seconds; `job` is its latest state, `headers` and
    `pause_s` are those of the next request."""

    def __init__(self, job: Job, policy: RetryPolicy, timeout: float | None = None) -> None:
        self.job = job
        self._policy = policy
        self._timeout = math.inf if timeout is None else timeout
        self._deadline = monotonic() + self._timeout
        self._backoff_s = self.pause_s = policy.shortest_pause_s
        self.headers: dict[str, str] = {}
        self._state: str | None = None

    def remaining_s(self) -> float:
        return self._deadline - monotonic()

    def limit(self, pause_s: float) -> float:
        """The pause, cut so that the last request comes at the timeout; then TimedOut."""
        if (remaining_s := self.remaining_s()) <= 0:
            raise TimedOut(self.job, self._timeout)
        return min(pause_s, remaining_s)

    def update(self, job: Job | None, headers: httpx.Headers) -> bool:
        """Reads a response, None for a job that has not changed; whether it has."""
        if job is None:
            self._backoff_s = min(1.5 * self._backoff_s, self._policy.longest_pause_s)
        else:
            etag = headers.get("ETag")
            self.job, self.headers = job, {} if etag is None else {"If-None-Match": etag}
            self._backoff_s = self._policy.shortest_pause_s
        server_s = retry_after_s(headers.get("Retry-After"))
        pause_s = self._backoff_s if server_s is None else server_s
        self.pause_s = max(pause_s, self._policy.shortest_pause_s) * (1 + random() / 10)
        return job is not None

    def event(self) -> Event:
        """What has changed since the last event, as a server with events would send it."""
        name = "progress" if self.job.state == self._state else "state"
        self._state = self.job.state
        return Event(name="end" if self.job.ended else name, job=self.job)


class Retries:
    """The attempts of one call; the timeout of `polling` ends them as well."""

    def __init__(self, policy: RetryPolicy, polling: Polling | None = None) -> None:
        self._policy, self._polling = policy, polling
        self._connect_time = math.inf
        self.reset()

    def reset(self) -> None:
        """The call has made progress: the next failure counts as the first."""
        self._outage_time: float | None = None
        self._busy_time: float | None = None
        self._backoff_s = self._policy.shortest_pause_s

    def connect(self) -> None:
        """A stream begins: one that holds for long is progress, even without a word."""
        self._connect_time = monotonic()

    def pause_after(self, error: ClientError) -> float:
        """The seconds to wait before the next attempt; raises an `error` that is final."""
        now, policy, server_s = monotonic(), self._policy, None
        if isinstance(error, Refused):
            server_s = error.problem.retry_after
            # The service itself (not a proxy) that names no time will not change its answer.
            if error.problem.status not in TRANSIENT or (error.problem.slug and server_s is None):
                raise error
        if now - self._connect_time > policy.longest_pause_s:
            self.reset()
        if server_s is None:
            self._outage_time = start = now if self._outage_time is None else self._outage_time
            pause_s, limit_s = self._backoff_s * (1 + random()) / 2, policy.outage_s
            self._backoff_s = min(2 * self._backoff_s, policy.longest_pause_s)
        else:
            # It answers, so an outage before is over.
            self._outage_time = None
            self._busy_time = start = now if self._busy_time is None else self._busy_time
            # Never sooner than the server says.
            pause_s = max(server_s, policy.shortest_pause_s) * (1 + random() / 10)
            limit_s = policy.busy_s
        if now + pause_s - start > limit_s:
            raise error
        return pause_s if self._polling is None else self._polling.limit(pause_s)


def retry_after_s(value: str | None) -> float | None:
    """The seconds that a `Retry-After` header asks for (a number or a date), None without one."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
