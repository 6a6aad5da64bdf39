"""Which job a slot of a real worker process takes, and how soon."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from jobs.fair_queue import pause, resume
from jobs.job_store import list_key, queue_key
from jobs.schema import JobState, Origin
from tests.redis_server import RedisServer
from tests.worker.processes import House, wait_for

# Seconds that an idle slot waits by itself: what comes sooner was woken.
IDLE_S = 4
SOON_S = 2.5


@pytest.fixture
def connection(redis_url: str) -> Iterator[Redis]:
    with Redis.from_url(redis_url) as connection:
        yield connection


def running(house: House, ids: Sequence[str]) -> int:
    return sum(house.job(job_id).state is JobState.PROCESSING for job_id in ids)


def have_begun(house: House, ids: Sequence[str], count: int) -> bool:
    return sum(house.job(job_id).attempt > 0 for job_id in ids) >= count


def in_order_of_their_ends(house: House, ids: Sequence[str]) -> list[str]:
    ends = {job_id: house.ended(job_id, seconds=120).ended_at for job_id in ids}
    assert all(house.job(job_id).state is JobState.SUCCEEDED for job_id in ids)
    return sorted(ids, key=lambda job_id: str(ends[job_id]))


def test_three_jobs_of_one_client_end_among_the_first_of_anothers_hundred(house: House) -> None:
    many = [house.submit(steps=1, origin=Origin(client="many")) for _ in range(100)]
    few = [house.submit(steps=1, origin=Origin(client="few")) for _ in range(3)]
    with house.worker(slots=1):
        order = in_order_of_their_ends(house, many + few)
    assert max(order.index(job_id) for job_id in few) < 7
    assert [job_id for job_id in order if job_id not in few] == many


def test_idle_slots_are_woken_by_a_burst(house: House) -> None:
    with house.worker(slots=4, step_s=1.0, idle_s=IDLE_S):
        house.ready()
        # So long that each slot waits.
        time.sleep(0.5)
        ids = [house.submit() for _ in range(4)]
        wait_for(lambda: running(house, ids) == 4, "every slot runs a job", seconds=SOON_S)


def test_all_slots_of_a_worker_that_starts_take_what_waits(house: House) -> None:
    ids = [house.submit(steps=20) for _ in range(6)]
    with house.worker(slots=4, step_s=0.5, idle_s=IDLE_S):
        house.ready()
        wait_for(lambda: running(house, ids) == 4, "every slot runs a job", seconds=SOON_S)


def test_a_paused_preset_starts_nothing_until_it_goes_on(house: House, connection: Redis) -> None:
    with house.worker(slots=1, step_s=0.1) as worker:
        house.ready()
        first, second = house.submit(steps=20), house.submit(steps=1)
        house.reaches(first, 1)
        # The next one lies in RQ's list already, and one that is put back comes to it.
        assert connection.llen(list_key("tiny")) == 1
        pause(connection, "tiny")
        assert house.ended(first).state is JobState.SUCCEEDED
        third = house.submit(steps=1)
        time.sleep(2.5)
        assert [house.job(each).state for each in (second, third)] == [JobState.QUEUED] * 2
        assert house.queue.workers()[0].state == "idle"
        resume(connection, "tiny")
        assert in_order_of_their_ends(house, [second, third]) == [second, third]
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0


def test_a_paused_worker_leaves_at_once(house: House, connection: Redis) -> None:
    pause(connection, "tiny")
    house.submit()
    with house.worker() as worker:
        house.ready()
        worker.signal(signal.SIGTERM)
        assert worker.wait(5) == 0


def test_killed_workers_lose_no_job_and_leave_none_behind(house: House, connection: Redis) -> None:
    """Wherever they were between the queue, RQ's list and the start."""
    ids = [house.submit(steps=2, origin=Origin(client=f"client-{n % 3}")) for n in range(40)]
    for _ in range(4):
        with house.worker(slots=3, step_s=0.02) as worker:
            wait_for(partial(have_begun, house, ids, 1), "a job has begun")
            time.sleep(0.15)
            worker.signal(signal.SIGKILL)
            worker.wait()
    with house.worker(slots=3):
        ends = [house.ended(each, seconds=90) for each in ids]
    # Two attempts are all that a job has, whatever ends them.
    assert {job.state for job in ends} <= {JobState.SUCCEEDED, JobState.FAILED}
    assert all(job.attempt == 2 for job in ends if job.state is JobState.FAILED)
    assert connection.zcard(queue_key("tiny")) + connection.llen(list_key("tiny")) == 0


def test_a_redis_that_is_killed_loses_no_job(tmp_path: Path) -> None:
    with RedisServer() as server, server.connect() as connection:
        house = House(server.url, tmp_path)
        ids = [house.submit(steps=2, origin=Origin(client=f"client-{n % 3}")) for n in range(30)]
        with house.worker(slots=3, step_s=0.05):
            house.ready()
            for count in (3, 12):
                wait_for(partial(have_begun, house, ids, count), f"{count} jobs have begun")
                server.kill()
                server.start()
            ends = [house.ended(each, seconds=90) for each in ids]
        assert {job.state for job in ends} == {JobState.SUCCEEDED}
        assert connection.zcard(queue_key("tiny")) + connection.llen(list_key("tiny")) == 0
        house.queue.close()
