"""A sweep ends what nobody else ends, and removes what nobody needs."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from jobs.errors import QueueUnavailable, RecordUnreadable, StoreUnavailable
from jobs.job_store import AGENDA_KEY, JobStore, list_key, queue_key, record_key
from jobs.maintenance import WALK_KEY, Maintenance, SweepMetrics, sweep
from jobs.queue import JobQueue
from jobs.remote_store import NO_ANSWER
from jobs.rq_adapter import TaskJob, open_queue, withdraw
from jobs.schema import JobState, Origin, ResultInfo, Timings, new_job_id
from jobs.store import BlobStore, input_key, result_key

from .conftest import Submit, failed, waiting_ids


def due(connection: Redis, job_id: str) -> None:
    """The job's time on the agenda comes now."""
    connection.zadd(AGENDA_KEY, {job_id: 0}, xx=True)


def age(store: BlobStore, *keys: str) -> None:
    """The blobs were written more than a day ago."""
    for key in keys:
        os.utime(Path(store.place) / key, (time.time() - 86_500, time.time() - 86_500))


def finish(records: JobStore, store: BlobStore, job_id: str, result: ResultInfo) -> None:
    store.put(input_key(job_id), b"in")
    records.start(job_id, "w1")
    store.put(result_key(job_id), b"out")
    records.succeed(job_id, result, Timings())


def test_nothing_is_done_before_its_time(
    connection: Redis, store: BlobStore, submit: Submit, records: JobStore, result: ResultInfo
) -> None:
    finish(records, store, job_id := submit(), result)
    submit()
    assert sweep(connection, store) == Counter()
    assert store.get(result_key(job_id)) == b"out"


def test_an_expired_result_is_removed_and_still_known_as_expired(
    connection: Redis,
    store: BlobStore,
    submit: Submit,
    queue: JobQueue,
    records: JobStore,
    result: ResultInfo,
) -> None:
    finish(records, store, job_id := submit(), result)
    connection.hset(record_key(job_id), "keep_s", 0)
    due(connection, job_id)
    assert sweep(connection, store) == Counter(removals=1)
    assert not store.exists(input_key(job_id))
    assert not store.exists(result_key(job_id))
    assert queue.get(job_id).state is JobState.EXPIRED
    assert connection.zcard(AGENDA_KEY) == 0
    assert sweep(connection, store) == Counter()


def test_a_canceled_jobs_image_goes_with_the_next_sweep(
    connection: Redis, store: BlobStore, submit: Submit, queue: JobQueue
) -> None:
    store.put(input_key(job_id := submit()), b"in")
    queue.cancel(job_id)
    assert sweep(connection, store)["removals"] == 1
    assert not store.exists(input_key(job_id))
    assert queue.get(job_id).state is JobState.CANCELED


def test_a_job_whose_record_redis_has_evicted_is_counted_and_leaves_nothing(
    connection: Redis, store: BlobStore, submit: Submit
) -> None:
    store.put(input_key(job_id := submit()), b"in")
    connection.delete(record_key(job_id))
    due(connection, job_id)
    assert sweep(connection, store) == Counter(forgotten=1)
    assert not store.exists(input_key(job_id))
    assert connection.llen("rq:queue:stablesr:tiny") == 0
    assert connection.zcard(AGENDA_KEY) == 0


def test_an_image_that_was_stored_for_a_job_that_never_came_is_removed(
    connection: Redis, store: BlobStore, queue: JobQueue
) -> None:
    job_id = new_job_id()
    queue.announce(job_id)
    store.put(input_key(job_id), b"in")
    assert sweep(connection, store) == Counter()
    assert store.exists(input_key(job_id))
    due(connection, job_id)
    assert sweep(connection, store)["removals"] == 1
    assert not store.exists(input_key(job_id))


def test_the_image_of_a_submission_that_was_taken_back_is_removed_although_its_service_died(
    connection: Redis, store: BlobStore, submit: Submit, records: JobStore
) -> None:
    store.put(input_key(job_id := submit()), b"in")
    assert withdraw(open_queue("tiny", connection), job_id)
    records.forget(job_id, Origin())
    assert sweep(connection, store) == Counter(removals=1)
    assert not store.exists(input_key(job_id))
    assert connection.zcard(AGENDA_KEY) == 0


def test_a_waiting_or_running_job_is_left_alone(
    connection: Redis, store: BlobStore, submit: Submit, queue: JobQueue, records: JobStore
) -> None:
    waiting, running = submit(), submit()
    records.start(running, "w1")
    for job_id in (waiting, running):
        due(connection, job_id)
    assert sweep(connection, store) == Counter()
    assert queue.get(waiting).state is JobState.QUEUED
    assert queue.get(running).state is JobState.PROCESSING
    assert connection.zcount(AGENDA_KEY, "-inf", 1000) == 0


