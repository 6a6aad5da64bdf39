"""Redis, the service and workers as processes of their own, and a client that looks at them."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from PIL import Image

from cli.processes import free_port
from jobs.settings import Settings
from tests.faults.worker import serve
from tests.redis_sentinel import RedisGroup
from tests.redis_server import RedisServer
from tests.s3_server import S3Server, environment
from tests.worker.processes import WorkerProcess

WAIT_S = 240.0
BUCKET = "bucket"


def until(true: Callable[[], bool], what: str, *, seconds: float = WAIT_S) -> None:
    """Returns as soon as it is so.

    Raises AssertionError when it is not in time.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def png(width: int = 24, height: int = 16) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(file, "PNG")
    return file.getvalue()


@dataclass
class Job:
    """A job as its client knows it, and what is expected of its end."""

    id: str
    expected: str = "succeeded"
    """The state it must end in; for a failure with the problem's name: `failed: worker-lost`."""
    seen: list[str] = field(default_factory=list)
    """Every state that was answered, without repeats."""


class House:
    """One service on one Redis; `with` starts both and ends everything.

    The settings are the defaults, but for what a case gives; clients are not asked to slow down,
    since jobs are looked at all the time. `redis` is another one than a plain server.
    """

    def __init__(
        self,
        name: str,
        redis: RedisServer | RedisGroup | None = None,
        /,
        *,
        store: str = "folder",
        upload_grace_s: float | None = None,
        **settings: Any,
    ) -> None:
        self._upload_grace_s = upload_grace_s
        self.s3 = S3Server() if store == "s3" else None
        self.folder = Path(tempfile.mkdtemp(prefix=f"stablesr-fault-{name.replace(' ', '-')}-"))
        self.redis = redis or RedisServer()
        self.port = free_port()
        self.settings = Settings(
            blob_root=self.folder / "blobs",
            blob_url=f"s3://{BUCKET}" if self.s3 else None,
            port=self.port,
            # What looks on asks more often than a client may.
            **{"redis_url": self.redis.url, "uploads_per_minute": 0, **settings},
        )
        self.jobs: list[Job] = []
        self.workers: list[WorkerProcess] = []
        self._service: subprocess.Popen[bytes] | None = None
        self._right: int | None = None
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)

    def __enter__(self) -> Self:
        if self.s3 is not None:
            self.s3.__enter__().bucket(BUCKET)
            # For its workers, which have the variables of another process.
            (self.folder / "environment").write_text(json.dumps(environment(self.s3.url)))
        self.redis.start()
        self.start_service()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for worker in self.workers:
            worker.close()
        self.kill_service()
        self.client.close()
        self.redis.close()
        if self.s3 is not None:
            self.s3.__exit__(kind, error, trace)

    # The service

    def environment(self) -> dict[str, str]:
        """The variables of a process under the house's settings."""
        values = json.loads(self.settings.model_dump_json(exclude_unset=True, exclude_none=True))
        env = {f"STABLESR_{name.upper()}": str(value) for name, value in values.items()}
        if self.s3 is not None:
            env |= environment(self.s3.url)
        if self._upload_grace_s is not None:
            env["UPLOAD_GRACE_S"] = str(self._upload_grace_s)
        return {**os.environ, **env}

    def start_service(self) -> None:
        with (self.folder / "service.log").open("ab") as log:
            self._service = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.service"],
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, "the service answers")

    def _answers(self) -> bool:
        try:
            return self.client.get("/livez").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def service_pid(self) -> int:
        assert self._service is not None
        return self._service.pid

    def kill_service(self) -> None:
        if self._service is not None:
            self._service.kill()
            self._service.wait()
            self._service = None

    def service_died(self) -> bool:
        assert self._service is not None
        return self._service.poll() is not None

    # Workers

    def worker(
        self, *, step_s: float = 0.05, clock_s: float = 0.0, **settings: Any
    ) -> WorkerProcess:
        log = self.folder / f"worker-{len(self.workers)}.log"
        changed = self.settings.model_copy(update=settings)
        process = WorkerProcess(serve, changed, log, self.folder, step_s, clock_s)
        self.workers.append(process)
        return process

    def ready(self) -> None:
        """Waits until a worker takes jobs."""
        until(lambda: self.client.get("/readyz").status_code == 200, "a worker is ready")

    def hold(self, place: str) -> None:
        """The next job that gets to this place is held there."""
        (self.folder / f"hold-{place}").touch()

    def held(self, place: str) -> int:
        """Waits until a job is held at this place; the number of its worker's process."""
        mark = self.folder / f"held-{place}"
        until(mark.exists, f"a job is held at {place}")
        return int(mark.read_text())

    def release(self, place: str) -> None:
        (self.folder / f"hold-{place}").unlink()

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    # Jobs

    def post(
        self, name: str = "photo.png", *, headers: dict[str, str] | None = None, **fields: Any
    ) -> httpx.Response:
        data = {"scale": 2, "seed": 7, "steps": 20, **fields}
        files = {"image": (name, png(), "image/png")}
        return self.client.post("/upscale", files=files, data=data, headers=headers)

    def submit(self, count: int = 1, *, expected: str = "succeeded", **fields: Any) -> list[Job]:
        made = []
        for _ in range(count):
            answer = self.post(**fields)
            if answer.status_code != 202:
                raise AssertionError(f"refused: {answer.status_code} {answer.text}")
            made.append(Job(answer.json()["id"], expected))
        self.jobs += made
        return made

    def look(self, job: Job) -> dict[str, Any]:
        """The job as it is answered now."""
        body: dict[str, Any] = self.client.get(f"/jobs/{job.id}").raise_for_status().json()
        if not job.seen or job.seen[-1] != body["state"]:
            job.seen.append(body["state"])
        return body

    def ended(self, job: Job) -> bool:
        try:
            return self.look(job)["state"] in ("succeeded", "failed", "canceled")
        except httpx.HTTPError:
            # The service or Redis is away: that is the fault, and it will come back.
            return False

    def all_ended(self, *, seconds: float = WAIT_S) -> None:
        until(lambda: all(self.ended(job) for job in self.jobs), "all jobs end", seconds=seconds)

    def logged(self, event: str) -> int:
        """How many lines of the workers say so."""
        return sum(worker.log.read_text().count(f'"{event}"') for worker in self.workers)

    def each_ran_once(self) -> None:
        """Every job has ended, and was begun once."""
        self.all_ended()
        attempts = [self.look(job)["attempt"] for job in self.jobs]
        assert attempts == [1] * len(attempts), f"attempts: {attempts}"
        starts = self.logged("job started")
        assert starts == len(attempts), f"{starts} starts of {len(attempts)} jobs"

    def listed(self) -> list[str]:
        """The ids of all jobs that the service lists, page by page."""
        ids: list[str] = []
        query: dict[str, str] = {}
        while True:
            page = self.client.get("/jobs", params=query).raise_for_status().json()
            ids += [job["id"] for job in page["jobs"]]
            if page.get("next") is None:
                return ids
            query["cursor"] = page["next"]

    def inputs(self) -> set[str]:
        """The ids of the images that are stored."""
        if self.s3 is not None:
            names = self.s3.names(BUCKET)
            return {name.partition("/")[2] for name in names if name.startswith("inputs/")}
        return {path.name for path in (self.settings.blob_root / "inputs").iterdir()}

    def staged(self) -> list[Path]:
        """Files of blobs that are being written, or were when their writer died."""
        return [path for path in self.settings.blob_root.rglob("*#*") if path.is_file()]

    # What became of them

    def right(self) -> int:
        """Jobs that ended as they must; the same request has the same image."""
        if self._right is not None:
            return self._right
        images: dict[tuple[int, int], bytes] = {}
        count = 0
        for job in self.jobs:
            body = self.look(job)
            state = body["state"]
            if state == "failed":
                state += ": " + body["error"]["type"].rpartition("/")[2]
            if state != job.expected:
                continue
            if state == "succeeded":
                content = self.client.get(f"/jobs/{job.id}/result").raise_for_status().content
                with Image.open(io.BytesIO(content)) as image:
                    assert image.size == (48, 32), image.size
                request = body["seed"], body["parameters"]["steps"]
                if images.setdefault(request, content) != content:
                    continue
            count += 1
        return count

    def settle(self) -> None:
        """Counts what became of the jobs now, for a case whose store is gone afterwards."""
        self._right = self.right()

    def lost(self) -> int:
        """Jobs that were accepted and are unknown or without an end."""
        return sum(not self.ended(job) for job in self.jobs)

    def duplicated(self) -> int:
        """Jobs that ended more than once: by the workers' logs, and by the states answered."""
        lines = [line for worker in self.workers for line in worker.log.read_text().splitlines()]
        events = [json.loads(line) for line in lines if line.startswith("{")]
        done = [event["job"] for event in events if event.get("event") == "job done"]
        ends = ("succeeded", "failed", "canceled")
        return sum(
            done.count(job.id) > 1 or sum(state in ends for state in job.seen) > 1
            for job in self.jobs
        )
