"""How a worker process leaves: what it finishes, and what it gives back."""

from __future__ import annotations

import signal
import time

import pytest

from jobs.connection import connect
from jobs.errors import WorkerNotFound
from jobs.schema import JobState
from jobs.workers import Workers
from tests.worker.double import HANG, HANG_DECODING
from tests.worker.processes import House, wait_for


def test_sigterm_puts_the_job_back_and_another_worker_finishes_it(house: House) -> None:
    with house.worker(step_s=0.05, slots=1) as first, house.worker(step_s=0.05, slots=1) as second:
        house.ready(2)
        job_id = house.submit(steps=300)
        house.reaches(job_id, 3)
        running = house.job(job_id).worker or ""
        waiting = house.submit(steps=1)
        house.ended(waiting)
        pid = {worker.name: worker.pid for worker in house.queue.workers()}
        mine = next(pid for name, pid in pid.items() if running.startswith(name))
        leaving = first if first.pid == mine else second
        asked = time.monotonic()
        leaving.signal(signal.SIGTERM)
        assert leaving.wait() == 0
        assert time.monotonic() - asked < 4
        job = house.ended(job_id, seconds=60)
        assert job.state is JobState.SUCCEEDED
        assert job.worker != running
        assert len(house.queue.workers()) == 1


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
    assert house.queue.workers() == []
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
        [info] = house.queue.workers()
        drain(house, info.name)
        wait_for(lambda: house.queue.workers()[0].state == "draining", "the worker drains")
        assert not house.queue.workers()[0].ready
        waiting = house.submit()
        assert worker.wait() == 0
    assert (house.job(job_id).state, house.job(job_id).attempt) == (JobState.SUCCEEDED, 1)
    assert house.job(waiting).state is JobState.QUEUED
    assert house.queue.workers() == []


def test_a_drained_worker_that_is_terminated_gives_its_job_back(house: House) -> None:
    with house.worker(step_s=0.05, slots=1) as worker:
        house.ready()
        job_id = house.submit(steps=1000)
        house.reaches(job_id, 3)
        drain(house, house.queue.workers()[0].name)
        wait_for(lambda: house.queue.workers()[0].state == "draining", "the worker drains")
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
