"""Waiting for a job, and sending again what got no answer."""

from __future__ import annotations

import pytest

from stablesr_client import Busy, Job, JobFailed, NotFound, Refused, RetryPolicy, TimedOut
from tests.client.conftest import MakeClient
from tests.client.shells import AsyncShell, FakeClock, Shell
from tests.scripted_server import DONE, IMAGE, JOB_ID, Script, job

POST = "POST /upscale"
GET = f"GET /jobs/{JOB_ID}"
QUEUED = Job(id=JOB_ID, state="queued", preset="tiny")
PROGRESS = {"stage": "denoise", "step": 2, "steps": 4, "fraction": 0.5, "eta_seconds": 1.5}


@pytest.mark.parametrize("loss", ["reset", "503", "cut"])
def test_a_submission_without_an_answer_is_repeated_under_its_key(
    script: Script, client: Shell, clock: FakeClock, loss: str
) -> None:
    if loss == "reset":
        script.reset(POST)
        script.reset(POST)
    elif loss == "503":
        script.add(POST, 503, b"<html>nothing behind the proxy</html>")
        script.add(POST, 502, b"")
    else:
        script.add(POST, 202, job("queued"), cut=10)
        script.reset(POST)
    script.add(POST, 202, job("queued"))
    assert client.submit(IMAGE).id == JOB_ID
    keys = [headers["idempotency-key"] for headers, _ in script.calls(POST)]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    # The second pause is longer than the first.
    assert clock.pauses == [0.125, 0.25]


@pytest.mark.parametrize("status", [429, 503, 409])
def test_a_busy_server_is_asked_again_when_it_says(
    script: Script, client: Shell, clock: FakeClock, status: int
) -> None:
    busy = {"type": "/problems/queue-full", "title": "The queue is full"}
    script.add(POST, status, busy, Retry_After="17")
    script.add(POST, status, busy, Retry_After="3")
    script.add(POST, 202, job("queued"))
    clock.chance = 0.5
    assert client.submit(IMAGE).state == "queued"
    # Never sooner than asked, and not all clients at the same moment.
    assert clock.pauses == [pytest.approx(17 * 1.05), pytest.approx(3 * 1.05)]


def test_a_server_that_stays_busy_is_a_refusal_once_the_retries_are_over(
    script: Script, make_client: MakeClient, clock: FakeClock
) -> None:
    script.add(POST, 503, {"title": "The queue is full"}, Retry_After="40")
    with pytest.raises(Busy, match="The queue is full") as error:
        make_client(script.url).submit(IMAGE)
    assert clock.pauses == [40, 40, 40]
    assert error.value.problem.retry_after == 40
    with pytest.raises(Busy):
        make_client(script.url, retry_policy=RetryPolicy(busy_s=39)).submit(IMAGE)
    assert clock.pauses == [40, 40, 40]


def test_an_outage_is_timed_apart_from_a_server_that_is_busy(
    script: Script, make_client: MakeClient, clock: FakeClock
) -> None:
    client = make_client(script.url, retry_policy=RetryPolicy(outage_s=1, busy_s=100))
    for _ in range(2):
        script.add(POST, 503, {"title": "The queue is full"}, Retry_After="40")
        script.reset(POST)
    script.add(POST, 202, job("queued"))
    assert client.submit(IMAGE).id == JOB_ID
    assert clock.pauses == [40, 0.125, 40, 0.25]


