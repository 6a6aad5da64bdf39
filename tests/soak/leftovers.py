"""What must be gone once every time to live is over: blobs, scratch files, keys of Redis.

Keys without a time to live are named here, each for a reason. Keys with one may be there until
it is over; how long that is, is checked by the kind of key.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from redis import Redis

from jobs.connection import as_text
from jobs.job_store import AGENDA_KEY, LOOK_AGAIN_S, TOMBSTONE_S
from jobs.settings import Settings
from jobs.states import COUNT_FIELD, COUNTS_KEY

DAY_S = 86_400

# Figures since the first job, and RQ's register of queues: as many as there are presets.
LASTING = re.compile(r"stablesr:figures|rq:queues")
# RQ's registers of its workers: dead ones are taken out when what is known of them is gone.
REGISTERS = re.compile(r"rq:workers(:.*)?")
# By kind, the most seconds that one may still have: tombstones of jobs, repeated requests and RQ's
# notes on dead workers are known for a day, the index of jobs for as long as one of them may be.
PASSING = {
    r"stablesr:job:[\w-]+": TOMBSTONE_S,
    r"stablesr:once:.*": DAY_S,
    r"stablesr:(jobs|waiting):.*": 11 * DAY_S,
    r"stablesr:figures:\d+": 180,
    # How far the walk over the store has come, whose turn it is, whether Redis takes writes.
    r"stablesr:walk": 3600,
    r"stablesr:turns:\w+": 7 * DAY_S,
    r"stablesr:probe": 60,
    r"rq:(worker|execution|job):.*": DAY_S,
}


def blobs(settings: Settings) -> list[str]:
    """Files in the store, whole or half written."""
    return sorted(str(path) for path in settings.blob_root.rglob("*") if path.is_file())


def wait_for_sweeps(connection: Redis, settings: Settings, seconds: float) -> int:
    """Returns when no blob is left and no job is to be looked at, or the time is over.

    Jobs that a sweep put off for ten minutes, since the store was away, are looked at sooner;
    returns how many those were.
    """
    deadline, put_off = time.monotonic() + seconds, 0
    while time.monotonic() < deadline and (blobs(settings) or connection.exists(AGENDA_KEY)):
        # All jobs have ended, so nothing else is due later than the newest result.
        latest = time.time() + max(settings.result_ttl_s, LOOK_AGAIN_S) + 1
        late: Any = connection.zrangebyscore(AGENDA_KEY, latest, "+inf")
        if late:
            connection.zadd(AGENDA_KEY, dict.fromkeys(late, 0), xx=True)
            put_off += len(late)
        time.sleep(0.5)
    return put_off


def moves(connection: Redis) -> Counter[str]:
    """How many jobs came into each state, as Redis counted."""
    raw: Any = connection.hgetall(COUNTS_KEY)
    named = {as_text(name): int(count) for name, count in raw.items()}
    return Counter(
        {
            name.removeprefix(COUNT_FIELD): count
            for name, count in named.items()
            if name.startswith(COUNT_FIELD)
        }
    )


def keys(connection: Redis) -> tuple[Counter[str], list[str]]:
    """How many keys of each kind there are, and what is wrong with which."""
    kinds: Counter[str] = Counter()
    wrong: list[str] = []
    for raw in sorted(connection.scan_iter(count=1000)):
        name, ttl = as_text(raw), int(str(connection.ttl(raw)))
        kind = next((kind for kind in PASSING if re.fullmatch(kind, name)), None)
        if ttl == -2:
            continue
        if REGISTERS.fullmatch(name):
            members: Any = connection.smembers(name)
            wrong += [f"{name} has {m!r}, long gone" for m in members if not connection.exists(m)]
        elif kind is None and LASTING.fullmatch(name) and ttl == -1:
            kinds[name] += 1
        elif kind is None:
            wrong.append(f"key {name} ({as_text(connection.type(raw))}) stays, time to live {ttl}")
        elif not 0 <= ttl <= PASSING[kind]:
            wrong.append(f"key {name} has {ttl} s to live, of {PASSING[kind]} at most")
        else:
            kinds[kind] += 1
    return kinds, wrong


def scratch(folder: Path) -> Iterator[str]:
    """Whatever is left in the folder for temporary files."""
    yield from sorted(str(path) for path in folder.rglob("*"))
