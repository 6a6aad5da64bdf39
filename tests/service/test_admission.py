"""API keys over HTTP: who must have one, what it opens, and when it stops to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import httpx
import pytest
from redis import Redis

from jobs.keys import Keys, Scope
from jobs.settings import Settings
from tests.service.harness import FakeWorker, eventually, plain_client, problem, serving, upload
from tests.service.pictures import picture

PNG = picture("PNG")
PATHS = [
    ("GET", "/jobs"),
    ("GET", "/jobs/{job}"),
    ("GET", "/jobs/{job}/result"),
    ("GET", "/jobs/{job}/events"),
    ("DELETE", "/jobs/{job}"),
]


@pytest.fixture
def keys(redis: Redis) -> Keys:
    return Keys(redis)


@pytest.fixture(autouse=True, scope="module")
def forgetful() -> Iterator[None]:
    """The server of this file remembers no key, so that its tests cannot meet in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.admission.CACHE_S", 0.0)
        yield


@contextmanager
def client_with(key: str, anonymous: httpx.Client) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"}
    with plain_client(anonymous.base_url, headers=headers) as client:
        yield client


@pytest.fixture
def ada(anonymous: httpx.Client, keys: Keys) -> Iterator[httpx.Client]:
    with client_with(keys.create("Ada")[1], anonymous) as client:
        yield client


@pytest.fixture
def bob(anonymous: httpx.Client, keys: Keys) -> Iterator[httpx.Client]:
    with client_with(keys.create("Bob")[1], anonymous) as client:
        yield client


@pytest.fixture
def anonymous(client: httpx.Client) -> httpx.Client:
    return client


def test_while_there_are_no_keys_none_is_asked_for(anonymous: httpx.Client) -> None:
    assert upload(anonymous, PNG).status_code == 202


@pytest.mark.parametrize(("method", "path"), [*PATHS, ("POST", "/upscale"), ("HEAD", "/jobs")])
def test_once_a_key_was_made_every_use_asks_for_one(
    anonymous: httpx.Client, keys: Keys, method: str, path: str
) -> None:
    keys.create("Ada")
    answer = anonymous.request(method, path.format(job="x"))
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="stablesr"'
    if method != "HEAD":
        problem(answer, 401, "unauthorized")


@pytest.mark.parametrize("path", ["/", "/livez", "/models", "/openapi.json", "/problems/no-result"])
def test_what_tells_nothing_of_anybody_stays_open(
    anonymous: httpx.Client, keys: Keys, path: str
) -> None:
    keys.create("Ada")
    assert anonymous.get(path).status_code == 200


def test_a_key_can_be_demanded_before_there_is_one(settings: Settings) -> None:
    with serving(settings.model_copy(update={"access": "keys"})) as client:
        problem(client.get("/jobs"), 401, "unauthorized")


def test_both_headers_are_understood(anonymous: httpx.Client, keys: Keys) -> None:
    _, key = keys.create("Ada")
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"authorization": f"bearer  {key}"},
        {"X-API-Key": key},
        {"Authorization": "Basic eA==", "X-API-Key": key},
    ):
        assert anonymous.get("/jobs", headers=headers).status_code == 200


@pytest.mark.parametrize("wrong", ["", "x", "ssr_00000000_" + "A" * 43, "ssr_\xff", "x" * 5000])
def test_a_wrong_key_is_refused(anonymous: httpx.Client, keys: Keys, wrong: str) -> None:
    keys.create("Ada")
    answer = anonymous.get("/jobs", headers={b"X-API-Key": wrong.encode("latin-1")})
    problem(answer, 401, "unauthorized")
    assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
    assert "ssr_0" not in answer.text


def test_a_key_of_the_right_id_and_a_wrong_secret_is_refused(
    anonymous: httpx.Client, keys: Keys
) -> None:
    info, key = keys.create("Ada")
    other = info.prefix + "".join("B" if letter == "A" else "A" for letter in key[13:])
    problem(anonymous.get("/jobs", headers={"X-API-Key": other}), 401, "unauthorized")


def test_a_key_must_be_right_even_where_none_is_needed(anonymous: httpx.Client) -> None:
    wrong = {"X-API-Key": "ssr_00000000_" + "A" * 43}
    problem(anonymous.get("/jobs", headers=wrong), 401, "unauthorized")
    # What is no key of ours is for others, say a proxy in front.
    others = {"Authorization": "Bearer eyJhbGciOi"}
    assert anonymous.get("/jobs", headers=others).status_code == 200


@pytest.mark.parametrize(("method", "path"), PATHS[1:])
def test_another_keys_job_is_not_there(
    ada: httpx.Client, bob: httpx.Client, worker: FakeWorker, method: str, path: str
) -> None:
    job = upload(ada, PNG).json()["id"]
    worker.start(job)
    worker.succeed(job, PNG)
    answer = bob.request(method, path.format(job=job))
    body = problem(answer, 404, "job-not-found")
    unknown = problem(bob.request(method, path.format(job="0" * 32)), 404, "job-not-found")
    assert body["detail"].replace(job, "0" * 32) == unknown["detail"]
    assert ada.get(f"/jobs/{job}").json()["state"] == "succeeded"


def test_each_key_lists_its_own_jobs(ada: httpx.Client, bob: httpx.Client) -> None:
    mine, theirs = upload(ada, PNG).json()["id"], upload(bob, PNG).json()["id"]
    assert [job["id"] for job in ada.get("/jobs").json()["jobs"]] == [mine]
    assert [job["id"] for job in bob.get("/jobs").json()["jobs"]] == [theirs]


