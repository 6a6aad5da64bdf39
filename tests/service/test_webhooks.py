"""Webhooks: signed, once a job has ended, to public addresses only, and again until heard."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from redis import Redis

from jobs.errors import ImageTruncated
from jobs.keys import Keys
from jobs.outbox import ATTEMPTS, ATTEMPTS_KEY, LEASE_S, PAUSES_S, Outbox
from jobs.records import WEBHOOKS_KEY
from jobs.settings import Settings
from service.webhooks.message import key_of, signature
from service.webhooks.target import Address, BadTarget, Target, is_public
from tests.redis_server import RedisServer
from tests.service.harness import FakeWorker, eventually, problem, serving, upload
from tests.service.pictures import picture
from tests.service.receiver import HOST, Receiver, receiving

PNG = picture("PNG")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LOCAL = ipaddress.ip_address("127.0.0.1")


@pytest.fixture(scope="module")
def service(
    redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Settings, httpx.Client]]:
    """No server of the file's own: it would make calls too. Each test has one with its settings."""
    blobs = tmp_path_factory.mktemp("store") / "blobs"
    with httpx.Client() as client:
        yield Settings(redis_url=redis_server.url, blob_root=blobs), client


class Names:
    """What stands in for DNS: each question takes the next answer, the last one stays."""

    def __init__(self, *answers: list[Address]) -> None:
        self._answers = [*answers]
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names([LOCAL])
    monkeypatch.setattr("service.webhooks.target.lookup", names)
    return names


@pytest.fixture
def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Names) -> Iterator[Receiver]:
    with receiving(tmp_path / "ca.pem") as receiver:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        yield receiver


@pytest.fixture
def private(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings under which this machine's own receiver may be called."""
    monkeypatch.setattr("service.webhooks.sender.LOOK_S", 0.02)
    return settings.model_copy(update={"webhook_allow_private": True, "webhook_secret": SECRET})


@pytest.fixture
def telling(private: Settings, receiver: Receiver) -> Iterator[httpx.Client]:
    with serving(private) as client:
        yield client


def ended(client: httpx.Client, worker: FakeWorker, url: str, **headers: str) -> str:
    """A job that asked for a webhook and has succeeded."""
    answer = client.post(
        "/upscale", files={"image": ("a.png", PNG)}, data={"webhook_url": url}, headers=headers
    )
    assert answer.status_code == 202, answer.text
    job = str(answer.json()["id"])
    worker.start(job)
    worker.succeed(job, PNG)
    return job


def agenda(redis: Redis) -> int:
    return int(redis.zcard(WEBHOOKS_KEY))


def put_off(redis: Redis) -> bool:
    """Whether the call waits for its second attempt; the lease of the first is a minute."""
    now = redis.time()[0]
    return redis.zcount(WEBHOOKS_KEY, now, now + 1.2 * PAUSES_S[0]) == 1


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
    assert headers["webhook-id"] == f"msg_{job}"
    sent = int(headers["webhook-timestamp"])
    assert abs(sent - time.time()) < 30
    expected = signature(key_of(SECRET), f"msg_{job}", sent, delivery.body)
    assert headers["webhook-signature"] == expected
    eventually(lambda: agenda(redis) == 0)
    assert not redis.exists(ATTEMPTS_KEY)
    assert "webhook" not in telling.get(f"/jobs/{job}").text


def test_the_name_is_asked_for_and_the_address_that_was_looked_at_is_called(
    telling: httpx.Client, receiver: Receiver, worker: FakeWorker, names: Names
) -> None:
    ended(telling, worker, receiver.url)
    delivery = receiver.next()
    assert delivery.server_name == HOST
    assert delivery.headers["Host"] == f"{HOST}:{receiver.port}"
    assert names.asked == [HOST]


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
        job = ended(client, worker, receiver.url, **{"X-API-Key": key})
        delivery = receiver.next()
    secret = key_of(keys.webhook_secret(info.id))
    sent = int(delivery.headers["webhook-timestamp"])
    expected = signature(secret, f"msg_{job}", sent, delivery.body)
    assert delivery.headers["webhook-signature"] == expected


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
    monkeypatch.setattr("service.webhooks.target.lookup", names)
    with serving(private.model_copy(update={"webhook_allow_private": False})) as client:
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
    # A public address of this test's making, at which nobody answers, and then the receiver.
    public = [ipaddress.ip_address("93.184.216.34")]
    names = Names(public, [LOCAL])
    monkeypatch.setattr("service.webhooks.target.lookup", names)
    tried: list[str] = []

    async def connect(self: object, host: str, port: int, **_: object) -> None:
        tried.append(host)
        raise httpx.ConnectError("nobody there")

    monkeypatch.setattr("httpcore.AnyIOBackend.connect_tcp", connect)
    monkeypatch.setattr("httpcore._backends.auto.AutoBackend.connect_tcp", connect)
    with serving(private.model_copy(update={"webhook_allow_private": False})) as client:
        ended(client, worker, f"https://{HOST}:{receiver.port}/")
        eventually(lambda: bool(tried))
    assert tried == ["93.184.216.34"]
    assert names.asked == [HOST]
    assert receiver.connections == 0


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


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/",
        "ftp://example.org/",
        "https://",
        "https:///path",
        "example.org",
        "https://user@example.org/",
        "https://user:word@example.org/",
        "https://example.org/#there",
        "https://example.org\\@evil.example/",
        "https://exa mple.org/",
        "https://example.org:99999/",
        "https://example.org:x/",
        "https://localhost/",
        "https://internal/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:10.0.0.1]/",
        "https://169.254.169.254/latest/meta-data/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://b\u00fccher.example/",
        "https://example.org/" + "x" * 2000,
        "https://example.org/\r\nX: y",
        "https://[",
        "https://.example.org/",
    ],
)
def test_an_address_that_no_webhook_can_have_is_no_target(url: str) -> None:
    with pytest.raises(BadTarget):
        Target.parse(url, allow_private=False)


