"""A release's processes under the variables that helm renders: Redis, two services, workers."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from cli.processes import Child, free_port
from jobs.connection import connect
from jobs.keys import Keys
from jobs.settings import Settings
from jobs.workers import Capacity
from tests.charts.test_chart import env_of, named
from tests.charts.tools import render
from tests.faults.house import until
from tests.observe.prometheus import Target
from tests.redis_server import RedisServer
from tests.service.receiver import receiving

VALUES = (
    "service.replicas=2,monitoring.enabled=true,monitoring.keySecret=metrics,"
    "autoscaling.prometheus=http://prometheus:9090,presets[0].preset=tiny,"
    "presets[0].resources.limits.memory=8Gi,presets[0].autoscaling.min=0,"
    "presets[0].autoscaling.max=3"
)
NAME, NAMESPACE = "one-stablesr", "pictures"
PRESET = "tiny"
# Pods that are to go have theirs until they are gone.
WORKER_PORTS = 6
ENDED = ("succeeded", "failed", "canceled")
# On cores that others use.
WAIT_S, STOP_S = 600.0, 120.0


class Release:
    """`with` starts Redis and two services; everything ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifests = render("--set", VALUES)
        self.redis = RedisServer()
        self._authority = folder / "hooks.pem"
        self.jobs: list[str] = []
        self.workers: list[Child] = []
        """Those that run."""
        self.clients: list[httpx.Client] = []
        self._worker_ports = [free_port() for _ in range(WORKER_PORTS)]
        self._of_port: dict[int, Child] = {}
        self._numbers, self._uploads = itertools.count(), itertools.count()
        self._resources = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            self.receiver = resources.enter_context(receiving(self._authority, "localhost"))
            resources.callback(self.redis.close)
            self.redis.start()
            self.connection = resources.enter_context(connect(Settings(redis_url=self.redis.url)))
            _, key = Keys(self.connection).create("client", scope="jobs")
            _, self._metrics_key = Keys(self.connection).create("Prometheus", scope="metrics")
            for _ in range(2):
                self._start_service(resources, key)
            # Last in, first out: jobs end before what they need.
            resources.callback(self._stop_workers)
            self._resources = resources.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._resources.close()

    # Processes

    def _start(self, component: str, command: str, log: str, **own: str) -> Child:
        pod = named(self.manifests, "Deployment", f"{NAME}-{component}")["spec"]["template"]
        texts = {name: text for name, text in env_of(pod).items() if isinstance(text, str)}
        here = {
            "STABLESR_REDIS_URL": self.redis.url,
            "STABLESR_BLOB_ROOT": str(self.folder / "blobs"),
            "STABLESR_HOST": "127.0.0.1",
            # The receiver of webhooks is on this machine, and who looks on asks often.
            "STABLESR_EGRESS": "any",
            "SSL_CERT_FILE": str(self._authority),
            "STABLESR_UPLOADS_PER_MINUTE": "0",
            "XDG_STATE_HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
        }
        return Child(
            log,
            [sys.executable, "-m", "cli", command],
            env={**os.environ, **texts, **here, **own},
            log=self.folder / f"{log}.log",
        )

    def _start_service(self, resources: ExitStack, key: str) -> None:
        port = free_port()
        log = f"service-{len(self.clients)}"
        service = self._start("service", "serve", log, STABLESR_PORT=str(port))
        resources.callback(service.stop, STOP_S)
        headers = {"Authorization": f"Bearer {key}"}
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60)
        self.clients.append(resources.enter_context(client))

        def answers() -> bool:
            assert service.poll() is None, service.tail()
            try:
                return client.get("/livez").status_code == 200
            except httpx.TransportError:
                return False

        until(answers, "the service answers", seconds=WAIT_S)

    def start_worker(self) -> Child:
        [port, *_] = [port for port in self._worker_ports if port not in self._of_port]
        log = f"worker-{next(self._numbers)}"
        worker = self._start(f"worker-{PRESET}", "worker", log, STABLESR_METRICS_PORT=str(port))
        self.workers.append(worker)
        self._of_port[port] = worker
        return worker

    def reap(self) -> None:
        """Forgets the workers that have ended.

        Raises AssertionError for one that did not end with 0.
        """
        for port, worker in list(self._of_port.items()):
            if (status := worker.poll()) is not None:
                assert status == 0, f"{worker.name} ended with {status}: {worker.tail()}"
                self.workers.remove(worker)
                del self._of_port[port]

    def _stop_workers(self) -> None:
        for worker in self.workers:
            worker.terminate()
        for worker in self.workers:
            worker.stop(STOP_S)

    def no_worker(self) -> None:
        """Has all of them end, as pods do, and waits until they have."""
        for worker in self.workers:
            worker.terminate()

        def gone() -> bool:
            self.reap()
            return not self.workers

        until(gone, "the workers end", seconds=WAIT_S)

    def ready(self, count: int) -> None:
        """Waits until so many workers take jobs."""

        def are_ready() -> bool:
            self.reap()
            workers = Capacity.read(self.connection).workers
            return sum(worker.ready for worker in workers) == count

        until(are_ready, f"{count} workers are ready", seconds=WAIT_S)

    def targets(self) -> list[Target]:
        """What Prometheus reads, with the labels of the operator."""
        services = [
            Target(
                int(client.base_url.port or 80),
                {"namespace": NAMESPACE, "job": NAME, "service": NAME, "pod": f"service-{n}"},
                self._metrics_key,
            )
            for n, client in enumerate(self.clients)
        ]
        job = f"{NAMESPACE}/{NAME}-worker"
        return services + [
            Target(port, {"namespace": NAMESPACE, "job": job, "pod": f"worker-{n}"})
            for n, port in enumerate(self._worker_ports)
        ]

    # Jobs

    def upload(self, image: bytes, **fields: Any) -> httpx.Response:
        """Through one service after the other."""
        client = self.clients[next(self._uploads) % len(self.clients)]
        files = {"image": ("image.png", image, "image/png")}
        answer = client.post("/upscale", files=files, data={"scale": 2, **fields})
        if answer.status_code == 202:
            self.jobs.append(answer.json()["id"])
        return answer

    def views(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        """As they are answered now."""
        return [
            self.clients[n % len(self.clients)].get(f"/jobs/{job}").raise_for_status().json()
            for n, job in enumerate(jobs)
        ]

    def all_ended(self) -> None:
        left = list(self.jobs)

        def ended() -> bool:
            self.reap()
            while left and self.views(left[:1])[0]["state"] in ENDED:
                left.pop(0)
            return not left

        until(ended, "all jobs end", seconds=WAIT_S)

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The lines of all workers that say so."""
        lines = [
            line
            for log in self.folder.glob("worker-*.log")
            for line in log.read_text().splitlines()
        ]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        return [each for each in events if each.get("event") == event]
