"""Webhooks that are to be called: which, when, and how often it was tried.

    stablesr:webhooks            sorted set: id of an ended job -> when to call its webhook
    stablesr:webhooks:attempts   id -> attempts begun

`transition.lua` adds a job as it ends it. The sender that takes a call has it for LEASE_S, and
should it die in between, another one calls again: a receiver may be called twice, never not at all.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from redis import Redis

from .connection import as_text, queue_errors, seconds_of
from .job_store import WEBHOOKS_KEY

ATTEMPTS_KEY = WEBHOOKS_KEY + ":attempts"
# Longer than an attempt may take.
LEASE_S = 60
# Seconds after each failed attempt but the last; about an hour in all.
PAUSES_S = (10, 60, 600, 2700)
ATTEMPTS = len(PAUSES_S) + 1
# Seconds until a call is taken again that was not tried.
LATER_S = (2, 10)
TAKE = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1e6
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)
if #due == 0 then return false end
redis.call('ZADD', KEYS[1], now + ARGV[1], due[1])
return {due[1], redis.call('HINCRBY', KEYS[2], due[1], 1)}
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A webhook to call now; attempts count from 1."""

    job_id: str
    attempt: int


class Outbox:
    """Blocking, safe to share between threads. Every method raises QueueUnavailable."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection
        self._take = connection.register_script(TAKE)

    def take(self) -> Call | None:
        """The call that is due the longest, for this sender alone; None when none is due."""
        with queue_errors(self._connection):
            answer: Any = self._take(keys=[WEBHOOKS_KEY, ATTEMPTS_KEY], args=[LEASE_S])
        return None if answer is None else Call(as_text(answer[0]), int(answer[1]))

    def finish(self, call: Call) -> None:
        """The call needs no further attempt."""
        with queue_errors(self._connection), self._connection.pipeline() as pipe:
            pipe.zrem(WEBHOOKS_KEY, call.job_id)
            pipe.hdel(ATTEMPTS_KEY, call.job_id)
            pipe.execute()

    def again(self, call: Call) -> bool:
        """Puts a failed call off to its next attempt; False when that was the last, and it goes."""
        if call.attempt >= ATTEMPTS:
            self.finish(call)
            return False
        # Calls that failed together, because their receiver was away, do not come back together.
        self._put_off(call, PAUSES_S[call.attempt - 1] * random.uniform(0.9, 1.1))
        return True

    def later(self, call: Call) -> None:
        """Gives a call back that was not tried; that is no attempt."""
        self._put_off(call, random.uniform(*LATER_S), attempts=-1)

    def _put_off(self, call: Call, seconds: float, *, attempts: int = 0) -> None:
        with queue_errors(self._connection), self._connection.pipeline() as pipe:
            due = seconds_of(self._connection.time()) + seconds
            pipe.zadd(WEBHOOKS_KEY, {call.job_id: due}, xx=True)
            if attempts:
                pipe.hincrby(ATTEMPTS_KEY, call.job_id, attempts)
            pipe.execute()
