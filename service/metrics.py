"""What Prometheus is told: what this process counts, and how the queue is, out of Redis."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import QueueUnavailable
from jobs.overview import Overview, look_over
from jobs.settings import Settings
from jobs.upkeep import put_off_counter
from service.places import Places

__all__ = ["CountRequests", "ServiceCollector", "ServiceMetrics"]

# A method is whatever a client writes, also on a path that there is; the others are one label.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 30, 60)


class ServiceMetrics:
    """What this process counts; a registry of its own, so that two services can be in one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count = Counter(
            "stablesr_http_requests",
            "Requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "stablesr_http_request_seconds",
            "Seconds until the head of the answer, waiting by preference included",
            ["method", "route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.webhook_attempts = Counter(
            "stablesr_webhook_attempts",
            "Calls of webhooks, by how they ended",
            ["outcome"],
            registry=self.registry,
        )
        self.put_off = put_off_counter(self.registry)

    def note_request(self, scope: Scope, status: int, seconds: float) -> None:
        # Templates, not paths: what clients make up must not become a label.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"]
        if route == "other" or method not in METHODS:
            method = "other"
        self._count.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class CountRequests:
    """The middleware that notes every answer."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        answered: tuple[int, float] | None = None

        async def noting_send(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start":
                answered = message["status"], time.perf_counter() - started
            await send(message)

        try:
            await self.app(scope, receive, noting_send)
        finally:
            # Afterwards, because the route is known to the scope only then.
            if answered is not None:
                self.metrics.note_request(scope, *answered)


class ServiceCollector(Collector):
    """The queue and the workers, read from Redis when asked for: the same at every process.

    Blocking. Without Redis only `stablesr_redis_up 0` and what this process knows is told.
    """

    def __init__(
        self, connection: Redis, settings: Settings, streams: Places, transfers: Places
    ) -> None:
        self._connection = connection
        self._settings = settings
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
            overview = look_over(self._connection, self._settings)
        except QueueUnavailable:
            overview = None
        yield GaugeMetricFamily("stablesr_redis_up", "Whether Redis answers", overview is not None)
        if overview is not None:
            yield from _of(overview)


def _of(overview: Overview) -> Iterator[Metric]:
    backlogs = overview.backlogs
    yield _gauge(
        "stablesr_queue_jobs",
        "Jobs that wait",
        ["preset"],
        {(preset,): backlog.waiting for preset, backlog in backlogs.items()},
    )
    yield _gauge(
        "stablesr_queue_oldest_seconds",
        "How long the next job has waited",
        ["preset"],
        {(preset,): backlog.oldest_s for preset, backlog in backlogs.items()},
    )
    workers: Tally[tuple[str, ...]] = Tally()
    running: Tally[tuple[str, ...]] = Tally()
    for worker in overview.workers:
        workers[worker.preset, worker.state] += 1
        running[(worker.preset,)] += worker.running
    yield _gauge("stablesr_workers", "Live workers", ["preset", "state"], workers)
    yield _gauge("stablesr_running_jobs", "Jobs that workers run", ["preset"], running)
    yield _gauge(
        "stablesr_worker_memory_bytes",
        "Memory of each worker",
        ["kind", "worker"],
        {
            (kind, worker.name): size
            for worker in overview.workers
            for kind, size in worker.memory.items()
        },
    )
    came = "Jobs that came into each state"
    yield _gauge(
        "stablesr_job_moves_last_minute",
        came,
        ["state"],
        {(state,): count for state, count in overview.moves_last_minute.items()},
    )
    moves = CounterMetricFamily("stablesr_job_moves", came, labels=["state"])
    for state, count in overview.moves.items():
        moves.add_metric([state], count)
    yield moves


def _gauge(
    name: str, help: str, labels: list[str], values: Mapping[tuple[str, ...], float]
) -> Metric:
    family = GaugeMetricFamily(name, help, labels=labels)
    for texts, value in values.items():
        family.add_metric(texts, value)
    return family
