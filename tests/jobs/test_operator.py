"""The operator acts on the jobs of all clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from jobs.errors import JobNotFound, Problem
from jobs.job_store import JobStore, record_key
from jobs.keys import Keys
from jobs.operator import Operator
from jobs.queue import JobQueue
from jobs.schema import ImageInfo, JobState, Origin, new_job_id
from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from models.parameters import UpscaleParameters

PROBLEM = Problem(type="worker-lost", title="Lost", detail="The worker was lost.")


@pytest.fixture
def operator(settings: Settings) -> Iterator[Operator]:
    operator = Operator(settings)
    yield operator
    operator.close()


@pytest.fixture
def submitted(queue: JobQueue, image: ImageInfo, connection: Redis, store: BlobStore) -> list[str]:
    """Jobs of a key, without a key, of a revoked key and for another preset; the oldest first."""
    keys = Keys(connection)
    ada, bob = (keys.create(name)[0].id for name in ("Ada", "Bob"))
    ids = []
    for owner, preset in ((ada, "tiny"), ("", "tiny"), (bob, "tiny"), (ada, "stablesr-turbo")):
        store.put(input_key(job_id := new_job_id()), b"in")
        queue.submit(job_id, UpscaleParameters(preset=preset), image, Origin(owner=owner))
        ids.append(job_id)
    keys.revoke(bob)
    return ids


def test_jobs_of_all_clients_are_seen(operator: Operator, submitted: list[str]) -> None:
    first, second, third, fourth = submitted
    assert [job.id for job in operator.jobs()] == submitted[::-1]
    assert [job.id for job in operator.jobs(preset="tiny")] == [third, second, first]
    assert [job.id for job in operator.jobs(owner="")] == [second]
    owner = operator.get(first).owner
    assert [job.id for job in operator.jobs(owner=owner)] == [fourth, first]
    operator.cancel(first)
    assert [job.id for job in operator.jobs(JobState.CANCELED, owner=owner)] == [first]


def test_a_purged_job_leaves_nothing(
    operator: Operator,
    submitted: list[str],
    records: JobStore,
    connection: Redis,
    store: BlobStore,
) -> None:
    job_id = submitted[0]
    records.fail(job_id, PROBLEM)
    assert operator.purge(job_id).state is JobState.FAILED
    assert not store.exists(input_key(job_id))
    assert not connection.exists(record_key(job_id))
    for key in connection.scan_iter("stablesr:jobs:*"):
        assert connection.zscore(key, job_id) is None
    for act in (operator.get, operator.purge, operator.retry, operator.cancel):
        with pytest.raises(JobNotFound):
            act(job_id)


def test_a_job_of_a_client_is_retried(
    operator: Operator, submitted: list[str], records: JobStore
) -> None:
    records.fail(submitted[0], PROBLEM)
    assert operator.retry(submitted[0]).state is JobState.QUEUED
