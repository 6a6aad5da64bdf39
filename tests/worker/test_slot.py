"""Which job a slot of a real worker process takes, how soon, and what it gives back."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest
from redis import Redis

from jobs.connection import connect
from jobs.errors import WorkerNotFound
from jobs.fair_queue import pause, resume
from jobs.job_store import list_key, queue_key
from jobs.schema import JobState, Origin
from jobs.workers import Workers
from tests.redis_server import RedisServer
from tests.worker.double import HANG, HANG_DECODING
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
        assert house.queue.capacity().workers[0].state == "idle"
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


def test_sigterm_puts_the_job_back_and_another_worker_finishes_it(house: House) -> None:
    with house.worker(step_s=0.05, slots=1) as first, house.worker(step_s=0.05, slots=1) as second:
        house.ready(2)
        job_id = house.submit(steps=300)
        house.reaches(job_id, 3)
        running = house.job(job_id).worker or ""
        waiting = house.submit(steps=1)
        house.ended(waiting)
        pid = {worker.name: worker.pid for worker in house.queue.capacity().workers}
        mine = next(pid for name, pid in pid.items() if running.startswith(name))
        leaving = first if first.pid == mine else second
        asked = time.monotonic()
        leaving.signal(signal.SIGTERM)
        assert leaving.wait() == 0
        assert time.monotonic() - asked < 4
        job = house.ended(job_id, seconds=60)
        assert job.state is JobState.SUCCEEDED
        assert job.worker != running
        assert len(house.queue.capacity().workers) == 1


def test_a_job_that_is_put_back_is_the_next_and_loses_no_attempt(house: House) -> None:
    with house.worker(step_s=0.05, slots=1) as worker:
        house.ready()
        job_id = house.submit(steps=200)
        house.reaches(job_id, 3)
        behind = house.submit()
        worker.signal(signal.SIGINT)
        assert worker.wait() == 0
    job = house.job(job_id)
    assert job.state is JobState.QUEUED
    assert (job.queue_position, house.job(behind).queue_position) == (1, 2)
    assert house.queue.capacity().workers == []
    with house.worker() as crashing:
        house.ready()
        assert house.ended(job_id).state is JobState.SUCCEEDED
        crashing.signal(signal.SIGTERM)
        assert crashing.wait() == 0


def test_a_job_that_waits_for_a_long_step_is_put_back_at_once(house: House) -> None:
    with house.worker(slots=1) as worker:
        house.ready()
        job_id = house.submit(seed=HANG)
        house.reaches(job_id, 1)
        worker.signal(signal.SIGTERM)
        assert worker.wait(5) == 0
    assert house.job(job_id).state is JobState.QUEUED


@pytest.mark.parametrize(("signals", "seconds"), [(1, 9.0), (2, 4.0)])
def test_a_job_that_cannot_be_interrupted_is_put_back_in_time_and_sooner_when_asked_twice(
    house: House, signals: int, seconds: float
) -> None:
    with house.worker(slots=1) as worker:
        house.ready()
        job_id = house.submit(seed=HANG_DECODING)
        wait_for(lambda: house.stage(job_id) == "decode", "the job is being decoded")
        asked = time.monotonic()
        worker.signal(signal.SIGTERM)
        wait_for(lambda: "leaving" in worker.log.read_text(), "the worker leaves")
        if signals == 2:
            worker.signal(signal.SIGTERM)
        # Containers get 10 s before they are killed.
        assert worker.wait(seconds) == 0
        assert time.monotonic() - asked < seconds
    job = house.job(job_id)
    assert (job.state, job.queue_position) == (JobState.QUEUED, 1)


def test_a_worker_that_leaves_finishes_what_ends_in_its_grace_and_gives_back_the_rest(
    house: House,
) -> None:
    with house.worker(step_s=0.05) as worker:
        house.ready()
        short, long = house.submit(steps=40), house.submit(steps=1000)
        for job_id in (short, long):
            house.reaches(job_id, 3)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert (house.job(short).state, house.job(short).attempt) == (JobState.SUCCEEDED, 1)
    assert house.job(long).state is JobState.QUEUED


def drain(house: House, name: str) -> None:
    with connect(house.settings) as connection:
        Workers(connection, ttl_s=house.settings.worker_ttl_s).drain(name)


def test_a_drained_worker_finishes_what_it_has_takes_nothing_new_and_ends(house: House) -> None:
    # No grace: what it has in hand it finishes all the same.
    with house.worker(step_s=0.05, slots=1, grace_s=0) as worker:
        house.ready()
        job_id = house.submit(steps=60)
        house.reaches(job_id, 3)
        [info] = house.queue.capacity().workers
        drain(house, info.name)
        wait_for(lambda: house.queue.capacity().workers[0].state == "draining", "the worker drains")
        assert not house.queue.capacity().workers[0].ready
        waiting = house.submit()
        assert worker.wait() == 0
    assert (house.job(job_id).state, house.job(job_id).attempt) == (JobState.SUCCEEDED, 1)
    assert house.job(waiting).state is JobState.QUEUED
    assert house.queue.capacity().workers == []


def test_a_drained_worker_that_is_terminated_gives_its_job_back(house: House) -> None:
    with house.worker(step_s=0.05, slots=1) as worker:
        house.ready()
        job_id = house.submit(steps=1000)
        house.reaches(job_id, 3)
        drain(house, house.queue.capacity().workers[0].name)
        wait_for(lambda: house.queue.capacity().workers[0].state == "draining", "the worker drains")
        worker.signal(signal.SIGTERM)
        assert worker.wait(5) == 0
    assert house.job(job_id).state is JobState.QUEUED


def test_a_worker_that_is_not_there_cannot_be_drained(house: House) -> None:
    with pytest.raises(WorkerNotFound, match="There is no worker 'tiny-0'; running: none"):
        drain(house, "tiny-0")


def test_what_rq_notes_of_a_running_job_outlives_outages(house: House) -> None:
    # Where its own note on an execution is gone, RQ fails at the end of the job.
    with house.worker(step_s=0.05), connect(house.settings) as connection:
        house.ready()
        job_id = house.submit(steps=60)
        house.reaches(job_id, 20)
        [note] = connection.scan_iter(f"rq:execution:{job_id}:*")
        assert connection.ttl(note) > 3600
        assert house.ended(job_id).state is JobState.SUCCEEDED


def test_workers_whose_clocks_are_wrong_lose_no_job_to_each_other(house: House) -> None:
    with house.worker(step_s=0.05, clock_s=-600), house.worker(step_s=0.05, clock_s=600):
        house.ready(2)
        # Longer than a lease, and than it takes to be taken for lost.
        jobs = [house.submit(steps=80) for _ in range(4)]
        ends = [house.ended(job_id) for job_id in jobs]
    assert [(job.state, job.attempt) for job in ends] == 4 * [(JobState.SUCCEEDED, 1)]
