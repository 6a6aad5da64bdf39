"""What every answer carries, and what a connection may not do before it has asked for anything."""

from __future__ import annotations

import json
import socket
import time

import httpx
import pytest

from jobs.settings import Settings
from tests.service.harness import FakeWorker, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")


@pytest.mark.parametrize("path", ["/livez", "/models", "/jobs", "/jobs/x", "/nothing", "/docs"])
def test_every_answer_is_safe_to_receive(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]


def test_jobs_are_kept_by_no_cache_and_results_by_the_clients_own(
    client: httpx.Client, worker: FakeWorker
) -> None:
    answer = upload(client, PNG)
    job = answer.json()["id"]
    worker.start(job)
    worker.succeed(job, PNG)
    assert answer.headers["Cache-Control"] == "no-store"
    assert client.get(f"/jobs/{job}").headers["Cache-Control"] == "no-store"
    result = client.get(f"/jobs/{job}/result").headers
    assert result["Cache-Control"].startswith("private,")
    assert result["Vary"] == "Authorization, X-API-Key"
    assert result["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"


def exchange(address: tuple[str, int], sent: bytes) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(sent)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def address_of(client: httpx.Client) -> tuple[str, int]:
    assert client.base_url.port is not None
    return client.base_url.host, client.base_url.port


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Large: " + b"x" * 40_000,
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n folded\x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    ],
)
def test_what_is_no_request_is_400_as_a_problem(client: httpx.Client, sent: bytes) -> None:
    head, _, body = exchange(address_of(client), sent).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == 400


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/" + "x" * 9_000, {}, 414),
        ("/jobs?cursor=" + "x" * 9_000, {}, 414),
        ("/livez", {"X-Large": "x" * 33_000}, 431),
        ("/livez", {f"X-{number}": "x" for number in range(200)}, 431),
    ],
)
def test_a_head_that_is_too_large_is_refused_as_a_problem(
    client: httpx.Client, path: str, headers: dict[str, str], status: int
) -> None:
    answer = client.get(path, headers=headers)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert len(answer.content) < 1000


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ", b"HTTP/1.1 408 Request Timeout"),
    ],
)
def test_a_request_whose_head_does_not_come_is_given_up(
    settings: Settings, sent: bytes, answered: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.run.HEAD_TIMEOUT_S", 0.2)
    with serving(settings) as client:
        assert exchange(address_of(client), sent).partition(b"\r\n")[0] == answered
        assert client.get("/livez").status_code == 200


def test_a_second_head_that_does_not_come_is_given_up_too(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.run.HEAD_TIMEOUT_S", 0.2)
    with (
        serving(settings) as client,
        socket.create_connection(address_of(client), timeout=10) as connection,
    ):
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b'"alive"}'):
            answer += connection.recv(65536)
        started = time.monotonic()
        connection.sendall(b"GET / HT")
        assert connection.recv(12) == b"HTTP/1.1 408"
        assert time.monotonic() - started < 3


def test_a_body_may_take_longer_than_a_head(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.run.HEAD_TIMEOUT_S", 0.2)
    with serving(settings) as client:
        head = (
            b"POST /upscale HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 5\r\nConnection: close\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        with socket.create_connection(address_of(client), timeout=10) as connection:
            connection.sendall(head)
            connection.settimeout(0.6)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(10)
            connection.sendall(b"--x--")
            assert connection.recv(12) == b"HTTP/1.1 422"


def test_an_upload_that_trickles_is_given_up(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Settings, "upload_timeout_s", 0.5)
    with serving(settings) as client:
        head = (
            b"POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90000\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n"
        )
        with socket.create_connection(address_of(client), timeout=0.05) as connection:
            connection.sendall(head)
            connection.sendall(b'--x\r\nContent-Disposition: form-data; name="image"; filename=')
            connection.sendall(b'"a.png"\r\n\r\n')
            answer = b""
            while not answer.endswith(b"}"):
                # A byte now and then keeps it from being a connection that stopped.
                connection.sendall(b"-")
                try:
                    answer += connection.recv(65536)
                except TimeoutError:
                    continue
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"0.5 seconds" in answer
