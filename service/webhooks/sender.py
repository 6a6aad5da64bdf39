"""Calls the webhooks that are due, one process of the service or several side by side."""

from __future__ import annotations

import ssl
from collections import Counter
from datetime import UTC, datetime
from enum import StrEnum

import anyio
import httpx
import structlog
from anyio.to_thread import run_sync
from prometheus_client import Counter as MetricCounter
from redis import Redis

from jobs.errors import JobNotFound, KeyNotFound, QueueUnavailable
from jobs.keys import Keys
from jobs.outbox import Call, Outbox
from jobs.records import Records
from jobs.schema import Job
from jobs.settings import Settings
from service.webhooks.message import Message
from service.webhooks.target import BadTarget, BlockedTarget, Target, UnknownHost, resolve

__all__ = ["Sender"]

log = structlog.stdlib.get_logger(__name__)

# How soon a call that is due is made, at the latest.
LOOK_S = 1.0
# Calls of one process at a time, and those of them that are one owner's: receivers that are slow
# to answer, or to be found, delay nobody else's.
AT_ONCE = 16
EACH = 8
TIMEOUT_S = 15.0
TIMEOUTS = httpx.Timeout(10.0, connect=5.0)


class Outcome(StrEnum):
    DELIVERED = "delivered"
    FAILED = "failed"
    GIVEN_UP = "given_up"
    BLOCKED = "blocked"


class Sender:
    """One task that takes due calls and makes each in a task of its own.

    `attempts` counts them by their outcome.
    """

    def __init__(
        self, connection: Redis, settings: Settings, root: str, attempts: MetricCounter
    ) -> None:
        self._settings = settings
        self._root = root
        self._outbox = Outbox(connection)
        self._records = Records(connection)
        self._keys = Keys(connection)
        self._attempts = attempts
        self._tls = httpx.create_ssl_context()
        self._in_hand: Counter[str] = Counter()
        # Not the threads that requests need.
        self._lookups = anyio.CapacityLimiter(AT_ONCE)

    async def run(self) -> None:
        """Works until canceled; a call that is cut off is made again, here or elsewhere."""
        places = anyio.Semaphore(AT_ONCE)
        async with anyio.create_task_group() as calls:
            while True:
                await places.acquire()
                try:
                    call = await run_sync(self._outbox.take)
                except QueueUnavailable as error:
                    log.debug("webhooks wait", reason=error.detail)
                    call = None
                if call is None:
                    places.release()
                    await anyio.sleep(LOOK_S)
                else:
                    calls.start_soon(self._make, call, places)

    async def _make(self, call: Call, places: anyio.Semaphore) -> None:
        try:
            await self._attempt(call)
        except QueueUnavailable as error:
            # Its lease ends, and it is taken again.
            log.warning("a webhook's outcome is not noted", job=call.job_id, reason=error.detail)
        finally:
            places.release()

    async def _attempt(self, call: Call) -> None:
        try:
            job = await run_sync(self._records.get, call.job_id)
            secret = await run_sync(self._secret, job.owner)
        except (JobNotFound, KeyNotFound) as error:
            log.warning("webhook dropped", job=call.job_id, reason=error.detail)
            await run_sync(self._outbox.done, call)
            return
        except QueueUnavailable:
            raise
        # A defect in one call must not end the others, nor the service; nor may it go on for ever.
        except Exception as error:
            log.exception("unexpected error", job=call.job_id)
            await self._settle(call, Outcome.FAILED, repr(error), None)
            return
        if self._in_hand[job.owner] >= EACH:
            await run_sync(self._outbox.later, call)
            return
        self._in_hand[job.owner] += 1
        try:
            outcome, said = await self._send(job, secret)
        finally:
            self._in_hand -= Counter([job.owner])
        await self._settle(call, outcome, said, job.request_id)

    async def _settle(
        self, call: Call, outcome: Outcome, said: str, request_id: str | None
    ) -> None:
        """Notes how an attempt ended, and whether there is a next one."""
        if outcome is Outcome.FAILED:
            if not await run_sync(self._outbox.again, call):
                outcome = Outcome.GIVEN_UP
        else:
            await run_sync(self._outbox.done, call)
        self._attempts.labels(outcome.value).inc()
        tell = log.info if outcome is Outcome.DELIVERED else log.warning
        tell(
            "webhook",
            job=call.job_id,
            request_id=request_id,
            attempt=call.attempt,
            outcome=outcome.value,
            reason=said,
        )

    async def _send(self, job: Job, secret: str) -> tuple[Outcome, str]:
        """Makes the call; how it ended, and in which words."""
        private = self._settings.webhook_allow_private
        try:
            target = Target.parse(job.webhook_url or "", allow_private=private)
            with anyio.fail_after(TIMEOUT_S):
                status = await self._post(target, Message.of(job, self._root), secret)
        except (BadTarget, BlockedTarget) as error:
            return Outcome.BLOCKED, str(error)
        except UnknownHost as error:
            return Outcome.FAILED, str(error)
        except TimeoutError:
            return Outcome.FAILED, f"no answer within {TIMEOUT_S:g} s"
        except (httpx.HTTPError, ssl.SSLError, OSError) as error:
            return Outcome.FAILED, f"{type(error).__name__}: {error}"
        # As in `_attempt`.
        except Exception as error:
            log.exception("unexpected error", job=job.id)
            return Outcome.FAILED, repr(error)
        if 200 <= status < 300:
            return Outcome.DELIVERED, str(status)
        # Gone: the receiver does not want it any more.
        return (Outcome.GIVEN_UP if status == 410 else Outcome.FAILED), str(status)

    async def _post(self, target: Target, message: Message, secret: str) -> int:
        private = self._settings.webhook_allow_private
        address = await run_sync(
            lambda: resolve(target, allow_private=private),
            # Nothing can cut the system's resolver off; its answer is not waited for any longer.
            abandon_on_cancel=True,
            limiter=self._lookups,
        )
        host = f"[{address}]" if address.version == 6 else str(address)
        headers = {**message.headers(secret, datetime.now(UTC)), "Host": target.authority}
        async with (
            # No proxy from the environment: it would connect to wherever the name leads it.
            httpx.AsyncClient(verify=self._tls, timeout=TIMEOUTS, trust_env=False) as client,
            # To the address that was looked at, with the certificate of the name.
            client.stream(
                "POST",
                f"https://{host}:{target.port}{target.path}",
                content=message.body,
                headers=headers,
                extensions={"sni_hostname": target.host},
            ) as answer,
        ):
            # What it says beyond its status is not read, so it cannot be long.
            return answer.status_code

    def _secret(self, owner: str) -> str:
        if owner:
            return self._keys.webhook_secret(owner)
        secret = self._settings.webhook_secret
        if secret is None:
            raise KeyNotFound("STABLESR_WEBHOOK_SECRET is not set any more.")
        return secret
