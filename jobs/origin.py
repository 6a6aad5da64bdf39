"""Where a job comes from: what its record keeps besides what is to be done."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ANYONE", "Origin"]

ANYONE = ""
"""The owner of what is asked without a key."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who submitted a job and in which request.

    owner is a key's id, or ANYONE; max_queued bounds the jobs that may wait of this owner, or of
    this client (an address) where there is none;
    request_id finds the request in the service's log; webhook_url is told of the job's end;
    claim is the idempotency key (of `jobs.idempotency`) under which the job is to be found again.
    """

    owner: str = ANYONE
    max_queued: int | None = None
    request_id: str | None = None
    webhook_url: str | None = None
    claim: Claim | None = None
    client: str = ""

    @property
    def counted(self) -> str:
        """Whose waiting jobs its job is counted among."""
        return self.owner or self.client


@dataclass(frozen=True, slots=True)
class Claim:
    """A Redis key that holds `held` and is set to `value` together with the job's record.

    Where it holds something else by then, there is no job either.
    """

    key: str
    held: str
    value: str
    ttl_s: int
