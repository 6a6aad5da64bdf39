"""The body of POST /upscale: counted, bounded, given up, and never kept when refused."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from tests.service.harness import FakeWorker, Leftovers, eventually, problem, upload
from tests.service.pictures import picture

PNG = picture("PNG")


def test_a_form_without_a_file_is_refused(client: httpx.Client) -> None:
    answer = client.post("/upscale", files={"scale": (None, "2")})
    body = problem(answer, 422, "invalid-parameters")
    assert body["errors"][0]["field"] == "image"


def test_an_image_that_is_not_sent_as_a_file_is_refused(client: httpx.Client) -> None:
    answer = client.post("/upscale", files={"image": (None, "text")})
    body = problem(answer, 422, "invalid-parameters")
    assert "filename" in body["errors"][0]["detail"]


def test_a_second_file_is_refused(client: httpx.Client, leftovers: Leftovers) -> None:
    files = [("image", ("a.png", PNG)), ("image", ("b.png", PNG))]
    problem(client.post("/upscale", files=files), 400, "malformed-form")
    assert leftovers.found() == []


@pytest.mark.parametrize(
    ("content_type", "body", "status", "slug"),
    [
        ("application/json", b"[]", 400, "malformed-json"),
        ("image/png", PNG, 415, "not-multipart"),
        ("multipart/form-data", b"--x--", 400, "malformed-form"),
        ("multipart/form-data; boundary=x", b"no boundary here", 400, "malformed-form"),
        ("multipart/form-data; boundary=" + "x" * 300, b"", 400, "malformed-form"),
        (
            "multipart/form-data; boundary=x; charset=undefined",
            b'--x\r\nContent-Disposition: form-data; name="scale"\r\n\r\n2\r\n--x--\r\n',
            400,
            "malformed-form",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
            + bytes(100_000)
            + b"\r\n--x--\r\n",
            400,
            "malformed-form",
        ),
    ],
)
def test_a_body_that_is_no_form_is_refused(
    client: httpx.Client,
    leftovers: Leftovers,
    content_type: str,
    body: bytes,
    status: int,
    slug: str,
) -> None:
    answer = client.post("/upscale", content=body, headers={"Content-Type": content_type})
    problem(answer, status, slug)
    assert leftovers.found() == []


def test_a_post_without_anything_is_refused(client: httpx.Client) -> None:
    problem(client.post("/upscale"), 415, "not-multipart")


def test_a_declared_length_above_the_limit_is_refused_with_413(
    client: httpx.Client, leftovers: Leftovers, settings: Settings
) -> None:
    answer = upload(client, bytes(settings.max_upload_bytes + 1))
    body = problem(answer, 413, "upload-too-large")
    assert body["max_upload_bytes"] == settings.max_upload_bytes
    assert leftovers.found() == []


def chunked(size: int) -> Iterator[bytes]:
    """A form of one endless file, in pieces and so without a Content-Length."""
    yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    yield PNG
    for _ in range(size // 50_000):
        yield bytes(50_000)
    yield b"\r\n--x--\r\n"


def test_a_body_without_a_length_is_counted_and_refused_with_413(
    client: httpx.Client, leftovers: Leftovers
) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/upscale", content=chunked(10_000_000), headers=headers)
    problem(answer, 413, "upload-too-large")
    assert leftovers.found() == []


def test_a_body_without_a_length_below_the_limit_is_taken(client: httpx.Client) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = client.post("/upscale", content=chunked(1_000_000), headers=headers)
    assert answer.status_code == 202


def test_a_client_that_leaves_during_its_upload_leaves_nothing(
    client: httpx.Client, leftovers: Leftovers
) -> None:
    def broken() -> Iterator[bytes]:
        yield from list(chunked(1_900_000))[:-1]
        # The upload is past its first megabyte: there is something that could be left.
        eventually(lambda: leftovers.found() != [])
        raise RuntimeError("the client crashed")

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with pytest.raises(RuntimeError, match="crashed"):
        client.post("/upscale", content=broken(), headers=headers)
    eventually(lambda: leftovers.found() == [])


def test_a_full_queue_is_refused_with_503_and_when_to_come_back(
    client: httpx.Client, settings: Settings, worker: FakeWorker, redis: Redis
) -> None:
    jobs = [upload(client, PNG).json()["id"] for _ in range(settings.max_queued)]
    body = problem(upload(client, PNG), 503, "queue-full")
    assert body["limit"] == settings.max_queued
    assert int(str(body["retry_after"])) >= 1
    stored = [path for path in settings.blob_root.rglob("*") if path.is_file()]
    assert len(stored) == settings.max_queued
    assert len(redis.keys("stablesr:job:*")) == settings.max_queued

    assert client.delete(f"/jobs/{jobs[0]}").status_code == 200
    assert upload(client, PNG).status_code == 202


@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_full_queue_is_told_before_the_file_is_read(
    client: httpx.Client, settings: Settings, expect: str
) -> None:
    for _ in range(settings.max_queued):
        upload(client, PNG)
    head = (
        "POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\n{expect}\r\n"
    )
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head.encode())
        # Not a byte of the body is sent.
        assert connection.recv(12) == b"HTTP/1.1 503"


def test_uploads_at_the_same_moment_share_the_room_there_is(
    client: httpx.Client, settings: Settings, leftovers: Leftovers
) -> None:
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: upload(client, PNG), range(16)))
    accepted = [answer.json()["id"] for answer in answers if answer.status_code == 202]
    for answer in answers:
        if answer.status_code != 202:
            problem(answer, 503, "queue-full")
    # Where several find the last place taken by each other, one of them may be refused too many.
    assert 1 <= len(accepted) <= settings.max_queued
    stored = [path.name for path in settings.blob_root.rglob("*") if path.is_file()]
    assert sorted(stored) == sorted(accepted)
    assert len([name for name in leftovers.found() if "stablesr:job:" in name]) == len(accepted)


def test_an_upload_that_stops_is_given_up_with_408(
    client: httpx.Client, leftovers: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.uploads.STALL_S", 0.2)
    head = (
        "POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head.encode() + next(chunked(0)))
        assert connection.recv(12) == b"HTTP/1.1 408"
    eventually(lambda: leftovers.found() == [])


def test_a_full_queue_of_one_preset_leaves_room_in_another(
    client: httpx.Client, settings: Settings, worker: FakeWorker
) -> None:
    worker.appear(name="other", preset="stablesr-turbo")
    for _ in range(settings.max_queued):
        assert upload(client, PNG).status_code == 202
    problem(upload(client, PNG), 503, "queue-full")
    assert upload(client, PNG, preset="stablesr-turbo").status_code == 202
