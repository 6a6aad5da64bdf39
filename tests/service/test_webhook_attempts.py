"""A webhook that was not heard is called again, and one that never is does not last for ever."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import httpx
import pytest
from redis import Redis

from jobs.job_store import WEBHOOKS_KEY, record_key
from jobs.keys import Keys
from jobs.outbox import ATTEMPTS, ATTEMPTS_KEY, LEASE_S, PAUSES_S, Outbox
from jobs.settings import Settings
from service.webhooks.target import Address
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, eventually, serving, upload
from tests.service.receiver import HOST, Receiver
from tests.service.telling import LOCAL, PNG, Names, agenda, ended, put_off


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """No server of the file's own: it would make calls too. Each test has one with its settings."""
    blobs = tmp_path_factory.mktemp("store") / "blobs"
    with httpx.Client() as client:
        yield Settings(redis_url=redis_server.url, blob_root=blobs), client


def test_a_receiver_that_fails_is_called_again_with_the_same_message(
    telling: httpx.Client,
    receiver: Receiver,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.outbox.PAUSES_S", (0.02,) * len(PAUSES_S))
    for status in (500, 503, 404):
        receiver.answers.put((status, {}))
    ended(telling, worker, receiver.url)
    deliveries = [receiver.next() for _ in range(4)]
    assert len({delivery.headers["webhook-id"] for delivery in deliveries}) == 1
    assert len({delivery.body for delivery in deliveries}) == 1
    eventually(lambda: agenda(redis) == 0)
    assert receiver.got.empty()


def test_a_receiver_that_never_answers_well_is_given_up_after_five_attempts(
    telling: httpx.Client,
    receiver: Receiver,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.outbox.PAUSES_S", (0.02,) * len(PAUSES_S))
    for _ in range(ATTEMPTS + 1):
        receiver.answers.put((500, {}))
    ended(telling, worker, receiver.url)
    for _ in range(ATTEMPTS):
        receiver.next()
    eventually(lambda: agenda(redis) == 0)
    assert receiver.got.empty()
    metrics = telling.get("/metrics").text
    assert 'stablesr_webhook_attempts_total{outcome="given_up"} 1.0' in metrics
    assert 'stablesr_webhook_attempts_total{outcome="failed"} 4.0' in metrics


def test_a_fault_that_nobody_foresaw_counts_as_an_attempt(
    telling: httpx.Client,
    receiver: Receiver,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.outbox.PAUSES_S", (0.02,) * len(PAUSES_S))
    monkeypatch.setattr("service.webhooks.sender.Message.of", lambda *_: 1 / 0)
    ended(telling, worker, receiver.url)
    eventually(lambda: agenda(redis) == 0)
    assert 'outcome="given_up"} 1.0' in telling.get("/metrics").text


def test_a_record_that_cannot_be_read_is_given_up_too(
    telling: httpx.Client,
    receiver: Receiver,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.outbox.PAUSES_S", (0.02,) * len(PAUSES_S))
    job = upload(telling, PNG).json()["id"]
    redis.hset(record_key(job), "parameters", "{}{}")
    redis.zadd(WEBHOOKS_KEY, {job: 0})
    eventually(lambda: agenda(redis) == 0)
    assert 'outcome="failed"} 4.0' in telling.get("/metrics").text


class Endless(Names):
    """The name of HOST is found at once, any other one not before `found` is set."""

    def __init__(self) -> None:
        super().__init__([LOCAL])
        self.found = threading.Event()

    def __call__(self, host: str, port: int) -> list[Address]:
        answer = super().__call__(host, port)
        if host != HOST:
            self.found.wait(30)
        return answer


@pytest.fixture
def endless(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Endless]:
    names = Endless()
    monkeypatch.setattr("service.webhooks.target.lookup", names)
    yield names
    names.found.set()


def test_a_name_that_is_not_found_in_time_is_a_failed_attempt(
    private: Settings,
    endless: Endless,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.webhooks.sender.TIMEOUT_S", 0.2)
    with serving(private) as client:
        ended(client, worker, "https://slow.example.org/")
        eventually(lambda: put_off(redis))
        endless.found.set()


def test_one_owners_slow_receivers_do_not_delay_anothers(
    private: Settings,
    endless: Endless,
    receiver: Receiver,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.webhooks.sender.AT_ONCE", 4)
    monkeypatch.setattr("service.webhooks.sender.EACH", 2)
    _, slow = Keys(redis).create("Slow")
    _, quick = Keys(redis).create("Quick")
    with serving(private) as client:
        for _ in range(5):
            ended(client, worker, "https://slow.example.org/", **{"X-API-Key": slow})
        eventually(lambda: len(endless.asked) == 2)
        job = ended(client, worker, receiver.url, **{"X-API-Key": quick})
        assert json.loads(receiver.next().body)["data"]["id"] == job
        assert endless.asked.count("slow.example.org") == 2
        # Those that were given back were not tried.
        eventually(lambda: sorted(redis.hvals(ATTEMPTS_KEY)) == [b"0", b"0", b"0", b"1", b"1"])
        endless.found.set()


def test_the_attempts_are_spread_over_an_hour() -> None:
    assert ATTEMPTS == 5
    assert list(PAUSES_S) == sorted(PAUSES_S)
    assert 3000 <= sum(PAUSES_S) <= 4000


def test_a_receiver_that_is_gone_is_not_called_again(
    telling: httpx.Client, receiver: Receiver, worker: FakeWorker, redis: Redis
) -> None:
    receiver.answers.put((410, {}))
    ended(telling, worker, receiver.url)
    receiver.next()
    eventually(lambda: agenda(redis) == 0)


def test_a_call_whose_sender_died_is_made_by_another(redis: Redis) -> None:
    redis.zadd(WEBHOOKS_KEY, {"job": 0})
    outbox = Outbox(redis)
    call = outbox.take()
    assert call is not None
    assert (call.job_id, call.attempt) == ("job", 1)
    # It is nobody else's for as long as the lease lasts.
    assert outbox.take() is None
    due = redis.zscore(WEBHOOKS_KEY, "job")
    assert due is not None
    assert due - redis.time()[0] <= LEASE_S + 1
    redis.zadd(WEBHOOKS_KEY, {"job": 0})
    again = outbox.take()
    assert again is not None
    assert again.attempt == 2


def test_a_forgotten_job_is_told_to_nobody(
    telling: httpx.Client, receiver: Receiver, redis: Redis
) -> None:
    redis.zadd(WEBHOOKS_KEY, {"forgotten": 0})
    eventually(lambda: agenda(redis) == 0)
    assert receiver.got.empty()
