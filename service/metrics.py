"""Metrics for Prometheus: what this process counts, and the state of the queue from Redis."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis

from jobs.errors import QueueUnavailable
from jobs.maintenance import SweepMetrics
from jobs.redis_probe import RedisProbe
from jobs.schema import JobState
from jobs.workers import Overview, look_over
from service.ratelimit import ConcurrencyLimiter

Labels = tuple[str, ...]
# A method is whatever a client writes, also on a path that there is; the others are one label.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 30, 60)


class ServiceMetrics:
    """What this process counts; a registry of its own, so that two services can be in one."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        labels = ["method", "route"]
        self._count = Counter(
            "stablesr_http_requests", "Requests answered", [*labels, "status"], registry=registry
        )
        self._seconds = Histogram(
            "stablesr_http_request_seconds",
            "Seconds until the head of the answer, waiting by preference included",
            labels,
            buckets=SECONDS,
            registry=registry,
        )
        self.webhook_attempts = Counter(
            "stablesr_webhook_attempts",
            "Calls of webhooks, by how they ended",
            ["outcome"],
            registry=registry,
        )
        self.sweep = SweepMetrics(registry)

    def note_request(self, method: str, route: object, status: int, seconds: float) -> None:
        """Counts an answer whose head left after so many seconds."""
        # Templates, not paths: what clients make up must not become a label.
        path = getattr(route, "path", "other")
        if path == "other" or method not in METHODS:
            method = "other"
        self._count.labels(method, path, str(status)).inc()
        self._seconds.labels(method, path).observe(seconds)


class ServiceCollector(Collector):
    """The queue and the workers, read from Redis when asked for: the same at every process.

    Blocking. Without Redis only `stablesr_redis_up 0` and what this process knows is told.
    """

    def __init__(
        self,
        connection: Redis,
        redis: RedisProbe,
        streams: ConcurrencyLimiter,
        transfers: ConcurrencyLimiter,
    ) -> None:
        self._connection, self._redis = connection, redis
        self._streams, self._transfers = streams, transfers

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not ask Redis."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "stablesr_streams_open", "Open event streams and waiting uploads", self._streams.open
        )
        yield GaugeMetricFamily(
            "stablesr_transfers_open",
            "Uploads that are received and results that are sent",
            self._transfers.open,
        )
        metrics: list[Metric] = []
        with suppress(QueueUnavailable):
            metrics += _of(look_over(self._connection))
        yield GaugeMetricFamily("stablesr_redis_up", "Whether Redis answers", bool(metrics))
        help = "Whether Redis may evict jobs, by its maxmemory-policy"
        yield GaugeMetricFamily("stablesr_redis_may_evict", help, self._redis.state.may_evict)
        yield from metrics


def _of(overview: Overview) -> Iterator[Metric]:
    capacity = overview.capacity
    yield _gauge("stablesr_queue_jobs", "Jobs that wait", capacity.lengths, "preset")
    pauses = {preset: float(preset in capacity.paused) for preset in capacity.lengths}
    yield _gauge("stablesr_queue_paused", "Whether no job starts", pauses, "preset")
    help = "How long the next job has waited"
    yield _gauge("stablesr_queue_oldest_seconds", help, overview.oldest_s, "preset")
    running, memory = Counts[str](), dict[Labels, float]()
    for worker in capacity.workers:
        running[worker.preset] += worker.running
        memory |= {(kind, worker.name): size for kind, size in worker.memory.items()}
    states = Counts((worker.preset, worker.state) for worker in capacity.workers)
    yield _gauge("stablesr_workers", "Live workers", states, "preset", "state")
    yield _gauge("stablesr_running_jobs", "Jobs that workers run", running, "preset")
    help = "Memory of each worker"
    yield _gauge("stablesr_worker_memory_bytes", help, memory, "kind", "worker")
    help = "Jobs that came into each state"
    yield _gauge("stablesr_job_moves_last_minute", help, overview.moves_last_minute, "state")
    moves = CounterMetricFamily("stablesr_job_moves", help, labels=["state"])
    for state in JobState:  # What begins at 1 is no increase to Prometheus.
        moves.add_metric([state], overview.moves.get(state, 0))
    yield moves


def _gauge(name: str, help: str, values: Mapping[Any, float], *labels: str) -> Metric:
    """A value for each label, or for each tuple of labels where there are several."""
    family = GaugeMetricFamily(name, help, labels=labels)
    for texts, value in values.items():
        family.add_metric([texts] if isinstance(texts, str) else texts, value)
    return family
