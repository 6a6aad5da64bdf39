"""An owner's jobs, newest first, page by page, of one state or of all.

A page reads as many records as it may hold jobs, from the index of its owner and state. A job that
Redis has forgotten, or that is in another state, is taken out of the index when it is met here; one
whose record cannot be read is left out. A cursor names the last job of a page by its place in the
index, so that jobs which come or go in between neither repeat nor hide others.
"""

from __future__ import annotations

import base64
import heapq
import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from redis import Redis

from .connection import as_text, queue_errors
from .errors import BadCursor, JobNotFound, RecordUnreadable
from .job_store import JobStore, job_read, owner_key, read_command, record_key
from .schema import ANYONE, Job, JobState

logger = logging.getLogger(__name__)

# An owner's jobs of one microsecond: far more than one Redis can create in it.
MOST_TIES = 100
# The ids and times of a page. Where a job is missing in the indexes of the states, since another
# version made it or moved it, they are made anew first.
# KEYS: the owner's index, the page's, and those of all states.
# ARGV: highest time, how many, what a record's key begins with, then the states.
PLACES = """
local count = 0
for i = 3, #KEYS do count = count + redis.call('ZCARD', KEYS[i]) end
if count < redis.call('ZCARD', KEYS[1]) then
    local indexes = {}
    for i = 3, #KEYS do
        indexes[ARGV[i + 1]] = KEYS[i]
        redis.call('DEL', KEYS[i])
    end
    local all, life = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES'), redis.call('TTL', KEYS[1])
    for i = 1, #all, 2 do
        local index = indexes[redis.call('HGET', ARGV[3] .. all[i], 'state')]
        if index then
            redis.call('ZADD', index, all[i + 1], all[i])
        else
            redis.call('ZREM', KEYS[1], all[i])
        end
    end
    if life > 0 then
        for i = 3, #KEYS do redis.call('EXPIRE', KEYS[i], life) end
    end
end
return redis.call('ZREVRANGEBYSCORE', KEYS[2], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2])
"""


@dataclass(frozen=True, slots=True, order=True)
class Cursor:
    """The place of one job in the order: when it was created, in whole microseconds, then its id,
    as in Redis."""

    timestamp: float
    job_id: str

    def __str__(self) -> str:
        raw = f"{self.timestamp:.6f} {self.job_id}".encode()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def parse(cls, cursor_text: str) -> Self:
        """What `str` gave; raises BadCursor."""
        try:
            padding = "=" * (-len(cursor_text) % 4)
            raw = base64.b64decode(cursor_text + padding, altchars=b"-_", validate=True)
            timestamp, job_id = raw.decode("ascii").split(" ")
            if not math.isfinite(float(timestamp)):
                raise ValueError(f"{timestamp} is no moment")
            return cls(float(timestamp), job_id)
        except ValueError as error:
            raise BadCursor(
                f"cursor must be one that a page of jobs gave as `next`; got {cursor_text[:80]!r}."
            ) from error


@dataclass(frozen=True, slots=True)
class Page:
    """Some jobs, and where the next page begins; None after the last one."""

    jobs: Sequence[Job]
    next: Cursor | None


def read_page(
    connection: Redis,
    owner: str = ANYONE,
    *,
    limit: int,
    state: JobState | None = None,
    cursor: Cursor | None = None,
) -> Page:
    """At most `limit` jobs of the owner, of one state or all, older than the cursor's.

    May hold fewer, even none, although more follow: `next` tells. Raises QueueUnavailable.
    """
    highest = "+inf" if cursor is None else f"{cursor.timestamp:.6f}"
    most = limit + 1 + (0 if cursor is None else MOST_TIES)
    keys = [owner_key(owner), owner_key(owner, state), *(owner_key(owner, one) for one in JobState)]
    arguments = [highest, most, record_key(""), *JobState]
    with queue_errors(connection):
        flat: Any = connection.register_script(PLACES)(keys=keys, args=arguments)
    scores = zip(flat[::2], flat[1::2], strict=True)
    places = [Cursor(round(float(score), 6), as_text(member)) for member, score in scores]
    places = [place for place in places if cursor is None or place < cursor][: limit + 1]
    jobs = _read(connection, owner, state, [place.job_id for place in places[:limit]])
    return Page(jobs, places[limit - 1] if len(places) > limit else None)


def walk(
    connection: Redis, owners: Iterable[str], *, state: JobState | None = None, batch: int = 20
) -> Iterator[Job]:
    """The jobs of several owners, newest first, read page by page. Raises QueueUnavailable."""

    def jobs_of(owner: str) -> Iterator[Job]:
        cursor = None
        while True:
            page = read_page(connection, owner, limit=batch, state=state, cursor=cursor)
            yield from page.jobs
            if (cursor := page.next) is None:
                return

    return heapq.merge(*map(jobs_of, owners), key=lambda job: job.created_at, reverse=True)


def _read(
    connection: Redis, owner: str, state: JobState | None, job_ids: Sequence[str]
) -> list[Job]:
    with queue_errors(connection), connection.pipeline(transaction=False) as pipe:
        untyped: Any = pipe
        for job_id in job_ids:
            untyped.execute_command(*read_command(job_id))
        answers = pipe.execute()
    jobs: list[Job] = []
    with connection.pipeline(transaction=False) as pipe:
        for job_id, answer in zip(job_ids, answers, strict=True):
            try:
                job, is_due = job_read(job_id, answer)
            except JobNotFound:
                for one in (None, *JobState):
                    pipe.zrem(owner_key(owner, one), job_id)
                continue
            except RecordUnreadable as error:
                _log_once(error.detail)
                continue
            job = JobStore(connection).expire(job_id) if is_due else job
            if state in (None, job.state):
                jobs.append(job)
            else:
                pipe.zrem(owner_key(owner, state), job_id)
        with queue_errors(connection):
            pipe.execute()
    return jobs


@lru_cache(maxsize=1000)
def _log_once(fault: str) -> None:
    """A record is met with every page until its time is over."""
    logger.error("A job is left out of the list: %s", fault)