def test_jobs_from_before_there_were_keys_have_no_owner(
    anonymous: httpx.Client, keys: Keys
) -> None:
    job = upload(anonymous, PNG).json()["id"]
    with client_with(keys.create("Ada")[1], anonymous) as ada:
        problem(ada.get(f"/jobs/{job}"), 404, "job-not-found")


def test_each_key_has_idempotency_keys_of_its_own(ada: httpx.Client, bob: httpx.Client) -> None:
    def post(client: httpx.Client) -> str:
        headers = {"Idempotency-Key": "same"}
        answer = client.post("/upscale", files={"image": ("a.png", PNG)}, headers=headers)
        assert answer.status_code == 202
        return str(answer.json()["id"])

    assert post(ada) != post(bob)


def test_a_revoked_key_stops_within_seconds_and_does_not_open_the_service(
    ada: httpx.Client, anonymous: httpx.Client, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admission.CACHE_S", 0.2)
    assert ada.get("/jobs").status_code == 200
    [info] = keys.list()
    keys.revoke(info.id)
    eventually(lambda: ada.get("/jobs").status_code == 401)
    # It was the only one: there still are keys, and this one is not valid.
    eventually(lambda: anonymous.get("/jobs").status_code == 401)


def test_an_expired_key_is_refused_and_told_when_it_ended(
    anonymous: httpx.Client, keys: Keys, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Also one that is remembered.
    monkeypatch.setattr("service.admission.CACHE_S", 60.0)
    info, key = keys.create("Ada", expires_in=timedelta(seconds=0.7))
    with client_with(key, anonymous) as ada:
        assert ada.get("/jobs").status_code == 200
        eventually(lambda: ada.get("/jobs").status_code == 401)
        body = problem(ada.get("/jobs"), 401, "unauthorized")
        assert body["detail"] == f"The API key expired at {info.expires_at:%Y-%m-%d %H:%M} UTC."
    problem(anonymous.get("/jobs"), 401, "unauthorized")


@pytest.mark.parametrize("scope", ["all", "jobs", "metrics"])
def test_a_key_does_what_its_scope_is_for(
    anonymous: httpx.Client, keys: Keys, scope: Scope
) -> None:
    with client_with(keys.create("Ada", scope=scope)[1], anonymous) as ada:
        answers = {
            "metrics": [ada.get("/metrics")],
            "jobs": [ada.request(verb, path.format(job="x")) for verb, path in PATHS],
        }
        answers["jobs"].append(upload(ada, PNG))
    for purpose, group in answers.items():
        for answer in group:
            if scope in ("all", purpose):
                assert answer.status_code in (200, 202, 404)
                continue
            body = problem(answer, 403, "insufficient-scope")
            assert (
                body["detail"] == f"The API key is for {scope} only; this needs one for {purpose}."
            )
            assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]


def test_a_key_from_before_there_were_scopes_does_all(
    ada: httpx.Client, keys: Keys, redis: Redis
) -> None:
    redis.hdel(f"stablesr:key:{keys.list()[0].id}", "scope")
    for path in ("/jobs", "/metrics"):
        assert ada.get(path).status_code == 200


def test_a_revoked_key_ends_its_streams(
    ada: httpx.Client, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.listener.LOOK_S", 0.05)
    job = upload(ada, PNG).json()["id"]
    with ada.stream("GET", f"/jobs/{job}/events") as answer:
        lines = answer.iter_lines()
        next(lines)
        keys.revoke(keys.list()[0].id)
        assert not any("event: end" in line for line in lines)


def test_a_key_has_its_own_limit_of_waiting_jobs(
    anonymous: httpx.Client, keys: Keys, bob: httpx.Client, worker: FakeWorker
) -> None:
    with client_with(keys.create("Ada", max_queued=1)[1], anonymous) as ada:
        first = upload(ada, PNG).json()["id"]
        body = problem(upload(ada, PNG), 429, "quota-exceeded")
        assert body["limit"] == 1
        assert upload(bob, PNG).status_code == 202
        # A running job does not wait.
        worker.start(first)
        second = upload(ada, PNG)
        assert second.status_code == 202
        problem(upload(ada, PNG), 429, "quota-exceeded")
        assert ada.delete(f"/jobs/{second.json()['id']}").status_code == 200
        assert upload(ada, PNG).status_code == 202


def test_a_jobs_way_back_to_the_queue_counts_again(
    anonymous: httpx.Client, keys: Keys, worker: FakeWorker
) -> None:
    with client_with(keys.create("Ada", max_queued=1)[1], anonymous) as ada:
        job = upload(ada, PNG).json()["id"]
        worker.start(job)
        worker.requeue(job)
        problem(upload(ada, PNG), 429, "quota-exceeded")


def test_nothing_in_redis_tells_a_key(ada: httpx.Client, keys: Keys, redis: Redis) -> None:
    secret = ada.headers["Authorization"].split("_", 2)[2]
    assert ada.get("/jobs").status_code == 200
    for key in redis.keys("*"):
        kind = redis.type(key)
        value = redis.hgetall(key) if kind == b"hash" else redis.dump(key)
        assert secret not in str(value)


def test_the_last_use_of_a_key_is_known(ada: httpx.Client, keys: Keys) -> None:
    [before] = keys.list()
    assert before.used_at is None
    ada.get("/jobs")
    [after] = keys.list()
    assert after.used_at is not None


def test_an_upload_without_a_key_is_refused_before_its_body(
    anonymous: httpx.Client, keys: Keys
) -> None:
    keys.create("Ada")
    head = (
        "POST /upscale HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    address = (anonymous.base_url.host, anonymous.base_url.port)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(12) == b"HTTP/1.1 401"
