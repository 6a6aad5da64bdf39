"""How much one client may ask for, counted before a body is read."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys
from jobs.settings import Settings
from service.ratelimit import address_key
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")


@pytest.fixture(scope="module")
def service(service: tuple[Settings, httpx.Client]) -> Iterator[tuple[Settings, httpx.Client]]:
    """A server with small limits that remembers no key, so that tests cannot meet in it."""
    settings = service[0].model_copy(update={"uploads_per_minute": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.admission.CACHE_S", 0.0)
        with serving(settings) as client:
            yield settings, client


def test_an_upload_too_many_is_429_and_says_when_to_come_back(client: httpx.Client) -> None:
    for left in (1, 0):
        answer = upload(client, PNG)
        assert answer.status_code == 202
        assert answer.headers["RateLimit-Policy"] == '"uploads";q=2;w=60'
        assert answer.headers["RateLimit"].startswith(f'"uploads";r={left};t=')
    refused = upload(client, PNG)
    body = problem(refused, 429, "rate-limited")
    assert body["limit"] == 2
    assert 1 <= body["retry_after"] <= 60
    assert refused.headers["RateLimit"].startswith('"uploads";r=0;t=')


def test_reading_is_counted_apart_from_uploading(client: httpx.Client) -> None:
    for _ in range(2):
        upload(client, PNG)
    for _ in range(20):
        assert client.get("/jobs").status_code == 200
    answer = client.get("/jobs/x")
    problem(answer, 429, "rate-limited")
    assert answer.headers["RateLimit-Policy"] == '"reads";q=20;w=60'


def test_what_probes_ask_is_not_counted(client: httpx.Client) -> None:
    for _ in range(22):
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 503


def test_an_upload_too_many_is_refused_before_its_body(client: httpx.Client) -> None:
    for _ in range(2):
        upload(client, PNG)
    head = (
        "POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    address = (client.base_url.host, client.base_url.port)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 429"


def test_keys_are_counted_each_for_itself_and_by_their_own_number(
    client: httpx.Client, redis: Redis
) -> None:
    keys = Keys(redis)
    ada, bob = keys.create("Ada", per_minute=3)[1], keys.create("Bob")[1]

    def uploads(key: str) -> list[int]:
        return [
            client.post(
                "/upscale", files={"image": b"no image"}, headers={"X-API-Key": key}
            ).status_code
            for _ in range(4)
        ]

    assert uploads(ada) == [422, 422, 422, 429]
    assert uploads(bob) == [422, 422, 429, 429]


def test_guessing_keys_is_counted_too(client: httpx.Client, redis: Redis) -> None:
    Keys(redis).create("Ada")
    statuses = [
        client.get("/jobs", headers={"X-API-Key": f"guess-{number}"}).status_code
        for number in range(22)
    ]
    assert statuses == [401] * 20 + [429] * 2


def test_no_limit_is_no_header(settings: Settings) -> None:
    free = settings.model_copy(update={"uploads_per_minute": 0})
    with serving(free) as client:
        assert "RateLimit" not in client.get("/jobs").headers
        assert "RateLimit" not in upload(client, PNG).headers


def test_two_processes_count_together(client: httpx.Client, settings: Settings) -> None:
    with serving(settings) as other:
        for process in (client, other):
            assert upload(process, PNG).status_code == 202
        for process in (client, other):
            problem(upload(process, PNG), 429, "rate-limited")


def test_a_lost_redis_is_503_and_not_an_error_of_the_limits(settings: Settings) -> None:
    with (
        RedisServer() as server,
        serving(settings.model_copy(update={"redis_url": server.url})) as client,
    ):
        assert client.get("/jobs").status_code == 200
        server.kill()
        problem(client.get("/jobs"), 503, "queue-unavailable")
        problem(upload(client, PNG), 503, "queue-unavailable")
        server.start()
        assert client.get("/jobs").status_code == 200


@pytest.mark.parametrize(
    ("proxies", "counted"), [("", "address:127.0.0.1"), ("127.0.0.1", "address:203.0.113.9")]
)
def test_only_a_trusted_proxy_says_who_asks(
    settings: Settings, redis: Redis, proxies: str, counted: str
) -> None:
    with serving(settings.model_copy(update={"trusted_proxies": proxies})) as client:
        client.get("/jobs", headers={"X-Forwarded-For": "203.0.113.9"})
    assert any(counted.encode() in key for key in redis.keys("stablesr:rate*")), redis.keys("*")


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "address:192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "address:2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "address:2001:db8:1:2::"),
        ("::ffff:192.0.2.7", "address:192.0.2.7"),
        (None, "address:none"),
        ("testclient", "address:none"),
    ],
)
def test_a_client_without_a_key_is_its_address(address: str | None, client: str) -> None:
    assert address_key(address) == client


ADA, BOB = "198.51.100.1", "198.51.100.2"


@pytest.fixture
def crowded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """A service with room for many jobs, of which each client may have two."""
    monkeypatch.setattr(Settings, "max_queued_each", 2)
    changes = {"max_queued": 100, "trusted_proxies": "127.0.0.1", "uploads_per_minute": 60}
    with serving(settings.model_copy(update=changes)) as client:
        yield client


def post(client: httpx.Client, address: str, **headers: str) -> httpx.Response:
    """An upload from this address, as a proxy says it."""
    return client.post(
        "/upscale",
        files={"image": ("photo.png", PNG)},
        headers={"X-Forwarded-For": address, **headers},
    )


def test_an_address_has_only_so_many_jobs_waiting(
    crowded: httpx.Client, worker: FakeWorker
) -> None:
    jobs = [post(crowded, ADA).json()["id"] for _ in range(2)]
    answer = post(crowded, ADA)
    body = problem(answer, 429, "quota-exceeded")
    assert body["limit"] == 2
    assert "this address" in body["detail"]
    assert answer.headers["Retry-After"]
    assert post(crowded, BOB).status_code == 202
    # A running job does not wait; one that was given back does.
    worker.start(jobs[0])
    assert post(crowded, ADA).status_code == 202
    worker.requeue(jobs[0])
    problem(post(crowded, ADA), 429, "quota-exceeded")
    # Jobs without a key are everybody's to see and to cancel; their count is the address's.
    for job in jobs:
        assert crowded.delete(f"/jobs/{job}").status_code == 200
    assert post(crowded, ADA).status_code == 202
    problem(post(crowded, ADA), 429, "quota-exceeded")


def test_a_key_without_a_number_of_its_own_has_the_servers(
    crowded: httpx.Client, redis: Redis
) -> None:
    _, general = Keys(redis).create("Ada")
    _, own = Keys(redis).create("Bob", max_queued=3)
    for key, most in ((general, 2), (own, 3)):
        for number in range(most):
            assert post(crowded, f"198.51.100.{number}", **{"X-API-Key": key}).status_code == 202
        body = problem(post(crowded, ADA, **{"X-API-Key": key}), 429, "quota-exceeded")
        assert body["limit"] == most


def test_one_client_may_fill_a_short_queue(settings: Settings, redis: Redis) -> None:
    with serving(settings.model_copy(update={"max_queued": 9, "uploads_per_minute": 60})) as client:
        assert {post(client, ADA).status_code for _ in range(9)} == {202}
        problem(post(client, ADA), 503, "queue-full")
