"""The service and Redis, measured: does a long queue make any request slower?

Two service processes on one Redis are asked while many clients poll: first with an empty queue,
then with thousands of jobs that wait. A stand-in for workers makes every move of a job but the
picture, as many a second both times.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from redis import Redis
from rich.console import Console
from rich.table import Table

from cli.processes import free_port
from jobs.fair_queue import dispatch
from jobs.job_store import JobStore, list_key
from jobs.queue import JobQueue
from jobs.schema import ImageInfo, Progress, ResultInfo, Timings, new_job_id
from jobs.settings import Settings
from jobs.store import BlobStore, input_key, result_key
from jobs.workers import WorkerInfo, Workers
from models.parameters import UpscaleParameters, preset_parameters
from models.presets import get_preset
from tools.capacity.server import redis_server

ROUNDS, POLL_S, JOBS_PER_S = 80, 2.0, 5.0
MOST_RATIO = 2.0
PRESET = "tiny"


def picture() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 40).convert("RGB").save(file, "PNG")
    return file.getvalue()


class StandIn:
    """A worker that paints nothing; submits jobs as a client would that needs no HTTP."""

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self._redis, self._records = redis, JobStore(redis)
        self._workers = Workers(redis, ttl_s=settings.worker_ttl_s)
        self._queue, self._store = JobQueue(settings, redis), BlobStore.open(settings)
        self._image, self._stop = picture(), threading.Event()
        self._parameters: UpscaleParameters = preset_parameters(get_preset(PRESET), scale=4)
        self._info = ImageInfo(
            width=64,
            height=64,
            format="PNG",
            media_type="image/png",
            bytes=len(self._image),
            mode="RGB",
            depth=8,
        )

    def submit(self) -> str:
        job_id = new_job_id()
        self._queue.announce(job_id)
        self._store.put(input_key(job_id), self._image)
        self._queue.submit(job_id, self._parameters, self._info)
        return job_id

    def work(self) -> None:
        """Takes the next job through all its moves."""
        raw: Any = self._redis.lpop(list_key(PRESET))
        dispatch(self._redis, PRESET)
        if raw is None:
            return
        job_id = raw.decode()
        self._records.start(job_id, "stand-in")
        for step in range(1, 4):
            progress = Progress(stage="denoise", step=step, steps=3, fraction=step / 4)
            self._records.progress(job_id, progress, worker="stand-in")
        key, sha256 = result_key(job_id), hashlib.sha256(self._image).hexdigest()
        self._store.put(key, self._image)
        result = ResultInfo(
            width=256,
            height=256,
            bytes=len(self._image),
            sha256=sha256,
            media_type="image/png",
            key=key,
        )
        self._records.succeed(job_id, result, Timings(denoise=1), worker="stand-in")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Submits and ends so many jobs a second while the block runs."""
        thread = threading.Thread(target=self._run)
        self.appear()
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def appear(self) -> None:
        self._workers.heartbeat(
            WorkerInfo(name="stand-in", preset=PRESET, device="cpu", state="busy", slots=2)
        )

    def _run(self) -> None:
        while not self._stop.wait(1 / JOBS_PER_S):
            self.submit()
            self.work()
            self.appear()


def poll(urls: Sequence[str], jobs: Sequence[str], clients: int, stop: Any) -> None:
    """Each client asks for its job every POLL_S seconds, until the event."""

    async def client(http: httpx.AsyncClient, job: str, delay: float) -> None:
        await asyncio.sleep(delay)
        while not stop.is_set():
            (await http.get(f"/jobs/{job}")).raise_for_status()
            await asyncio.sleep(POLL_S)

    async def run() -> None:
        limits = httpx.Limits(max_connections=100)
        https = [httpx.AsyncClient(base_url=url, timeout=60, limits=limits) for url in urls]
        tasks = zip(range(clients), cycle(https), cycle(jobs), strict=False)
        await asyncio.gather(*(client(h, job, POLL_S * n / clients) for n, h, job in tasks))

    asyncio.run(run())


@contextmanager
def polling(urls: Sequence[str], jobs: Sequence[str], clients: int) -> Iterator[None]:
    """The pollers in a process of their own, whose interpreter is not this one's."""
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    process = context.Process(target=poll, args=(urls, jobs, clients, stop))
    process.start()
    try:
        time.sleep(POLL_S + 1)
        yield
    finally:
        stop.set()
        process.join()
        if process.exitcode:
            raise SystemExit("A poller's request failed.")


@contextmanager
def service(environment: dict[str, str], log: Path) -> Iterator[str]:
    """The address of a service process, once it answers."""
    port = free_port()
    command = [sys.executable, "-m", "cli", "serve", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with log.open("ab") as file, subprocess.Popen(command, env=environment, stderr=file) as process:
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    httpx.get(f"{url}/livez").raise_for_status()
                    break
                except httpx.TransportError:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"The service ended:\n{log.read_text()}") from None
                    time.sleep(0.05)
            yield url
        finally:
            process.terminate()


