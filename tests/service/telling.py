"""What the tests of webhooks share: names in place of DNS, jobs that end, and the agenda."""

from __future__ import annotations

import ipaddress

import httpx
from redis import Redis

from jobs.job_store import WEBHOOKS_KEY
from jobs.outbox import PAUSES_S
from service.webhook_target import Address
from tests.service.harness import FakeWorker
from tests.service.pictures import picture

PNG = picture("PNG")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LOCAL = ipaddress.ip_address("127.0.0.1")


class Names:
    """What stands in for DNS: each question takes the next answer, the last one stays."""

    def __init__(self, *answers: list[Address]) -> None:
        self._answers = [*answers]
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[Address]:
        self.asked.append(host)
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


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
