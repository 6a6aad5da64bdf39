"""What is sent, what the answers become, and the events of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.processes import free_port
from stablesr_client import Job, NotFound, Refused, Unauthorized, UnexpectedAnswer, Unreachable
from stablesr_client.schema import EventParser
from tests.client.conftest import MakeClient
from tests.client.shells import FakeClock, Shell
from tests.scripted_server import DONE, IMAGE, JOB_ID, Script, job

POST = "POST /upscale"
GET = f"GET /jobs/{JOB_ID}"
EVENTS = f"{GET}/events"
QUEUED = Job(id=JOB_ID, state="queued", preset="tiny")
PROGRESS = {"stage": "denoise", "step": 2, "steps": 4, "fraction": 0.5, "eta_seconds": 1.5}


def test_the_file_and_the_given_parameters_are_sent(
    script: Script, client: Shell, image: Path
) -> None:
    script.add(POST, 202, job("queued", queue_position=3))
    submitted = client.submit(image, scale=2.0, seed=7, steps=None)
    assert (submitted.id, submitted.state, submitted.queue_position) == (JOB_ID, "queued", 3)
    [(headers, body)] = script.calls(POST)
    assert headers["content-type"].startswith("multipart/form-data")
    assert IMAGE in body
    assert b'name="scale"\r\n\r\n2.0\r\n' in body
    assert b'name="seed"\r\n\r\n7\r\n' in body
    assert b'filename="in.png"' in body
    assert b"steps" not in body


def test_the_key_is_sent_with_every_request_and_kept_out_of_errors(
    script: Script, make_client: MakeClient
) -> None:
    script.add(POST, 401, {"type": "/problems/unauthorized", "title": "No such key"})
    client = make_client(script.url, api_key="ssr_secret")
    with pytest.raises(Unauthorized, match="No such key") as error:
        client.submit(IMAGE)
    assert script.calls(POST)[0][0]["authorization"] == "Bearer ssr_secret"
    assert "ssr_secret" not in repr(error.value)


def test_each_submission_has_a_key_of_its_own_unless_one_is_given(
    script: Script, client: Shell
) -> None:
    script.add(POST, 202, job("queued"))
    client.submit(IMAGE)
    client.submit(IMAGE)
    client.submit(IMAGE, idempotency_key="mine")
    first, second, third = (headers["idempotency-key"] for headers, _ in script.calls(POST))
    assert first != second
    assert third == "mine"


def test_a_refusal_carries_the_problem_and_the_fields_it_names(
    script: Script, client: Shell
) -> None:
    problem = {
        "type": "/problems/invalid-parameters",
        "title": "Invalid parameters",
        "detail": "Two fields are wrong.",
        "errors": [
            {"field": "scale", "detail": "at most 16"},
            {"field": "steps", "detail": "at least 1"},
        ],
        "limit": 16,
    }
    script.add(POST, 422, problem)
    with pytest.raises(Refused, match="Invalid parameters: Two fields are wrong") as error:
        client.submit(IMAGE, scale=99)
    answer = error.value.problem
    assert (answer.status, answer.slug) == (422, "invalid-parameters")
    assert answer.members is not None
    assert answer.members["limit"] == 16
    assert "scale: at most 16" in str(error.value)
    assert "steps: at least 1" in str(error.value)


def test_an_error_without_a_problem_is_shown_with_its_status(script: Script, client: Shell) -> None:
    script.add(POST, 418, b"<html>a teapot</html>")
    with pytest.raises(Refused, match=r"answered 418 I'm a Teapot"):
        client.submit(IMAGE)


def test_a_page_of_another_server_is_named_as_such(script: Script, client: Shell) -> None:
    script.add(POST, 200, b"<html>Welcome to nginx</html>")
    with pytest.raises(UnexpectedAnswer, match=script.url):
        client.submit(IMAGE)


def test_an_address_that_has_never_answered_is_given_up_at_once(
    make_client: MakeClient, clock: FakeClock
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=url):
        make_client(url).submit(IMAGE)
    assert clock.pauses == []


def test_a_password_in_the_address_is_used_and_kept_out_of_errors(
    script: Script, make_client: MakeClient
) -> None:
    address = script.url.replace("http://", "http://me:geheim@")
    with pytest.raises(Refused, match=script.url) as error:
        make_client(f"{address}/prefix/").submit(IMAGE)
    assert "geheim" not in str(error.value)
    [(call, headers, _)] = script.seen
    assert call == "POST /prefix/upscale"
    assert headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host", "http://", "http://[::1"])
def test_what_is_no_address_is_refused(make_client: MakeClient, address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        make_client(address)


def test_a_key_that_cannot_be_a_header_is_refused_without_being_shown(
    make_client: MakeClient,
) -> None:
    with pytest.raises(ValueError, match="API key") as error:
        make_client("http://127.0.0.1", api_key="geheim\n")
    assert "geheim" not in str(error.value)


def event(name: str, number: int, data: object) -> str:
    return f"id: {number}\nevent: {name}\ndata: {json.dumps(data)}\n\n"


def stream(*parts: str) -> bytes:
    return "".join(("retry: 2000\n\n", *parts)).encode()


def test_an_id_with_a_slash_asks_for_no_other_path(script: Script, client: Shell) -> None:
    with pytest.raises(NotFound):
        client.get("../models")
    assert [call for call, _, _ in script.seen] == ["GET /jobs/..%2Fmodels"]


def test_events_come_as_they_happen(script: Script, client: Shell) -> None:
    body = stream(
        event("state", 1, job("processing")),
        ": still here\n\n",
        event("progress", 2, PROGRESS),
        event("of a newer server", 3, "?"),
        event("end", 4, job("succeeded", result=DONE)),
        event("state", 5, "never read"),
    )
    script.add(EVENTS, 200, body, Content_Type="text/event-stream")
    events = client.events(QUEUED)
    assert [(now.name, now.id, now.job.state) for now in events] == [
        ("state", "1", "processing"),
        ("progress", "2", "processing"),
        ("end", "4", "succeeded"),
    ]
    assert events[1].job.progress is not None
    assert events[1].job.progress.step == 2
    assert events[2].job.result is not None
    assert script.calls(EVENTS)[0][0]["accept"] == "text/event-stream"


@pytest.mark.parametrize("end", ["cut", "closed", "reset"])
def test_a_stream_that_breaks_is_taken_up_where_it_was(
    script: Script, client: Shell, clock: FakeClock, end: str
) -> None:
    head = stream(event("state", 1, job("processing")), event("progress", 2, PROGRESS))
    half = head + b"id: 3\nevent: progress\nda"
    if end == "cut":
        script.add(EVENTS, 200, half + b"ta", cut=len(half))
    else:
        script.add(EVENTS, 200, half)
    if end == "reset":
        script.reset(EVENTS)
    script.add(EVENTS, 200, stream(event("end", 4, job("succeeded", result=DONE))))
    assert [now.id for now in client.events(QUEUED)] == ["1", "2", "4"]
    ids = [headers.get("last-event-id") for headers, _ in script.calls(EVENTS)]
    assert ids[0] is None
    assert set(ids[1:]) == {"2"}
    # As the server asked with `retry`.
    assert clock.pauses[0] == 2


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
    assert sum(clock.pauses) <= 60


@pytest.mark.parametrize("status", [404, 406, 429])
def test_a_server_without_events_is_asked_again_and_again(
    script: Script, client: Shell, status: int
) -> None:
    script.add(EVENTS, status, {"title": "No events here"})
    script.add(GET, 200, job("queued"))
    script.add(GET, 200, job("processing"))
    script.add(GET, 200, job("processing", progress=PROGRESS))
    script.add(GET, 200, job("succeeded", result=DONE))
    events = client.events(QUEUED)
    names = [(now.name, now.job.state) for now in events]
    assert names == [
        ("state", "queued"),
        ("state", "processing"),
        ("progress", "processing"),
        ("end", "succeeded"),
    ]


def test_events_of_an_unknown_job_are_not_found(script: Script, client: Shell) -> None:
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
    events: list[Any] = []
    for start in range(0, len(content), size):
        for name, data in parser.feed(content[start : start + size]):
            events.append((name, data, parser.last_id))
    assert events == [
        ("state", "first\nsecond é", "7"),
        ("message", "", "7"),
        ("message", "x", "8"),
    ]
    assert parser.retry_s == 1.5
    parser.connect()
    assert list(parser.feed(b"data: new\n\n")) == [("message", "new")]
    assert parser.last_id == "8"


def test_canceling_gives_the_job_as_it_is_then(script: Script, client: Shell) -> None:
    delete = f"DELETE /jobs/{JOB_ID}"
    script.add(GET, 200, job("processing"))
    script.add(GET, 200, job("succeeded", result=DONE))
    script.add(delete, 202, job("processing", cancel_requested=True))
    assert client.cancel(QUEUED).cancel_requested
    # One that has ended stays as it is, which is no error.
    assert client.cancel(JOB_ID).succeeded
    assert len(script.calls(delete)) == 1


def test_a_deleted_job_is_given_as_it_is_then(script: Script, client: Shell) -> None:
    delete = f"DELETE /jobs/{JOB_ID}"
    script.add(delete, 200, job("expired"))
    script.add(delete, 409, {"type": "/problems/job-ended", "title": "The job has ended"})
    script.add(GET, 200, job("succeeded", result=DONE))
    assert client.delete(JOB_ID).state == "expired"
    # A server of an older version refuses.
    assert client.delete(JOB_ID).succeeded


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


def test_bytes_in_the_middle_of_nowhere_do_not_leak(script: Script, client: Shell) -> None:
    script.add(GET, 200, IMAGE)
    with pytest.raises(Exception, match="something else than this service"):
        client.get(JOB_ID)
