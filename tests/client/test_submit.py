"""Submitting: what is sent, and that sending again never makes a second job."""

from __future__ import annotations

import os
from inspect import signature
from pathlib import Path

import pytest

from cli.processes import free_port
from stablesr_client import (
    AsyncClient,
    Busy,
    Client,
    Refused,
    RetryPolicy,
    Unauthorized,
    UnexpectedAnswer,
    Unreachable,
)
from tests.client.conftest import MakeClient
from tests.client.shells import FakeClock, Shell
from tests.scripted_server import IMAGE, JOB_ID, Script, job

POST = "POST /upscale"


def test_the_file_and_the_given_parameters_are_sent(
    script: Script, client: Shell, picture: Path
) -> None:
    script.add(POST, 202, job("queued", queue_position=3))
    submitted = client.submit(picture, scale=2.0, seed=7, steps=None)
    assert (submitted.id, submitted.state, submitted.queue_position) == (JOB_ID, "queued", 3)
    [(headers, body)] = script.calls(POST)
    assert headers["content-type"].startswith("multipart/form-data")
    assert IMAGE in body
    assert b'name="scale"\r\n\r\n2.0\r\n' in body
    assert b'name="seed"\r\n\r\n7\r\n' in body
    assert b'filename="in.png"' in body
    assert b"steps" not in body


@pytest.mark.parametrize("given", ["path as text", "bytes", "file", "file read half"])
def test_an_image_may_be_given_in_any_form(
    script: Script, client: Shell, picture: Path, given: str
) -> None:
    script.add(POST, 202, job("queued"))
    if given == "path as text":
        client.submit(str(picture))
    elif given == "bytes":
        client.submit(IMAGE, filename="mine.png")
        assert b'filename="mine.png"' in script.calls(POST)[0][1]
    else:
        with picture.open("rb") as file:
            if given == "file read half":
                file.read(4)
            client.submit(file)
        assert b'filename="in.png"' in script.calls(POST)[0][1]
    assert IMAGE in script.calls(POST)[0][1]


def test_an_image_from_a_pipe_is_sent_whole_again_after_a_reset(
    script: Script, client: Shell
) -> None:
    script.reset(POST)
    script.add(POST, 202, job("queued"))
    reading, writing = os.pipe()
    os.write(writing, IMAGE)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        client.submit(pipe)
    assert [IMAGE in body for _, body in script.calls(POST)] == [True, True]


def test_a_name_that_is_no_text_is_sent_as_well_as_it_can_be(
    script: Script, client: Shell, tmp_path: Path
) -> None:
    script.add(POST, 202, job("queued"))
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    path.write_bytes(IMAGE)
    client.submit(path)
    assert b'filename="caf?.png"' in script.calls(POST)[0][1]


def test_the_key_is_sent_with_every_request_and_kept_out_of_errors(
    script: Script, make_client: MakeClient
) -> None:
    script.add(POST, 401, {"type": "/problems/unauthorized", "title": "No such key"})
    client = make_client(script.url, api_key="ssr_secret")
    with pytest.raises(Unauthorized, match="No such key") as caught:
        client.submit(IMAGE)
    assert script.calls(POST)[0][0]["authorization"] == "Bearer ssr_secret"
    assert "ssr_secret" not in repr(caught.value)


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
    assert clock.slept == [0.125, 0.25]


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


@pytest.mark.parametrize("status", [429, 503, 409])
def test_a_busy_server_is_asked_again_when_it_says(
    script: Script, client: Shell, clock: FakeClock, status: int
) -> None:
    busy = {"type": "/problems/queue-full", "title": "The queue is full"}
    script.add(POST, status, busy, Retry_After="17")
    script.add(POST, status, busy, Retry_After="3")
    script.add(POST, 202, job("queued"))
    clock.luck = 0.5
    assert client.submit(IMAGE).state == "queued"
    # Never sooner than asked, and not all clients at the same moment.
    assert clock.slept == [pytest.approx(17 * 1.05), pytest.approx(3 * 1.05)]


def test_a_server_that_stays_busy_is_a_refusal_once_the_retries_are_over(
    script: Script, make_client: MakeClient, clock: FakeClock
) -> None:
    script.add(POST, 503, {"title": "The queue is full"}, Retry_After="40")
    with pytest.raises(Busy, match="The queue is full") as caught:
        make_client(script.url).submit(IMAGE)
    assert clock.slept == [40, 40, 40]
    assert caught.value.problem.retry_after == 40
    with pytest.raises(Busy):
        make_client(script.url, retry_policy=RetryPolicy(busy_s=39)).submit(IMAGE)
    assert clock.slept == [40, 40, 40]


def test_a_refusal_of_the_service_that_names_no_time_is_final(
    script: Script, client: Shell, clock: FakeClock
) -> None:
    problem = {"type": "/problems/preset-not-served", "title": "No worker serves the preset"}
    script.add(POST, 503, problem)
    with pytest.raises(Busy, match="No worker serves"):
        client.submit(IMAGE)
    assert clock.slept == []


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
    with pytest.raises(Refused, match="Invalid parameters: Two fields are wrong") as caught:
        client.submit(IMAGE, scale=99)
    told = caught.value.problem
    assert (told.status, told.slug) == (422, "invalid-parameters")
    assert told.members is not None
    assert told.members["limit"] == 16
    assert "scale: at most 16" in str(caught.value)
    assert "steps: at least 1" in str(caught.value)


def test_an_error_without_a_problem_is_told_with_its_status(script: Script, client: Shell) -> None:
    script.add(POST, 418, b"<html>a teapot</html>")
    with pytest.raises(Refused, match=r"answered 418 I'm a Teapot"):
        client.submit(IMAGE)


def test_a_page_of_another_server_is_named_as_such(script: Script, client: Shell) -> None:
    script.add(POST, 200, b"<html>Welcome to nginx</html>")
    with pytest.raises(UnexpectedAnswer, match=script.url):
        client.submit(IMAGE)


def test_an_address_where_nobody_has_ever_answered_is_given_up_at_once(
    make_client: MakeClient, clock: FakeClock
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(Unreachable, match=url):
        make_client(url).submit(IMAGE)
    assert clock.slept == []


def test_a_password_in_the_address_is_used_and_kept_out_of_errors(
    script: Script, make_client: MakeClient
) -> None:
    address = script.url.replace("http://", "http://me:geheim@")
    with pytest.raises(Refused, match=script.url) as caught:
        make_client(f"{address}/prefix/").submit(IMAGE)
    assert "geheim" not in str(caught.value)
    [(call, headers, _)] = script.seen
    assert call == "POST /prefix/upscale"
    assert headers["authorization"].startswith("Basic ")


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host", "http://", "http://[::1"])
def test_what_is_no_address_is_refused(make_client: MakeClient, address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        make_client(address)


def test_a_key_that_cannot_be_a_header_is_refused_without_being_told(
    make_client: MakeClient,
) -> None:
    with pytest.raises(ValueError, match="API key") as caught:
        make_client("http://127.0.0.1", api_key="geheim\n")
    assert "geheim" not in str(caught.value)


def test_a_missing_file_is_the_systems_own_error(client: Shell, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.submit(tmp_path / "none.png")


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    methods = [
        {
            name: list(signature(call).parameters.values())
            for name, call in vars(kind).items()
            if callable(call) and not name.startswith("__")
        }
        for kind in (Client, AsyncClient)
    ]
    assert methods[0] == methods[1]
