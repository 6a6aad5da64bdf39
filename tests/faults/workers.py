"""Faults that meet several workers, or all that wait in the queue."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from jobs.queue import JobQueue
from tests.faults.house import House, until
from tests.worker.processes import WorkerProcess


def two_workers(house: House, step_s: float, clocks_s: tuple[float, float]) -> list[WorkerProcess]:
    """Both ready."""
    workers = [house.worker(step_s=step_s, clock_s=clock_s) for clock_s in clocks_s]
    until(lambda: "2 serving" in house.client.get("/readyz").text, "two workers are ready")
    return workers


def redis_away_long(house: House) -> float:
    """Redis is away for much longer than a lease lasts, and two of the jobs end meanwhile: the
    worker that is back first takes none of the other's."""
    two_workers(house, 0.5, (0, 0))
    house.submit(2, steps=60)
    house.submit(2, steps=120)
    until(lambda: house.logged("job started") == 4, "all slots run")
    house.submit(2)
    house.redis.kill()
    time.sleep(45)
    house.redis.start()
    back = time.monotonic()
    until(lambda: house.client.get("/readyz").status_code == 200, "ready again", seconds=60)
    ready = time.monotonic() - back
    house.each_ran_once()
    return ready


def clocks_apart(house: House) -> None:
    """Two workers whose clocks are twenty minutes apart."""
    two_workers(house, 0.5, (-600, 600))
    house.submit(6, steps=60)
    house.each_ran_once()


def drained(house: House) -> float:
    """A worker with a long job is drained beside another one, while short ones wait."""
    workers = two_workers(house, 0.1, (0, 0))
    [long] = house.submit(steps=150)
    house.submit(10)
    until(lambda: (house.look(long)["progress"] or {}).get("step", 0) > 2, "the long one runs")
    with closing(JobQueue(house.settings)) as queue:
        name = (queue.get(long.id).worker or "").partition(".")[0]
        [pid] = [worker.pid for worker in queue.capacity().workers if worker.name == name]
    [leaving] = [worker for worker in workers if worker.pid == pid]
    environment = {**os.environ, "STABLESR_REDIS_URL": house.settings.redis_url}
    subprocess.run([sys.executable, "-m", "cli", "drain", name], check=True, env=environment)
    until(lambda: 'state="draining"' in house.client.get("/metrics").text, "the worker drains")
    asked = time.monotonic()
    house.submit(4)
    assert leaving.wait(60) == 0, "the worker did not end in time"
    left = time.monotonic() - asked
    assert house.look(long)["state"] == "succeeded"
    house.each_ran_once()
    return left


@contextmanager
def folder_away(folder: Path) -> Iterator[None]:
    """Something else is in its place."""
    aside = folder.rename(folder.with_name("aside"))
    folder.touch()
    yield
    folder.unlink()
    aside.rename(folder)


def store_away(house: House) -> float:
    """The store is away for 30 s with 60 jobs in the queue: all wait, and none loses an attempt."""
    house.worker()
    house.ready()
    house.submit(60)
    with house.s3.hanging() if house.s3 else folder_away(house.settings.blob_root):
        time.sleep(30)
        ended = house.logged("job done")
    back = time.monotonic()
    until(lambda: house.logged("job done") > ended, "the next job ends")
    again = time.monotonic() - back
    house.each_ran_once()
    # A call to a bucket may outlast its silence by itself.
    waits = house.logged("image store is away, the job waits")
    assert waits == 2 or (house.s3 and waits < 2), f"{waits} slots wait"
    return again
