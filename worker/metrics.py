"""What a worker process counts, and the port where Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from jobs.maintenance import SweepMetrics
from jobs.settings import Settings
from models.memory import DEPARTURES
from worker.device import StartupError

TO_HALF_AN_HOUR = (0.3, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800)
TO_A_MINUTE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60)


class WorkerMetrics:
    """Counters and histograms in a registry of their own; safe to share between threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        parts = "Seconds that jobs spent in each part of their way"
        self.job_seconds = self._histogram("job_seconds", parts, TO_HALF_AN_HOUR, "part")
        self.step_seconds = self._histogram(
            "step_seconds", "Seconds of one denoising step of one job", TO_A_MINUTE
        )
        self.network_call_seconds = self._histogram(
            "network_call_seconds", "Seconds of one network call", TO_A_MINUTE
        )
        self.batch_fill = self._histogram(
            "batch_fill", "Tiles in a network call / tiles that fit", [n / 8 for n in range(1, 9)]
        )
        tiles = "Tiles predicted by the network"
        self.tiles = Counter("stablesr_tiles", tiles, registry=self.registry)
        outages = "Times that a job waited for an image store that was away"
        self.store_outages = Counter("stablesr_store_outages", outages, registry=self.registry)
        broken = "Inputs of which metadata was dropped, since it was broken or too long"
        self.broken_metadata = Counter("stablesr_broken_metadata", broken, registry=self.registry)
        self.sweep = SweepMetrics(self.registry)

    def _histogram(self, name: str, help: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"stablesr_{name}", help, labels, buckets=buckets, registry=self.registry)

    def observe_job(self, seconds: Mapping[str, float]) -> None:
        """Seconds that a job spent in each of these parts."""
        for part, value in seconds.items():
            self.job_seconds.labels(part).observe(value)

    def watch_fallbacks(self, fallbacks: Callable[[], Mapping[str, int]]) -> None:
        """Shows what was done otherwise than planned so far, by what, as the function has it."""

        class Fallbacks(Collector):
            def collect(self) -> Iterator[Metric]:
                text = "What was done otherwise than planned, by what"
                family = CounterMetricFamily("stablesr_departures", text, labels=["what"])
                for what, times in {**dict.fromkeys(DEPARTURES, 0), **fallbacks()}.items():
                    family.add_metric([what], times)
                yield family

        self.registry.register(Fallbacks())

    def serve(self, settings: Settings) -> None:
        """Answers at the settings' port, where one is set.

        Raises:
            StartupError: the port cannot be listened on.
        """
        if settings.metrics_port == 0:
            return
        try:
            start_http_server(settings.metrics_port, settings.host, self.registry)
        except OSError as error:
            raise StartupError(
                f"STABLESR_METRICS_PORT is {settings.metrics_port}, which cannot be listened on at "
                f"{settings.host}: {error}. Give each worker of a host a port of its own, or 0."
            ) from error