def test_jobs_that_are_in_no_queue_any_more_are_given_back_to_it(
    connection: Redis, store: BlobStore, submit: Submit, queue: JobQueue, records: JobStore
) -> None:
    """So a Redis leaves them that takes over and has not heard of the last moves."""
    queued, running, other = submit(), submit(), submit()
    records.start(running, "w1")
    connection.delete(list_key("tiny"))
    connection.zrem(queue_key("tiny"), queued, running)
    for job_id in (queued, running, other):
        due(connection, job_id)
    assert sweep(connection, store) == Counter(restored=2)
    assert sorted(waiting_ids(connection)[:2]) == sorted((queued, running))
    assert waiting_ids(connection)[2:] == [other]
    assert queue.get(running).state is JobState.QUEUED
    for job_id in (queued, running, other):
        due(connection, job_id)
    assert sweep(connection, store) == Counter()


def test_a_job_that_no_worker_took_in_its_time_fails(
    connection: Redis, store: BlobStore, submit: Submit, queue: JobQueue
) -> None:
    job_id = submit()
    connection.delete(TaskJob.key_for(job_id))  # what its time to live does
    due(connection, job_id)
    assert sweep(connection, store) == Counter(failures=1)
    error = failed(queue.get(job_id))
    assert error.type == "queue-timed-out"
    assert "tiny" in error.detail


@pytest.mark.parametrize("status", ["failed", "stopped", "canceled", "finished"])
def test_a_job_that_rq_gave_up_fails_instead_of_waiting_for_ever(
    status: str, connection: Redis, store: BlobStore, submit: Submit, queue: JobQueue
) -> None:
    job_id = submit()
    connection.hset(TaskJob.key_for(job_id), "status", status)
    due(connection, job_id)
    assert sweep(connection, store) == Counter(failures=1)
    assert failed(queue.get(job_id)).type == "worker-lost"


def test_two_sweeps_at_once_are_one(connection: Redis, store: BlobStore, submit: Submit) -> None:
    due(connection, submit())
    connection.set("stablesr:sweeping", 1, ex=30)
    assert sweep(connection, store) == Counter()
    assert connection.zcount(AGENDA_KEY, "-inf", 0) == 1


def test_a_blob_that_cannot_be_removed_is_put_off_and_keeps_no_other_from_its_turn(
    connection: Redis, store: BlobStore, submit: Submit, queue: JobQueue
) -> None:
    stuck, other = submit(), submit()
    (Path(store.place) / result_key(stuck) / "in the way").mkdir(parents=True)
    store.put(input_key(other), b"in")
    for job_id in (stuck, other):
        queue.cancel(job_id)
    assert sweep(connection, store) == Counter(removals=1, put_off=1)
    assert not store.exists(input_key(other))
    assert connection.zrange(AGENDA_KEY, 0, -1) == [stuck.encode()]
    assert sweep(connection, store) == Counter()
    shutil.rmtree(Path(store.place) / "results")
    due(connection, stuck)
    assert sweep(connection, store) == Counter(removals=1)


def test_jobs_that_are_put_off_are_counted(
    connection: Redis, store: BlobStore, submit: Submit, queue: JobQueue
) -> None:
    stuck = submit()
    (Path(store.place) / result_key(stuck) / "in the way").mkdir(parents=True)
    queue.cancel(stuck)
    registry = CollectorRegistry()
    maintenance = Maintenance(connection, store, SweepMetrics(registry))
    for _ in range(2):
        maintenance.run()
    assert registry.get_sample_value("stablesr_sweep_put_off_total") == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("parameters", '{"preset": "gone"}'), ("parameters", '{"later": 1}'), ("created_at", "now")],
)
def test_a_record_that_cannot_be_read_keeps_no_other_from_its_turn(
    field: str, value: str, connection: Redis, store: BlobStore, submit: Submit, queue: JobQueue
) -> None:
    odd, other = submit(), submit()
    connection.hset(record_key(odd), field, value)
    connection.delete(TaskJob.key_for(odd))
    connection.zadd(AGENDA_KEY, {odd: 1, other: 2})
    queue.cancel(other)
    assert sweep(connection, store) == Counter(removals=1, put_off=1)
    with pytest.raises(RecordUnreadable, match=odd):
        queue.get(odd)
    # Redis forgets the record in the end, and the next look removes what is left of the job.
    connection.delete(record_key(odd))
    due(connection, odd)
    assert sweep(connection, store) == Counter(forgotten=1)


