"""An owner's jobs, newest first, page by page.

A job that Redis has forgotten is taken out of the index when it is met here; one whose record
cannot be read is left out. A cursor names the last job of a page by its place in the index, so that
jobs which come or go in between neither repeat nor hide others.
"""

from __future__ import annotations

import base64
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from redis import Redis

from .connection import as_text, queue_errors
from .errors import BadCursor, JobNotFound, RecordUnreadable
from .job_store import JobStore, job_read, owner_key, read_command
from .schema import ANYONE, Job, JobState

logger = logging.getLogger(__name__)

BATCH = 100
# A page of rare jobs ends here rather than read through all of a long index at once.
MOST_READ = 1000
# An owner's jobs of one microsecond: far more than one Redis can create in it.
MOST_TIES = 100


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
    jobs: list[Job] = []
    for _ in range(0, MOST_READ, BATCH):
        places = _places(connection, owner, cursor)
        by_id = _read(connection, owner, places)
        for place in places:
            if len(jobs) == limit:
                return Page(jobs, cursor)
            cursor = place
            job = by_id.get(place.job_id)
            if job is not None and state in (None, job.state):
                jobs.append(job)
        if len(places) < BATCH:
            return Page(jobs, None)
    return Page(jobs, cursor)


def _places(connection: Redis, owner: str, cursor: Cursor | None) -> list[Cursor]:
    """The next BATCH places behind the cursor."""
    highest = "+inf" if cursor is None else f"{cursor.timestamp:.6f}"
    with queue_errors(connection):
        raw: Any = connection.zrevrangebyscore(
            owner_key(owner), highest, "-inf", 0, BATCH + MOST_TIES, withscores=True
        )
    places = [Cursor(round(float(score), 6), as_text(member)) for member, score in raw]
    return [place for place in places if cursor is None or place < cursor][:BATCH]


def _read(connection: Redis, owner: str, places: Sequence[Cursor]) -> dict[str, Job]:
    with queue_errors(connection), connection.pipeline(transaction=False) as pipe:
        untyped: Any = pipe
        for place in places:
            untyped.execute_command(*read_command(place.job_id))
        answers = pipe.execute()
    jobs: dict[str, Job] = {}
    missing: list[str] = []
    for job_id, answer in zip((place.job_id for place in places), answers, strict=True):
        try:
            job, is_due = job_read(job_id, answer)
            jobs[job_id] = JobStore(connection).expire(job_id) if is_due else job
        except JobNotFound:
            missing.append(job_id)
        except RecordUnreadable as error:
            _log_once(error.detail)
    if missing:
        with queue_errors(connection):
            connection.zrem(owner_key(owner), *missing)
    return jobs


@lru_cache(maxsize=1000)
def _log_once(fault: str) -> None:
    """A record is met with every page until its time is over."""
    logger.error("A job is left out of the list: %s", fault)
