"""`POST /uploads`: an image that a client puts into S3 by a link becomes a job like any other."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys
from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from tests.s3_server import S3Server, environment
from tests.service.harness import Leftovers, problem, serving
from tests.service.pictures import picture

LIMIT = 2_000_000
IMAGE = picture("PNG")


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def remote(settings: Settings, s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    for name, value in environment(s3.url).items():
        monkeypatch.setenv(name, value)
    url = s3.bucket("bucket") + "?links=600"
    yield Settings(redis_url=settings.redis_url, blob_url=url, max_upload_bytes=LIMIT)
    s3.clear()


@pytest.fixture
def client(remote: Settings) -> Iterator[httpx.Client]:
    with serving(remote) as client:
        yield client


def put(client: httpx.Client, content: bytes) -> str:
    """The address of an image that was put where the service said."""
    offer = client.post("/uploads").raise_for_status().json()
    httpx.put(offer["put_url"], content=content, headers=offer["headers"]).raise_for_status()
    return str(offer["image_url"])


def upscale(client: httpx.Client, address: str, **fields: object) -> httpx.Response:
    return client.post("/upscale", json={"image_url": address, **fields})


def test_an_image_in_the_store_becomes_jobs_that_have_copies_of_it(
    client: httpx.Client, remote: Settings
) -> None:
    address = put(client, IMAGE)
    first, second = (upscale(client, address, scale=n).raise_for_status().json() for n in (2, 4))
    assert first["input"]["bytes"] == len(IMAGE)
    store = BlobStore.open(remote)
    assert [store.get(input_key(job["id"])) for job in (first, second)] == [IMAGE, IMAGE]


def test_what_the_link_overwrites_later_is_not_what_the_worker_reads(
    client: httpx.Client, remote: Settings
) -> None:
    offer = client.post("/uploads").json()
    httpx.put(offer["put_url"], content=IMAGE).raise_for_status()
    job = upscale(client, offer["image_url"]).json()["id"]
    httpx.put(offer["put_url"], content=b"another").raise_for_status()
    assert BlobStore.open(remote).get(input_key(job)) == IMAGE


def test_the_offer_says_how_long_and_how_much(client: httpx.Client) -> None:
    answer = client.post("/uploads")
    assert answer.status_code == 201
    offer = answer.json()
    assert "X-Amz-Expires=600" in offer["put_url"]
    assert (offer["max_upload_bytes"], offer["headers"]) == (LIMIT, {})


def test_a_form_takes_the_address_too(client: httpx.Client) -> None:
    fields = {"image_url": (None, put(client, IMAGE)), "scale": (None, "2")}
    assert client.post("/upscale", files=fields).status_code == 202


@pytest.mark.parametrize(
    ("content", "status", "slug"),
    [
        (b"", 422, "image-empty"),
        (b"no image", 422, "image-format-unsupported"),
        (IMAGE[: len(IMAGE) // 2], 422, "image-truncated"),
        (bytes(LIMIT + 1), 413, "upload-too-large"),
    ],
    ids=lambda value: len(value) if isinstance(value, bytes) else value,
)
def test_what_was_put_is_judged_as_an_upload_is(
    client: httpx.Client, leftovers: Leftovers, content: bytes, status: int, slug: str
) -> None:
    problem(upscale(client, put(client, content)), status, slug)
    assert leftovers.found() == []


def test_an_address_that_leads_to_nothing_is_refused(client: httpx.Client) -> None:
    empty = client.post("/uploads").json()["image_url"]
    for address in (empty, "upload:", "upload:../inputs/a", empty + "a"):
        found = problem(upscale(client, address), 422, "image-url-failed")
        assert (
            "image_url leads to no image; it must be the one that POST /uploads" in found["detail"]
        )


def test_another_key_cannot_use_the_address(client: httpx.Client, redis: Redis) -> None:
    (_, ours), (_, theirs) = (Keys(redis).create(name) for name in ("Ada", "Bob"))
    client.headers["X-API-Key"] = ours
    address = put(client, IMAGE)
    client.headers["X-API-Key"] = theirs
    problem(upscale(client, address), 422, "image-url-failed")
    client.headers["X-API-Key"] = ours
    assert upscale(client, address).status_code == 202


def test_a_store_that_gives_no_links_takes_none(settings: Settings, remote: Settings) -> None:
    assert remote.blob_url is not None
    unlinked = remote.model_copy(update={"blob_url": remote.blob_url.partition("?")[0]})
    for other in (settings, unlinked):
        with serving(other) as client:
            found = problem(client.post("/uploads"), 409, "no-direct-uploads")
            assert "POST /upscale" in found["detail"]
