"""A large picture and small ones together: does anybody wait for the large one's end?

    python -m benchmarks.fairness [--large 4096] [--small 10] [--late 2]

Redis, service and one worker are processes of their own. A small picture goes alone first. Then the
large one is submitted, the small ones right behind it, and some more as soon as the large one is
denoised. Each small one's seconds in the queue and in all are printed, and whether it ended before
the large one did; seconds are the service's own timings. If a small one ended later than the large
one, it was held up to its end, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.pictures import picture
from benchmarks.rounds import percentile
from benchmarks.service import House, ended
from models.presets import PRESETS, get_preset
from stablesr_client import Client, Job

SCALE = 4


@dataclass(frozen=True)
class Ended:
    """A job that has succeeded, in seconds."""

    name: str
    queue: float
    total: float
    at: float
    """From the large picture's submission to this one's end"""


@dataclass(frozen=True)
class Measured:
    machine: str
    preset: str
    slots: int
    large_side: int
    small_side: int
    steps: tuple[int, int]
    """Of the large one and of the small ones"""
    alone: Ended
    """A small one with nobody beside it"""
    large: Ended
    small: tuple[Ended, ...]

    @property
    def held(self) -> int:
        """Small ones that ended after the large one."""
        return sum(job.at > self.large.at for job in self.small)


class Crowd:
    """Submits pictures of one preset."""

    def __init__(self, client: Client, preset: str) -> None:
        self._client, self._preset = client, preset
        self._seed = 0

    def submit(self, side: int, steps: int) -> Job:
        self._seed += 1
        file = picture(side // SCALE, self._seed)
        return self._client.submit(
            file, scale=SCALE, steps=steps, seed=self._seed, preset=self._preset
        )

    def wait_for_denoising(self, job: Job) -> None:
        for event in self._client.events(job):
            progress = event.job.progress
            if event.job.ended or (progress is not None and progress.stage == "denoise"):
                return


def of(name: str, job: Job, since: datetime) -> Ended:
    assert job.ended_at is not None
    told = job.timings or {}
    at = (job.ended_at - since).total_seconds()
    return Ended(name, told.get("queue") or 0.0, told.get("total") or 0.0, at)


def submitted_at(job: Job) -> datetime:
    assert job.created_at is not None
    return job.created_at


def measure(house: House, a: argparse.Namespace) -> Measured:
    """All of it, one after the other."""
    crowd = Crowd(house.client, a.preset)
    steps = a.large_steps, a.small_steps
    # The worker's first job takes longer than any other.
    ended(house.client, [crowd.submit(a.small_side, 1)])
    [single] = ended(house.client, [crowd.submit(a.small_side, steps[1])])
    large = crowd.submit(a.large, steps[0])
    small = [crowd.submit(a.small_side, steps[1]) for _ in range(a.small)]
    if a.late:
        crowd.wait_for_denoising(large)
        small += [crowd.submit(a.small_side, steps[1]) for _ in range(a.late)]
    last, *others = ended(house.client, [large, *small])
    since = submitted_at(large)
    names = [f"small {n + 1}" + (", late" if n >= a.small else "") for n in range(len(others))]
    return Measured(
        machine=describe(torch.device(a.device)),
        preset=a.preset,
        slots=a.slots,
        large_side=a.large,
        small_side=a.small_side,
        steps=steps,
        alone=of("small, alone", single, submitted_at(single)),
        large=of("large", last, since),
        small=tuple(of(name, job, since) for name, job in zip(names, others, strict=True)),
    )


def table(m: Measured) -> str:
    """For a person."""
    lines = [
        m.machine,
        f"{m.preset}: one of {m.large_side} x {m.large_side} ({m.steps[0]} steps), "
        f"{len(m.small)} of {m.small_side} x {m.small_side} ({m.steps[1]} steps), "
        f"{m.slots} slots; seconds",
        f"{'':18}{'in the queue':>13}{'in all':>9}{'ended at':>10}",
    ]
    for job in (m.alone, m.large, *m.small):
        late = "  after the large one" if job in m.small and job.at > m.large.at else ""
        lines.append(f"{job.name:18}{job.queue:13.2f}{job.total:9.2f}{job.at:10.2f}{late}")
    totals = [job.total for job in m.small]
    lines.append(
        f"small ones in all: median {statistics.median(totals):.2f}, "
        f"p95 {percentile(totals, 0.95):.2f}, most {max(totals):.2f}; "
        f"held to the large one's end: {m.held} of {len(m.small)}"
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--large", type=int, default=4096, help="side of its result, px")
    parser.add_argument("--small", type=int, default=10, help="how many")
    parser.add_argument("--late", type=int, default=2, help="more of them, a little later")
    parser.add_argument("--small-side", type=int, default=512, help="px")
    parser.add_argument("--large-steps", type=int, default=2)
    parser.add_argument("--small-steps", type=int, help="the preset's")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    a = parser.parse_args()
    if a.small + a.late < 1 or a.large % SCALE or a.small_side % SCALE:
        parser.error(f"there must be a small picture, and sides be multiples of {SCALE}.")
    a.small_steps = a.small_steps or get_preset(a.preset).steps
    with House(preset=a.preset, device=a.device, slots=a.slots, job_timeout_s=24 * 3600) as house:
        m = measure(house, a)
    print(table(m))
    if a.json:
        a.json.write_text(json.dumps({**asdict(m), "held": m.held}, indent=2) + "\n")
    return 0 if not m.held else 1


if __name__ == "__main__":
    sys.exit(main())
