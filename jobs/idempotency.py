"""The same request sent twice makes one job: an idempotency key leads to the job it made.

    stablesr:once:{owner}:{digest of the key}   {"request": fingerprint, "job": id, "done": bool}

The first request takes the key, stores its image, and marks the key as done in the transaction
that makes the job. A process that dies in between holds the key for LEASE_S.
"""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel
from redis import Redis

from .connection import queue_errors
from .errors import IdempotencyMismatch, IdempotencyPending
from .schema import Claim

# Longer than it takes to store an image that has arrived whole.
LEASE_S = 60
# How long a key leads to the job that it made.
TTL_S = 86_400
RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class _Entry(BaseModel):
    request: str
    job: str
    done: bool


class Idempotency:
    """Blocking, safe to share between threads. Every method raises QueueUnavailable."""

    def __init__(self, connection: Redis) -> None:
        self._connection = connection
        self._release = connection.register_script(RELEASE)

    def job_id(self, owner: str, key: str) -> str | None:
        """The job that the key leads to, or None before there is one."""
        entry = self._read(_redis_key(owner, key))
        return entry.job if entry is not None and entry.done else None

    def find(self, owner: str, key: str, fingerprint: str) -> str | None:
        """The id of the job that the key made, if there is any; raises as `take` does."""
        entry = self._read(_redis_key(owner, key))
        return None if entry is None else _job_of(entry, fingerprint)

    def take(self, owner: str, key: str, fingerprint: str, job_id: str) -> Claim | str:
        """A claim, for the submission's `Origin` or to be released, or the id of the job that the
        key made. Raises IdempotencyMismatch for another fingerprint, IdempotencyPending."""
        name = _redis_key(owner, key)
        lease, value = (
            _Entry(request=fingerprint, job=job_id, done=done).model_dump_json()
            for done in (False, True)
        )
        entry = None
        # An entry that is in the way and then gone ran out in this moment.
        while entry is None:
            with queue_errors(self._connection):
                if self._connection.set(name, lease, nx=True, ex=LEASE_S):
                    return Claim(name, lease, value, TTL_S)
            entry = self._read(name)
        return _job_of(entry, fingerprint)

    def release(self, claim: Claim) -> None:
        """Frees a key whose request made no job, for the next one."""
        with queue_errors(self._connection):
            self._release(keys=[claim.key], args=[claim.lease])

    def forget(self, owner: str, key: str) -> None:
        """Frees a key whose job is not known any more."""
        with queue_errors(self._connection):
            self._connection.delete(_redis_key(owner, key))

    def _read(self, name: str) -> _Entry | None:
        with queue_errors(self._connection):
            raw: Any = self._connection.get(name)
        return None if raw is None else _Entry.model_validate_json(raw)


def _job_of(entry: _Entry, fingerprint: str) -> str:
    """The entry's job, if it is done and of the same request."""
    if entry.request != fingerprint:
        raise IdempotencyMismatch(
            "The Idempotency-Key was used with another image or other parameters; "
            "a new request needs a new key."
        )
    if not entry.done:
        raise IdempotencyPending(
            "The first request with this Idempotency-Key is not answered yet; ask again.",
            retry_after=1,
        )
    return entry.job


def _redis_key(owner: str, key: str) -> str:
    return f"stablesr:once:{owner}:{hashlib.sha256(key.encode()).hexdigest()}"
