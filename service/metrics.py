"""Metrics for Prometheus: what this process counts, and the state of the queue from Redis."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis

from jobs.errors import QueueUnavailable
from jobs.maintenance import put_off_counter
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
        self.put_off = put_off_counter(registry)

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
        streams: ConcurrencyLimiter,
        transfers: ConcurrencyLimiter,
    ) -> None:
        self._connection = connection
        self._streams = streams
        self._transfers = transfers

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
        try:
            overview = look_over(self._connection)
        except QueueUnavailable:
            overview = None
        yield GaugeMetricFamily("stablesr_redis_up", "Whether Redis answers", overview is not None)
        if overview is not None:
            yield from _of(overview)


def _of(overview: Overview) -> Iterator[Metric]:
    waiting = [((preset,), count) for preset, count in overview.capacity.lengths.items()]
    yield _gauge("stablesr_queue_jobs", "Jobs that wait", waiting, "preset")
    oldest = [((preset,), seconds) for preset, seconds in overview.oldest_s.items()]
    help = "How long the next job has waited"
    yield _gauge("stablesr_queue_oldest_seconds", help, oldest, "preset")
    states, running = Counts[Labels](), Counts[Labels]()
    memory: list[tuple[Labels, float]] = []
    for worker in overview.capacity.workers:
        states[(worker.preset, worker.state)] += 1
        running[(worker.preset,)] += worker.running
        memory += [((kind, worker.name), size) for kind, size in worker.memory.items()]
    yield _gauge("stablesr_workers", "Live workers", states.items(), "preset", "state")
    yield _gauge("stablesr_running_jobs", "Jobs that workers run", running.items(), "preset")
    help = "Memory of each worker"
    yield _gauge("stablesr_worker_memory_bytes", help, memory, "kind", "worker")
    help = "Jobs that came into each state"
    last_minute = [((state,), count) for state, count in overview.moves_last_minute.items()]
    yield _gauge("stablesr_job_moves_last_minute", help, last_minute, "state")
    moves = CounterMetricFamily("stablesr_job_moves", help, labels=["state"])
    for state, count in overview.moves.items():
        moves.add_metric([state], count)
    yield moves


def _gauge(name: str, help: str, values: Iterable[tuple[Labels, float]], *labels: str) -> Metric:
    family = GaugeMetricFamily(name, help, labels=labels)
    for texts, value in values:
        family.add_metric(texts, value)
    return family
