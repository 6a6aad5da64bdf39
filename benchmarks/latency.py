"""From upload to first step: what queue, files and HTTP add to the model's own time.

    python -m benchmarks.latency [--jobs 20]

Redis, service and worker are processes of their own; the worker is idle whenever a picture is
submitted, and has worked before. A job's clock is its client's: it starts before the POST and stops
when the stream of the job's events says that denoising begins, so opening that stream counts as
well. What the model does in between is the stage `encode` of the job's timings: enlarging the
picture and the autoencoder. All the rest is overhead: upload, checks, storing, queue, the worker's
waking up, reading the file, and the event's way back. Its median must be under 100 ms, or the exit
status is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.pictures import picture
from benchmarks.rounds import percentile
from benchmarks.service import House
from models.presets import PRESETS
from stablesr_client import Client, Event, Job

SCALE = 4
MOST_MS = 100.0


@dataclass(frozen=True)
class Begun:
    """One job, in milliseconds."""

    first_step: float
    """From the POST to the begin of denoising"""
    encode: float
    """What the model took of it"""

    @property
    def overhead(self) -> float:
        return self.first_step - self.encode


@dataclass(frozen=True)
class Measured:
    machine: str
    preset: str
    jobs: tuple[Begun, ...]

    @property
    def good(self) -> bool:
        return statistics.median(job.overhead for job in self.jobs) < MOST_MS


def begun(client: Client, file: bytes, preset: str) -> Begun:
    """One job of one step, to its end: the next one finds an idle worker.

    Raises:
        SystemExit: it did not succeed; says why.
    """
    began = time.perf_counter()
    submitted = client.submit(file, scale=SCALE, steps=1, seed=0, preset=preset)
    first_step, last = until_denoising(client.events(submitted), began)
    if last is None or not last.succeeded or last.timings is None:
        raise SystemExit(f"the job {submitted.id} did not succeed: {last and last.error}")
    return Begun(1000 * first_step, 1000 * (last.timings["encode"] or 0.0))


def until_denoising(events: Iterable[Event], began: float) -> tuple[float, Job | None]:
    """Seconds until an event says that encoding is over, and the job of the last event."""
    first_step, job = None, None
    for event in events:
        job = event.job
        stage = job.progress.stage if job.progress is not None else None
        if first_step is None and (stage in ("denoise", "decode", "save") or job.ended):
            first_step = time.perf_counter() - began
    return first_step or 0.0, job


def table(m: Measured) -> str:
    """For a person."""
    lines = [
        m.machine,
        f"{len(m.jobs)} jobs of {m.preset} on an idle worker, ms",
        f"{'':20}{'median':>9}{'p95':>9}{'most':>9}",
    ]
    for name, label in (
        ("first_step", "POST to first step"),
        ("encode", "of the model"),
        ("overhead", "overhead"),
    ):
        values = [getattr(job, name) for job in m.jobs]
        middle, high = statistics.median(values), percentile(values, 0.95)
        lines.append(f"{label:20}{middle:9.1f}{high:9.1f}{max(values):9.1f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--size", type=int, default=512, help="side of the results, px")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    a = parser.parse_args()
    if a.jobs < 1 or a.size % SCALE:
        parser.error(f"there must be a job, and its size a multiple of {SCALE}.")
    with House(preset=a.preset, device=a.device) as house:
        files = [picture(a.size // SCALE, number) for number in range(a.jobs)]
        begun(house.client, files[0], a.preset)
        jobs = tuple(begun(house.client, file, a.preset) for file in files)
    m = Measured(describe(torch.device(a.device)), a.preset, jobs)
    print(table(m))
    if a.json:
        a.json.write_text(json.dumps({**asdict(m), "good": m.good}, indent=2) + "\n")
    return 0 if m.good else 1


if __name__ == "__main__":
    sys.exit(main())
