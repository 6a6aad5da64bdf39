"""The record in a real Redis follows the table of states, atomically and by Redis' clock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from redis import Redis

from jobs.errors import JobEnded, JobNotFound, Problem, QueueUnavailable, WrongState
from jobs.job_store import AGENDA_KEY, RUN_FIELDS, TOMBSTONE_S, JobStore, owner_key, record_key
from jobs.schema import Job, JobState, Progress, ResultInfo, Timings
from jobs.states import Event
from tests.redis_server import RedisServer

from .conftest import Submit, next_state

PROBLEM = Problem(type="image-truncated", title="Cut short", detail="The PNG ends early.", at=7)


def act(records: JobStore, event: Event, job_id: str, result: ResultInfo) -> Job:
    acts: dict[Event, Callable[[], Job]] = {
        Event.START: lambda: records.start(job_id, "w1"),
        Event.PROGRESS: lambda: records.progress(job_id, Progress(stage="denoise", step=1)),
        Event.SUCCEED: lambda: records.succeed(job_id, result, Timings(denoise=1.5)),
        Event.FAIL: lambda: records.fail(job_id, PROBLEM),
        Event.REQUEUE: lambda: records.requeue(job_id),
        Event.CANCEL: lambda: records.cancel(job_id),
        Event.STOP: lambda: records.stop(job_id),
        Event.EXPIRE: lambda: records.expire(job_id),
        # Alone, without what `JobQueue.purge` does with it.
        Event.RETRY: lambda: records._apply(job_id, Event.RETRY, {"attempt": "0"}, drop=RUN_FIELDS),
        Event.PURGE: lambda: records.purge(job_id),
    }
    return acts[event]()


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(events=st.lists(st.sampled_from(Event), max_size=9))
@example(events=[Event.START, Event.SUCCEED, Event.CANCEL, Event.EXPIRE, Event.START])
@example(events=[Event.START, Event.SUCCEED, Event.EXPIRE, Event.EXPIRE])
@example(events=[Event.START, Event.CANCEL, Event.REQUEUE, Event.START, Event.SUCCEED])
@example(events=[Event.START, Event.REQUEUE, Event.START, Event.CANCEL, Event.STOP])
@example(events=[Event.START, Event.CANCEL, Event.FAIL, Event.RETRY, Event.START, Event.SUCCEED])
@example(events=[Event.START, Event.FAIL, Event.PURGE, Event.RETRY, Event.CANCEL, Event.PURGE])
def test_any_order_of_events_goes_as_the_table_says(
    events: list[Event],
    records: JobStore,
    submit: Submit,
    result: ResultInfo,
    connection: Redis,
) -> None:
    job_id = submit()
    state, marked = JobState.QUEUED, False
    for event in events:
        before = records.get(job_id)
        to = next_state(state, event, cancel_requested=marked)
        if (event, state) == (Event.EXPIRE, JobState.EXPIRED):
            # Whoever comes second finds it so.
            assert act(records, event, job_id, result) == before
            continue
        if to is None:
            with pytest.raises(JobEnded if state.is_final else WrongState) as caught:
                act(records, event, job_id, result)
            assert caught.value.extra["state"] == state.value
            assert records.get(job_id) == before
            continue
        marked = (marked or event is Event.CANCEL) and event is not Event.RETRY
        try:
            assert act(records, event, job_id, result).state is to
        except JobEnded:
            # A start that finds a cancel moves the job and says so as well.
            assert (event, to) == (Event.START, JobState.CANCELED)
        state = to
        after = records.get(job_id)
        assert after.state is state
        assert after.cancel_requested is marked
        assert after.revision == before.revision + 1
        assert (after.ended_at is not None) is state.is_final
        keys = [owner_key("", one) for one in (None, *JobState)]
        holding = [key for key in keys if connection.zscore(key, job_id) is not None]
        assert holding == [owner_key(""), owner_key("", state)]
        if before.state.is_final and state.is_final:
            assert after.ended_at == before.ended_at
        if event is Event.RETRY:
            assert (after.attempt, after.error, after.started_at, after.worker) == (0, *[None] * 3)


def test_a_job_that_succeeds_keeps_its_result_and_times(
    records: JobStore, submit: Submit, result: ResultInfo
) -> None:
    job_id = submit()
    begun = records.start(job_id, "w1")
    assert (begun.attempt, begun.worker, begun.state) == (1, "w1", JobState.PROCESSING)
    halfway = Progress(stage="denoise", step=10, steps=20, fraction=0.5, eta_seconds=3.5)
    assert records.progress(job_id, halfway).progress == halfway
    done = records.succeed(job_id, result, Timings(load=0.1, denoise=2.5))
    assert done == records.get(job_id)
    assert done.progress is None
    assert done.started_at is not None
    assert done.ended_at is not None
    assert done.created_at <= done.started_at <= done.ended_at
    assert done.expires_at == done.ended_at + timedelta(days=1)
    assert done.result == result.model_copy(update={"expires_at": done.expires_at})
    assert done.timings is not None
    assert done.timings.denoise == 2.5
    assert done.timings.queue == (done.started_at - done.created_at).total_seconds()
    assert done.timings.total == (done.ended_at - done.created_at).total_seconds()


def test_a_failed_job_keeps_its_problem(records: JobStore, submit: Submit) -> None:
    job_id = submit()
    records.start(job_id, "w1")
    assert records.fail(job_id, PROBLEM).error == PROBLEM
    assert records.get(job_id).error == PROBLEM


def test_a_requeued_job_waits_as_if_new_and_counts_its_attempts(
    records: JobStore, submit: Submit
) -> None:
    job_id = submit()
    records.start(job_id, "w1")
    records.progress(job_id, Progress(stage="denoise", step=3, steps=9))
    waiting = records.requeue(job_id)
    assert waiting.state is JobState.QUEUED
    assert (waiting.started_at, waiting.worker, waiting.progress) == (None, None, None)
    assert waiting.seed == 1
    assert records.start(job_id, "w2").attempt == 2


def test_a_job_handed_out_twice_restarts_its_progress(records: JobStore, submit: Submit) -> None:
    job_id = submit()
    records.start(job_id, "w1")
    records.progress(job_id, Progress(stage="denoise", step=3, steps=9))
    again = records.start(job_id, "w2")
    assert (again.attempt, again.worker, again.progress) == (2, "w2", None)


def test_a_running_job_is_told_of_its_cancel_by_both_reads(
    records: JobStore, submit: Submit
) -> None:
    job_id = submit()
    records.start(job_id, "w1")
    assert not records.cancel_requested(job_id)
    assert records.cancel(job_id).state is JobState.PROCESSING
    assert records.cancel_requested(job_id)
    assert records.progress(job_id, Progress(stage="denoise")).cancel_requested
    assert records.stop(job_id).state is JobState.CANCELED


def test_a_worker_that_lost_its_job_is_told_to_stop(records: JobStore, submit: Submit) -> None:
    job_id = submit()
    records.start(job_id, "w1")
    records.requeue(job_id)
    assert records.cancel_requested(job_id)
    assert records.cancel_requested("nobody")


def test_a_worker_that_comes_back_cannot_spoil_anothers_run(
    records: JobStore, submit: Submit, result: ResultInfo
) -> None:
    job_id = submit()
    records.start(job_id, "w1")
    records.requeue(job_id)
    running = records.start(job_id, "w2")
    spoils: tuple[Callable[[], Job], ...] = (
        lambda: records.progress(job_id, Progress(stage="decode"), worker="w1"),
        lambda: records.succeed(job_id, result, Timings(), worker="w1"),
        lambda: records.fail(job_id, PROBLEM, worker="w1"),
        lambda: records.requeue(job_id, worker="w1"),
        lambda: records.stop(job_id, worker="w1"),
    )
    for spoil in spoils:
        with pytest.raises(WrongState, match="run by worker w2 now, not by w1"):
            spoil()
    assert records.get(job_id) == running
    assert records.succeed(job_id, result, Timings(), worker="w2").state is JobState.SUCCEEDED


def test_a_canceled_job_does_not_start(records: JobStore, submit: Submit) -> None:
    job_id = submit()
    records.cancel(job_id)
    with pytest.raises(JobEnded, match="canceled"):
        records.start(job_id, "w1")


def test_a_job_marked_before_its_worker_was_lost_is_canceled_not_run_again(
    records: JobStore, submit: Submit
) -> None:
    job_id = submit()
    records.start(job_id, "w1")
    records.cancel(job_id)
    with pytest.raises(JobEnded):
        records.start(job_id, "w2")
    assert records.get(job_id).state is JobState.CANCELED
    assert records.get(job_id).attempt == 1


def test_of_a_cancel_and_a_success_at_once_only_one_ends_the_job(
    records: JobStore, submit: Submit, result: ResultInfo, server: RedisServer
) -> None:
    for _ in range(20):
        job_id = submit()
        records.start(job_id, "w1")
        gate = threading.Barrier(2)
        ends: list[JobState] = []

        def end(
            event: Event,
            job_id: str = job_id,
            gate: threading.Barrier = gate,
            ends: list[JobState] = ends,
        ) -> None:
            with server.connect() as connection:
                mine = JobStore(connection)
                mine.now()
                gate.wait(timeout=10)
                try:
                    ends.append(act(mine, event, job_id, result).state)
                except JobEnded:
                    return

        threads = [threading.Thread(target=end, args=(e,)) for e in (Event.STOP, Event.SUCCEED)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ends == [records.get(job_id).state]


def test_an_unknown_job_is_not_found_by_any_call(records: JobStore, result: ResultInfo) -> None:
    for event in Event:
        with pytest.raises(JobNotFound, match="'nobody'"):
            act(records, event, "nobody", result)
    with pytest.raises(JobNotFound):
        records.get("nobody")


def test_a_result_past_its_time_reads_as_expired(
    records: JobStore, submit: Submit, result: ResultInfo, connection: Redis
) -> None:
    job_id = submit()
    records.start(job_id, "w1")
    records.succeed(job_id, result, Timings())
    connection.hset(record_key(job_id), "keep_s", 0)
    job = records.get(job_id)
    assert job.state is JobState.EXPIRED
    assert job.ended_at is not None
    assert job.result is not None
    with pytest.raises(JobEnded, match="expired"):
        records.cancel(job_id)


def test_all_who_read_a_job_at_the_moment_it_expires_find_it_expired(
    server: RedisServer, records: JobStore, submit: Submit, result: ResultInfo, connection: Redis
) -> None:
    readers = 8
    gate = threading.Barrier(readers, timeout=10)

    def read(job_id: str) -> JobState:
        with server.connect() as mine:
            both = JobStore(mine)
            both.now()
            gate.wait()
            return both.get(job_id).state

    with ThreadPoolExecutor(readers) as pool:
        for _ in range(12):
            job_id = submit()
            records.start(job_id, "w1")
            records.succeed(job_id, result, Timings())
            connection.hset(record_key(job_id), "keep_s", 0)
            assert set(pool.map(read, [job_id] * readers)) == {JobState.EXPIRED}


@pytest.mark.parametrize(
    ("events", "seconds"),
    [
        ([], 7 * 86_400 + TOMBSTONE_S),
        ([Event.START, Event.PROGRESS], 7 * 86_400 + TOMBSTONE_S),
        ([Event.START, Event.SUCCEED], 86_400 + TOMBSTONE_S),
        ([Event.START, Event.FAIL], 86_400 + TOMBSTONE_S),
        ([Event.CANCEL], 86_400),
        ([Event.START, Event.SUCCEED, Event.EXPIRE], TOMBSTONE_S),
        ([Event.START, Event.SUCCEED, Event.PURGE], TOMBSTONE_S),
        ([Event.START, Event.FAIL, Event.PURGE, Event.PURGE], 86_400 + TOMBSTONE_S),
        ([Event.CANCEL, Event.PURGE, Event.PURGE], 86_400),
        ([Event.START, Event.FAIL, Event.RETRY], 7 * 86_400 + TOMBSTONE_S),
    ],
)
def test_a_record_always_has_a_time_to_live(
    events: list[Event],
    seconds: int,
    records: JobStore,
    submit: Submit,
    result: ResultInfo,
    connection: Redis,
) -> None:
    job_id = submit()
    for event in events:
        act(records, event, job_id, result)
    assert seconds - 5 <= connection.ttl(record_key(job_id)) <= seconds
    assert connection.zscore(AGENDA_KEY, job_id) is not None
    state = records.get(job_id).state
    for index in (None, *JobState):
        key = owner_key("", index)
        assert (connection.zscore(key, job_id) is not None) is (index in (None, state))
        assert index not in (None, state) or connection.ttl(key) >= seconds - 5


def test_times_are_those_of_redis(records: JobStore, submit: Submit) -> None:
    job = records.get(submit())
    assert abs(job.created_at - records.now()) < timedelta(seconds=5)
    assert abs(records.now() - datetime.now(UTC)) < timedelta(seconds=5)


def test_without_redis_every_call_says_where_it_is_missing(
    records: JobStore, result: ResultInfo, server: RedisServer
) -> None:
    server.stop()
    try:
        for event in Event:
            with pytest.raises(QueueUnavailable, match=str(server.port)):
                act(records, event, "nobody", result)
        with pytest.raises(QueueUnavailable, match="Check that Redis runs"):
            records.get("nobody")
        with pytest.raises(QueueUnavailable):
            records.cancel_requested("nobody")
    finally:
        server.start()
