"""/jobs: one of them in every state, all of a client page by page, canceling and deleting."""

from __future__ import annotations

import hashlib
import shutil
from datetime import datetime, timedelta
from typing import Any

import httpx
import pytest
from redis import Redis

from jobs.errors import ImageTruncated
from jobs.job_store import QUEUE_TTL_S, JobStore, owner_key, record_key
from jobs.listing import Cursor
from jobs.maintenance import sweep
from jobs.schema import ImageInfo, Job, JobState, Origin, Progress, new_job_id, new_record
from jobs.settings import Settings
from jobs.store import BlobStore, input_key, result_key
from models.parameters import UpscaleParameters
from tests.service.harness import FakeWorker, problem
from tests.service.pictures import picture

PNG = picture("PNG")


RESULT = picture("PNG", 96, 64)


def submit(client: httpx.Client, name: str = "photo.jpg", **fields: Any) -> str:
    answer = client.post("/upscale", files={"image": (name, PNG)}, data=fields)
    assert answer.status_code == 202
    return str(answer.json()["id"])


@pytest.fixture
def job(client: httpx.Client) -> str:
    return submit(client)


@pytest.fixture
def running(job: str, worker: FakeWorker) -> str:
    worker.start(job)
    return job


@pytest.fixture
def succeeded(running: str, worker: FakeWorker) -> str:
    worker.succeed(running, RESULT)
    return running


@pytest.fixture
def failed(running: str, worker: FakeWorker) -> str:
    worker.fail(running, ImageTruncated("The pixels end early.", row=3).problem())
    return running


def test_a_waiting_job_has_its_place_in_the_queue(client: httpx.Client, job: str) -> None:
    second = submit(client)
    assert client.get(f"/jobs/{job}").json()["queue_position"] == 1
    answer = client.get(f"/jobs/{second}")
    assert answer.json()["queue_position"] == 2
    assert answer.headers["Retry-After"] == "2"


def test_a_running_job_has_progress_and_when_to_ask_again(
    client: httpx.Client, running: str, worker: FakeWorker
) -> None:
    worker.progress(
        running, Progress(stage="denoise", step=5, steps=20, fraction=0.25, eta_seconds=9)
    )
    answer = client.get(f"/jobs/{running}")
    body = answer.json()
    assert body["state"] == "processing"
    assert body["queue_position"] is None
    assert body["progress"] == {
        "stage": "denoise",
        "step": 5,
        "steps": 20,
        "fraction": 0.25,
        "eta_seconds": 9,
    }
    assert answer.headers["Retry-After"] == "5"
    assert body["links"] == {
        "self": f"/jobs/{running}",
        "result": None,
        "cancel": f"/jobs/{running}",
    }


def test_an_ended_job_says_all_about_its_result(client: httpx.Client, succeeded: str) -> None:
    answer = client.get(f"/jobs/{succeeded}")
    body = answer.json()
    assert body["state"] == "succeeded"
    result = body["result"]
    assert result.pop("expires_at") == body["expires_at"]
    assert result == {
        "url": f"/jobs/{succeeded}/result",
        "width": 96,
        "height": 64,
        "bytes": len(RESULT),
        "sha256": hashlib.sha256(RESULT).hexdigest(),
        "media_type": "image/png",
    }
    assert body["timings"]["denoise"] == 1.5
    assert body["timings"]["total"] > 0
    assert body["links"]["cancel"] is None
    assert "Retry-After" not in answer.headers


def test_what_is_ours_alone_is_not_shown(client: httpx.Client, succeeded: str) -> None:
    body = client.get(f"/jobs/{succeeded}").json()
    assert not {"worker", "revision"} & set(body)
    assert "key" not in body["result"]


def test_a_failed_job_says_why(client: httpx.Client, failed: str) -> None:
    body = client.get(f"/jobs/{failed}").json()
    assert body["state"] == "failed"
    assert body["error"] == {
        "type": "/problems/image-truncated",
        "title": "The image is cut short",
        "detail": "The pixels end early.",
        "row": 3,
    }


def test_a_job_that_has_not_changed_costs_no_body(
    client: httpx.Client, running: str, worker: FakeWorker
) -> None:
    first = client.get(f"/jobs/{running}")
    headers = {"If-None-Match": first.headers["ETag"]}
    same = client.get(f"/jobs/{running}", headers=headers)
    assert same.status_code == 304
    assert same.content == b""
    assert same.headers["ETag"] == first.headers["ETag"]
    assert "Retry-After" in same.headers

    worker.progress(running, Progress(stage="denoise", step=1, steps=2))
    changed = client.get(f"/jobs/{running}", headers=headers)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != first.headers["ETag"]


