"""What Prometheus is told: this process's requests, and the figures that lie in Redis."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from redis import Redis
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.errors import QueueUnavailable
from jobs.figures import COUNTERS, HISTOGRAMS
from jobs.overview import Overview, look_over
from jobs.settings import Settings
from service.places import Places

__all__ = ["CountRequests", "Requests", "ServiceCollector"]

# A method is whatever a client writes, also on a path that there is; the others are one label.
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.3, 0.5, 1, 2, 5, 10, 20, 30, 60)


class Requests:
    """The requests of this process; a registry of its own, so that two services can be in one."""

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

    def note(self, scope: Scope, status: int, seconds: float) -> None:
        # Templates, not paths: what clients make up must not become a label.
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"]
        if route == "other" or method not in METHODS:
            method = "other"
        self._count.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)


class CountRequests:
    """The middleware that notes every answer."""

    def __init__(self, app: ASGIApp, requests: Requests) -> None:
        self.app = app
        self.requests = requests

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
                self.requests.note(scope, *answered)


class ServiceCollector(Collector):
    """The queue, the workers and their figures, read from Redis when they are asked for.

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
        yield _gauge(
            "stablesr_streams_open",
            "Open event streams and waiting uploads",
            {(): float(self._streams.open)},
        )
        yield _gauge(
            "stablesr_transfers_open",
            "Uploads that are received and results that are sent",
            {(): float(self._transfers.open)},
        )
        try:
            overview = look_over(self._connection, self._settings)
        except QueueUnavailable:
            yield _gauge("stablesr_redis_up", "Whether Redis answers", {(): 0.0})
            return
        yield _gauge("stablesr_redis_up", "Whether Redis answers", {(): 1.0})
        yield from _now(overview)
        yield from _counters(overview.figures)
        yield from _histograms(overview.figures)


def _now(overview: Overview) -> Iterator[Metric]:
    backlogs = {(("preset", preset),): backlog for preset, backlog in overview.backlogs.items()}
    yield _gauge(
        "stablesr_queue_jobs",
        "Jobs that wait",
        {labels: float(backlog.waiting) for labels, backlog in backlogs.items()},
    )
    yield _gauge(
        "stablesr_queue_oldest_seconds",
        "How long the next job has waited",
        {labels: backlog.oldest_s for labels, backlog in backlogs.items()},
    )
    workers: dict[Labels, float] = defaultdict(float)
    running: dict[Labels, float] = defaultdict(float)
    for worker in overview.workers:
        workers[("preset", worker.preset), ("state", worker.state)] += 1
        running[(("preset", worker.preset),)] += worker.running
    yield _gauge("stablesr_workers", "Live workers", workers)
    yield _gauge("stablesr_running_jobs", "Jobs that workers run", running)
    yield _gauge(
        "stablesr_job_moves_last_minute",
        "Jobs that came into each state",
        {(("state", state),): count for state, count in overview.moves_last_minute.items()},
    )
    told: dict[str, dict[Labels, float]] = defaultdict(dict)
    for worker_name, gauges in overview.gauges.items():
        for field, value in gauges.items():
            name, labels = _parsed(field)
            told[name][(*labels, ("worker", worker_name))] = value
    for name, values in told.items():
        yield _gauge(name, "Of each worker", values)


Labels = tuple[tuple[str, str], ...]


def _gauge(name: str, help: str, values: Mapping[Labels, float]) -> Metric:
    names = [label for label, _ in next(iter(values), ())]
    family = GaugeMetricFamily(name, help, labels=names)
    for labels, value in values.items():
        family.add_metric([text for _, text in labels], value)
    return family


def _counters(figures: Mapping[str, float]) -> Iterator[Metric]:
    for name, help in COUNTERS.items():
        rows = [(_parsed(field)[1], value) for field, value in _of(figures, name)]
        names = [label for label, _ in rows[0][0]] if rows else []
        family = CounterMetricFamily(name, help, labels=names)
        for labels, value in rows:
            family.add_metric([text for _, text in labels], value)
        yield family


def _histograms(figures: Mapping[str, float]) -> Iterator[Metric]:
    for name, histogram in HISTOGRAMS.items():
        counts: dict[Labels, dict[str, float]] = defaultdict(dict)
        sums: dict[Labels, float] = {}
        for field, value in _of(figures, name):
            head, _, last = field.rpartition("|")
            if last == "sum":
                sums[_parsed(head)[1]] = value
            else:
                counts[_parsed(head)[1]][last.removeprefix("le=")] = value
        names = [label for label, _ in next(iter(counts), ())]
        family = HistogramMetricFamily(name, histogram.help, labels=names)
        for labels, by_bound in counts.items():
            total = 0.0
            buckets = []
            for bound in (*(f"{bound:g}" for bound in histogram.bounds), "+Inf"):
                total += by_bound.get(bound, 0.0)
                buckets.append((str(float(bound)) if bound != "+Inf" else bound, total))
            family.add_metric([text for _, text in labels], buckets, sums.get(labels, 0.0))
        yield family


def _of(figures: Mapping[str, float], name: str) -> Iterator[tuple[str, float]]:
    for field in sorted(figures):
        if field.partition("|")[0] == name:
            yield field, figures[field]


def _parsed(field: str) -> tuple[str, Labels]:
    """`name|label=value|...` as the name and the labels."""
    name, *labels = field.split("|")
    return name, tuple((key, value) for key, _, value in (part.partition("=") for part in labels))
