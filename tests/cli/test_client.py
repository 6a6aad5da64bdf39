"""The client against a small real HTTP server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path

import pytest

from cli import client as client_module
from cli.client import Client, RemoteJob, retry_after_s
from cli.errors import InputError, JobFailed, Refused, Unreachable
from cli.redis_server import free_port
from tests.cli.scripted_server import DONE, IMAGE, JOB_ID, Script, job


@pytest.fixture
def client(script: Script) -> Iterator[Client]:
    with Client(script.url) as client:
        yield client


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "in.png"
    path.write_bytes(IMAGE)
    return path


def test_a_submission_sends_the_file_and_the_given_parameters(
    script: Script, client: Client, picture: Path
) -> None:
    script.add("POST /upscale", 202, job("queued", queue_position=3))
    submitted = client.submit(picture, {"scale": "2.0"})
    assert submitted.id == JOB_ID
    assert submitted.queue_position == 3
    [(headers, body)] = script.calls("POST /upscale")
    assert headers["content-type"].startswith("multipart/form-data")
    assert IMAGE in body
    assert b'name="scale"' in body
    assert b'filename="in.png"' in body


def test_a_refusal_carries_the_problem_and_the_fields_it_names(
    script: Script, client: Client, picture: Path
) -> None:
    problem = {
        "type": "about:blank",
        "title": "Invalid parameters",
        "detail": "Two fields are wrong.",
        "errors": [
            {"field": "scale", "detail": "at most 16"},
            {"field": "steps", "detail": "at least 1"},
        ],
    }
    script.add("POST /upscale", 422, problem)
    with pytest.raises(Refused, match="Invalid parameters: Two fields are wrong") as caught:
        client.submit(picture, {"scale": "99"})
    assert caught.value.status == 422
    assert "scale: at most 16" in str(caught.value)
    assert "steps: at least 1" in str(caught.value)


def test_an_error_without_a_problem_is_told_with_its_status(
    script: Script, client: Client, picture: Path
) -> None:
    script.add("POST /upscale", 502, b"<html>bad gateway</html>")
    with pytest.raises(Refused, match="answered 502"):
        client.submit(picture, {})


def test_a_full_server_is_asked_again_after_the_time_it_says(
    script: Script, client: Client, picture: Path
) -> None:
    script.add("POST /upscale", 503, {"title": "The queue is full"}, Retry_After="1")
    script.add("POST /upscale", 202, job("queued"))
    started = time.monotonic()
    assert client.submit(picture, {}).state == "queued"
    assert time.monotonic() - started >= 1
    assert len(script.calls("POST /upscale")) == 2


def test_a_server_that_is_full_for_too_long_is_a_refusal(
    script: Script, client: Client, picture: Path
) -> None:
    script.add("POST /upscale", 503, {"title": "The queue is full"}, Retry_After="9999")
    with pytest.raises(Refused, match="The queue is full"):
        client.submit(picture, {})


def test_waiting_asks_with_the_etag_and_tells_each_new_state(
    script: Script, client: Client
) -> None:
    call = f"GET /jobs/{JOB_ID}"
    progress = {"stage": "denoise", "step": 2, "steps": 4, "fraction": 0.5, "eta_seconds": 1.5}
    script.add(call, 200, job("processing", progress=progress), ETag='"1"', Retry_After="0")
    script.add(call, 304, b"", ETag='"1"', Retry_After="0")
    script.add(call, 200, job("succeeded", result=DONE), ETag='"2"')
    seen: list[RemoteJob] = []
    ended = client.wait(RemoteJob.model_validate(job("queued")), seen.append)
    assert ended.result is not None
    assert [now.state for now in seen] == ["queued", "processing", "succeeded"]
    assert seen[1].progress is not None
    assert seen[1].progress.eta_seconds == 1.5
    asked = [headers.get("if-none-match") for headers, _ in script.calls(call)]
    assert asked == [None, '"1"', '"1"']


def test_waiting_outlives_a_short_outage(script: Script, client: Client) -> None:
    call = f"GET /jobs/{JOB_ID}"
    script.add(call, 503, {"title": "The queue cannot be reached"})
    script.add(call, 200, job("succeeded", result=DONE))
    assert client.wait(RemoteJob.model_validate(job("queued"))).ended


def test_waiting_gives_up_when_the_outage_lasts(
    script: Script, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "OUTAGE_S", 0.3)
    script.add(f"GET /jobs/{JOB_ID}", 503, {"title": "The queue cannot be reached"})
    with pytest.raises(Refused, match="cannot be reached"):
        client.wait(RemoteJob.model_validate(job("queued")))


def test_a_failed_job_is_told_with_its_problem(script: Script, client: Client) -> None:
    problem = {"title": "The image is cut off", "detail": "It ends after 10 of 20 bytes."}
    script.add(f"GET /jobs/{JOB_ID}", 200, job("failed", error=problem))
    with pytest.raises(JobFailed, match="The image is cut off: It ends after 10"):
        client.wait(RemoteJob.model_validate(job("queued")))


def test_a_job_that_someone_canceled_is_told_as_canceled(client: Client) -> None:
    with pytest.raises(JobFailed, match="ended as canceled"):
        client.wait(RemoteJob.model_validate(job("canceled")))


def test_a_result_is_written_whole(script: Script, client: Client, tmp_path: Path) -> None:
    script.add(f"GET /jobs/{JOB_ID}/result", 200, IMAGE)
    target = tmp_path / "out.png"
    size = client.download(RemoteJob.model_validate(job("succeeded")), target)
    assert target.read_bytes() == IMAGE
    assert size == len(IMAGE)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("status", "headers", "error"),
    [
        pytest.param(410, {}, Refused, id="the result has expired"),
        # A length that is not kept: the connection ends in the middle of the body.
        pytest.param(200, {"Content_Length": "999", "Connection": "close"}, Unreachable, id="cut"),
    ],
)
def test_a_download_that_fails_leaves_no_file_and_keeps_the_old_one(
    script: Script,
    client: Client,
    tmp_path: Path,
    status: int,
    headers: dict[str, str],
    error: type[Exception],
) -> None:
    script.add(f"GET /jobs/{JOB_ID}/result", status, IMAGE, **headers)
    target = tmp_path / "out.png"
    target.write_bytes(b"old")
    with pytest.raises(error):
        client.download(RemoteJob.model_validate(job("succeeded")), target)
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("status", [200, 202, 409])
def test_canceling_a_job_that_has_ended_is_no_error(
    script: Script, client: Client, status: int
) -> None:
    script.add(f"DELETE /jobs/{JOB_ID}", status, job("canceled"))
    client.cancel(JOB_ID)
    assert len(script.calls(f"DELETE /jobs/{JOB_ID}")) == 1


def test_an_address_where_nobody_listens_is_named(picture: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(Unreachable, match=url):
        client.submit(picture, {})


def test_an_address_without_a_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="begins with http"):
        Client("localhost:8000")


@pytest.mark.parametrize(
    ("value", "seconds"), [(None, None), ("3", 3.0), (" 12 ", 12.0), ("soon", None)]
)
def test_a_retry_after_in_seconds_is_read(value: str | None, seconds: float | None) -> None:
    assert retry_after_s(value) == seconds


@pytest.mark.parametrize(
    ("shift", "holds"),
    [(60.0, lambda s: 55 < s <= 60), (-60.0, lambda s: s == 0)],
    ids=["in a minute", "past"],
)
def test_a_retry_after_as_a_date_is_read(shift: float, holds: Callable[[float], bool]) -> None:
    seconds = retry_after_s(formatdate(time.time() + shift, usegmt=True))
    assert seconds is not None
    assert holds(seconds)
