"""Worker processes and a service's view of them, for tests."""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from jobs.queue import UNKNOWN_ORIGIN, JobQueue
from jobs.schema import ImageInfo, Job, JobState, Origin, new_job_id
from jobs.settings import Settings
from jobs.store import BlobStore, input_key
from models.parameters import UpscaleParameters
from tests.worker import double
from worker import slot


def wait_for(condition: Callable[[], bool], what: str, *, seconds: float = 30.0) -> None:
    """Return as soon as the condition holds; fail when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.02)


def png(width: int = 10, height: int = 6, color: tuple[int, int, int] = (90, 120, 60)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), color).save(file, "PNG")
    return file.getvalue()


# Importing torch takes seconds. This server has done so once, and forks a process for each worker
# before any thread or device exists in it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.worker.double"])


def _logged(serve: Callable[..., int], values: dict[str, Any], log: Path, *more: Any) -> None:
    with log.open("ab") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(serve(Settings(**values), *more))


def _double(settings: Settings, step_s: float, load_s: float, idle_s: int, clock_s: float) -> int:
    warnings.simplefilter("error")
    slot.IDLE_S = idle_s
    double.shift_clock(clock_s)
    return double.main(settings, step_s=step_s, load_s=load_s)


class WorkerProcess:
    """What `serve(settings, *more)` runs, in a process of its own, with its lines in `log`. `with`
    ends it if it still runs."""

    def __init__(
        self, serve: Callable[..., int], settings: Settings, log: Path, *more: Any
    ) -> None:
        self.log = log
        arguments = (serve, settings.model_dump(), log, *more)
        self.process = CONTEXT.Process(target=_logged, args=arguments)
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number when one ended it."""
        return self.process.exitcode

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float = 30.0) -> int | None:
        """The exit code, None when it still runs."""
        self.process.join(seconds)
        return self.process.exitcode

    def __enter__(self) -> WorkerProcess:
        return self

    def close(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()

    def __exit__(self, *error: object) -> None:
        self.close()
        if error[0] is not None:
            print(self.log.read_text())


class House:
    """A queue, a store and a folder: what the service and its workers share."""

    def __init__(self, redis_url: str, folder: Path, **settings: Any) -> None:
        self.settings = Settings(
            redis_url=redis_url,
            blob_root=folder / "blobs",
            **{"worker_ttl_s": 2, "retry_pauses_s": "0,1", **settings},
        )
        self.folder = folder
        self.queue = JobQueue(self.settings)
        self.store = BlobStore.open(self.settings)
        self._workers = 0

    def worker(
        self,
        *,
        step_s: float = 0.0,
        load_s: float = 0.0,
        idle_s: int = 1,
        clock_s: float = 0.0,
        **settings: Any,
    ) -> WorkerProcess:
        self._workers += 1
        log = self.folder / f"worker-{self._workers}.log"
        changed = self.settings.model_copy(update=settings)
        return WorkerProcess(_double, changed, log, step_s, load_s, idle_s, clock_s)

    def ready(self, workers: int = 1) -> None:
        """Wait until so many workers take jobs."""
        wait_for(
            lambda: sum(worker.ready for worker in self.queue.capacity().workers) == workers,
            f"{workers} workers are ready",
            seconds=60.0,
        )

    def submit(
        self,
        data: bytes | None = None,
        *,
        seed: int = 1,
        steps: int = 4,
        origin: Origin = UNKNOWN_ORIGIN,
        **more: Any,
    ) -> str:
        data = png() if data is None else data
        job_id = new_job_id()
        self.store.put(input_key(job_id), data)
        image = ImageInfo(width=10, height=6, format="PNG", media_type="image/png", bytes=len(data))
        values = {"preset": "tiny", "scale": 2.0, "seed": seed, "steps": steps, **more}
        self.queue.submit(job_id, UpscaleParameters(**values), image, origin)
        return job_id

    def job(self, job_id: str) -> Job:
        return self.queue.get(job_id)

    def stage(self, job_id: str) -> str | None:
        progress = self.job(job_id).progress
        return progress.stage if progress is not None else None

    def ended(self, job_id: str, *, seconds: float = 30.0) -> Job:
        """The job once it has ended."""
        wait_for(lambda: self.job(job_id).state.is_final, f"job {job_id} ends", seconds=seconds)
        return self.job(job_id)

    def reaches(self, job_id: str, step: int, *, attempt: int = 1) -> None:
        """Wait until the job has made so many steps."""

        def there() -> bool:
            job = self.job(job_id)
            if job.state.is_final:
                raise AssertionError(f"the job ended before step {step}: {job}")
            running = job.state is JobState.PROCESSING and job.attempt == attempt
            return running and job.progress is not None and job.progress.step >= step

        wait_for(there, f"step {step} of attempt {attempt}")