def test_a_refusal_of_the_service_that_names_no_time_is_final(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    problem = {"type": "/problems/preset-not-served", "title": "No worker serves the preset"}
    script.add(POST, 503, problem)
    with pytest.raises(Busy, match="No worker serves"):
        client.submit(IMAGE)
    assert clock.pauses == []


def test_waiting_asks_with_the_etag_and_tells_each_change(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(GET, 200, job("processing", progress=PROGRESS), ETag='"1"', Retry_After="4")
    script.add(GET, 304, ETag='"1"', Retry_After="2")
    script.add(GET, 304, ETag='"1"')
    script.add(GET, 200, job("succeeded", result=DONE), ETag='"2"')
    jobs: list[Job] = []
    last = client.wait(QUEUED, jobs.append)
    assert last.result is not None
    assert last.result.width == 8
    assert [now.state for now in jobs] == ["queued", "processing", "succeeded"]
    assert jobs[1].progress is not None
    assert jobs[1].progress.eta_seconds == 1.5
    etags = [headers.get("if-none-match") for headers, _ in script.calls(GET)]
    assert etags == [None, '"1"', '"1"', '"1"']
    # As the server asks; where it does not, from a quarter of a second upwards.
    assert clock.pauses == [0.25, 4, 2, pytest.approx(0.25 * 1.5**2)]


def test_waiting_may_be_given_an_id_and_a_coroutine_to_call(script: Script, client: Shell) -> None:
    script.add(GET, 200, job("processing"))
    script.add(GET, 200, job("succeeded", result=DONE))
    states: list[str] = []

    async def note(now: Job) -> None:
        states.append(now.state)

    assert client.wait(JOB_ID, note if isinstance(client, AsyncShell) else None).succeeded
    assert states == (["processing", "succeeded"] if isinstance(client, AsyncShell) else [])


@pytest.mark.parametrize("trouble", ["reset", "500", "502 with a time"])
def test_waiting_outlives_a_short_outage(
    script: Script, client: Shell, clock: FakeClock, trouble: str
) -> None:
    script.add(GET, 200, job("processing"))
    for _ in range(3):
        if trouble == "reset":
            script.reset(GET)
        elif trouble == "500":
            script.add(GET, 500, {"title": "Unexpected"})
        else:
            script.add(GET, 502, Retry_After="20")
    script.add(GET, 200, job("succeeded", result=DONE))
    assert client.wait(QUEUED).succeeded
    assert clock.pauses[2:] == ([20, 20, 20] if "time" in trouble else [0.125, 0.25, 0.5])


def test_an_outage_that_lasts_ends_the_wait_with_what_was_last_wrong(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(GET, 200, job("processing"))
    script.add(GET, 503, b"")
    with pytest.raises(Refused, match="answered 503"):
        client.wait(QUEUED)
    assert 50 < sum(clock.pauses) <= 60.25 + 0.25
    # It does not hammer a server in trouble.
    assert max(clock.pauses) == 2.5
    assert len(script.calls(GET)) < 40


def test_each_answer_begins_the_retries_anew(
    script: Script, make_client: MakeClient, clock: FakeClock
) -> None:
    for _ in range(10):
        script.reset(GET)
        script.add(GET, 200, job("processing"))
    script.add(GET, 200, job("succeeded", result=DONE))
    client = make_client(script.url, retry_policy=RetryPolicy(outage_s=1))
    script.add("GET /models", 200, {"models": []})
    assert client.models().models == ()
    assert client.wait(QUEUED).succeeded


@pytest.mark.parametrize("timeout", [0.1, 7.0])
def test_the_callers_own_time_ends_the_wait_and_the_job_goes_on(
    script: Script, client: Shell, clock: FakeClock, timeout: float
) -> None:
    script.add(GET, 200, job("processing"), Retry_After="3")
    with pytest.raises(TimedOut, match=f"still .* after {timeout:g} seconds") as error:
        client.wait(QUEUED, timeout=timeout)
    assert error.value.job.state == "processing"
    # All of it, with a last look at its end.
    assert sum(clock.pauses) == pytest.approx(timeout)
    assert not script.calls(f"DELETE /jobs/{JOB_ID}")


def test_a_job_that_ends_before_the_callers_time_is_seen_although_the_server_asks_to_wait_longer(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(GET, 200, job("processing"), Retry_After="10")
    script.add(GET, 200, job("succeeded", result=DONE))
    assert client.wait(QUEUED, timeout=8).succeeded
    assert sum(clock.pauses) == pytest.approx(8)


def test_a_busy_server_is_asked_once_more_at_the_end_of_the_callers_time(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    busy = {"type": "/problems/rate-limited", "title": "Slower", "retry_after": 60}
    script.add(GET, 429, busy, Retry_After="60")
    script.add(GET, 200, job("succeeded", result=DONE))
    assert client.wait(QUEUED, timeout=8).succeeded
    assert sum(clock.pauses) == pytest.approx(8)


def test_the_callers_own_time_ends_an_outage_too(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(GET, 200, job("processing"))
    script.reset(GET)
    with pytest.raises(TimedOut):
        client.wait(QUEUED, timeout=10)
    assert sum(clock.pauses) == pytest.approx(10)


@pytest.mark.parametrize("state", ["failed", "canceled", "expired"])
def test_a_job_that_ends_without_a_result_has_its_problem(
    script: Script, client: Shell, state: str
) -> None:
    problem = {"type": "/problems/x", "title": "It is cut off", "detail": "After 10.", "row": 3}
    script.add(GET, 200, job(state, error=problem if state == "failed" else None))
    with pytest.raises(JobFailed, match=f"{JOB_ID} .*{state}") as error:
        client.wait(QUEUED)
    if state == "failed":
        assert "It is cut off: After 10." in str(error.value)
        assert error.value.job.error is not None
        assert error.value.job.error.members == problem


def test_a_job_that_the_server_forgot_ends_the_wait(script: Script, client: Shell) -> None:
    script.add(GET, 404, {"type": "/problems/job-not-found", "title": "No such job"})
    with pytest.raises(NotFound, match="No such job"):
        client.wait(QUEUED)
