"""Upkeep by the service, which is there also when no worker is."""

from __future__ import annotations

import anyio
from anyio.to_thread import run_sync

from jobs.upkeep import Upkeep

__all__ = ["keep_up"]


async def keep_up(upkeep: Upkeep, interval_s: float) -> None:
    """A round about every interval_s, in a thread, until canceled; then after the round in hand."""
    while True:
        await anyio.sleep(interval_s)
        await run_sync(upkeep.run)
