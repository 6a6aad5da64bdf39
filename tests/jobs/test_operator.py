"""The operator acts on all clients' jobs: a failed one runs again once, images go when told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from jobs.errors import BlobNotFound, JobNotFound, Problem, WrongState
from jobs.job_store import AGENDA_KEY, QUEUE_KEYS, WEBHOOKS_KEY, JobStore, record_key
from jobs.keys import Keys
from jobs.maintenance import sweep
from jobs.operator import MARGIN_S, Operator
from jobs.outbox import ATTEMPTS_KEY, Outbox
from jobs.queue import JobQueue
from jobs.rq_adapter import SERIALIZER, TaskJob, open_queue, runs
from jobs.schema import ImageInfo, Job, JobState, Origin, ResultInfo, Timings, new_job_id
from jobs.settings import Settings
from jobs.store import BlobStore, input_key, result_key
from models.parameters import UpscaleParameters
from tests.redis_server import RedisServer

from .conftest import Submit

PROBLEM = Problem(type="store-unavailable", title="Away", detail="The store was away.")
Retry = Callable[[str], Job]


@pytest.fixture
def run_again(connection: Redis, settings: Settings) -> Retry:
    return Operator(settings, connection).retry


@pytest.fixture
def failed_job(
    submit: Submit, records: JobStore, connection: Redis, store: BlobStore
) -> Callable[[], str]:
    """A job that a worker took from the queue and failed, in the record and in RQ."""

    def fail() -> str:
        store.put(input_key(job_id := submit()), b"in")
        queue = open_queue("tiny", connection)
        queue.remove(job_id)
        records.start(job_id, "w1")
        records.cancel(job_id)
        records.fail(job_id, PROBLEM, worker="w1")
        connection.hset(TaskJob.key_for(job_id), mapping={"status": "failed", "retries_left": 0})
        connection.zadd(queue.failed_job_registry.key, {job_id: 2e9})
        return job_id

    return fail


def waiting(connection: Redis) -> list[bytes]:
    """The ids in all queues, however those keep them."""
    ids: list[bytes] = []
    for key in QUEUE_KEYS:
        read: Any = connection.zrange if connection.type(key) == b"zset" else connection.lrange
        ids += read(key, 0, -1)
    return ids


def test_a_failed_job_runs_again_as_if_new(
    failed_job: Callable[[], str],
    run_again: Retry,
    connection: Redis,
    queue: JobQueue,
    records: JobStore,
    result: ResultInfo,
) -> None:
    job_id = failed_job()
    before = queue.get(job_id)
    job = run_again(job_id)
    assert (job.state, job.attempt, job.cancel_requested) == (JobState.QUEUED, 0, False)
    assert (job.error, job.ended_at, job.started_at, job.worker) == (None, None, None, None)
    assert (job.created_at, job.parameters, job.input) == (
        before.created_at,
        before.parameters,
        before.input,
    )
    assert queue.get(job_id).queue_position == 1
    assert waiting(connection) == [job_id.encode()]
    rq_job = TaskJob.fetch(job_id, connection, SERIALIZER)
    assert (rq_job.get_status(), rq_job.retries_left) == ("queued", 2)
    assert open_queue("tiny", connection).failed_job_registry.get_job_count(cleanup=False) == 0
    assert records.start(job_id, "w2").attempt == 1
    assert records.succeed(job_id, result, Timings(), worker="w2").state is JobState.SUCCEEDED


def test_of_many_operators_at_once_one_queues_the_job(
    failed_job: Callable[[], str],
    connection: Redis,
    store: BlobStore,
    settings: Settings,
    server: RedisServer,
) -> None:
    operators = 4
    gate = threading.Barrier(operators, timeout=10)

    def press(job_id: str) -> bool:
        with server.connect() as mine:
            mine.ping()
            gate.wait()
            try:
                return Operator(settings, mine).retry(job_id).state is JobState.QUEUED
            except WrongState:
                return False

    ids = []
    with ThreadPoolExecutor(operators) as pool:
        for _ in range(20):
            ids.append(failed_job())
            assert sorted(pool.map(press, [ids[-1]] * operators)) == [False] * 3 + [True]
    assert waiting(connection) == [job_id.encode() for job_id in ids]


def test_of_a_retry_and_a_removal_at_once_only_one_happens(
    failed_job: Callable[[], str],
    connection: Redis,
    store: BlobStore,
    settings: Settings,
    server: RedisServer,
) -> None:
    """A job never waits without its image."""
    gate = threading.Barrier(2, timeout=10)

    def act(action: Callable[[Redis], Job]) -> bool:
        with server.connect() as mine:
            mine.ping()
            gate.wait()
            try:
                action(mine)
            except (BlobNotFound, WrongState):
                return False
            return True

    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            job_id = failed_job()
            outcomes = list(
                pool.map(
                    act,
                    (
                        lambda mine, job_id=job_id: Operator(settings, mine).retry(job_id),
                        lambda mine, job_id=job_id: JobQueue(settings, mine).purge(store, job_id),
                    ),
                )
            )
            assert sorted(outcomes) == [False, True]
            is_queued = JobStore(connection).get(job_id).state is JobState.QUEUED
            assert is_queued is outcomes[0] is store.exists(input_key(job_id))
            assert (job_id.encode() in waiting(connection)) is is_queued


def test_only_a_failed_job_runs_again(
    submit: Submit, run_again: Retry, records: JobStore, connection: Redis
) -> None:
    job_id = submit()
    with pytest.raises(WrongState, match="is queued; only a failed one"):
        run_again(job_id)
    records.cancel(job_id)
    with pytest.raises(WrongState, match="is canceled; only a failed one"):
        run_again(job_id)
    with pytest.raises(JobNotFound):
        run_again("unknown")
    assert len(waiting(connection)) == 1


@pytest.mark.parametrize("why", ["gone", "due", "about to be due", "purged", "swept"])
def test_a_job_whose_image_is_gone_or_about_to_be_is_not_queued(
    why: str,
    failed_job: Callable[[], str],
    run_again: Retry,
    queue: JobQueue,
    connection: Redis,
    store: BlobStore,
    records: JobStore,
) -> None:
    job_id = failed_job()
    now = records.now().timestamp()
    if why == "gone":
        store.delete(input_key(job_id))
    elif why == "purged":
        queue.purge(store, job_id)
    else:
        soon = {"due": 0, "about to be due": MARGIN_S - 5, "swept": 0}[why]
        connection.zadd(AGENDA_KEY, {job_id: now + soon})
    if why == "swept":
        assert sweep(connection, store)["removals"] == 1
    with pytest.raises(BlobNotFound, match=f"{job_id} is gone from {store.place}, or about to be"):
        run_again(job_id)
    assert records.get(job_id).state is JobState.FAILED
    assert waiting(connection) == []


def test_a_job_that_its_worker_still_has_is_not_queued(
    failed_job: Callable[[], str], run_again: Retry, connection: Redis
) -> None:
    """The record fails first; what the worker then tells RQ would undo the retry."""
    job_id = failed_job()
    key = runs(open_queue("tiny", connection), job_id)
    connection.zadd(key, {"execution": 2e9})
    with pytest.raises(WrongState, match="its worker still has it"):
        run_again(job_id)
    connection.zrem(key, "execution")
    assert run_again(job_id).state is JobState.QUEUED


def test_a_retried_jobs_new_end_is_told_and_the_old_ones_calls_end(
    queue: JobQueue,
    image: ImageInfo,
    records: JobStore,
    run_again: Retry,
    store: BlobStore,
    connection: Redis,
) -> None:
    origin = Origin(webhook_url="https://example.org/")
    job_id = queue.submit(new_job_id(), UpscaleParameters(), image, origin).id
    store.put(input_key(job_id), b"in")
    outbox = Outbox(connection)
    for _ in range(2):
        records.fail(job_id, PROBLEM)
        call = outbox.take()
        assert call is not None
        assert (call.job_id, call.attempt) == (job_id, 1)
        assert outbox.again(call)
        run_again(job_id)
        assert not connection.exists(WEBHOOKS_KEY, ATTEMPTS_KEY)


def test_a_late_word_of_the_old_ends_call_does_not_stop_the_new_ones(
    queue: JobQueue,
    image: ImageInfo,
    records: JobStore,
    run_again: Retry,
    store: BlobStore,
    connection: Redis,
) -> None:
    origin = Origin(webhook_url="https://example.org/")
    job_id = queue.submit(new_job_id(), UpscaleParameters(), image, origin).id
    store.put(input_key(job_id), b"in")
    outbox = Outbox(connection)
    records.fail(job_id, PROBLEM)
    late = outbox.take()
    assert late is not None
    run_again(job_id)
    records.fail(job_id, PROBLEM)
    outbox.finish(late)
    call = outbox.take()
    assert call is not None
    assert (call.job_id, call.attempt) == (job_id, 1)


def test_a_purged_jobs_images_are_gone_and_the_sweep_looks_once_more(
    submit: Submit,
    queue: JobQueue,
    records: JobStore,
    store: BlobStore,
    connection: Redis,
    result: ResultInfo,
) -> None:
    job_id = submit()
    store.put(input_key(job_id), b"in")
    with pytest.raises(WrongState, match="purge can happen only"):
        queue.purge(store, job_id)
    records.start(job_id, "w1")
    store.put(result_key(job_id), b"out")
    records.succeed(job_id, result, Timings())
    assert queue.purge(store, job_id).state is JobState.EXPIRED
    assert not store.exists(input_key(job_id))
    assert not store.exists(result_key(job_id))
    # Where this store was not the service's, these are still in its.
    store.put(input_key(job_id), b"in")
    assert sweep(connection, store)["removals"] == 1
    assert not store.exists(input_key(job_id))
    assert connection.exists(record_key(job_id))


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
