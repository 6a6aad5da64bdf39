"""The faults: each a function that does one and returns when every job of it has ended.

Leases and heartbeats are the defaults where a worker is killed, so that the seconds printed are
those that a user would wait.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from stablesr_client import Client
from tests.faults.house import House, Job, png, until
from tests.faults.worker import PLACES
from tests.faults.workers import clocks_apart, drained, redis_away_long, store_away
from tests.worker.double import CRASH, HANG_ONCE
from worker.heartbeat import EXIT_STALLED

AGAIN_S = 30.0
"""A job whose worker was killed must be running again within this."""

MOST_INSISTENT = 50
"""Jobs of a client that submits without a pause: below what one address may upload a minute."""


class NotRun(Exception):
    """The fault cannot be made on this machine; says why."""


@dataclass(frozen=True)
class Case:
    name: str
    run: Callable[[House], float | None]
    """Does the fault; gives the seconds until the work went on, where that has a meaning."""
    settings: dict[str, Any]


def killed_at(place: str, house: House) -> float:
    """A worker with two jobs in hand is killed while one of them is at `place`."""
    house.worker()
    house.worker()
    house.ready()
    house.hold(place)
    first = house.submit()[0]
    victim = house.held(place)
    if house.s3 is None:
        assert bool(house.staged()) is (place == "storing")
    house.submit(3)
    house.kill(victim)
    died = time.monotonic()
    house.release(place)
    until(lambda: house.look(first)["attempt"] >= 2, "the job runs again", seconds=AGAIN_S)
    again = time.monotonic() - died
    house.all_ended()
    assert house.look(first)["attempt"] == 2
    until(lambda: not house.staged(), "what was written of a result is removed")
    return again


def hung_step(house: House) -> float:
    """A network call never comes back: the watchdog ends the process."""
    hung = [house.worker(job_timeout_s=30), house.worker(job_timeout_s=30)]
    house.ready()
    first = house.submit(seed=HANG_ONCE)[0]
    until(lambda: any(worker.exit_code is not None for worker in hung), "a worker ends itself")
    ended = time.monotonic()
    assert EXIT_STALLED in [worker.exit_code for worker in hung]
    until(lambda: house.look(first)["attempt"] >= 2, "the job runs again", seconds=AGAIN_S)
    again = time.monotonic() - ended
    house.all_ended()
    return again


def terminated(house: House) -> float:
    """SIGTERM with two jobs running and two waiting: they go back and another worker does them."""
    leaving = house.worker(step_s=0.3)
    house.ready()
    jobs = house.submit(4, steps=40)
    until(lambda: (house.look(jobs[0])["progress"] or {}).get("step", 0) > 2, "the first runs")
    asked = time.monotonic()
    os.kill(leaving.pid, signal.SIGTERM)
    assert leaving.wait(10) == 0, "the worker did not end in time"
    left = time.monotonic() - asked
    states = {house.look(job)["state"] for job in jobs}
    assert states == {"queued"}, f"the jobs are {states}"
    house.worker()
    house.all_ended()
    return left


def redis_killed(house: House) -> float:
    """Redis is killed and started again with its append-only file, jobs waiting and running.

    A client goes on submitting meanwhile, and tries each upload again until it is taken.
    """
    house.worker(step_s=0.1)
    house.ready()
    jobs = house.submit(5, steps=60)
    until(lambda: (house.look(jobs[0])["progress"] or {}).get("step", 0) > 2, "the first runs")
    with insistent(house) as ids:
        ready = redis_away(house, jobs)
    house.jobs += [Job(one) for one in ids]
    house.submit()
    house.all_ended()
    listed, known = sorted(house.listed()), sorted(job.id for job in house.jobs)
    assert listed == known, f"{listed} are listed, {known} were submitted"
    return ready


def redis_away(house: House, jobs: list[Job]) -> float:
    """Redis is away for 5 s; the seconds until the service was ready again."""
    house.redis.kill()
    gone = time.monotonic()
    refused = house.post()
    assert refused.status_code == 503, refused.status_code
    assert int(refused.headers["Retry-After"]) >= 1
    assert house.client.get(f"/jobs/{jobs[0].id}").status_code == 503
    time.sleep(max(0.0, gone + 5 - time.monotonic()))
    house.redis.start()
    back = time.monotonic()
    until(lambda: house.client.get("/readyz").status_code == 200, "ready again", seconds=60)
    return time.monotonic() - back


@contextmanager
def insistent(house: House) -> Iterator[list[str]]:
    """Submits one image after the other through the client library, until the block ends.

    Gives the ids of the jobs, complete after the block.
    """
    ids: list[str] = []
    leaving = threading.Event()

    def submit() -> None:
        with Client(str(house.client.base_url)) as client:
            while not leaving.is_set() and len(ids) < MOST_INSISTENT:
                ids.append(client.submit(png(), scale=2, seed=7, steps=5).id)

    with ThreadPoolExecutor(1) as pool:
        submitting = pool.submit(submit)
        try:
            until(lambda: bool(ids), "the client submits")
            yield ids
        finally:
            leaving.set()
    submitting.result()


def redis_hangs(house: House) -> float:
    """Redis answers no request for a while: refusals within 3 seconds, and then all goes on."""
    worker = house.worker(step_s=0.1)
    house.ready()
    jobs = house.submit(4, steps=60)
    until(lambda: (house.look(jobs[0])["progress"] or {}).get("step", 0) > 2, "the first runs")
    with house.redis.hanging():
        began = time.monotonic()
        while time.monotonic() - began < 6:
            asked = time.monotonic()
            refused = [house.post(), house.client.get(f"/jobs/{jobs[0].id}")]
            refused.append(house.client.get("/readyz"))
            took = time.monotonic() - asked
            assert [answer.status_code for answer in refused] == [503] * 3, refused
            assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
            assert took < 3, f"three refusals took {took:.1f} s"
    back = time.monotonic()
    until(lambda: house.client.get("/readyz").status_code == 200, "ready again", seconds=60)
    ready = time.monotonic() - back
    house.submit()
    house.all_ended()
    assert worker.exit_code is None, "the worker ended"
    return ready


def store_unwritable(house: House) -> None:
    """Results cannot be written for a while: those jobs wait with what they have."""
    house.worker()
    house.ready()
    house.submit()
    house.all_ended()
    results = house.settings.blob_root / "results"
    aside = results.rename(results.with_name("aside"))
    results.touch()
    house.submit(2)
    until(lambda: house.logged("image store is away, the job waits") == 2, "both jobs wait")
    results.unlink()
    aside.rename(results)
    house.submit(2)
    house.each_ran_once()


def store_full(house: House) -> None:
    """The store's disk is full for a while: uploads get 503, a job waits with its result."""
    root = house.settings.blob_root
    with small_disk(root):
        house.worker()
        house.ready()
        house.hold("save")
        house.submit()
        house.held("save")
        filler = root / "filler"
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        refused = house.post()
        assert refused.status_code == 503, refused.text
        assert int(refused.headers["Retry-After"]) >= 1
        house.release("save")
        until(lambda: house.logged("image store is away, the job waits") == 1, "the job waits")
        filler.unlink()
        house.submit(2)
        house.each_ran_once()
        left = {path.name for path in (root / "inputs").iterdir()} - {job.id for job in house.jobs}
        assert not left, f"the refused upload left {left}"
        house.settle()


