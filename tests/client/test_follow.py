"""Waiting for a job: by asking again and again, and by its events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stablesr_client import (
    Event,
    Job,
    JobFailed,
    NotFound,
    Refused,
    RetryPolicy,
    TimedOut,
    Unreachable,
)
from stablesr_client.events import EventParser, ServerEvent
from tests.client.conftest import MakeClient
from tests.client.shells import AsyncShell, FakeClock, Shell
from tests.scripted_server import DONE, IMAGE, JOB_ID, Script, job

GET = f"GET /jobs/{JOB_ID}"
EVENTS = f"{GET}/events"
QUEUED = Job(id=JOB_ID, state="queued", preset="tiny")
PROGRESS = {"stage": "denoise", "step": 2, "steps": 4, "fraction": 0.5, "eta_seconds": 1.5}


def event(name: str, number: int, data: object) -> str:
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


def stream(*parts: str) -> bytes:
    return "".join(("retry: 2000\n\n", *parts)).encode()


def test_waiting_asks_with_the_etag_and_tells_each_change(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(GET, 200, job("processing", progress=PROGRESS), ETag='"1"', Retry_After="4")
    script.add(GET, 304, ETag='"1"', Retry_After="2")
    script.add(GET, 304, ETag='"1"')
    script.add(GET, 200, job("succeeded", result=DONE), ETag='"2"')
    seen: list[Job] = []
    ended = client.wait(QUEUED, seen.append)
    assert ended.result is not None
    assert ended.result.width == 8
    assert [now.state for now in seen] == ["queued", "processing", "succeeded"]
    assert seen[1].progress is not None
    assert seen[1].progress.eta_seconds == 1.5
    asked = [headers.get("if-none-match") for headers, _ in script.calls(GET)]
    assert asked == [None, '"1"', '"1"', '"1"']
    # As the server asks; where it does not, from a quarter of a second upwards.
    assert clock.slept == [0.25, 4, 2, pytest.approx(0.25 * 1.5**2)]


def test_waiting_may_be_given_an_id_and_a_coroutine_to_call(script: Script, client: Shell) -> None:
    script.add(GET, 200, job("processing"))
    script.add(GET, 200, job("succeeded", result=DONE))
    seen: list[str] = []

    async def note(now: Job) -> None:
        seen.append(now.state)

    assert client.wait(JOB_ID, note if isinstance(client, AsyncShell) else None).succeeded
    assert seen == (["processing", "succeeded"] if isinstance(client, AsyncShell) else [])


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
    assert clock.slept[2:] == ([20, 20, 20] if "time" in trouble else [0.125, 0.25, 0.5])


def test_an_outage_that_lasts_ends_the_wait_with_what_was_last_wrong(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(GET, 200, job("processing"))
    script.add(GET, 503, b"")
    with pytest.raises(Refused, match="answered 503"):
        client.wait(QUEUED)
    assert 50 < sum(clock.slept) <= 60.25 + 0.25
    # It does not hammer a server in trouble.
    assert max(clock.slept) == 2.5
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
    with pytest.raises(TimedOut, match=f"still .* after {timeout:g} seconds") as caught:
        client.wait(QUEUED, timeout=timeout)
    assert caught.value.job.state == "processing"
    # All of it, with a last look at its end.
    assert sum(clock.slept) == pytest.approx(timeout)
    assert not script.calls(f"DELETE /jobs/{JOB_ID}")


def test_a_job_that_ends_before_the_callers_time_is_seen_although_the_server_asks_to_wait_longer(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(GET, 200, job("processing"), Retry_After="10")
    script.add(GET, 200, job("succeeded", result=DONE))
    assert client.wait(QUEUED, timeout=8).succeeded
    assert sum(clock.slept) == pytest.approx(8)


def test_a_busy_server_is_asked_once_more_at_the_end_of_the_callers_time(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    busy = {"type": "/problems/rate-limited", "title": "Slower", "retry_after": 60}
    script.add(GET, 429, busy, Retry_After="60")
    script.add(GET, 200, job("succeeded", result=DONE))
    assert client.wait(QUEUED, timeout=8).succeeded
    assert sum(clock.slept) == pytest.approx(8)


def test_the_callers_own_time_ends_an_outage_too(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(GET, 200, job("processing"))
    script.reset(GET)
    with pytest.raises(TimedOut):
        client.wait(QUEUED, timeout=10)
    assert sum(clock.slept) == pytest.approx(10)


@pytest.mark.parametrize("state", ["failed", "canceled", "expired"])
def test_a_job_that_ends_without_a_result_is_told_with_its_problem(
    script: Script, client: Shell, state: str
) -> None:
    problem = {"type": "/problems/x", "title": "It is cut off", "detail": "After 10.", "row": 3}
    script.add(GET, 200, job(state, error=problem if state == "failed" else None))
    with pytest.raises(JobFailed, match=f"{JOB_ID} .*{state}") as caught:
        client.wait(QUEUED)
    if state == "failed":
        assert "It is cut off: After 10." in str(caught.value)
        assert caught.value.job.error is not None
        assert caught.value.job.error.members == problem


def test_a_job_that_the_server_forgot_ends_the_wait(script: Script, client: Shell) -> None:
    script.add(GET, 404, {"type": "/problems/job-not-found", "title": "No such job"})
    with pytest.raises(NotFound, match="No such job"):
        client.wait(QUEUED)


def test_an_id_with_a_slash_asks_for_no_other_path(script: Script, client: Shell) -> None:
    with pytest.raises(NotFound):
        client.get("../models")
    assert [call for call, _, _ in script.seen] == ["GET /jobs/..%2Fmodels"]


def test_events_come_as_they_are_told(script: Script, client: Shell) -> None:
    body = stream(
        event("state", 1, job("processing")),
        ": still here\n\n",
        event("progress", 2, PROGRESS),
        event("of a newer server", 3, "?"),
        event("end", 4, job("succeeded", result=DONE)),
        event("state", 5, "never read"),
    )
    script.add(EVENTS, 200, body, Content_Type="text/event-stream")
    told: list[Event] = client.events(QUEUED)
    assert [(now.name, now.id, now.job.state) for now in told] == [
        ("state", "1", "processing"),
        ("progress", "2", "processing"),
        ("end", "4", "succeeded"),
    ]
    assert told[1].job.progress is not None
    assert told[1].job.progress.step == 2
    assert told[2].job.result is not None
    assert script.calls(EVENTS)[0][0]["accept"] == "text/event-stream"


@pytest.mark.parametrize("end", ["cut", "closed", "reset"])
def test_a_stream_that_breaks_is_taken_up_where_it_was(
    script: Script, client: Shell, clock: FakeClock, end: str
) -> None:
    begun = stream(event("state", 1, job("processing")), event("progress", 2, PROGRESS))
    half = begun + b"id: 3\nevent: progress\nda"
    if end == "cut":
        script.add(EVENTS, 200, half + b"ta", cut=len(half))
    else:
        script.add(EVENTS, 200, half)
    if end == "reset":
        script.reset(EVENTS)
    script.add(EVENTS, 200, stream(event("end", 4, job("succeeded", result=DONE))))
    assert [now.id for now in client.events(QUEUED)] == ["1", "2", "4"]
    given = [headers.get("last-event-id") for headers, _ in script.calls(EVENTS)]
    assert given[0] is None
    assert set(given[1:]) == {"2"}
    # As the server asked with `retry`.
    assert clock.slept[0] == 2


def test_events_before_a_known_one_are_not_asked_for(script: Script, client: Shell) -> None:
    script.add(GET, 200, job("succeeded", result=DONE))
    script.add(EVENTS, 204)
    assert client.events(JOB_ID, last_event_id="9") == []
    assert script.calls(EVENTS)[0][0]["last-event-id"] == "9"


def test_a_stream_that_always_breaks_is_given_up(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    script.add(EVENTS, 200, b"retry: 10\n\n")
    with pytest.raises(Unreachable, match="before the job's end"):
        client.events(QUEUED)
    assert sum(clock.slept) <= 60


@pytest.mark.parametrize("status", [404, 406, 429])
def test_a_server_without_events_is_asked_again_and_again(
    script: Script, client: Shell, status: int
) -> None:
    script.add(EVENTS, status, {"title": "No events here"})
    script.add(GET, 200, job("queued"))
    script.add(GET, 200, job("processing"))
    script.add(GET, 200, job("processing", progress=PROGRESS))
    script.add(GET, 200, job("succeeded", result=DONE))
    told: list[Event] = client.events(QUEUED)
    names = [(now.name, now.job.state) for now in told]
    assert names == [
        ("state", "queued"),
        ("state", "processing"),
        ("progress", "processing"),
        ("end", "succeeded"),
    ]


def test_events_of_a_job_nobody_knows_are_not_found(script: Script, client: Shell) -> None:
    with pytest.raises(NotFound):
        client.events(QUEUED)


def test_leaving_a_stream_early_closes_it(script: Script, client: Shell) -> None:
    script.add(EVENTS, 200, stream(event("state", 1, job("processing"))) + b"\n" * 100_000)
    assert len(client.events(QUEUED, first=1)) == 1
    script.add(GET, 200, job("processing"))
    assert client.get(QUEUED).state == "processing"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("newline", ["\n", "\r", "\r\n"])
def test_an_event_stream_reads_the_same_however_it_is_cut(size: int, newline: str) -> None:
    text = (
        "\ufeff: comment\nretry: 1500\nevent: state\nid: 7\ndata: first\ndata:second é\n\n"
        "event: nothing to tell\n\ndata\n\nid: 8\ndata: x\nunknown: y\n\ndata: half"
    )
    content = text.replace("\n", newline).encode()
    parser = EventParser()
    found: list[Any] = []
    for start in range(0, len(content), size):
        found += parser.feed(content[start : start + size])
    assert found == [
        ServerEvent("state", "first\nsecond é", "7"),
        ServerEvent("message", "", "7"),
        ServerEvent("message", "x", "8"),
    ]
    assert parser.retry_s == 1.5
    parser.reconnected()
    assert list(parser.feed(b"data: new\n\n")) == [ServerEvent("message", "new", "8")]


def test_canceling_gives_the_job_as_it_is_then(script: Script, client: Shell) -> None:
    delete = f"DELETE /jobs/{JOB_ID}"
    script.add(delete, 202, job("processing", cancel_requested=True))
    script.add(delete, 409, {"type": "/problems/job-ended", "title": "The job has ended"})
    script.add(GET, 200, job("succeeded", result=DONE))
    assert client.cancel(QUEUED).cancel_requested
    # One that has ended stays as it is, which is no error.
    assert client.cancel(JOB_ID).succeeded


def test_the_list_is_read_page_by_page_as_it_is_needed(script: Script, client: Shell) -> None:
    def listed(*ids: str) -> list[dict[str, object]]:
        return [{**job("queued"), "id": name} for name in ids]

    first, second = "GET /jobs?limit=100", "GET /jobs?cursor=c%3D1&limit=100"
    script.add(first, 200, {"jobs": listed("a", "b"), "next": "c=1"})
    script.add(second, 200, {"jobs": listed("c"), "next": None})
    assert [now.id for now in client.jobs(first=2)] == ["a", "b"]
    assert not script.calls(second)
    assert [now.id for now in client.jobs()] == ["a", "b", "c"]


def test_the_list_may_be_of_one_state_and_short(script: Script, client: Shell) -> None:
    page = {"jobs": [job("failed")], "next": "more"}
    script.add("GET /jobs?state=failed&limit=2", 200, page)
    script.add("GET /jobs?state=failed&cursor=more&limit=1", 200, page)
    assert len(client.jobs("failed", limit=2)) == 2
    assert len(script.seen) == 2


def test_the_presets_are_told_with_their_limits(script: Script, client: Shell) -> None:
    models = [{"name": "tiny", "default": True, "available": True, "new": 1}, {"name": "big"}]
    script.add("GET /models", 200, {"models": models, "max_input_pixels": 40, "formats": ["PNG"]})
    told = client.models()
    assert told.default is not None
    assert told.default.name == "tiny"
    assert told.max_input_pixels == 40
    assert told.formats == ("PNG",)


def test_what_the_server_sends_beside_is_no_reason_to_fail(script: Script, client: Shell) -> None:
    script.add(GET, 200, job("thinking", progress={"stage": "dream", "fraction": 0.1, "x": [1]}))
    now = client.get(JOB_ID)
    assert (now.state, now.ended) == ("thinking", False)


def test_bytes_in_the_middle_of_nowhere_do_not_leak(script: Script, client: Shell) -> None:
    script.add(GET, 200, IMAGE)
    with pytest.raises(Exception, match="something else than this service"):
        client.get(JOB_ID)
