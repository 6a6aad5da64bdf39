"""Calls the webhooks that are due, signed as Standard Webhooks 1.0 has it; in every process."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import anyio
import httpx
import structlog
from anyio.to_thread import run_sync
from opentelemetry.trace import SpanKind
from prometheus_client import Counter as MetricCounter
from redis import Redis

from jobs import tracing
from jobs.errors import JobNotFound, KeyNotFound, QueueUnavailable
from jobs.job_store import JobStore
from jobs.keys import Keys
from jobs.outbox import Call, Outbox
from jobs.schema import Job
from jobs.settings import Settings
from service.egress import BadTarget, Egress
from service.schema import JobView

log = structlog.stdlib.get_logger(__name__)

# How soon a call that is due is made, at the latest.
LOOK_S = 1.0
# Calls of one process at a time, and those of them that are one owner's: receivers that are slow
# to answer, or to be found, delay those of no other owner.
AT_ONCE = 16
EACH = 8
TIMEOUT_S = 15.0
TIMEOUTS = httpx.Timeout(10.0, connect=5.0)


def message(job: Job, root: str) -> bytes:
    """What tells that a job has ended. `root` is the path under which the service is mounted."""
    assert job.ended_at is not None
    # An expired job succeeded, and its end is what was to be told.
    content = {
        "type": f"job.{'succeeded' if job.result is not None else job.state.value}",
        "timestamp": job.ended_at.isoformat(),
        "data": JobView.of(job, root).model_dump(mode="json"),
    }
    return json.dumps(content).encode()


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of id, timestamp and body in base64.

    The secret is `whsec_` and its bytes in base64; `jobs.settings` has seen to that.
    """
    key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    content = f"{id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()


class Outcome(StrEnum):
    SUCCESS = "delivered"
    FAILURE = "failed"
    LAST_FAILURE = "given_up"
    REFUSAL = "blocked"


class Sender:
    """One task that takes due calls and makes each in a task of its own."""

    def __init__(
        self,
        connection: Redis,
        settings: Settings,
        root: str,
        attempts: MetricCounter,
        messages: Mapping[str, Callable[[Job, str, str], Any]],
    ) -> None:
        """`messages` are what other protocols tell of a job, by name."""
        self._messages = messages
        self._egress = Egress(settings)
        self._default_secret = settings.webhook_secret
        self._root = root
        self._outbox = Outbox(connection)
        self._records = JobStore(connection)
        self._keys = Keys(connection)
        self._attempts = attempts
        for outcome in Outcome:
            attempts.labels(outcome.value)
        self._open: Counter[str] = Counter()

    async def run(self) -> None:
        """Works until canceled; a call that is cut off is made again, here or elsewhere."""
        free = anyio.Semaphore(AT_ONCE)
        async with anyio.create_task_group() as calls:
            while True:
                await free.acquire()
                try:
                    call = await run_sync(self._outbox.take)
                except QueueUnavailable as error:
                    log.debug("webhooks wait", reason=error.detail)
                    call = None
                if call is None:
                    free.release()
                    await anyio.sleep(LOOK_S)
                else:
                    calls.start_soon(self._make, call, free)

    async def _make(self, call: Call, free: anyio.Semaphore) -> None:
        try:
            await self._attempt(call)
        except QueueUnavailable as error:
            # Its lease ends, and it is taken again.
            log.warning("a webhook's outcome is not noted", job=call.job_id, reason=error.detail)
        finally:
            free.release()

    async def _attempt(self, call: Call) -> None:
        names: dict[str, object] = {"job": call.job_id, "attempt": call.attempt}
        try:
            job = await run_sync(self._records.get, call.job_id)
            names["request_id"] = job.request_id
            secret = await run_sync(self._secret, job.owner)
            if self._open[job.owner] >= EACH:
                await run_sync(self._outbox.later, call)
                return
            outcome, reason = await self._send(job, secret)
        except (JobNotFound, KeyNotFound) as error:
            log.warning("webhook dropped", job=call.job_id, reason=error.detail)
            await run_sync(self._outbox.finish, call)
            return
        except QueueUnavailable:
            raise
        # A defect in one call must not end the others, nor the service; nor may it go on for ever.
        except Exception as error:
            log.exception("unexpected error", job=call.job_id)
            outcome, reason = Outcome.FAILURE, repr(error)
        if outcome is not Outcome.FAILURE:
            await run_sync(self._outbox.finish, call)
        elif not await run_sync(self._outbox.again, call):
            outcome = Outcome.LAST_FAILURE
        self._attempts.labels(outcome.value).inc()
        write = log.info if outcome is Outcome.SUCCESS else log.warning
        write("webhook", **names, outcome=outcome.value, reason=reason)

    async def _send(self, job: Job, secret: str) -> tuple[Outcome, str]:
        """Makes the call; how it ended, and in which words."""
        self._open[job.owner] += 1
        try:
            with anyio.fail_after(TIMEOUT_S):
                status = await self._post(job, secret)
        except BadTarget as error:
            return Outcome.REFUSAL, str(error)
        except TimeoutError:
            return Outcome.FAILURE, f"no answer within {TIMEOUT_S:g} s"
        # Among them a name that stands for no address, and what TLS does not like.
        except (httpx.HTTPError, OSError) as error:
            return Outcome.FAILURE, f"{type(error).__name__}: {error}"
        finally:
            self._open -= Counter([job.owner])
        if 200 <= status < 300:
            return Outcome.SUCCESS, str(status)
        # Gone: the receiver does not want it any more.
        return (Outcome.LAST_FAILURE if status == 410 else Outcome.FAILURE), str(status)

    async def _post(self, job: Job, secret: str) -> int:
        target = self._egress.target(job.webhook_url or "")
        # The id stays the same however often this end is told; receivers refuse old timestamps.
        assert job.ended_at is not None
        id = f"msg_{job.id}_{job.ended_at.timestamp() * 1000:.0f}"
        timestamp, body = int(time.time()), self._message(job, secret)
        fields = {
            "Content-Type": "application/json",
            "User-Agent": "stablesr-webhooks",
            "webhook-id": id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(secret, id, timestamp, body),
        }
        names = {"http.request.method": "POST", "stablesr.job.id": job.id}
        with tracing.span_of("webhook", job.trace, SpanKind.CLIENT, names) as span:
            fields |= tracing.carrier()
            request = self._egress.request("POST", target, fields, TIMEOUTS, body)
            async with request as answer:
                # What it says beyond its status is not read, so it cannot be long.
                span.set_attribute("http.response.status_code", answer.status_code)
                return answer.status_code

    def _message(self, job: Job, secret: str) -> bytes:
        protocol, _, base = (job.protocol or "").partition(" ")
        if protocol in self._messages:
            return json.dumps(self._messages[protocol](job, base, secret)).encode()
        return message(job, self._root)

    def _secret(self, owner: str) -> str:
        if owner:
            return self._keys.webhook_secret(owner)
        if self._default_secret is None:
            raise KeyNotFound("STABLESR_WEBHOOK_SECRET is not set any more.")
        return self._default_secret
