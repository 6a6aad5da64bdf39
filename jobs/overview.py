"""How the whole service is at one moment: what waits, who works, and what became of the jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import Redis

from models.presets import PRESETS

from .connection import as_text, queue_errors
from .fields import record_key
from .moves import COUNT_FIELD, COUNTS_KEY, minute_key
from .rq_job import open_queue
from .settings import Settings
from .workers import WorkerInfo, Workers

__all__ = ["Backlog", "Overview", "look_over"]


@dataclass(frozen=True, slots=True)
class Backlog:
    """The queue of one preset: jobs that wait, and how long the next of them has, in seconds."""

    waiting: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Overview:
    """`moves` are the jobs that ever came into each state, the others those of the last minute."""

    backlogs: Mapping[str, Backlog]
    workers: Sequence[WorkerInfo]
    moves: Mapping[str, float]
    moves_last_minute: Mapping[str, float]


def look_over(connection: Redis, settings: Settings) -> Overview:
    """Reads it all from Redis. Raises QueueUnavailable."""
    workers = Workers(connection, ttl_s=settings.worker_ttl_s).list()
    keys = [open_queue(preset, connection).key for preset in PRESETS]
    with queue_errors(connection), connection.pipeline(transaction=False) as pipe:
        pipe.time()
        pipe.hgetall(COUNTS_KEY)
        for key in keys:
            pipe.llen(key)
            pipe.lindex(key, 0)
        (seconds, micros), counts, *queues = pipe.execute()
    now = seconds + micros / 1e6
    waiting, heads = queues[::2], queues[1::2]
    return Overview(
        backlogs={
            preset: Backlog(int(count), _age(connection, head, now))
            for preset, count, head in zip(PRESETS, waiting, heads, strict=True)
        },
        workers=workers,
        moves={
            field.removeprefix(COUNT_FIELD): count
            for field, count in _numbers(counts).items()
            if field.startswith(COUNT_FIELD)
        },
        moves_last_minute=_last_minute(connection, now),
    )


def _age(connection: Redis, head: bytes | None, now: float) -> float:
    if head is None:
        return 0.0
    with queue_errors(connection):
        created: Any = connection.hget(record_key(as_text(head)), "created_at")
    return 0.0 if created is None else max(0.0, now - float(created))


def _last_minute(connection: Redis, now: float) -> Mapping[str, float]:
    """Moves by state in the sixty seconds before now, taking the minute before as even."""
    with queue_errors(connection), connection.pipeline(transaction=False) as pipe:
        pipe.hgetall(minute_key(now))
        pipe.hgetall(minute_key(now - 60))
        current, before = (_numbers(raw) for raw in pipe.execute())
    share = 1 - now % 60 / 60
    states = sorted(current.keys() | before.keys())
    return {state: current.get(state, 0) + share * before.get(state, 0) for state in states}


def _numbers(raw: Mapping[Any, Any]) -> dict[str, float]:
    return {as_text(field): float(value) for field, value in raw.items()}
