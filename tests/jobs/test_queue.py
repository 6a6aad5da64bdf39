"""Submitting, looking and canceling, against a real Redis and RQ."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis
from rq.serializers import JSONSerializer

from jobs.errors import (
    JobEnded,
    JobExists,
    JobNotFound,
    QueueFull,
    QueueUnavailable,
    RecordUnreadable,
)
from jobs.job_store import JobStore, record_key
from jobs.queue import JobQueue, JobReader
from jobs.rq_adapter import TaskJob, open_queue
from jobs.schema import ImageInfo, Job, JobState, ResultInfo, Timings, new_job_id
from jobs.settings import Settings
from models.parameters import UpscaleParameters
from tests.redis_server import RedisServer

from .conftest import Submit, run, waiting_ids


def test_a_submitted_job_is_recorded_and_waits_in_rq(
    queue: JobQueue, image: ImageInfo, connection: Redis
) -> None:
    parameters = UpscaleParameters(scale=2, seed=7)
    job = queue.submit(new_job_id(), parameters, image)
    assert job == queue.get(job.id)
    assert (job.state, job.queue_position, job.seed) == (JobState.QUEUED, 1, 7)
    assert (job.parameters, job.input) == (parameters, image)
    rq_job = TaskJob.fetch(job.id, connection=connection, serializer=JSONSerializer)
    assert rq_job.func_name == "worker.tasks.upscale"
    assert rq_job.args == [job.id]
    assert (rq_job.timeout, rq_job.ttl) == (1800, 7 * 86_400)
    assert (rq_job.result_ttl, rq_job.failure_ttl) == (0, 86_400)
    assert (rq_job.retries_left, rq_job.retry_intervals) == (2, [0, 10])
    assert rq_job.get_retry_interval() == 0
    assert connection.ttl(rq_job.key) > 0


def test_nothing_in_redis_is_pickled(submit: Submit, connection: Redis) -> None:
    job_id = submit()
    stored = TaskJob.fetch(job_id, connection=connection, serializer=JSONSerializer).data
    assert stored == f'["worker.tasks.upscale", null, ["{job_id}"], {{}}]'.encode()


def test_places_in_the_queue_count_from_one_and_move_up(
    queue: JobQueue, submit: Submit, connection: Redis, records: JobStore
) -> None:
    ids = [submit() for _ in range(3)]
    assert [queue.get(one).queue_position for one in ids] == [1, 2, 3]
    assert waiting_ids(connection) == ids
    connection.lpop(open_queue("tiny", connection).key)
    # A worker has it in hand but has not begun.
    assert [queue.get(one).queue_position for one in ids] == [1, 1, 2]
    records.start(ids[0], "w1")
    assert [queue.get(one).queue_position for one in ids] == [None, 1, 2]


def test_presets_do_not_wait_for_each_other(
    queue: JobQueue, image: ImageInfo, connection: Redis
) -> None:
    queue.submit(new_job_id(), UpscaleParameters(), image)
    other = queue.submit(new_job_id(), UpscaleParameters(preset="stablesr-turbo"), image)
    assert other.queue_position == 1
    assert waiting_ids(connection, "stablesr-turbo") == [other.id]


def test_an_id_is_taken_once(
    queue: JobQueue, image: ImageInfo, submit: Submit, connection: Redis
) -> None:
    job_id = submit()
    with pytest.raises(JobExists, match=job_id):
        queue.submit(job_id, UpscaleParameters(seed=2), image)
    assert queue.get(job_id).seed == 1
    assert waiting_ids(connection) == [job_id]


def test_a_canceled_waiting_job_leaves_rq_without_a_trace(
    queue: JobQueue, submit: Submit, connection: Redis
) -> None:
    first, second = submit(), submit()
    assert queue.cancel(first).state is JobState.CANCELED
    assert queue.get(second).queue_position == 1
    assert not connection.exists(TaskJob.key_for(first))
    assert queue.get(first).queue_position is None
    with pytest.raises(JobEnded, match="canceled"):
        queue.cancel(first)


def test_a_canceled_running_job_is_marked_for_its_worker(
    queue: JobQueue, submit: Submit, records: JobStore, connection: Redis
) -> None:
    job_id = submit()
    connection.lpop(open_queue("tiny", connection).key)
    records.start(job_id, "w1")
    for _ in range(2):
        job = queue.cancel(job_id)
        assert (job.state, job.cancel_requested) == (JobState.PROCESSING, True)
    assert connection.exists(TaskJob.key_for(job_id))


def test_an_unknown_job_is_neither_found_nor_canceled(queue: JobQueue) -> None:
    with pytest.raises(JobNotFound):
        queue.get("nobody")
    with pytest.raises(JobNotFound):
        queue.cancel("nobody")


def test_a_full_queue_takes_no_more_and_keeps_nothing(
    settings: Settings, image: ImageInfo, connection: Redis
) -> None:
    queue = JobQueue(settings.model_copy(update={"max_queued": 2}))
    for number in range(2):
        queue.check_room("tiny", number)
        queue.submit(new_job_id(), UpscaleParameters(), image)
    with pytest.raises(QueueFull, match="2 jobs for tiny wait already") as caught:
        queue.check_room("tiny", 2)
    assert caught.value.extra == {"limit": 2, "retry_after": 30}
    late = new_job_id()
    with pytest.raises(QueueFull):
        queue.submit(late, UpscaleParameters(), image)
    assert not connection.exists(record_key(late), TaskJob.key_for(late))
    queue.submit(new_job_id(), UpscaleParameters(preset="stablesr-turbo"), image)
    queue.close()


def test_submissions_at_once_fill_the_queue_exactly(
    settings: Settings, image: ImageInfo, connection: Redis
) -> None:
    queue = JobQueue(settings.model_copy(update={"max_queued": 5}))

    def submit(_: int) -> bool:
        try:
            queue.submit(new_job_id(), UpscaleParameters(), image)
        except QueueFull:
            return False
        return True

    with ThreadPoolExecutor(12) as pool:
        taken = sum(pool.map(submit, range(40)))
    assert taken == 5
    assert len(waiting_ids(connection)) == 5
    assert len(connection.keys("stablesr:job:*")) == 5
    assert len(connection.keys("rq:job:*")) == 5
    queue.close()


def test_a_submission_that_redis_refuses_leaves_nothing(
    queue: JobQueue, image: ImageInfo, connection: Redis
) -> None:
    connection.config_set("maxmemory", 1)
    try:
        with pytest.raises(QueueUnavailable, match="takes no writes"):
            queue.submit(new_job_id(), UpscaleParameters(), image)
    finally:
        connection.config_set("maxmemory", 0)
    assert connection.keys("*") == []


def test_a_submission_cut_off_before_the_queue_leaves_nothing(
    queue: JobQueue, image: ImageInfo, connection: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("cut off")

    monkeypatch.setattr("rq.Queue.enqueue_call", cut)
    with pytest.raises(ConnectionResetError):
        queue.submit(new_job_id(), UpscaleParameters(), image)
    assert connection.keys("*") == []


def test_without_redis_every_call_says_so_and_work_goes_on_after(
    queue: JobQueue, image: ImageInfo, submit: Submit, server: RedisServer
) -> None:
    job_id = submit()
    server.kill()
    try:
        for call in (
            lambda: queue.submit(new_job_id(), UpscaleParameters(), image),
            lambda: queue.get(job_id),
            lambda: queue.cancel(job_id),
            lambda: queue.page(limit=1),
            lambda: queue.capacity().workers,
        ):
            with pytest.raises(QueueUnavailable) as caught:
                call()
            assert str(server.port) in caught.value.detail
            assert caught.value.extra["retry_after"] == 5
    finally:
        server.start()
    assert queue.get(job_id).queue_position == 1
    assert queue.cancel(job_id).state is JobState.CANCELED


def read(settings: Settings, queue: JobQueue, job_id: str, owner: str = "") -> Job:
    return run(settings, lambda client: JobReader(client, queue).get(job_id, owner))


def test_a_job_is_read_as_the_queue_has_it_in_every_state(
    settings: Settings, queue: JobQueue, submit: Submit, records: JobStore, connection: Redis
) -> None:
    first, second = submit(), submit()
    assert read(settings, queue, second) == queue.get(second)
    assert read(settings, queue, second).queue_position == 2
    records.start(first, "w")
    assert read(settings, queue, first) == queue.get(first)
    result = ResultInfo(width=1, height=1, bytes=1, sha256="0", media_type="image/png", key="k")
    records.succeed(first, result, Timings())
    assert read(settings, queue, first) == queue.get(first)
    connection.hset(record_key(first), "keep_s", 0)
    assert read(settings, queue, first).state is JobState.EXPIRED


def test_a_job_of_another_owner_is_unknown(
    settings: Settings, queue: JobQueue, submit: Submit
) -> None:
    job_id = submit()
    for owner, name in (("other", job_id), ("", "nothing")):
        with pytest.raises(JobNotFound):
            read(settings, queue, name, owner)


@pytest.mark.parametrize(
    "fields", [{"parameters": "{}{}"}, {"created_at": "soon"}, {"worker": b"\xff"}]
)
def test_a_record_that_cannot_be_read_is_no_missing_job(
    settings: Settings, queue: JobQueue, submit: Submit, connection: Redis, fields: dict[Any, Any]
) -> None:
    job_id = submit()
    connection.hset(record_key(job_id), mapping=fields)
    with pytest.raises(RecordUnreadable):
        read(settings, queue, job_id)