@pytest.mark.parametrize(
    "url", ["https://example.org", "https://example.org:8443/a?b=c", "https://93.184.216.34/x"]
)
def test_a_public_https_address_is_taken(url: str) -> None:
    target = Target.parse(url, allow_private=False)
    assert target.authority in url
    assert target.path.startswith("/")


def test_a_bad_address_is_refused_with_the_upload(settings: Settings, redis: Redis) -> None:
    with serving(settings.model_copy(update={"webhook_secret": SECRET})) as client:
        answer = upload(client, PNG, webhook_url="https://169.254.169.254/latest/meta-data/")
    body = problem(answer, 422, "invalid-parameters")
    assert [error["field"] for error in body["errors"]] == ["webhook_url"]
    assert redis.keys("stablesr:job:*") == []


def test_without_a_secret_nothing_could_be_signed(settings: Settings) -> None:
    with serving(settings) as client:
        answer = upload(client, PNG, webhook_url="https://example.org/")
    body = problem(answer, 422, "invalid-parameters")
    assert "API key" in body["detail"]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:4700:4700::1111", True),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("100.64.0.1", False),
        ("127.255.255.254", False),
        ("169.254.169.254", False),
        ("172.31.0.1", False),
        ("192.0.0.1", False),
        ("192.168.1.1", False),
        ("198.18.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fc00::1", False),
        ("fe80::1", False),
        ("ff02::1", False),
        ("2001:db8::1", False),
        ("::ffff:192.168.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::10.0.0.1", False),
        ("64:ff9b::93.184.216.34", True),
        ("64:ff9b:1::10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::1", False),
        ("2001:0:4136:e378:8000:63bf:3fff:fdd2", False),
    ],
)
def test_an_address_is_public_whatever_it_is_wrapped_in(address: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(address)) is public


def test_the_signature_is_that_of_the_standards_example() -> None:
    """From the specification's own test vector, as its libraries use it."""
    body = b'{"test": 2432232314}'
    signed = signature(key_of(SECRET), "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_nonsense_is_refused_as_a_target() -> None:
    with pytest.raises(BadTarget):
        Target.parse("https://\x00/", allow_private=True)