def test_a_sweep_ends_with_redis(
    connection: Redis, store: BlobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    due(connection, submit())

    def lost(*_: object, **__: object) -> None:
        raise RedisConnectionError("gone")

    monkeypatch.setattr(connection, "hget", lost)
    monkeypatch.setattr(connection, "zadd", lost)
    with pytest.raises(QueueUnavailable):
        sweep(connection, store)


def test_what_a_killed_process_had_written_of_a_blob_is_removed_after_a_while(
    connection: Redis, store: BlobStore
) -> None:
    """A blob that is being written, and those that are whole, stay."""
    root = Path(store.place)
    store.put(input_key("whole"), b"in")
    left = [root / "inputs" / "dead#1", root / "results" / "dead#12"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")
        os.utime(path, (time.time() - 901, time.time() - 901))
    os.utime(root / "inputs" / "whole", (time.time() - 901, time.time() - 901))

    def pieces() -> Iterator[bytes]:
        yield b"o"
        assert (root / "inputs" / "now#1").exists()
        # This runs within obstore, which cannot be called from there.
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(sweep, connection, store).result() == Counter(leftovers=2)
        yield b"k"

    store.put(input_key("now"), pieces())
    assert store.get(input_key("now")) == b"ok"
    assert store.get(input_key("whole")) == b"in"
    assert not any(path.exists() for path in left)


def test_images_that_redis_has_lost_are_removed_after_a_day(
    connection: Redis, store: BlobStore, submit: Submit, records: JobStore, result: ResultInfo
) -> None:
    known, fresh, lost, done = submit(), *(new_job_id() for _ in range(3))
    announced = new_job_id()
    connection.zadd(AGENDA_KEY, {announced: time.time() + 900})
    finish(records, store, known, result)
    old = [input_key(known), result_key(known), input_key(announced)]
    old += [input_key(lost), result_key(done), input_key("try-1234")]
    for key in (*old, input_key(fresh)):
        store.put(key, b"x")
    age(store, *old)
    foreign = Path(store.place) / "inputs" / "of another.version"
    foreign.write_bytes(b"x")
    age(store, "inputs/of another.version")
    assert sweep(connection, store) == Counter(strays=2, forgotten=1)
    gone = [input_key(lost), result_key(done), input_key("try-1234")]
    assert [key for key in old if not store.exists(key)] == gone
    assert store.exists(input_key(fresh))
    assert foreign.exists()


def test_the_store_is_gone_through_page_by_page_and_then_rests(
    connection: Redis, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.store.PAGE", 2)
    keys = [input_key(new_job_id()) for _ in range(5)]
    for key in keys:
        store.put(key, b"x")
    age(store, *keys)
    swept = [sweep(connection, store)["forgotten"] for _ in range(3)]
    assert swept == [2, 2, 1]
    store.put(keys[0], b"x")
    age(store, keys[0])
    assert sweep(connection, store) == Counter()
    assert 0 < connection.ttl(WALK_KEY) <= 3600
    connection.delete(WALK_KEY)
    assert sweep(connection, store)["forgotten"] == 1


def test_jobs_that_redis_has_lost_are_counted(connection: Redis, store: BlobStore) -> None:
    store.put(key := input_key(new_job_id()), b"x")
    age(store, key)
    registry = CollectorRegistry()
    Maintenance(connection, store, SweepMetrics(registry)).run()
    assert registry.get_sample_value("stablesr_sweep_forgotten_total") == 1


def test_a_job_that_has_ended_does_not_wait_behind_those_that_wait(
    connection: Redis,
    store: BlobStore,
    submit: Submit,
    queue: JobQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many they are, and although their time came before."""
    monkeypatch.setattr("jobs.maintenance._BATCH", 5)
    waiting = [submit() for _ in range(12)]
    store.put(input_key(job_id := submit()), b"in")
    connection.zadd(AGENDA_KEY, dict.fromkeys(waiting, 1.0))
    queue.cancel(job_id)
    assert sweep(connection, store) == Counter(removals=1)
    assert connection.zcount(AGENDA_KEY, "-inf", time.time() + 30) == 0


def test_a_silent_store_puts_no_job_off(
    connection: Redis,
    store: BlobStore,
    submit: Submit,
    queue: JobQueue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def silent(*_: object) -> None:
        raise StoreUnavailable("It is silent.", clause=NO_ANSWER)

    queue.cancel(job_id := submit())
    with monkeypatch.context() as patch:
        patch.setattr(store, "delete", silent)
        assert sweep(connection, store) == Counter()
    assert connection.zcount(AGENDA_KEY, "-inf", time.time() + 70) == 1
    due(connection, job_id)
    assert sweep(connection, store) == Counter(removals=1)