class Probe:
    """One client of a service process, who times each of its requests."""

    def __init__(self, client: httpx.Client, job: Callable[[], str]) -> None:
        self._client, self._job, self._image = client, job, picture()
        self.seconds: dict[str, list[float]] = {}

    def upload(self) -> None:
        files = {"image": ("a.png", self._image, "image/png")}
        self._client.post("/upscale", files=files).raise_for_status()

    def read(self) -> None:
        self._client.get(f"/jobs/{self._job()}").raise_for_status()

    def ask(self) -> None:
        """One request of each kind."""
        self._time("POST /upscale", self.upload)
        self._time("GET /jobs/{id}", self.read)
        self._time("GET /jobs", self._list)
        self._time("first event", self._first_event)

    def _list(self) -> None:
        self._client.get("/jobs?limit=50").raise_for_status()

    def _first_event(self) -> None:
        with self._client.stream("GET", f"/jobs/{self._job()}/events") as events:
            next(events.raise_for_status().iter_lines())

    def _time(self, kind: str, call: Callable[[], None]) -> None:
        start = time.perf_counter()
        call()
        self.seconds.setdefault(kind, []).append(time.perf_counter() - start)


def phase(
    urls: Sequence[str], jobs: Sequence[str], pollers: int, worker: StandIn, redis: Redis
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of the requests, one after the other at the services by turns, while others poll; and
    what Redis takes afterwards, as `redis_ms`."""
    with ExitStack() as stack:
        probes = [
            Probe(stack.enter_context(httpx.Client(base_url=url, timeout=60)), cycle(jobs).__next__)
            for url in urls
        ]
        with worker.running(), polling(urls, jobs, pollers):
            for _, probe in zip(range(ROUNDS), cycle(probes), strict=False):
                probe.ask()
        seconds = {
            kind: [s for probe in probes for s in probe.seconds[kind]] for kind in probes[0].seconds
        }
        calls = ((probes[0].upload, 100), (probes[0].read, 500), (worker.work, 100))
        return seconds, [redis_ms(redis, call, count) for call, count in calls]


def redis_ms(redis: Redis, call: Callable[[], object], count: int) -> float:
    """Processor time of Redis, milliseconds, that a call takes."""

    def used() -> float:
        info: Any = redis.info("cpu")
        return float(info["used_cpu_user"] + info["used_cpu_sys"])

    start = used()
    for _ in range(count):
        call()
    return 1000 * (used() - start) / count


def main(console: Console, queued: int, pollers: int) -> int:
    """Prints both tables; 1 when a request became more than twice as slow."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(redis_server(folder))
        # One address submits everything, and may have a tenth of what may wait.
        values = {
            "STABLESR_REDIS_URL": url,
            "STABLESR_BLOB_ROOT": str(folder / "blobs"),
            "STABLESR_MAX_QUEUED": str(20 * queued),
            "STABLESR_MAX_CONNECTIONS": "20000",
            "STABLESR_UPLOADS_PER_MINUTE": "0",
        }
        environment = {**os.environ, **values}
        settings = Settings(
            redis_url=url, blob_root=folder / "blobs", max_queued=20 * queued, uploads_per_minute=0
        )
        redis = stack.enter_context(Redis.from_url(url))
        worker = StandIn(settings, redis)
        worker.appear()
        urls = [stack.enter_context(service(environment, folder / "service.log")) for _ in range(2)]
        jobs = [worker.submit() for _ in range(pollers)]
        for _ in jobs:
            worker.work()
        empty = phase(urls, jobs, pollers, worker, redis)
        # Its own jobs, which must not be next; those are there at the end too.
        jobs = [worker.submit() for _ in range(queued)][-pollers:]
        full = phase(urls, jobs, pollers, StandIn(settings, redis), redis)
    return report(console, empty, full, queued, pollers)


def report(
    console: Console,
    empty: tuple[dict[str, list[float]], list[float]],
    full: tuple[dict[str, list[float]], list[float]],
    queued: int,
    pollers: int,
) -> int:
    table = Table(title=f"Milliseconds beside {pollers} clients that poll, two service processes")
    for name in ("request", "p50, p95, empty queue", f"{queued:,} jobs wait", "ratio of p50"):
        table.add_column(name, justify="left" if name == "request" else "right")
    worst = 0.0
    for kind, times in empty[0].items():
        medians = np.median(times), np.median(full[0][kind])
        ratio = float(medians[1] / medians[0])
        worst = max(worst, ratio)
        cells = [
            f"{1000 * m:.1f}, {1000 * np.percentile(t, 95):.1f}"
            for m, t in zip(medians, (times, full[0][kind]), strict=True)
        ]
        table.add_row(kind, *cells, f"{ratio:.2f}")
    console.print(table)
    table = Table(title="Processor milliseconds of Redis")
    for name in ("what", "empty queue", f"{queued:,} jobs wait"):
        table.add_column(name, justify="left" if name == "what" else "right")
    names = ("POST /upscale", "GET /jobs/{id}", "a worker's moves of a job")
    for name, *values in zip(names, empty[1], full[1], strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in values))
    console.print(table)
    return int(worst > MOST_RATIO)
