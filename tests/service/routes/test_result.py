"""GET /jobs/{id}/result: a part of it, and only when the client has the rest of the same file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from jobs.settings import Settings
from stablesr_client import Client
from tests.s3_server import S3Server, environment
from tests.service.harness import FakeWorker, problem, serving, upload
from tests.service.pictures import picture

CONTENT = bytes(range(256)) * 12_000
ETAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'
LAST = len(CONTENT) - 1


@pytest.fixture
def path(client: httpx.Client, worker: FakeWorker) -> str:
    job: str = upload(client, picture("PNG")).json()["id"]
    worker.start(job)
    worker.succeed(job, CONTENT)
    return f"/jobs/{job}/result"


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-99", 5, 99),
        ("bytes=1000000-", 1_000_000, LAST),
        ("bytes=10-99999999999", 10, LAST),
        ("bytes=-500", LAST - 499, LAST),
        ("bytes=-99999999999", 0, LAST),
        ("Bytes = 7-8", 7, 8),
    ],
)
def test_one_range_is_answered_with_that_part(
    client: httpx.Client, path: str, wanted: str, first: int, last: int
) -> None:
    answer = client.get(path, headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == CONTENT[first : last + 1]
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert answer.headers["Content-Length"] == str(last - first + 1)
    assert answer.headers["ETag"] == ETAG


@pytest.mark.parametrize(
    "wanted", ["bytes=0-1,5-9", "pixels=0-5", "bytes=9-3", "bytes=-", "bytes=a-b", "0-5", ""]
)
def test_a_range_that_is_not_one_gets_the_whole(
    client: httpx.Client, path: str, wanted: str
) -> None:
    answer = client.get(path, headers={"Range": wanted})
    assert answer.status_code == 200
    assert answer.content == CONTENT
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize("wanted", [f"bytes={LAST + 1}-", "bytes=99999999-999999999", "bytes=-0"])
def test_a_range_without_a_byte_is_416_with_the_size(
    client: httpx.Client, path: str, wanted: str
) -> None:
    answer = client.get(path, headers={"Range": wanted})
    body = problem(answer, 416, "range-not-satisfiable")
    assert body["size"] == len(CONTENT)
    assert answer.headers["Content-Range"] == f"bytes */{len(CONTENT)}"


@pytest.mark.parametrize(
    ("condition", "status"),
    [(ETAG, 206), ('"another"', 200), (f"W/{ETAG}", 200), ("Sat, 01 Jan 2026 00:00:00 GMT", 200)],
)
def test_a_part_is_given_only_of_the_file_that_the_client_has(
    client: httpx.Client, path: str, condition: str, status: int
) -> None:
    headers = {"Range": "bytes=0-9", "If-Range": condition}
    assert client.get(path, headers=headers).status_code == status


def test_a_broken_download_can_be_continued(client: httpx.Client, path: str) -> None:
    with client.stream("GET", path) as answer:
        begun = next(answer.iter_raw(100_000))
    headers = {"Range": f"bytes={len(begun)}-", "If-Range": answer.headers["ETag"]}
    assert begun + client.get(path, headers=headers).content == CONTENT


def test_head_says_what_get_would_without_the_body(client: httpx.Client, path: str) -> None:
    asked, got = client.head(path), client.get(path)
    assert asked.status_code == 200
    assert asked.content == b""
    for name in ("ETag", "Content-Length", "Content-Type", "Content-Disposition"):
        assert asked.headers[name] == got.headers[name]
    part = client.head(path, headers={"Range": "bytes=0-9"})
    assert (part.status_code, part.headers["Content-Length"]) == (206, "10")


def test_head_of_a_result_that_is_gone_is_410(
    client: httpx.Client, path: str, worker: FakeWorker
) -> None:
    worker.lose_result(path.split("/")[2])
    assert client.head(path).status_code == 410


@pytest.mark.parametrize("where", ["/livez", "/models", "/jobs", "/jobs/nothing", "/nothing"])
def test_head_is_answered_wherever_get_is(client: httpx.Client, where: str) -> None:
    asked, got = client.head(where), client.get(where)
    assert asked.status_code == got.status_code
    assert asked.content == b""
    assert asked.headers["Content-Type"] == got.headers["Content-Type"]


@pytest.fixture
def linking(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[httpx.Client, str]]:
    """A service with S3, and a result's path."""
    with S3Server() as s3:
        for name, value in environment(s3.url).items():
            monkeypatch.setenv(name, value)
        url = s3.bucket("bucket") + "?links=600"
        remote = Settings(redis_url=settings.redis_url, blob_url=url)
        with serving(remote) as client:
            worker = FakeWorker(redis, remote)
            job = upload(client, picture("PNG"), name="a.jpg").json()["id"]
            worker.start(job)
            worker.succeed(job, CONTENT)
            yield client, f"/jobs/{job}/result"


def test_a_result_in_s3_is_fetched_there_by_a_link_without_a_key(
    linking: tuple[httpx.Client, str],
) -> None:
    client, path = linking
    answer = client.get(path)
    assert answer.status_code == 307
    link = answer.headers["Location"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert "X-Amz-Expires=600" in link
    assert httpx.get(link).content == CONTENT
    # Who knows the image is told so, and who wants it from here gets it.
    assert client.get(path, headers={"If-None-Match": ETAG}).status_code == 304
    assert client.get(path, params={"direct": "true"}).content == CONTENT
    assert client.head(path).headers["Content-Length"] == str(len(CONTENT))


def test_a_link_ends_with_its_result(linking: tuple[httpx.Client, str], redis: Redis) -> None:
    client, path = linking
    record = f"stablesr:job:{path.split('/')[2]}"
    redis.hset(record, "keep_s", "100")
    link = client.get(path).headers["Location"]
    assert int(httpx.URL(link).params["X-Amz-Expires"]) <= 100


def test_the_client_follows_a_link(linking: tuple[httpx.Client, str], tmp_path: Path) -> None:
    client, path = linking
    with Client(str(client.base_url), api_key="ssr_0000_none") as other:
        other.download(path.split("/")[2], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == CONTENT
