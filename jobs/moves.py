"""What the records say aloud when they move: one line a change, to whoever listens.

Listeners take it as a hint to look at the record, never as the truth: Redis forgets a message
that nobody hears, so whoever waits also looks by itself now and then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from .schema import JobState

__all__ = ["CHANNEL", "Move"]

CHANNEL = "stablesr:moves"


@dataclass(frozen=True, slots=True)
class Move:
    """A record's revision and the state it is in since."""

    job_id: str
    revision: int
    state: JobState

    @classmethod
    def parse(cls, message: bytes) -> Self:
        """A message of the channel; raises ValueError for what `jobs.move` does not send."""
        job_id, revision, state = message.decode().split(" ")
        return cls(job_id, int(revision), JobState(state))
