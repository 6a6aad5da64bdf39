"""GET /jobs: the newest first, page by page, by state."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from redis import Redis

from jobs.job_store import JobStore, owner_key, record_key
from jobs.listing import BATCH, MOST_READ, Cursor
from jobs.rq_adapter import QUEUE_TTL_S
from jobs.schema import ImageInfo, Job, Origin, new_job_id
from jobs.settings import Settings
from models.parameters import UpscaleParameters
from tests.service.harness import FakeWorker, problem, upload
from tests.service.pictures import picture

PNG = picture("PNG")


def submit(client: httpx.Client) -> str:
    answer = upload(client, PNG)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def submit_many(redis: Redis, count: int, *, now: float = 1_700_000_000.0) -> list[str]:
    """Records without anything in RQ, faster than through HTTP; the oldest first."""
    records = JobStore(redis)
    seconds, _ = redis.time()
    image = ImageInfo(width=1, height=1, format="PNG", media_type="image/png", bytes=1)
    ids = []
    with redis.pipeline() as pipe:
        for number in range(count):
            ids.append(new_job_id())
            records.create(
                pipe,
                ids[-1],
                UpscaleParameters(seed=1),
                image,
                Origin(),
                # Every four of them in the same microsecond.
                now=seconds - 5000 + number // 4,
                wait_s=86_400,
                keep_s=86_400,
            )
        pipe.execute()
    return ids


def walk(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    """All pages from this one on."""
    pages = []
    following: str | None = path
    while following is not None:
        answer = client.get(following)
        assert answer.status_code == 200, answer.text
        pages.append(answer.json())
        following = pages[-1]["next"]
        if following is None:
            assert "Link" not in answer.headers
        else:
            assert answer.headers["Link"] == f'<{following}>; rel="next"'
    return pages


def test_without_jobs_the_list_is_empty(client: httpx.Client) -> None:
    assert client.get("/jobs").json() == {"jobs": [], "next": None}


def test_jobs_are_listed_newest_first_as_they_are_alone(
    client: httpx.Client, worker: FakeWorker
) -> None:
    first, second, third = (submit(client) for _ in range(3))
    worker.start(first)
    listed = client.get("/jobs").json()["jobs"]
    assert [job["id"] for job in listed] == [third, second, first]
    assert listed == [client.get(f"/jobs/{job['id']}").json() for job in listed]


def test_the_pages_hold_every_job_once(client: httpx.Client, redis: Redis) -> None:
    ids = submit_many(redis, 2 * BATCH + 13)
    pages = walk(client, "/jobs?limit=30")
    listed = [job["id"] for page in pages for job in page["jobs"]]
    assert sorted(listed) == sorted(ids)
    created = [job["created_at"] for page in pages for job in page["jobs"]]
    assert created == sorted(created, reverse=True)
    assert {len(page["jobs"]) for page in pages[:-1]} == {30}


def test_jobs_that_come_meanwhile_do_not_shift_the_pages(
    client: httpx.Client, redis: Redis
) -> None:
    old = submit_many(redis, 6)
    first = client.get("/jobs?limit=3").json()
    submit(client)
    second = client.get(first["next"]).json()
    listed = {job["id"] for job in first["jobs"] + second["jobs"]}
    assert listed == set(old)


def test_the_list_can_be_of_one_state(client: httpx.Client, worker: FakeWorker) -> None:
    waiting, running, canceled = (submit(client) for _ in range(3))
    worker.start(running)
    client.delete(f"/jobs/{canceled}")
    for state, job in (("queued", waiting), ("processing", running), ("canceled", canceled)):
        assert [one["id"] for one in client.get(f"/jobs?state={state}").json()["jobs"]] == [job]
    assert client.get("/jobs?state=expired").json()["jobs"] == []


def test_a_rare_job_is_found_behind_many_others(
    client: httpx.Client, redis: Redis, worker: FakeWorker
) -> None:
    ids = submit_many(redis, MOST_READ + BATCH)
    worker.start(ids[0])
    pages = walk(client, "/jobs?state=processing&limit=5")
    assert [[job["id"] for job in page["jobs"]] for page in pages] == [[], [ids[0]]]


def test_a_forgotten_job_leaves_the_list_and_its_index(client: httpx.Client, redis: Redis) -> None:
    gone, stays = submit(client), submit(client)
    redis.delete(record_key(gone))
    assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == [stays]
    assert redis.zrange(owner_key(""), 0, -1) == [stays.encode()]


def test_the_index_does_not_outlive_its_jobs(
    client: httpx.Client, redis: Redis, settings: Settings
) -> None:
    [old] = submit_many(redis, 1)
    redis.zadd(owner_key(""), {old: 1.0})
    submit(client)
    assert redis.zscore(owner_key(""), old) is None
    assert redis.ttl(owner_key("")) > QUEUE_TTL_S


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("state=lost", "state"),
        ("cursor=" + "x" * 300, "cursor"),
    ],
)
def test_a_wrong_parameter_is_refused_by_its_name(
    client: httpx.Client, query: str, field: str
) -> None:
    body = problem(client.get(f"/jobs?{query}"), 422, "invalid-parameters")
    assert [error["field"] for error in body["errors"]] == [field]


@pytest.mark.parametrize("cursor", ["", "!", "abc", "bmFuIHg", "aW5mIHg", "MSAyIDM", "%00", "é"])
def test_a_cursor_that_is_not_ours_is_refused(client: httpx.Client, cursor: str) -> None:
    problem(client.get("/jobs", params={"cursor": cursor}), 422, "bad-cursor")


def test_a_cursor_is_read_as_it_was_written() -> None:
    cursor = Cursor(1_767_225_600.123456, new_job_id())
    assert Cursor.parse(str(cursor)) == cursor


def test_a_job_whose_record_cannot_be_read_is_left_out_and_hides_no_other(
    client: httpx.Client, redis: Redis
) -> None:
    first, odd, last = (submit(client) for _ in range(3))
    redis.hset(record_key(odd), "parameters", '{"preset": "gone"}')
    assert [job["id"] for page in walk(client, "/jobs") for job in page["jobs"]] == [last, first]
    problem(client.get(f"/jobs/{odd}"), 500, "internal-error")


def test_a_list_that_is_read_twice_at_the_moment_of_expiry_has_the_job_both_times(
    client: httpx.Client, redis: Redis, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(client)
    worker.start(job)
    worker.succeed(job, b"result")
    redis.hset(record_key(job), "keep_s", 0)
    expire = JobStore.expire

    def second(records: JobStore, job_id: str) -> Job:
        # Another reader comes first.
        expire(records, job_id)
        return expire(records, job_id)

    monkeypatch.setattr(JobStore, "expire", second)
    [listed] = client.get("/jobs").json()["jobs"]
    assert listed["state"] == "expired"
