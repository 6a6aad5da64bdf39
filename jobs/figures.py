"""Figures of all processes in one place: workers write them to Redis, the service shows them.

Workers do not speak HTTP, so nobody could ask them. Counters and histograms are added up in one
hash, `stablesr:figures`, so that a worker that ends takes nothing away and the sums only grow;
what is true of one worker now (its memory) is a hash of its own that dies with its heartbeat.

    stablesr:figures           name|label=value -> count;  name|label=value|le=bound -> count;
                               name|label=value|sum -> seconds
    stablesr:gauges:{worker}   name|label=value -> value
    stablesr:figures:{minute}  state -> jobs that came into it in that minute
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from redis import Redis
from redis.client import Pipeline

from .connection import as_text, queue_errors

__all__ = [
    "COUNTERS",
    "FIGURES_KEY",
    "HISTOGRAMS",
    "MOVES_FIELD",
    "Figures",
    "Histogram",
    "Observation",
    "count_new",
    "field_of",
    "gauges_of",
    "minute_key",
    "note",
]

Sums = defaultdict[str, float]

FIGURES_KEY = "stablesr:figures"
# `jobs.move` counts by this name inside Redis, in the same breath as it moves a record.
MOVES_FIELD = "stablesr_job_moves_total|state="
MINUTE_TTL_S = 180

_TO_HALF_AN_HOUR = (0.3, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)
_TO_A_MINUTE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60)

COUNTERS: Mapping[str, str] = MappingProxyType(
    {
        "stablesr_departures_total": "What a worker did otherwise than planned, by what",
        "stablesr_job_moves_total": "Jobs that came into each state",
        "stablesr_sweep_put_off_total": "Jobs that a sweep put off, something being wrong",
        "stablesr_tiles_total": "Tiles predicted by the network",
        "stablesr_webhook_attempts_total": "Calls of webhooks, by how they ended",
    }
)


@dataclass(frozen=True, slots=True)
class Histogram:
    """What a histogram is about and its buckets' upper bounds; the last one is infinite."""

    help: str
    bounds: tuple[float, ...]


HISTOGRAMS: Mapping[str, Histogram] = MappingProxyType(
    {
        "stablesr_job_seconds": Histogram(
            "Seconds that jobs spent in each part of their way", _TO_HALF_AN_HOUR
        ),
        "stablesr_step_seconds": Histogram(
            "Seconds of one denoising step of one job", _TO_A_MINUTE
        ),
        "stablesr_network_call_seconds": Histogram("Seconds of one network call", _TO_A_MINUTE),
        "stablesr_batch_fill": Histogram(
            "Tiles in a network call / tiles that fit", tuple(n / 8 for n in range(1, 9))
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Observation:
    """One value of one histogram."""

    name: str
    value: float
    labels: Mapping[str, str]


def field_of(name: str, labels: Mapping[str, str]) -> str:
    """A figure's field; labels are few and ours, so nothing in them needs quoting."""
    return name + "".join(f"|{label}={labels[label]}" for label in sorted(labels))


def minute_key(now: float) -> str:
    """The moves of the minute that Redis' time, in seconds, lies in; as in `jobs.move`."""
    return f"{FIGURES_KEY}:{int(now // 60)}"


def note(connection: Redis, observations: Iterable[Observation]) -> None:
    """Adds observations at once. Raises QueueUnavailable."""
    sums: Sums = defaultdict(float)
    for observation in observations:
        _add(sums, observation)
    _write(connection, sums)


def count_new(pipe: Pipeline, now: float) -> None:
    """Counts a job that is queued for the first time; all further moves count themselves."""
    pipe.hincrby(FIGURES_KEY, MOVES_FIELD + "queued", 1)
    pipe.hincrby(minute_key(now), "queued", 1)
    pipe.expire(minute_key(now), MINUTE_TTL_S)


def gauges_of(connection: Redis, workers: Iterable[str]) -> dict[str, dict[str, float]]:
    """What each worker last said of itself: worker -> field -> value. Raises QueueUnavailable."""
    names = list(workers)
    with queue_errors(connection), connection.pipeline(transaction=False) as pipe:
        for name in names:
            pipe.hgetall(_gauges_key(name))
        answers = pipe.execute()
    return {
        name: {as_text(field): float(value) for field, value in answer.items()}
        for name, answer in zip(names, answers, strict=True)
    }


class Figures:
    """Gathers a process's figures and writes them when told to, so that a step costs no request.

    Safe to share between threads. Only `flush` talks to Redis.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: Sums = defaultdict(float)
        self._gauges: dict[str, float] = {}

    def inc(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter of COUNTERS."""
        assert name in COUNTERS
        with self._lock:
            self._sums[field_of(name, labels)] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Adds a value to a histogram of HISTOGRAMS."""
        with self._lock:
            _add(self._sums, Observation(name, value, labels))

    @contextmanager
    def timed(self, name: str, **labels: str) -> Iterator[None]:
        """Observes how many seconds the block takes, however it ends."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.observe(name, time.monotonic() - began, **labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Says what a figure of this process alone is now."""
        with self._lock:
            self._gauges[field_of(name, labels)] = value

    def flush(self, connection: Redis, process: str, *, ttl_s: int) -> None:
        """Writes what came together since the last call; after an error it is written next time.

        Raises QueueUnavailable.
        """
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
            gauges = dict(self._gauges)
        try:
            _write(connection, sums)
        except BaseException:
            with self._lock:
                for field, amount in sums.items():
                    self._sums[field] += amount
            raise
        if gauges:
            with queue_errors(connection), connection.pipeline() as pipe:
                key = _gauges_key(process)
                pipe.hset(key, mapping={name: repr(value) for name, value in gauges.items()})
                pipe.expire(key, ttl_s)
                pipe.execute()


def _gauges_key(process: str) -> str:
    return f"stablesr:gauges:{process}"


def _add(sums: Sums, observation: Observation) -> None:
    bounds = HISTOGRAMS[observation.name].bounds
    field = field_of(observation.name, observation.labels)
    index = bisect_left(bounds, observation.value)
    bound = f"{bounds[index]:g}" if index < len(bounds) else "+Inf"
    sums[f"{field}|le={bound}"] += 1
    sums[f"{field}|sum"] += observation.value


def _write(connection: Redis, sums: Mapping[str, float]) -> None:
    if not sums:
        return
    with queue_errors(connection), connection.pipeline() as pipe:
        for field, amount in sums.items():
            pipe.hincrbyfloat(FIGURES_KEY, field, round(amount, 6))
        pipe.execute()
