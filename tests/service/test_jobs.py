"""/jobs/{id}: looking, fetching, canceling, in every state a job can be in."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from jobs.errors import ImageTruncated
from jobs.schema import Progress
from jobs.settings import Settings
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
    answer = client.delete(f"/jobs/{job}")
    assert answer.status_code == 200
    assert answer.json()["state"] == "canceled"
    body = problem(client.delete(f"/jobs/{job}"), 409, "job-ended")
    assert body["state"] == "canceled"


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


def test_canceling_an_ended_job_is_409_and_changes_nothing(
    client: httpx.Client, succeeded: str
) -> None:
    body = problem(client.delete(f"/jobs/{succeeded}"), 409, "job-ended")
    assert body["state"] == "succeeded"
    assert client.get(f"/jobs/{succeeded}/result").content == RESULT


def test_canceling_a_failed_job_is_409(client: httpx.Client, failed: str) -> None:
    assert problem(client.delete(f"/jobs/{failed}"), 409, "job-ended")["state"] == "failed"


def test_canceling_an_expired_job_is_409(
    client: httpx.Client, succeeded: str, worker: FakeWorker
) -> None:
    worker.expire(succeeded)
    assert problem(client.delete(f"/jobs/{succeeded}"), 409, "job-ended")["state"] == "expired"


def test_a_result_ends_with_its_time(
    settings: Settings, client: httpx.Client, succeeded: str
) -> None:
    control = client.get(f"/jobs/{succeeded}/result").headers["Cache-Control"]
    assert control.startswith("private, max-age=")
    seconds = int(control.split("=")[1].split(",")[0])
    assert settings.result_ttl_s - 60 < seconds <= settings.result_ttl_s
