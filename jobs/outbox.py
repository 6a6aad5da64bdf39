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

from .connection import as_text, queue_errors
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
local lease = string.format('%.6f', now + ARGV[1])
redis.call('ZADD', KEYS[1], lease, due[1])
return {due[1], redis.call('HINCRBY', KEYS[2], due[1], 1), lease}
"""
# A call whose job has ended anew in between is another one.
# ARGV: job id, end of the lease, seconds until the next attempt or '' for none, attempts to add.
GIVE_BACK = """
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0) ~= tonumber(ARGV[2]) then return end
if ARGV[3] == '' then
    redis.call('ZREM', KEYS[1], ARGV[1])
    redis.call('HDEL', KEYS[2], ARGV[1])
else
    redis.call('ZADD', KEYS[1], redis.call('TIME')[1] + ARGV[3], ARGV[1])
    redis.call('HINCRBY', KEYS[2], ARGV[1], ARGV[4])
end
"""


@dataclass(frozen=True, slots=True)
class Call:
    """A webhook to call now; attempts count from 1. `lease` is when it is taken again, in Redis'
    seconds."""

    job_id: str
    attempt: int
    lease: str


class Outbox:
    """Blocking, safe to share between threads. Every method raises QueueUnavailable."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection
        self._take = connection.register_script(TAKE)
        self._script = connection.register_script(GIVE_BACK)

    def take(self) -> Call | None:
        """The call that is due the longest, for this sender alone; None when none is due."""
        with queue_errors(self._connection):
            answer: Any = self._take(keys=[WEBHOOKS_KEY, ATTEMPTS_KEY], args=[LEASE_S])
        if answer is None:
            return None
        return Call(as_text(answer[0]), int(answer[1]), as_text(answer[2]))

    def finish(self, call: Call) -> None:
        """The call needs no further attempt."""
        self._give_back(call, "")

    def again(self, call: Call) -> bool:
        """Puts a failed call off to its next attempt; False when that was the last, and it goes."""
        if call.attempt >= ATTEMPTS:
            self.finish(call)
            return False
        # Calls that failed together, because their receiver was away, do not come back together.
        self._give_back(call, PAUSES_S[call.attempt - 1] * random.uniform(0.9, 1.1))
        return True

    def later(self, call: Call) -> None:
        """Gives a call back that was not tried; that is no attempt."""
        self._give_back(call, random.uniform(*LATER_S), attempts=-1)

    def _give_back(self, call: Call, seconds: float | str, *, attempts: int = 0) -> None:
        arguments = [call.job_id, call.lease, seconds, attempts]
        with queue_errors(self._connection):
            self._script(keys=[WEBHOOKS_KEY, ATTEMPTS_KEY], args=arguments)