def store_hangs(house: House) -> float:
    """A store elsewhere gives no answer for a while: uploads are refused within 10 seconds, and
    what needs no store is answered at once beside them."""
    worker = house.worker()
    house.ready()
    jobs = house.submit(4, steps=60)
    until(lambda: (house.look(jobs[0])["progress"] or {}).get("step", 0) > 2, "the first runs")

    def seconds_of(ask: Callable[[], httpx.Response], *statuses: int) -> float:
        asked = time.monotonic()
        answer = ask()
        assert answer.status_code in statuses, f"{answer.status_code} {answer.text}"
        assert answer.status_code < 500 or int(answer.headers["Retry-After"]) >= 1
        return time.monotonic() - asked

    ready, listing = partial(house.client.get, "/readyz"), partial(house.client.get, "/jobs")
    assert house.s3 is not None
    with house.s3.hanging(), ThreadPoolExecutor(50) as pool:
        # At first it is remembered that the store worked.
        waits = [pool.submit(seconds_of, house.post, 503) for _ in range(45)]
        waits += [pool.submit(seconds_of, ready, 200, 503) for _ in range(5)]
        readers = sorted(seconds_of(listing, 200) for _ in range(100))
        assert max(done.result() for done in waits) < 10
        assert seconds_of(ready, 503) < 10
    assert readers[94] < 0.2, f"beside them 5 % of the readers waited for {readers[94]:.1f} s"
    back = time.monotonic()
    until(lambda: house.client.get("/readyz").status_code == 200, "ready again", seconds=60)
    recovered = time.monotonic() - back
    house.submit()
    house.all_ended()
    assert worker.exit_code is None, "the worker ended"
    return recovered


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 256 KiB in this place. Raises NotRun where none can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
        raise NotRun("mounting a small disk needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def poison(house: House) -> None:
    """An image that kills every process that touches it, beside others that do not."""
    house.submit(expected="failed: worker-lost", seed=CRASH)
    house.submit(4, steps=40)
    house.worker()
    house.worker()

    def all_done() -> bool:
        # As a container host does: what ended is started again.
        for worker in [worker for worker in house.workers if worker.exit_code is not None]:
            if not getattr(worker, "replaced", False):
                worker.replaced = True  # type: ignore[attr-defined]  # a mark for this loop alone
                house.worker()
        return all(house.ended(job) for job in house.jobs)

    until(all_done, "all jobs end")
    deaths = sum(worker.exit_code == -signal.SIGKILL for worker in house.workers)
    assert deaths == 3, f"{deaths} processes died"


def service_killed_between(house: House) -> float:
    """The service dies after storing an image and before queueing its job: no image stays."""
    house.worker()
    house.ready()
    house.submit()
    with suppress(httpx.TransportError):
        house.post("fatal.png")
    until(house.service_died, "the service dies", seconds=10)
    orphans = house.inputs() - {job.id for job in house.jobs}
    assert len(orphans) == 1, f"{len(orphans)} images without a job were left to be swept"
    died = time.monotonic()
    house.start_service()
    house.submit()
    until(lambda: not orphans & house.inputs(), "the image without a job is removed")
    swept = time.monotonic() - died
    house.all_ended()
    return swept


def service_killed(house: House) -> float:
    """The service is killed while jobs run; a new one answers for all of them."""
    house.worker(step_s=0.1)
    house.ready()
    house.submit(4, steps=40)
    house.kill_service()
    began = time.monotonic()
    house.start_service()
    back = time.monotonic() - began
    house.all_ended()
    return back


def everything_killed(house: House) -> float:
    """The machine loses power: Redis, service and workers die at once and start again."""
    worker = house.worker(step_s=0.1)
    house.ready()
    jobs = house.submit(5, steps=60)
    until(lambda: (house.look(jobs[0])["progress"] or {}).get("step", 0) > 2, "the first runs")
    house.redis.kill()
    house.kill(worker.pid)
    house.kill_service()
    died = time.monotonic()
    house.redis.start()
    house.start_service()
    house.worker()
    house.all_ended()
    return time.monotonic() - died


def _cases() -> Iterator[Case]:
    for place in PLACES:
        where = "after the result is stored" if place == "stored" else f"in {place}"
        sweeps: dict[str, float] = {}
        if place == "storing":
            sweeps = {"upload_grace_s": 5, "worker_ttl_s": 5}
        yield Case(f"worker killed {where}", partial(killed_at, place), sweeps)
    yield Case("step hangs", hung_step, {})
    yield Case("worker gets SIGTERM", terminated, {})
    yield Case("Redis killed", redis_killed, {})
    yield Case("Redis hangs", redis_hangs, {})
    yield Case("Redis away for long", redis_away_long, {})
    yield Case("clocks apart", clocks_apart, {})
    yield Case("worker drained", drained, {})
    yield Case("store away 30 s", store_away, {})
    yield Case("store not writable", store_unwritable, {})
    yield Case("store full", store_full, {})
    yield Case("store hangs", store_hangs, {"store": "s3", "max_connections": 4000})
    yield Case("image kills the process", poison, {"worker_ttl_s": 6})
    yield Case("service killed half way", service_killed_between, {"upload_grace_s": 5})
    yield Case("service killed", service_killed, {})
    yield Case("everything killed", everything_killed, {})


CASES = tuple(_cases())
FOLDER_ONLY = ("store not writable", "store full")
"""Cases of a store that is a folder"""
