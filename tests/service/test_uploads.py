"""The body of POST /upscale: counted, bounded, given up, and never kept when refused. As JSON: the
form's fields with their JSON types, the image in base64."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from service.image_source import PIECE
from service.uploads import FIELDS_BYTES, json_limit
from tests.service.harness import FakeWorker, Leftovers, eventually, problem, upload
from tests.service.pictures import picture

PNG = picture("PNG")
IMAGE = base64.b64encode(PNG).decode()


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


def post(client: httpx.Client, content: str | bytes, key: str = "") -> httpx.Response:
    headers = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    return client.post("/upscale", content=content, headers=headers)


def test_json_makes_the_same_job_as_a_form(client: httpx.Client, settings: Settings) -> None:
    fields: dict[str, Any] = {"scale": 2.5, "seed": 7, "steps": 2.0, "output_format": "webp"}
    fields |= {"fidelity_weight": 1, "priority": "low", "expires_in": None, "prompt": ""}
    answer = client.post("/upscale", json={"image": IMAGE, **fields})
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert BlobStore.open(settings).get(input_key(job["id"])) == PNG
    form = upload(client, PNG, scale="2.5", seed=7, steps=2, output_format="webp")
    assert job["parameters"] == {**form.json()["parameters"], "fidelity_weight": 1.0}
    assert job["input"]["filename"] is None


def test_a_data_uri_is_taken_too(client: httpx.Client) -> None:
    for head in ("data:image/png;base64,", "DATA:;Base64,", "data:text/plain;name=a;base64,"):
        assert client.post("/upscale", json={"image": head + IMAGE}).status_code == 202


def test_json_and_a_form_are_the_same_request(client: httpx.Client, redis: Redis) -> None:
    body = {"image": IMAGE, "scale": 2, "seed": None, "quality": None}
    first = post(client, json.dumps(body), "k")
    again = client.post(
        "/upscale",
        files={"image": ("a.png", PNG)},
        data={"scale": "2"},
        headers={"Idempotency-Key": "k"},
    )
    assert first.status_code == 202
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["Idempotent-Replayed"] == "true"
    problem(post(client, json.dumps({**body, "scale": 3}), "k"), 422, "idempotency-mismatch")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("scale", "4", 'must be between 1 and 16; got "4"'),
        ("scale", True, "must be between 1 and 16; got true"),
        ("scale", 99, "must be between 1 and 16; got 99"),
        ("scale", [4], "must be between 1 and 16; got [4]"),
        ("steps", 1.5, "must be a whole number between 1 and"),
        ("steps", {"a": 1}, 'got {"a": 1}'),
        ("seed", -1, "got -1"),
        ("sampler", 3, "must be one of "),
        ("sampler", "", "must be one of "),
        ("preset", ["tiny"], "must be one of "),
        ("prompt", 7, "must be at most 1000 characters long; got 7"),
        ("fidelity_weigth", 0.5, "is unknown; the fields are image, image_url, "),
        ("image", 5, "must be a string"),
        ("image", ["AAAA"], "must be a string"),
    ],
)
def test_a_wrong_value_is_refused_in_the_forms_sentences(
    client: httpx.Client, leftovers: Leftovers, field: str, value: object, said: str
) -> None:
    answer = client.post("/upscale", json={"image": IMAGE, field: value})
    body = problem(answer, 422, "invalid-parameters")
    assert [error["field"] for error in body["errors"]] == [field]
    assert said in body["errors"][0]["detail"]
    assert leftovers.found() == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"[]", "must be a JSON object"),
        (b'"AAAA"', "must be a JSON object"),
        (b"{", "cannot be read as JSON"),
        (b"{} {}", "Extra data"),
        (b'{"scale": 2, "scale": 3}', "'scale' comes twice"),
        (b'{"a": {"b": 1, "b": 1}}', "'b' comes twice"),
        (b'{"scale": NaN}', "NaN is no JSON"),
        (b'{"scale": -Infinity}', "-Infinity is no JSON"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b'{"image": "\xff\xfe"}', "utf-8"),
        (b'\xef\xbb\xbf{"image": "AAAA"}', "cannot be read as JSON"),
        ('{"image": "AAAA"}'.encode("utf-16"), "cannot be read as JSON"),
        (b"[" * 50_000, "cannot be read as JSON"),
        (b'{"a":' * 12_000, "cannot be read as JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(
    client: httpx.Client, leftovers: Leftovers, content: bytes, said: str
) -> None:
    assert said in problem(post(client, content), 400, "malformed-json")["detail"]
    assert leftovers.found() == []


@pytest.mark.parametrize(
    "text",
    [
        IMAGE[:-1],
        IMAGE + "=",
        "AAAA=",
        IMAGE[:8] + "\n" + IMAGE[8:],
        IMAGE[:8] + " " + IMAGE[8:],
        "=" + IMAGE,
        "AA==" + IMAGE,
        IMAGE.replace(IMAGE[20], "-"),
        IMAGE[:8] + "\u00e9" + IMAGE[9:],
        "no base64 at all",
        "A" * (PIECE - 4) + "AAA=" + IMAGE,
        "data:image/png," + IMAGE,
        "data:image/png;base64" + IMAGE,
        "data:" + "x" * 2000 + ";base64," + IMAGE,
    ],
)
def test_what_is_not_strictly_base64_is_refused(
    client: httpx.Client, leftovers: Leftovers, text: str
) -> None:
    body = problem(client.post("/upscale", json={"image": text}), 422, "invalid-parameters")
    assert "base64" in body["errors"][0]["detail"]
    assert leftovers.found() == []


def test_slashes_may_be_escaped_as_some_languages_do(client: httpx.Client) -> None:
    content = json.dumps({"image": "data:image/png;base64," + IMAGE}).replace("/", "\\/")
    assert post(client, content).status_code == 202


def test_an_image_must_be_named_once(client: httpx.Client) -> None:
    for body in ({}, {"image": None}, {"image": None, "image_url": None}):
        answer = client.post("/upscale", json=body)
        assert problem(answer, 422, "invalid-parameters")["errors"][0]["field"] == "image"
    for url in ("https://a.example/", ""):
        answer = client.post("/upscale", json={"image": IMAGE, "image_url": url})
        assert problem(answer, 422, "invalid-parameters")["errors"][0]["field"] == "image_url"
    problem(client.post("/upscale", json={"image_url": ""}), 422, "image-url-refused")


def test_an_image_as_large_as_a_file_may_be_is_taken_and_no_larger(
    client: httpx.Client, settings: Settings
) -> None:
    limit = settings.max_upload_bytes
    # What follows a PNG's end is not looked at.
    for extra, status in ((0, 202), (1, 413), (2, 413)):
        data = PNG + bytes(limit + extra - len(PNG))
        answer = client.post("/upscale", json={"image": base64.b64encode(data).decode()})
        assert answer.status_code == status


@pytest.mark.parametrize("streamed", [False, True])
def test_a_larger_body_is_refused_as_it_comes(
    client: httpx.Client, settings: Settings, leftovers: Leftovers, streamed: bool
) -> None:
    content = b" " * (json_limit(settings.max_upload_bytes) + 1)
    pieces = iter([content[:1_000_000], content[1_000_000:]])
    headers = {"Content-Type": "application/json"}
    answer = client.post("/upscale", content=pieces if streamed else content, headers=headers)
    body = problem(answer, 413, "upload-too-large")
    assert body["max_upload_bytes"] == len(content) - 1
    assert leftovers.found() == []


def test_the_limit_leaves_room_for_every_field() -> None:
    assert json_limit(3) == 4 + FIELDS_BYTES
    # Letters outside of ASCII may come as twelve bytes each.
    assert FIELDS_BYTES > 2 * 12 * 1000 + 2000
