"""A page reads what it holds, whatever else there is, and of records of other versions too."""

from __future__ import annotations

from itertools import islice

import pytest
from redis import Redis

from jobs.errors import Problem
from jobs.job_store import JobStore, owner_key, record_key
from jobs.listing import read_page, walk
from jobs.queue import JobQueue
from jobs.schema import ImageInfo, JobState, Origin, new_job_id
from models.parameters import UpscaleParameters

from .conftest import Submit

PROBLEM = Problem(type="worker-lost", title="Lost", detail="The worker was lost.")


def record_reads(connection: Redis) -> int:
    """How often a whole record was read, ever; what transitions answer counts as well."""
    return int(connection.info("commandstats").get("cmdstat_hgetall", {"calls": 0})["calls"])


def ids(connection: Redis, state: JobState | None = None, *, limit: int = 100) -> list[str]:
    return [job.id for job in read_page(connection, limit=limit, state=state).jobs]


@pytest.mark.parametrize("state", [None, JobState.QUEUED, JobState.FAILED, JobState.EXPIRED])
def test_a_page_reads_no_more_records_than_it_may_hold(
    state: JobState | None, connection: Redis, submit: Submit, records: JobStore
) -> None:
    first = submit()
    for _ in range(250):
        submit()
    records.fail(first, PROBLEM)
    ids(connection)
    before = record_reads(connection)
    held = ids(connection, state, limit=2)
    assert record_reads(connection) - before == len(held)
    assert len(held) == {None: 2, JobState.QUEUED: 2, JobState.FAILED: 1}.get(state, 0)


def test_jobs_that_another_version_made_or_moved_are_listed_by_their_state(
    connection: Redis, submit: Submit, records: JobStore
) -> None:
    first, second, third = (submit() for _ in range(3))
    records.fail(second, PROBLEM)
    records.start(third, "w")
    for state in JobState:
        connection.delete(owner_key("", state))
    assert ids(connection, JobState.FAILED) == [second]
    assert ids(connection, JobState.PROCESSING) == [third]
    assert connection.ttl(owner_key("", JobState.QUEUED)) > 86_400
    # Moved without a word to the index.
    connection.hset(record_key(first), "state", "canceled")
    assert ids(connection, JobState.QUEUED) == []
    assert ids(connection, JobState.CANCELED) == [first]


def test_a_record_of_no_state_leaves_the_indexes(connection: Redis, submit: Submit) -> None:
    stays, odd = submit(), submit()
    connection.zrem(owner_key("", JobState.QUEUED), odd)
    connection.hset(record_key(odd), "state", "paused")
    assert ids(connection, JobState.QUEUED) == [stays]
    assert connection.zrange(owner_key(""), 0, -1) == [stays.encode()]


def test_pages_of_one_state_follow_each_other_while_jobs_leave_it(
    connection: Redis, submit: Submit, records: JobStore
) -> None:
    submitted = [submit() for _ in range(7)]
    page = read_page(connection, limit=3, state=JobState.QUEUED)
    listed = [job.id for job in page.jobs]
    for job_id in submitted[-4:]:
        records.cancel(job_id)
    while page.next is not None:
        page = read_page(connection, limit=3, state=JobState.QUEUED, cursor=page.next)
        listed += [job.id for job in page.jobs]
    assert listed == [*submitted[:-4:-1], *submitted[2::-1]]


def test_the_jobs_of_several_owners_come_newest_first(
    connection: Redis, queue: JobQueue, image: ImageInfo
) -> None:
    owners = ["", "a", "b", "a", "", "b", "a"]
    submitted = [
        queue.submit(new_job_id(), UpscaleParameters(), image, Origin(owner=owner)).id
        for owner in owners
    ]
    newest = submitted[::-1]
    assert [job.id for job in walk(connection, {*owners}, batch=2)] == newest
    assert [job.id for job in islice(walk(connection, {*owners}, batch=2), 4)] == newest[:4]
