"""Who serves which preset, and how the whole service is at one moment.

A worker is one hash in Redis, gone when its heartbeat stops:

stablesr:worker:{name}   preset, device, state, ...; expires after the worker's time to live
stablesr:workers         sorted set: name -> last heartbeat
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from redis import Redis

from models.presets import PRESETS

from .connection import as_text, queue_errors
from .job_store import record_key
from .rq_adapter import open_queue
from .settings import Settings
from .states import COUNT_FIELD, COUNTS_KEY, minute_key

WorkerState = Literal["starting", "compiling", "not_ready", "idle", "busy", "stopping"]
NAMES_KEY = "stablesr:workers"


def worker_key(name: str) -> str:
    return f"stablesr:worker:{name}"


class WorkerInfo(BaseModel):
    """A worker as it describes itself; last_seen is set by Redis' clock at each heartbeat.

    `reason` is a clause that clients may read, for why it is not ready; None otherwise. `compiled`
    is how many sizes of network calls are ready, and how many there will be, while the state is
    `compiling`. `memory` is in bytes, by kind.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    preset: str
    reason: str | None = None
    device: str
    state: WorkerState = "starting"
    compiled: tuple[int, int] | None = None
    slots: int = 1
    running: int = 0
    memory: dict[str, int] = {}
    hostname: str = ""
    pid: int = 0
    started_at: datetime | None = None
    last_seen: datetime | None = None

    @property
    def condition(self) -> str:
        """Its state in words."""
        if self.compiled is None:
            return self.state
        return "{} ({} of {} sizes of network calls are ready)".format(self.state, *self.compiled)

    @property
    def ready(self) -> bool:
        """Whether it takes jobs: its model is loaded and it is not about to stop."""
        return self.state in ("idle", "busy")


class Workers:
    """The register of live workers. Raises QueueUnavailable."""

    def __init__(self, connection: Redis, *, ttl_s: int) -> None:
        self._connection = connection
        self._ttl_s = ttl_s

    def register(self, info: WorkerInfo) -> None:
        """Adds the worker; the same as its first heartbeat."""
        self.heartbeat(info)

    def heartbeat(self, info: WorkerInfo) -> None:
        """Writes all that is known of the worker and lets it live another ttl_s seconds.

        Complete each time, so that a worker which Redis forgot is back at its next heartbeat.
        """
        with queue_errors(self._connection):
            seconds, micros = self._connection.time()
            now = seconds + micros / 1e6
            stamp = info.model_copy(update={"last_seen": datetime.fromtimestamp(now, UTC)})
            with self._connection.pipeline() as pipe:
                pipe.set(worker_key(info.name), stamp.model_dump_json(), ex=self._ttl_s)
                pipe.zadd(NAMES_KEY, {info.name: now})
                pipe.execute()

    def unregister(self, name: str) -> None:
        """Removes a worker that leaves in order; one that is not there is no error."""
        with queue_errors(self._connection), self._connection.pipeline() as pipe:
            pipe.delete(worker_key(name))
            pipe.zrem(NAMES_KEY, name)
            pipe.execute()

    def list(self, preset: str | None = None) -> list[WorkerInfo]:
        """The live workers, by name; those that went silent are forgotten."""
        with queue_errors(self._connection):
            names = sorted(map(as_text, self._connection.zrange(NAMES_KEY, 0, -1)))
            if not names:
                return []
            raws = self._connection.mget([worker_key(name) for name in names])
            silent = [name for name, raw in zip(names, raws, strict=True) if raw is None]
            if silent:
                self._connection.zrem(NAMES_KEY, *silent)
        workers = [
            info for raw in raws if raw is not None and (info := parse_worker(raw)) is not None
        ]
        return [info for info in workers if preset is None or info.preset == preset]


def parse_worker(raw: bytes | str) -> WorkerInfo | None:
    """None for a worker of another version, which is not ours to judge."""
    try:
        return WorkerInfo.model_validate_json(raw)
    except ValidationError:
        return None


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
        creation: Any = connection.hget(record_key(as_text(head)), "created_at")
    return 0.0 if creation is None else max(0.0, now - float(creation))


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
