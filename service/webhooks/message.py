"""What a webhook says and how it is signed (Standard Webhooks 1.0)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs.schema import Job
from service.schema import JobView

__all__ = ["Message", "key_of", "signature"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message; its id stays the same however often it is sent."""

    id: str
    body: bytes

    @classmethod
    def of(cls, job: Job, root: str) -> Message:
        """That a job has ended. `root` is the path under which the service is mounted."""
        assert job.ended_at is not None
        # An expired job succeeded, and its end is what was to be told.
        content = {
            "type": f"job.{'succeeded' if job.result is not None else job.state.value}",
            "timestamp": job.ended_at.isoformat(),
            "data": JobView.of(job, root).model_dump(mode="json"),
        }
        return cls(f"msg_{job.id}", json.dumps(content).encode())

    def headers(self, secret: str, now: datetime) -> Mapping[str, str]:
        """The headers of one attempt; receivers refuse old timestamps, so each has its own."""
        timestamp = int(now.astimezone(UTC).timestamp())
        return {
            "Content-Type": "application/json",
            "User-Agent": "stablesr-webhooks",
            "webhook-id": self.id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(key_of(secret), self.id, timestamp, self.body),
        }


def signature(key: bytes, id: str, timestamp: int, body: bytes) -> str:
    """`v1,` and the HMAC-SHA256 of id, timestamp and body in base64."""
    signed = f"{id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def key_of(secret: str) -> bytes:
    """The bytes of a secret, which is `whsec_` and base64; `jobs.settings` has seen to that."""
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