def test_the_etag_changes_when_the_queue_moves(client: httpx.Client, job: str) -> None:
    second = submit(client)
    before = client.get(f"/jobs/{second}").headers["ETag"]
    client.delete(f"/jobs/{job}")
    after = client.get(f"/jobs/{second}", headers={"If-None-Match": before})
    assert after.status_code == 200
    assert after.json()["queue_position"] == 1


@pytest.mark.parametrize("form", ["W/{etag}", '"other", {etag}', "*"])
def test_every_form_of_if_none_match_is_understood(
    client: httpx.Client, job: str, form: str
) -> None:
    etag = client.get(f"/jobs/{job}").headers["ETag"]
    headers = {"If-None-Match": form.format(etag=etag)}
    assert client.get(f"/jobs/{job}", headers=headers).status_code == 304


@pytest.mark.parametrize("job_id", ["nothing", "0" * 32, "%00", "%FF", "a b", "x" * 1000])
@pytest.mark.parametrize(("method", "end"), [("GET", ""), ("GET", "/result"), ("DELETE", "")])
def test_an_unknown_job_is_404(client: httpx.Client, job_id: str, method: str, end: str) -> None:
    answer = client.request(method, f"/jobs/{job_id}{end}")
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_the_result_comes_with_all_its_headers(client: httpx.Client, succeeded: str) -> None:
    answer = client.get(f"/jobs/{succeeded}/result")
    assert answer.content == RESULT
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Length"] == str(len(RESULT))
    assert answer.headers["ETag"] == f'"{hashlib.sha256(RESULT).hexdigest()}"'
    assert answer.headers["Content-Disposition"].startswith('inline; filename="photo-4x.png"')
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    again = client.get(
        f"/jobs/{succeeded}/result", headers={"If-None-Match": answer.headers["ETag"]}
    )
    assert again.status_code == 304


def test_a_large_result_comes_whole(client: httpx.Client, running: str, worker: FakeWorker) -> None:
    content = bytes(range(256)) * 40_000
    worker.succeed(running, content)
    assert client.get(f"/jobs/{running}/result").content == content


@pytest.mark.parametrize(
    ("name", "plain", "encoded"),
    [
        ("../../etc/passwd", "passwd-2x.png", "passwd-2x.png"),
        ("C:\\photos\\cat.bmp", "cat-2x.png", "cat-2x.png"),
        ("köln.png", "k_ln-2x.png", "k%C3%B6ln-2x.png"),
        ('a"b\r\nX: y.png', "a_b__X_ y-2x.png", "a%22b%0D%0AX%3A%20y-2x.png"),
    ],
)
def test_the_results_name_comes_from_the_upload_and_is_harmless(
    client: httpx.Client, worker: FakeWorker, name: str, plain: str, encoded: str
) -> None:
    job = submit(client, name=name, scale=2)
    worker.start(job)
    worker.succeed(job, RESULT)
    answer = client.get(f"/jobs/{job}/result")
    assert answer.status_code == 200
    disposition = answer.headers["Content-Disposition"]
    assert "\n" not in disposition
    if "\r" not in name:
        assert disposition == f"inline; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def test_the_result_of_a_waiting_job_is_409(client: httpx.Client, job: str) -> None:
    body = problem(client.get(f"/jobs/{job}/result"), 409, "result-not-ready")
    assert body["state"] == "queued"
    assert "retry_after" in body


def test_the_result_of_a_running_job_is_409(client: httpx.Client, running: str) -> None:
    body = problem(client.get(f"/jobs/{running}/result"), 409, "result-not-ready")
    assert body["state"] == "processing"


def test_the_result_of_a_failed_job_is_409_with_the_reason(
    client: httpx.Client, failed: str
) -> None:
    body = problem(client.get(f"/jobs/{failed}/result"), 409, "no-result")
    assert body["state"] == "failed"
    assert body["error"]["type"] == "/problems/image-truncated"


def test_the_result_of_a_canceled_job_is_409(client: httpx.Client, job: str) -> None:
    client.delete(f"/jobs/{job}")
    body = problem(client.get(f"/jobs/{job}/result"), 409, "no-result")
    assert body["state"] == "canceled"


def test_an_expired_result_is_410(client: httpx.Client, succeeded: str, worker: FakeWorker) -> None:
    worker.expire(succeeded)
    problem(client.get(f"/jobs/{succeeded}/result"), 410, "result-expired")
    job = client.get(f"/jobs/{succeeded}").json()
    assert job["state"] == "expired"
    assert job["result"] is None


def test_a_result_that_is_gone_from_the_store_is_410(
    client: httpx.Client, succeeded: str, worker: FakeWorker
) -> None:
    worker.lose_result(succeeded)
    problem(client.get(f"/jobs/{succeeded}/result"), 410, "result-expired")


def test_canceling_a_waiting_job_is_final(
    client: httpx.Client, job: str, worker: FakeWorker
) -> None:
    for _ in range(2):
        answer = client.delete(f"/jobs/{job}")
        assert answer.status_code == 200
        assert answer.json()["state"] == "canceled"


