"""Webhooks: signed, repeated until they arrive, and to public addresses only."""

from __future__ import annotations

import ipaddress
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from jobs.errors import ImageTruncated
from jobs.job_store import WEBHOOKS_KEY, record_key
from jobs.keys import Keys
from jobs.outbox import ATTEMPTS, ATTEMPTS_KEY, LEASE_S, PAUSES_S, Outbox
from jobs.settings import Settings
from service.compat.replicate import version_of
from service.egress import Address
from service.webhooks import signature
from tests.redis_server import RedisServer
from tests.service.compat.conftest import URI
from tests.service.harness import FakeWorker, eventually, plain_client, serving, upload
from tests.service.receiver import (
    HOST,
    LOCAL,
    PNG,
    SECRET,
    Names,
    Receiver,
    agenda,
    ended,
    put_off,
    receiving,
)


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """No server of the file's own: it would make calls too. Each test has one with its settings."""
    blobs = tmp_path_factory.mktemp("store") / "blobs"
    with plain_client() as client:
        yield Settings(redis_url=redis_server.url, blob_root=blobs), client


def test_the_end_of_a_job_is_told_with_a_signature(
    telling: httpx.Client, receiver: Receiver, worker: FakeWorker, redis: Redis
) -> None:
    job = ended(telling, worker, receiver.url)
    delivery = receiver.next()
    assert delivery.path == "/hook?of=1"
    body = json.loads(delivery.body)
    assert body["type"] == "job.succeeded"
    assert body["data"] == telling.get(f"/jobs/{job}").json()
    assert body["timestamp"].replace("+00:00", "Z") == body["data"]["ended_at"]
    headers = delivery.headers
    message_id = headers["webhook-id"]
    assert message_id.startswith(f"msg_{job}_")
    sent = int(headers["webhook-timestamp"])
    assert abs(sent - time.time()) < 30
    expected = signature(SECRET, message_id, sent, delivery.body)
    assert headers["webhook-signature"] == expected
    eventually(lambda: agenda(redis) == 0)
    assert not redis.exists(ATTEMPTS_KEY)
    assert "webhook" not in telling.get(f"/jobs/{job}").text


def test_a_prediction_is_told_as_its_protocol_has_it(
    private: Settings, receiver: Receiver, worker: FakeWorker
) -> None:
    body = {
        "version": version_of("tiny"),
        "input": {"image": URI},
        "webhook": receiver.url,
        "webhook_events_filter": ["completed"],
    }
    with serving(private.model_copy(update={"compat": "replicate"})) as client:
        job = client.post("/v1/predictions", json=body).json()
        worker.start(job["id"])
        worker.succeed(job["id"], PNG)
        delivery = receiver.next()
        told = json.loads(delivery.body)
        assert told == client.get(job["urls"]["get"]).json()
    assert told["id"] == job["id"]
    assert told["status"] == "succeeded"
    assert told["urls"] == job["urls"]
    assert "webhook-signature" in delivery.headers


def test_the_name_is_asked_for_and_the_address_that_was_looked_at_is_called(
    telling: httpx.Client, receiver: Receiver, worker: FakeWorker, names: Names
) -> None:
    ended(telling, worker, receiver.url)
    delivery = receiver.next()
    assert delivery.server_name == HOST
    assert delivery.headers["Host"] == f"{HOST}:{receiver.port}"
    assert names.asked == [HOST]


def test_a_call_is_of_the_trace_of_the_request_that_asked_for_it(
    telling: httpx.Client, receiver: Receiver, worker: FakeWorker
) -> None:
    caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for state, kept in (("a=1,b=2", "a=1,b=2"), (f"a={'x' * 250},b={'y' * 250},c=123456", None)):
        ended(telling, worker, receiver.url, traceparent=caller, tracestate=state)
        headers = receiver.next().headers
        assert headers["traceparent"] == caller
        assert headers.get("tracestate") == kept


@pytest.mark.parametrize("end", ["failed", "canceled"])
def test_every_way_to_end_is_told(
    telling: httpx.Client, receiver: Receiver, worker: FakeWorker, end: str
) -> None:
    job = upload(telling, PNG, webhook_url=receiver.url).json()["id"]
    if end == "canceled":
        telling.delete(f"/jobs/{job}")
    else:
        worker.start(job)
        worker.fail(job, ImageTruncated("The pixels end early.").problem())
    assert json.loads(receiver.next().body)["type"] == f"job.{end}"


def test_only_the_end_is_told_and_only_once(
    telling: httpx.Client, receiver: Receiver, worker: FakeWorker, redis: Redis
) -> None:
    job = upload(telling, PNG, webhook_url=receiver.url).json()["id"]
    worker.start(job)
    assert agenda(redis) == 0
    worker.succeed(job, PNG)
    receiver.next()
    worker.expire(job)
    eventually(lambda: agenda(redis) == 0)
    assert receiver.got.empty()


