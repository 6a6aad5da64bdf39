"""Uploads from many clients beside many that poll, and how long the service lets them wait.

    python -m tests.load [--uploads 200] [--rate 20] [--clients 20] [--pollers 50] [--fetchers 5]

Redis, the service and the worker are processes of their own; in the worker everything is real but
the network, which takes a fixed time for a call. Some clients fetch results meanwhile. Ends with 1
when a request or a job failed, or the service's memory grew by more than MOST_GROWTH_MB.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from tests.faults.house import House, png

POLL_S = 0.5
# Once the first requests were answered: threads, connections and records that stay for so many
# clients. 16 MB were seen at 200 uploads, 50 pollers and 5 that fetch.
MOST_GROWTH_MB = 40.0
ENDED = ("succeeded", "failed", "canceled", "expired")


@dataclass
class Seen:
    """What the clients saw: seconds of each request by kind, and what went wrong."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    """id -> state as last answered"""

    async def timed(
        self, kind: str, client: httpx.AsyncClient, method: str, path: str, **more: object
    ) -> httpx.Response | None:
        began = time.perf_counter()
        try:
            answer = await client.request(method, path, **more)  # type: ignore[arg-type]  # httpx's
        except httpx.HTTPError as error:
            self.faults.append(f"{kind}: {type(error).__name__} {error}")
            return None
        self.seconds.setdefault(kind, []).append(time.perf_counter() - began)
        if answer.status_code not in (200, 202):
            self.faults.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
            return None
        return answer


async def uploads(
    seen: Seen, url: str, numbers: itertools.count[int], total: int, rate: float, began: float
) -> None:
    """One client: takes the next number, waits for its moment, uploads, fetches nothing."""
    image = png(320, 240)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while (number := next(numbers)) < total:
            await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
            files = {"image": (f"photo-{number}.png", image, "image/png")}
            answer = await seen.timed(
                "POST /upscale", client, "POST", "/upscale", files=files, data={"seed": number}
            )
            if answer is not None:
                seen.jobs[answer.json()["id"]] = "queued"


async def polls(seen: Seen, url: str, stop: asyncio.Event) -> None:
    """One client that looks at a job every half second, at one that has not ended if there is."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.sleep(random.random() * POLL_S)
        while not stop.is_set():
            waiting = [job for job, state in seen.jobs.items() if state not in ENDED]
            if seen.jobs:
                job = random.choice(waiting or list(seen.jobs))
                answer = await seen.timed("GET /jobs/{id}", client, "GET", f"/jobs/{job}")
                if answer is not None:
                    seen.jobs[job] = answer.json()["state"]
            await asyncio.sleep(POLL_S)


async def fetches(seen: Seen, url: str, stop: asyncio.Event) -> None:
    """One client that fetches results as they come, some of them again and again."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        while not stop.is_set():
            done = [job for job, state in seen.jobs.items() if state == "succeeded"]
            if done:
                path = f"/jobs/{random.choice(done)}/result"
                await seen.timed("GET result meanwhile", client, "GET", path)
            await asyncio.sleep(random.random() * POLL_S)


async def load(seen: Seen, url: str, chosen: argparse.Namespace) -> float:
    """Everything; returns when each job has ended, with the seconds that took."""
    began = time.perf_counter()
    numbers, stop = itertools.count(), asyncio.Event()
    pollers = [asyncio.create_task(polls(seen, url, stop)) for _ in range(chosen.pollers)]
    pollers += [asyncio.create_task(fetches(seen, url, stop)) for _ in range(chosen.fetchers)]
    await asyncio.gather(
        *(
            uploads(seen, url, numbers, chosen.uploads, chosen.rate, began)
            for _ in range(chosen.clients)
        )
    )
    while not all(state in ENDED for state in seen.jobs.values()):
        await asyncio.sleep(0.1)
    stop.set()
    await asyncio.gather(*pollers)
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for job in seen.jobs:
            await seen.timed("GET result", client, "GET", f"/jobs/{job}/result")
    return time.perf_counter() - began


def memory_mb(pid: int) -> float:
    """Resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"process {pid} has no memory")


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(seen: Seen) -> Table:
    made = Table(title="Seconds of a request")
    made.add_column("request")
    for name in ("count", "p50", "p95", "p99", "longest"):
        made.add_column(name, justify="right")
    for kind, values in seen.seconds.items():
        figures = [percentile(values, share) for share in (0.5, 0.95, 0.99)]
        made.add_row(kind, str(len(values)), *(f"{v:.3f}" for v in [*figures, max(values)]))
    return made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load")
    parser.add_argument("--uploads", type=int, default=200)
    parser.add_argument("--rate", type=float, default=20.0, help="uploads a second in all")
    parser.add_argument("--clients", type=int, default=20, help="that upload")
    parser.add_argument("--pollers", type=int, default=50)
    parser.add_argument("--fetchers", type=int, default=5, help="of results meanwhile")
    parser.add_argument("--step-ms", type=float, default=10.0, help="of one network call")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    chosen = parser.parse_args()
    seen = Seen()
    # Without limits: all of them come from one address.
    limits = {"uploads_per_minute": 0, "max_queued": 1_000_000, "max_connections": 4000}
    with House("load", **limits) as house:
        house.worker(step_s=chosen.step_ms / 1000, slots=4)
        house.ready()
        # What the first requests load and cache is not growth.
        house.submit(10)
        house.all_ended()
        before = memory_mb(house.service_pid)
        seconds = asyncio.run(load(seen, str(house.client.base_url), chosen))
        after = memory_mb(house.service_pid)
    states = {state: list(seen.jobs.values()).count(state) for state in seen.jobs.values()}
    console = Console(width=100)
    console.print(report(seen))
    console.print(f"{len(seen.jobs)} jobs in {seconds:.1f} s: {states}")
    console.print(f"failed requests: {len(seen.faults)}")
    console.print(f"memory of the service: {before:.1f} MB at the start, {after:.1f} MB at the end")
    for fault in seen.faults[:10]:
        console.print(f"  {fault}")
    if chosen.json:
        figures = {"seconds": seen.seconds, "memory_mb": [before, after], "states": states}
        chosen.json.write_text(json.dumps(figures) + "\n")
    grown = after - before
    if grown > MOST_GROWTH_MB:
        console.print(f"the service grew by {grown:.1f} MB; at most {MOST_GROWTH_MB:g} are well")
    well = not seen.faults and states == {"succeeded": chosen.uploads}
    return 0 if well and grown <= MOST_GROWTH_MB else 1


if __name__ == "__main__":
    sys.exit(main())
