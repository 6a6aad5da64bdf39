"""Whose job is next, against a real Redis: turns, low priority, pauses, deadlines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis

from jobs.connection import as_text
from jobs.errors import QuotaExceeded
from jobs.fair_queue import DEADLINES_KEY, dispatch, pause, resume
from jobs.job_store import JobStore, list_key, queue_key, record_key
from jobs.queue import JobQueue
from jobs.rq_adapter import TaskJob, open_queue
from jobs.schema import ImageInfo, JobState, Origin, Priority, new_job_id
from jobs.settings import Settings
from jobs.workers import Capacity, look_over
from models.parameters import UpscaleParameters
from tests.redis_server import RedisServer

from .conftest import failed, waiting_ids

Enter = Callable[..., str]


@pytest.fixture
def enter(queue: JobQueue, image: ImageInfo) -> Enter:
    """Submits a job of a client and returns its id."""

    def enter(
        owner: str = "", *, priority: Priority = "normal", expires_in: int | None = None
    ) -> str:
        origin = Origin(owner, priority=priority, expires_in=expires_in)
        return queue.submit(new_job_id(), UpscaleParameters(seed=1), image, origin).id

    return enter


def take(connection: Redis, records: JobStore) -> str | None:
    """What an idle slot would start."""
    dispatch(connection, "tiny")
    raw = connection.lpop(list_key("tiny"))
    if raw is None:
        return None
    dispatch(connection, "tiny")
    job_id = as_text(raw)
    records.start(job_id, "w")
    return job_id


def take_all(connection: Redis, records: JobStore) -> list[str]:
    order = []
    while job_id := take(connection, records):
        order.append(job_id)
    return order


def test_one_client_alone_is_served_in_order(
    enter: Enter, connection: Redis, records: JobStore
) -> None:
    ids = [enter("a") for _ in range(20)]
    assert waiting_ids(connection) == ids
    assert take_all(connection, records) == ids


def test_a_client_with_three_jobs_does_not_wait_for_anothers_hundred(
    enter: Enter, connection: Redis, records: JobStore
) -> None:
    many = [enter("many") for _ in range(100)]
    few = [enter("few") for _ in range(3)]
    order = take_all(connection, records)
    assert sorted(order) == sorted(many + few)
    assert max(order.index(job_id) for job_id in few) < 7
    assert [job_id for job_id in order if job_id in set(many)] == many


def test_clients_with_a_job_each_are_served_in_the_order_in_which_they_came(
    enter: Enter, connection: Redis, records: JobStore
) -> None:
    ids = [enter(f"client-{number}") for number in range(30)]
    assert take_all(connection, records) == ids


def test_the_place_told_is_the_place_in_which_a_job_starts(
    enter: Enter, queue: JobQueue, connection: Redis, records: JobStore
) -> None:
    ids = [enter(owner) for owner in "aaaaabbbcaab"]
    owners = dict(zip(ids, "aaaaabbbcaab", strict=True))
    places = {job_id: queue.get(job_id, owner).queue_position for job_id, owner in owners.items()}
    order = take_all(connection, records)
    assert [places[job_id] for job_id in order] == list(range(1, len(ids) + 1))


def test_newcomers_one_after_the_other_do_not_keep_a_client_from_its_turn(
    enter: Enter, connection: Redis, records: JobStore
) -> None:
    first, second = enter("a"), enter("a")
    order = []
    for number in range(10):
        enter(f"newcomer-{number}")
        order.append(take(connection, records))
    assert order.index(first) == 0
    assert order.index(second) <= 3


def test_a_client_that_has_canceled_all_its_jobs_begins_anew(
    enter: Enter, queue: JobQueue, connection: Redis, records: JobStore
) -> None:
    for job_id in [enter("a") for _ in range(50)]:
        queue.cancel(job_id, "a")
    others = [enter("b") for _ in range(10)]
    again = enter("a")
    assert take_all(connection, records).index(again) <= 2
    assert len(others) == 10


def test_turns_that_are_over_are_forgotten(
    enter: Enter, connection: Redis, records: JobStore
) -> None:
    for number in range(40):
        enter(f"client-{number % 20}")
    assert connection.zcard("stablesr:turns:tiny") > 20
    take_all(connection, records)
    enter("last")
    take_all(connection, records)
    assert connection.zcard("stablesr:turns:tiny") <= 2
    assert connection.ttl("stablesr:turns:tiny") > 0


def test_low_priority_waits_until_nothing_else_does(
    enter: Enter, connection: Redis, records: JobStore
) -> None:
    low = [enter("a", priority="low") for _ in range(3)]
    normal = [enter(owner) for owner in "bba"]
    # The first was next already, and nothing had started.
    assert waiting_ids(connection) == [*normal, *low]
    assert [take(connection, records) for _ in range(4)] == [*normal, low[0]]
    late = enter("b")
    assert take_all(connection, records) == [late, *low[1:]]


def test_clients_take_turns_in_low_priority_too(
    enter: Enter, connection: Redis, records: JobStore
) -> None:
    many = [enter("a", priority="low") for _ in range(10)]
    one = enter("b", priority="low")
    assert take_all(connection, records).index(one) <= 2
    assert len(many) == 10


def test_nothing_of_a_paused_preset_is_handed_out_until_it_goes_on(
    enter: Enter, queue: JobQueue, connection: Redis, records: JobStore
) -> None:
    running = enter("a")
    assert take(connection, records) == running
    pause(connection, "tiny")
    ids = [enter("a") for _ in range(3)]
    assert not dispatch(connection, "tiny")
    assert connection.llen(list_key("tiny")) == 0
    assert [queue.get(job_id, "a").queue_position for job_id in ids] == [1, 2, 3]
    assert (queue.capacity().paused, queue.capacity().lengths["tiny"]) == (frozenset({"tiny"}), 3)
    assert dispatch(connection, "stablesr-turbo")
    resume(connection, "tiny")
    assert connection.lrange(list_key("tiny"), 0, -1) == [ids[0].encode()]
    assert dispatch(connection, "tiny")
    assert take_all(connection, records) == ids


def test_jobs_that_the_version_before_left_in_rqs_list_go_first(
    enter: Enter, queue: JobQueue, connection: Redis, records: JobStore
) -> None:
    """They have neither a turn nor a priority."""
    old = [enter("a") for _ in range(5)]
    for job_id in old[1:]:
        connection.zrem(queue_key("tiny"), job_id)
        connection.rpush(list_key("tiny"), job_id)
        connection.hdel(record_key(job_id), "priority", "counted")
    connection.delete("stablesr:turns:tiny")
    new = [enter("b"), enter("a")]
    assert queue.get(new[1], "a").queue_position == 7
    assert queue.get(old[4], "a").queue_position == 5
    queue.cancel(old[2], "a")
    assert take_all(connection, records) == [*old[:2], *old[3:], *new]


def test_a_job_that_waits_is_canceled_wherever_it_is(
    enter: Enter, queue: JobQueue, connection: Redis
) -> None:
    ids = [enter("a") for _ in range(3)]
    for job_id in (ids[0], ids[2]):
        assert queue.cancel(job_id, "a").state is JobState.CANCELED
        assert not connection.exists(TaskJob.key_for(job_id))
    assert waiting_ids(connection) == [ids[1]]
    assert connection.llen(list_key("tiny")) == 0


def test_all_that_waits_counts(enter: Enter, queue: JobQueue, connection: Redis) -> None:
    ids = [enter(owner) for owner in "aaab"]
    assert queue.capacity().lengths["tiny"] == 4
    untyped: Any = connection
    assert Capacity.of(untyped.execute_command(*Capacity.command("a"))).waiting == 3
    oldest = look_over(connection).oldest_s
    assert oldest["tiny"] >= 0
    # The age of the next is read from RQ's list, and without one from the queue.
    connection.hset(record_key(ids[0]), "created_at", "1000")
    assert look_over(connection).oldest_s["tiny"] > 1e6
    connection.lpop(list_key("tiny"))
    assert look_over(connection).oldest_s["tiny"] < 1e6


def test_a_quota_is_of_one_client(queue: JobQueue, image: ImageInfo) -> None:
    one, other = Origin("a", max_queued=2), Origin("b", max_queued=2)
    for origin in (one, one, other):
        queue.submit(new_job_id(), UpscaleParameters(), image, origin)
    with pytest.raises(QuotaExceeded):
        queue.submit(new_job_id(), UpscaleParameters(), image, one)


def test_a_waiting_job_fails_at_its_deadline_and_takes_no_place(
    enter: Enter, queue: JobQueue, connection: Redis, records: JobStore
) -> None:
    ahead, brief, behind = enter("a"), enter("a", expires_in=60), enter("a")
    job = queue.get(brief, "a")
    assert job.deadline is not None
    assert (job.deadline - job.created_at).total_seconds() == 60
    queue.fail_overdue()
    assert queue.get(brief, "a").state is JobState.QUEUED
    connection.zadd(DEADLINES_KEY, {brief: 0}, xx=True)
    queue.fail_overdue()
    error = failed(queue.get(brief, "a"))
    assert (error.type, "60 seconds" in error.detail) == ("queue-timed-out", True)
    assert waiting_ids(connection) == [ahead, behind]
    assert not connection.exists(TaskJob.key_for(brief), DEADLINES_KEY)


def test_a_deadline_of_a_job_that_ended_or_runs_fails_nothing(
    enter: Enter, queue: JobQueue, connection: Redis, records: JobStore
) -> None:
    ended, runs, gone = (enter("a", expires_in=60) for _ in range(3))
    queue.cancel(ended, "a")
    records.start(runs, "w")
    connection.delete(record_key(gone))
    connection.zadd(DEADLINES_KEY, dict.fromkeys((ended, runs, gone), 0))
    queue.fail_overdue()
    assert queue.get(ended, "a").state is JobState.CANCELED
    assert queue.get(runs, "a").state is JobState.PROCESSING
    # It would wait again if its worker were lost.
    assert connection.zrange(DEADLINES_KEY, 0, -1) == [runs.encode()]
    assert connection.zcount(DEADLINES_KEY, "-inf", 1000) == 0
    records.requeue(runs)
    connection.zadd(DEADLINES_KEY, {runs: 0})
    queue.fail_overdue()
    assert failed(queue.get(runs, "a")).type == "queue-timed-out"


def test_of_many_that_take_and_enter_at_once_each_job_is_taken_once(
    settings: Settings, image: ImageInfo, server: RedisServer
) -> None:
    """Slots as RQ has them, which block, and clients; with a pause in between."""
    total, taken, done = 120, list[str](), threading.Event()

    def slot() -> None:
        with server.connect() as connection:
            while not done.is_set():
                if not dispatch(connection, "tiny"):
                    continue
                raw = connection.blpop([list_key("tiny")], 1)
                if raw:
                    dispatch(connection, "tiny")
                    taken.append(as_text(raw[1]))
                    if len(taken) == total:
                        done.set()

    queue = JobQueue(settings)

    def client(number: int) -> str:
        priority: Priority = "low" if number % 5 == 0 else "normal"
        origin = Origin(f"client-{number % 7}", priority=priority)
        return queue.submit(new_job_id(), UpscaleParameters(), image, origin).id

    slots = [threading.Thread(target=slot) for _ in range(4)]
    for thread in slots:
        thread.start()
    with ThreadPoolExecutor(8) as pool, server.connect() as connection:
        submissions = [pool.submit(client, number) for number in range(total)]
        pause(connection, "tiny")
        resume(connection, "tiny")
        ids = [submission.result() for submission in submissions]
        assert done.wait(30)
        assert waiting_ids(connection) == []
    for thread in slots:
        thread.join()
    queue.close()
    assert sorted(taken) == sorted(ids)


def test_work_for_redis_does_not_grow_with_the_queue(
    settings: Settings, image: ImageInfo, connection: Redis
) -> None:
    """By Redis' own clock, which counts its own time only."""
    queue = JobQueue(settings.model_copy(update={"max_queued": 100_000}))

    def microseconds(count: int = 50) -> float:
        connection.config_resetstat()
        for number in range(count):
            origin = Origin(f"client-{number % 3}")
            job = queue.submit(new_job_id(), UpscaleParameters(), image, origin)
            queue.get(job.id, job.owner)
        stats: Any = connection.info("commandstats")
        return float(sum(each["usec"] for each in stats.values())) / count

    microseconds()
    empty = min(microseconds() for _ in range(3))
    # As many more wait, of clients of their own.
    waiting = {new_job_id(): float(2 + number // 100) for number in range(20_000)}
    connection.zadd(queue_key("tiny"), waiting)
    turns = {f"normal other-{number}": float(2 + number) for number in range(200)}
    connection.zadd("stablesr:turns:tiny", turns)
    full = min(microseconds() for _ in range(3))
    print("redis us per POST+GET: empty", empty, "full", full)
    assert full < 2 * empty
    assert open_queue("tiny", connection).key == list_key("tiny")
    queue.close()