def test_canceling_a_running_job_stops_it_at_its_next_step(
    client: httpx.Client, running: str, worker: FakeWorker
) -> None:
    answer = client.delete(f"/jobs/{running}")
    assert answer.status_code == 202
    assert answer.json()["state"] == "processing"
    assert answer.json()["cancel_requested"]
    assert "Retry-After" in answer.headers
    assert client.delete(f"/jobs/{running}").status_code == 202

    worker.stop(running)
    assert client.get(f"/jobs/{running}").json()["state"] == "canceled"


def images(settings: Settings, job: str) -> list[bool]:
    store = BlobStore.open(settings)
    return [store.exists(key) for key in (input_key(job), result_key(job))]


def test_a_deleted_result_is_gone_at_once_and_its_job_expired(
    client: httpx.Client, succeeded: str, settings: Settings
) -> None:
    assert images(settings, succeeded) == [True, True]
    for _ in range(2):
        answer = client.delete(f"/jobs/{succeeded}")
        assert answer.status_code == 200
        job = answer.json()
        assert (job["state"], job["result"]) == ("expired", None)
        times = [datetime.fromisoformat(job[name]) for name in ("ended_at", "expires_at")]
        assert times[1] - times[0] < timedelta(minutes=5)
        assert images(settings, succeeded) == [False, False]
    problem(client.get(f"/jobs/{succeeded}/result"), 410, "result-expired")


def test_a_deleted_job_that_failed_or_was_canceled_stays_so_without_its_image(
    client: httpx.Client, failed: str, settings: Settings
) -> None:
    canceled = submit(client)
    client.delete(f"/jobs/{canceled}")
    for job, state in ((failed, "failed"), (canceled, "canceled")):
        assert images(settings, job) == [True, False]
        answer = client.delete(f"/jobs/{job}")
        assert (answer.status_code, answer.json()["state"]) == (200, state)
        assert images(settings, job) == [False, False]
        assert client.get(f"/jobs/{job}").json() == answer.json()


def test_a_store_that_cannot_remove_images_is_said_and_leaves_them_to_the_sweep(
    client: httpx.Client, succeeded: str, settings: Settings, redis: Redis
) -> None:
    path = settings.blob_root / input_key(succeeded)
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    problem(client.delete(f"/jobs/{succeeded}"), 503, "store-unavailable")
    problem(client.get(f"/jobs/{succeeded}/result"), 410, "result-expired")
    shutil.rmtree(path)
    assert sweep(redis, BlobStore.open(settings))["removals"] == 1
    assert images(settings, succeeded) == [False, False]


def test_a_result_ends_with_its_time(
    settings: Settings, client: httpx.Client, succeeded: str
) -> None:
    control = client.get(f"/jobs/{succeeded}/result").headers["Cache-Control"]
    assert control.startswith("private, max-age=")
    seconds = int(control.split("=")[1].split(",")[0])
    assert settings.result_ttl_s - 60 < seconds <= settings.result_ttl_s


def submit_many(redis: Redis, count: int) -> list[str]:
    """Records without anything in RQ, faster than through HTTP; the oldest first."""
    records = JobStore(redis)
    seconds, _ = redis.time()
    image = ImageInfo(width=1, height=1, format="PNG", media_type="image/png", bytes=1)
    parameters = UpscaleParameters(seed=1)
    ids = []
    with redis.pipeline() as pipe:
        for number in range(count):
            ids.append(new_job_id())
            # Every four of them in the same microsecond.
            now = seconds - 5000 + number // 4
            record = new_record(parameters, image, Origin(), now=now, wait_s=86_400, keep_s=86_400)
            records.create(pipe, ids[-1], record)
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
    ids = submit_many(redis, 213)
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
    ids = submit_many(redis, 1100)
    worker.start(ids[0])
    [page] = walk(client, "/jobs?state=processing&limit=5")
    assert [job["id"] for job in page["jobs"]] == [ids[0]]


def test_a_forgotten_job_leaves_the_list_and_its_index(client: httpx.Client, redis: Redis) -> None:
    gone, stays = submit(client), submit(client)
    redis.delete(record_key(gone))
    assert [job["id"] for job in client.get("/jobs").json()["jobs"]] == [stays]
    assert redis.zrange(owner_key(""), 0, -1) == [stays.encode()]


def test_the_indexes_do_not_outlive_their_jobs(client: httpx.Client, redis: Redis) -> None:
    [old] = submit_many(redis, 1)
    redis.delete(record_key(old))
    new = submit(client)
    for index in (owner_key(""), owner_key("", JobState.QUEUED)):
        assert redis.zrange(index, 0, -1) == [new.encode()]
        assert redis.ttl(index) > QUEUE_TTL_S


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
