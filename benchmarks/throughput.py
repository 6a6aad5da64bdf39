"""Images per second when jobs share network calls, against one job at a time.

    python -m benchmarks.throughput --jobs 16
    python -m benchmarks.throughput --jobs 16 --preset stablesr-512 --weights random --engine

Jobs of one size, each with a picture and a seed of its own, are run twice: each submitted when the
one before has ended, and all submitted at once. They go the whole way: a client of this process
uploads a PNG file to the service, Redis has the queue, a worker upscales, and the client hears of
the end; Redis, service and worker are processes of their own. With `--engine` there is none of
that: threads of this process take the worker's way from the pixels to the pixels through the same
engine, so the difference between the two ratios is what files, queue and HTTP cost.

Before, and not counted in either, go one job alone and one of two steps for every slot at once.
Images per second are by the clock on the wall, from the first submission to the last end; a job's
latency and stages are the service's own timings. The fill is the mean over all network calls of
(tiles in it / tiles that it has room for).

The results of both rounds are compared as 8-bit pixels. In float32, and with `--fixed-batch` in
any precision, the same picture may differ by one level where a value lies between two: more is a
fault, and the exit status 1. In half precision a call of other tiles may be computed by other
kernels, whose roundings (8 bits of mantissa, or 11) go through every later step: there no largest
difference can be told from theirs, and the mean must be at most one level. What pictures of two
different jobs differ by is printed beside it: that is what mixed-up jobs would show.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.machine import describe
from benchmarks.pictures import Difference
from benchmarks.rounds import STAGES, Round
from benchmarks.workload import Asked, Runner, Workload, in_engine, in_service
from models.presets import PRESETS, get_preset
from worker.device import choose_dtype

SLOTS = 8
"""Jobs whose single tiles fill a call of the usual size."""
MOST_LEVELS = 1
"""That a value may differ by where both rounds compute with the same roundings, or nearly so."""
MOST_MEAN_LEVELS = 1.0
"""The same of the mean, where roundings differ."""


@dataclass(frozen=True)
class Measured:
    """One invocation."""

    machine: str
    way: str
    """service or engine"""
    workload: Workload
    dtype: str
    jobs: int
    size: int
    steps: int
    ready_seconds: float
    """Weights loaded, calls compiled, processes up"""
    warm_up_seconds: tuple[float, float]
    """One job alone, then a few steps of one for each slot"""
    alone: Round
    together: Round
    difference: Difference
    """Of the same jobs in both rounds"""
    others: Difference | None
    """Of neighbouring jobs in one round; None of a single job"""

    @property
    def ratio(self) -> float:
        return self.together.images_per_second / self.alone.images_per_second

    @property
    def strict(self) -> bool:
        """Whether both rounds have the same roundings, or finer ones than show."""
        return self.dtype == "float32" or self.workload.fixed_batch is not None

    @property
    def equal(self) -> bool:
        if self.strict:
            return self.difference.largest <= MOST_LEVELS
        return self.difference.mean <= MOST_MEAN_LEVELS


def measure(workload: Workload, way: str, jobs: list[Asked]) -> Measured:
    """Everything, from starting the parts to the comparison."""
    began = time.perf_counter()
    _say(f"starting ({way})")
    with in_engine(workload) if way == "engine" else in_service(workload) as runner:
        ready = time.perf_counter() - began
        _say(f"ready after {ready:.1f} s; warming up")
        warm = _warm(runner, jobs[0], workload.slots)
        _say(f"warm after {sum(warm):.1f} s; {len(jobs)} jobs one at a time")
        alone, singly = runner.run(jobs, together=False)
        _say(f"{alone.seconds:.1f} s; {len(jobs)} jobs together")
        together, jointly = runner.run(jobs, together=True)
        _say(f"{together.seconds:.1f} s")
    device = torch.device(workload.device)
    return Measured(
        machine=describe(device),
        way=way,
        workload=workload,
        dtype=str(choose_dtype(workload.dtype, device)).removeprefix("torch."),
        jobs=len(jobs),
        size=jobs[0].side,
        steps=jobs[0].steps,
        ready_seconds=ready,
        warm_up_seconds=warm,
        alone=alone,
        together=together,
        difference=Difference.of(zip(singly, jointly, strict=True)),
        others=Difference.of(pairwise(singly)) if len(jobs) > 1 else None,
    )


def _warm(runner: Runner, job: Asked, slots: int) -> tuple[float, float]:
    one, _ = runner.run([job], together=False)
    few = [Asked(number, job.side, min(2, job.steps)) for number in range(slots)]
    many, _ = runner.run(few, together=True)
    return one.seconds, many.seconds


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def table(m: Measured) -> str:
    """For a person."""
    w = m.workload
    room = m.together.tiles_per_call / m.together.fill
    lines = [
        m.machine,
        f"{m.jobs} jobs of {m.size} x {m.size} through the {m.way}: {w.preset}, {w.weights} "
        f"weights, {m.dtype}, {m.steps} steps, compile {w.compile}, {w.slots} slots, "
        f"{room:.0f} tiles a call" + (", fixed" if w.fixed_batch else ""),
        f"ready after {m.ready_seconds:.1f} s; not counted: one job {m.warm_up_seconds[0]:.1f} s, "
        f"{w.slots} short ones {m.warm_up_seconds[1]:.1f} s",
        f"{'':16}{'seconds':>9}{'images/s':>10}{'ratio':>7}{'p50 s':>8}{'p95 s':>8}{'calls':>7}"
        f"{'tiles/call':>12}{'fill':>6}",
    ]
    rounds = {"one at a time": m.alone, "together": m.together}
    for name, r in rounds.items():
        ratio = r.images_per_second / m.alone.images_per_second
        lines.append(
            f"{name:16}{r.seconds:9.2f}{r.images_per_second:10.3f}{ratio:7.2f}"
            f"{r.latency(0.5):8.2f}{r.latency(0.95):8.2f}{r.calls:7}{r.tiles_per_call:12.2f}"
            f"{r.fill:6.2f}"
        )
    lines.append(f"{'mean s of':16}" + "".join(f"{stage:>10}" for stage in STAGES))
    for name, r in rounds.items():
        lines.append(f"{name:16}" + "".join(f"{r.stage(stage):10.3f}" for stage in STAGES))
    allowed = f"largest {MOST_LEVELS}" if m.strict else f"mean {MOST_MEAN_LEVELS:g}"
    lines.append(f"{'levels':16}{'largest':>9}{'mean':>10}{'differ':>10}")
    lines.append(_levels("same job", m.difference) + f"  allowed: {allowed}")
    if m.others is not None:
        lines.append(_levels("another job", m.others))
    return "\n".join(lines)


def _levels(name: str, d: Difference) -> str:
    return f"{name:16}{d.largest:9}{d.mean:10.4f}{d.differing:10.4%}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--size", type=int, default=512, help="side of the results, px")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--weights", choices=("random", "preset"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "float16", "bfloat16"), default="auto"
    )
    parser.add_argument("--steps", type=int, help="the preset's")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="off")
    parser.add_argument("--max-tiles", type=int, help="in one network call; as many as fit, to 8")
    parser.add_argument("--fixed-batch", type=int, help="fill every call up to so many tiles")
    parser.add_argument("--slots", type=int, default=SLOTS, help="jobs that run together")
    parser.add_argument("--engine", action="store_true", help="without Redis, HTTP and files")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    a = parser.parse_args()
    weights = a.weights or ("preset" if a.preset == "tiny" else "random")
    if (a.preset, weights) == ("tiny", "random"):
        parser.error("tiny comes with its weights: use --weights preset.")
    if a.jobs < 1 or a.size % 4:
        parser.error("there must be a job, and its size a multiple of 4.")
    steps = a.steps or get_preset(a.preset).steps
    workload = Workload(
        a.preset, weights, a.device, a.dtype, a.compile, a.slots, a.max_tiles, a.fixed_batch
    )
    jobs = [Asked(number, a.size, steps) for number in range(a.jobs)]
    m = measure(workload, "engine" if a.engine else "service", jobs)
    print(table(m))
    if a.json:
        speeds = {name: getattr(m, name).images_per_second for name in ("alone", "together")}
        figures = {**asdict(m), "images_per_second": speeds, "ratio": m.ratio, "equal": m.equal}
        a.json.write_text(json.dumps(figures, indent=2) + "\n")
    if not m.equal:
        print("the results of both rounds are not equal within rounding")
    return 0 if m.equal else 1


if __name__ == "__main__":
    sys.exit(main())
