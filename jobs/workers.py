"""Who serves which preset: one hash a worker in Redis, gone when its heartbeat stops.

stablesr:worker:{name}   preset, device, state, ...; expires after the worker's time to live
stablesr:workers         sorted set: name -> last heartbeat
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from redis import Redis

from .connection import as_text, queue_errors

__all__ = ["NAMES_KEY", "WorkerInfo", "WorkerState", "Workers", "parse_worker", "worker_key"]

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
            seen = info.model_copy(update={"last_seen": datetime.fromtimestamp(now, UTC)})
            with self._connection.pipeline() as pipe:
                pipe.set(worker_key(info.name), seen.model_dump_json(), ex=self._ttl_s)
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
