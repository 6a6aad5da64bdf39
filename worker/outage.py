"""What a job does while the image store is away: it waits with what it has, and spends no attempt.

A call of the store that fails says little: the store may be away, or only this blob unreadable. So
a trial blob is written beside it. Where that works, the call is repeated once and then fails for
good; where it does not, jobs wait for the store, however long it takes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from jobs.errors import StoreUnavailable
from jobs.store import BlobStore
from worker.attempt import Attempt, Interruption

# Between two trials, doubled each time; and between two looks at the job meanwhile.
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
LOOK_S = 0.1

T = TypeVar("T")
log = structlog.get_logger(__name__)


def outlast(attempt: Attempt, call: Callable[[str], T], key: str) -> T:
    """What `call(key)` gives, once the store works; for use within a stage of the attempt.

    Raises:
        StoreUnavailable: the store works, but not for this blob.
        Interruption: the process is asked to leave meanwhile.
        What `call` raises otherwise, and `Attempt.poll`.
    """
    is_repeated = False
    while True:
        try:
            return call(key)
        except StoreUnavailable as error:
            if (reason := _fault(attempt.process.store, key)) is not None:
                _wait(attempt, key, reason)
            elif is_repeated:
                raise
            else:
                log.warning("store failed", job=attempt.job_id, reason=error.detail)
                is_repeated = True


def _fault(store: BlobStore, key: str) -> str | None:
    """Why no blob can be written beside this one, or None where it can."""
    trial = f"{key.partition('/')[0]}/try-{secrets.token_hex(8)}"
    try:
        store.put(trial, b"1")
        store.delete(trial)
    except StoreUnavailable as error:
        return error.detail
    return None


def _wait(attempt: Attempt, key: str, reason: str) -> None:
    process = attempt.process
    process.metrics.store_outages.inc()
    log.warning("image store is away, the job waits", job=attempt.job_id, reason=reason)
    start, pause = time.monotonic(), FIRST_PAUSE_S
    with attempt.awaiting_store():
        while True:
            end = time.monotonic() + pause
            while time.monotonic() < end:
                if process.leaving.wait(LOOK_S):
                    raise Interruption(f"Job {attempt.job_id} goes back to the queue.")
                attempt.poll()
            if _fault(process.store, key) is None:
                break
            pause = min(2 * pause, LONGEST_PAUSE_S)
    seconds = round(time.monotonic() - start, 1)
    log.info("image store is back, the job goes on", job=attempt.job_id, seconds=seconds)
