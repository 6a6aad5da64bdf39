"""Who serves which preset, and how the whole service is at one moment.

stablesr:worker:{name}   JSON: preset, device, state, ...; gone when its heartbeat stops
stablesr:workers         sorted set: name -> last heartbeat
stablesr:drain:{name}    there when the worker is to take no further job, and to end
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError
from redis import Redis

from models.presets import PRESETS

from .connection import Command, as_text, as_texts, queue_errors, seconds_of
from .errors import WorkerNotFound
from .fair_queue import PAUSED_KEY
from .job_store import QUEUE_KEYS, list_key, moment, queue_key, record_key, waiting_key
from .states import COUNT_FIELD, COUNTS_KEY, minute_key

WorkerState = Literal["starting", "compiling", "not_ready", "idle", "busy", "draining", "stopping"]
NAMES_KEY = "stablesr:workers"


# A worker looks for this at each heartbeat.
_DRAIN_TTL_S = 3600


def worker_key(name: str) -> str:
    return f"stablesr:worker:{name}"


def drain_key(name: str) -> str:
    return f"stablesr:drain:{name}"


class WorkerInfo(BaseModel):
    """A worker as it describes itself; `last_seen` is by Redis' clock.

    `reason` is a clause for clients, why it is not ready. While the state is `compiling`,
    `compiled` is how many sizes of network calls are ready and how many there will be. Of the
    `running` jobs `awaiting_store` wait for an image store that is away. `memory` is in bytes, by
    kind.
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
    awaiting_store: int = 0
    memory: dict[str, int] = {}
    hostname: str = ""
    pid: int = 0
    started_at: datetime | None = None
    last_seen: datetime | None = None

    @property
    def condition(self) -> str:
        """Its state in words."""
        if self.awaiting_store:
            return f"{self.state} ({self.awaiting_store} jobs wait for the image store)"
        if self.compiled is None:
            return self.state
        return "{} ({} of {} sizes of network calls are ready)".format(self.state, *self.compiled)

    @property
    def ready(self) -> bool:
        """Whether it takes jobs."""
        return self.state in ("idle", "busy")


class Workers:
    """The register of live workers, as they write it. Raises QueueUnavailable."""

    def __init__(self, connection: Redis, *, ttl_s: int) -> None:
        self._connection = connection
        self._ttl_s = ttl_s

    def heartbeat(self, info: WorkerInfo) -> bool:
        """Lets the worker live another ttl_s seconds; whether it is asked to drain. Writes all that
        is known of it each time, so that one which Redis forgot is back at its next heartbeat."""
        with queue_errors(self._connection):
            now = moment(self._connection.time())
            stamp = info.model_copy(update={"last_seen": now})
            with self._connection.pipeline() as pipe:
                pipe.set(worker_key(info.name), stamp.model_dump_json(), ex=self._ttl_s)
                pipe.zadd(NAMES_KEY, {info.name: now.timestamp()})
                pipe.exists(drain_key(info.name))
                return bool(pipe.execute()[-1])

    def drain(self, name: str) -> None:
        """Asks a worker to take no further job, and to end after those in hand; it does so at its
        next heartbeat. Raises WorkerNotFound."""
        with queue_errors(self._connection):
            if not self._connection.exists(worker_key(name)):
                names = [worker.name for worker in Capacity.read(self._connection).workers]
                raise WorkerNotFound(
                    f"There is no worker {name!r}; running: {', '.join(names) or 'none'}."
                )
            self._connection.set(drain_key(name), 1, ex=_DRAIN_TTL_S)

    def unregister(self, name: str) -> None:
        """Removes a worker that leaves in order; one that is not there is no error."""
        with queue_errors(self._connection), self._connection.pipeline() as pipe:
            pipe.delete(worker_key(name))
            pipe.zrem(NAMES_KEY, name)
            pipe.execute()


# Silent workers are forgotten here.
CAPACITY = """
local lengths, workers = {}, {}
local n = (#KEYS - 3) / 2
for i = 1, n do
    lengths[i] = redis.call('LLEN', KEYS[3 + i]) + redis.call('ZCARD', KEYS[3 + n + i])
end
for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local info = redis.call('GET', ARGV[1] .. name)
    if info then workers[#workers + 1] = info else redis.call('ZREM', KEYS[2], name) end
end
return {redis.call('ZCARD', KEYS[1]), lengths, workers, redis.call('SMEMBERS', KEYS[3])}
"""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many jobs of a client and of each preset wait, the live workers, by name, and the presets
    of which no job starts."""

    waiting: int
    lengths: Mapping[str, int]
    workers: Sequence[WorkerInfo]
    paused: frozenset[str]

    @staticmethod
    def command(quota_key: str) -> Command:
        """What asks Redis; `quota_key` is that of the jobs' `Origin`."""
        keys = (waiting_key(quota_key), NAMES_KEY, PAUSED_KEY, *QUEUE_KEYS)
        return ("EVAL", CAPACITY, len(keys), *keys, worker_key(""))

    @classmethod
    def of(cls, answer: Any) -> Self:
        waiting, lengths, raws, paused = answer
        workers = []
        for raw in raws:
            # One of another version is not ours to judge.
            with suppress(ValidationError):
                workers.append(WorkerInfo.model_validate_json(raw))
        workers.sort(key=lambda worker: worker.name)
        counts = dict(zip(PRESETS, lengths, strict=True))
        return cls(waiting, counts, workers, frozenset(map(as_text, paused)))

    @classmethod
    def read(cls, connection: Redis) -> Self:
        """That of clients without a key and an address. Raises QueueUnavailable."""
        untyped: Any = connection
        with queue_errors(connection):
            return cls.of(untyped.execute_command(*cls.command("")))


@dataclass(frozen=True, slots=True)
class Overview:
    """How long the next job of each preset has waited, in seconds; the jobs that ever came into
    each state, and those of the last minute."""

    capacity: Capacity
    oldest_s: Mapping[str, float]
    moves: Mapping[str, float]
    moves_last_minute: Mapping[str, float]


def look_over(connection: Redis) -> Overview:
    """Reads it all from Redis. Raises QueueUnavailable."""
    capacity = Capacity.read(connection)
    with queue_errors(connection):
        now = seconds_of(connection.time())
        with connection.pipeline(transaction=False) as pipe:
            for key in (COUNTS_KEY, minute_key(now), minute_key(now - 60)):
                pipe.hgetall(key)
            for preset in PRESETS:
                pipe.lrange(list_key(preset), 0, 0)
                pipe.zrange(queue_key(preset), 0, 0)
            total, current, before, *heads = pipe.execute()
        with connection.pipeline(transaction=False) as pipe:
            for next_ids, ids in zip(heads[::2], heads[1::2], strict=True):
                pipe.hget(record_key(as_text((next_ids + ids + [b""])[0])), "created_at")
            creations = pipe.execute()
    ages = [max(0.0, now - float(creation)) if creation else 0.0 for creation in creations]
    total, current, before = map(as_texts, (total, current, before))
    # Of the minute before, taken as even, what lies in the last sixty seconds.
    share = 1 - now % 60 / 60
    return Overview(
        capacity,
        oldest_s=dict(zip(PRESETS, ages, strict=True)),
        moves={
            field.removeprefix(COUNT_FIELD): float(count)
            for field, count in total.items()
            # Version 0.1 counted more here.
            if field.startswith(COUNT_FIELD)
        },
        moves_last_minute={
            state: float(current.get(state, 0)) + share * float(before.get(state, 0))
            for state in sorted(current.keys() | before.keys())
        },
    )