def test_a_keys_own_secret_signs_its_jobs(
    private: Settings, receiver: Receiver, worker: FakeWorker, redis: Redis
) -> None:
    keys = Keys(redis)
    info, key = keys.create("Ada")
    with serving(private) as client:
        ended(client, worker, receiver.url, **{"X-API-Key": key})
        delivery = receiver.next()
    secret = keys.webhook_secret(info.id)
    sent = int(delivery.headers["webhook-timestamp"])
    expected = signature(secret, delivery.headers["webhook-id"], sent, delivery.body)
    assert delivery.headers["webhook-signature"] == expected


def test_a_redirect_is_a_failure_and_is_not_followed(
    telling: httpx.Client, receiver: Receiver, worker: FakeWorker, redis: Redis, names: Names
) -> None:
    receiver.answers.put((307, {"Location": f"https://elsewhere.example.org:{receiver.port}/"}))
    ended(telling, worker, receiver.url)
    receiver.next()
    eventually(lambda: put_off(redis))
    assert names.asked == [HOST]
    assert receiver.got.empty()


def test_a_certificate_for_another_name_is_not_accepted(
    private: Settings,
    names: Names,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worker: FakeWorker,
    redis: Redis,
) -> None:
    with receiving(tmp_path / "ca.pem", "other.example.org") as receiver:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        with serving(private) as client:
            ended(client, worker, receiver.url)
            eventually(lambda: receiver.connections > 0)
            eventually(lambda: redis.hvals(ATTEMPTS_KEY) == [b"1"])
    assert receiver.got.empty()


@pytest.mark.parametrize(
    "addresses",
    [
        ["127.0.0.1"],
        ["10.0.0.1"],
        ["169.254.169.254"],
        ["93.184.216.34", "192.168.0.1"],
        ["2606:4700::1", "::1"],
        ["::ffff:127.0.0.1"],
    ],
)
def test_a_name_that_leads_inside_is_never_called(
    private: Settings,
    receiver: Receiver,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    addresses: list[str],
) -> None:
    names = Names([ipaddress.ip_address(address) for address in addresses])
    monkeypatch.setattr("service.egress.lookup", names)
    with serving(private.model_copy(update={"egress": "public"})) as client:
        ended(client, worker, f"https://{HOST}:{receiver.port}/")
        eventually(lambda: bool(names.asked) and agenda(redis) == 0)
        assert 'attempts_total{outcome="blocked"} 1.0' in client.get("/metrics").text
    assert receiver.connections == 0


def test_a_name_that_changes_its_mind_is_asked_once_an_attempt(
    private: Settings,
    receiver: Receiver,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS rebinding: public when it is looked at, inside when it is connected to."""
    # A public address of this test's making, at which nothing answers, and then the receiver.
    public = [ipaddress.ip_address("93.184.216.34")]
    names = Names(public, [LOCAL])
    monkeypatch.setattr("service.egress.lookup", names)
    tried: list[str] = []

    async def connect(self: object, host: str, port: int, **_: object) -> None:
        tried.append(host)
        raise httpx.ConnectError("no host there")

    monkeypatch.setattr("httpcore.AnyIOBackend.connect_tcp", connect)
    monkeypatch.setattr("httpcore._backends.auto.AutoBackend.connect_tcp", connect)
    with serving(private.model_copy(update={"egress": "public"})) as client:
        ended(client, worker, f"https://{HOST}:{receiver.port}/")
        eventually(lambda: bool(tried))
    assert tried == ["93.184.216.34"]
    assert names.asked == [HOST]
    assert receiver.connections == 0


def test_the_signature_is_that_of_the_standards_example() -> None:
    """From the specification's own test vector, as its libraries use it."""
    body = b'{"test": 2432232314}'
    signed = signature(SECRET, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


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


def test_an_unexpected_fault_counts_as_an_attempt(
    telling: httpx.Client,
    receiver: Receiver,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jobs.outbox.PAUSES_S", (0.02,) * len(PAUSES_S))
    monkeypatch.setattr("service.webhooks.message", lambda *_: 1 / 0)
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
    monkeypatch.setattr("service.egress.lookup", names)
    yield names
    names.found.set()


def test_a_name_that_is_not_found_in_time_is_a_failed_attempt(
    private: Settings,
    endless: Endless,
    worker: FakeWorker,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.webhooks.TIMEOUT_S", 0.2)
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
    monkeypatch.setattr("service.webhooks.AT_ONCE", 4)
    monkeypatch.setattr("service.webhooks.EACH", 2)
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
    # No other sender gets it while the lease lasts.
    assert outbox.take() is None
    due = redis.zscore(WEBHOOKS_KEY, "job")
    assert due is not None
    assert due - redis.time()[0] <= LEASE_S + 1
    redis.zadd(WEBHOOKS_KEY, {"job": 0})
    again = outbox.take()
    assert again is not None
    assert again.attempt == 2


def test_a_forgotten_job_has_no_webhook(
    telling: httpx.Client, receiver: Receiver, redis: Redis
) -> None:
    redis.zadd(WEBHOOKS_KEY, {"forgotten": 0})
    eventually(lambda: agenda(redis) == 0)
    assert receiver.got.empty()
