"""Seconds of one image, stage by stage: encoding, network calls, decoding, the file.

    python -m benchmarks.image --sizes 512 1024
    python -m benchmarks.image --preset stablesr-512 --weights random --steps 4 --compare plain
    python -m benchmarks.image --compare ../other-checkout --compare realesrgan-x4plus=WHEEL

A picture made of the test photographs is upscaled four times to each size, alone, by the calls that
a worker makes, and written as PNG. Stages that a worker overlaps, with each other or with other
jobs', follow one another here, each waited for. Decoding includes the colour correction. Every way
and size runs in a process of its own, so that its peak memory is its own; there the first image,
which compiles and fills caches, is not counted.

`--compare` adds what this is compared with, before it: `plain`, the same networks neither folded
nor compiled; another checkout of this project, whose own benchmark is run with its own weights; a
network of `evaluation.methods`, which has one stage. Ratios are to the first way with the same size
and fidelity weight, in one invocation. Below each row stand the
stages' shares, and beside them how many times the seconds decoding takes that it takes at w = 0.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.encoders import mosaic
from benchmarks.machine import describe, peak_memory, synchronize
from benchmarks.model import add_model, alone, check_model, dtype_of
from benchmarks.step import Way, loaded
from evaluation.methods import make_baseline
from evaluation.pictures import tensor_of
from models.compiler import CompileMode
from models.options import Options
from models.pipeline import StableSR
from models.sampling import StepRequest, drive_all
from worker.images.writing import write

SCALE = 4
STAGES = ("encode", "denoise", "decode", "file")


@dataclass(frozen=True)
class Task:
    """One way at one size."""

    way: Way
    preset: str
    weights: str
    device: str
    size: int
    """Side of the result, px"""
    fidelities: tuple[float, ...]
    steps: int | None
    repeats: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """One way at one size with one fidelity weight."""

    way: str
    size: int
    fidelity_weight: float
    seconds: dict[str, float]
    """Of each stage, medians"""
    calls: int
    """Network calls"""
    tiles: int
    """Of all of them"""
    first_seconds: float
    """Of the process's first image; not in the others"""
    peak_memory_bytes: int
    """Of the process until then"""
    machine: str

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


class Timed:
    """Upscales an image, and notes what each stage takes."""

    def __init__(self, sr: StableSR, folder: Path) -> None:
        self._sr, self._file = sr, folder / "result.png"
        self.calls = self.tiles = 0

    def __call__(self, image: Tensor, options: Options) -> dict[str, float]:
        sr, at = self._sr, [time.perf_counter()]

        def ended() -> None:
            synchronize(sr.device)
            at.append(time.perf_counter())

        self.calls = self.tiles = 0
        with sr.prepare(image, options) as prepared:
            ended()
            sampler = sr.sample(prepared, options)
            [latent] = drive_all([sampler], self._predict, max_tiles=sr.tile_batch)
            ended()
            rows = list(sr.rows(prepared, latent, options))
            ended()
        height, width = prepared.plan.layout.size
        write(self._file, rows, width=width, height=height, channels=3, format="png", depth=8)
        ended()
        return {
            stage: end - begin for stage, begin, end in zip(STAGES, at[:-1], at[1:], strict=True)
        }

    def _predict(self, requests: Sequence[StepRequest]) -> list[Tensor]:
        self.calls += 1
        self.tiles += sum(len(request) for request in requests)
        return self._sr.predict(requests)


def measure(task: Task) -> list[Measured]:
    """Runs one way at one size in this process."""
    torch.set_num_threads(task.threads)
    sr = loaded(task.way, task.preset, task.weights, task.device)
    image = tensor_of(mosaic(task.size // SCALE))
    found: list[Measured] = []
    first: float | None = None
    with tempfile.TemporaryDirectory() as folder:
        timed = Timed(sr, Path(folder))
        for fidelity in task.fidelities:
            options = Options(scale=SCALE, fidelity_weight=fidelity, steps=task.steps)
            rounds = [timed(image, options) for _ in range(task.repeats + 1)]
            first = sum(rounds[0].values()) if first is None else first
            found.append(
                Measured(
                    task.way.name,
                    task.size,
                    fidelity,
                    {s: statistics.median(r[s] for r in rounds[1:]) for s in STAGES},
                    timed.calls,
                    timed.tiles,
                    first,
                    peak_memory(sr.device),
                    describe(sr.device),
                )
            )
    return found


@dataclass(frozen=True)
class NetworkTask:
    """A network of another project at one size."""

    name: str
    task: Task


def measure_network(asked: NetworkTask) -> list[Measured]:
    """As `measure`, of a network that enlarges in one go."""
    task = asked.task
    torch.set_num_threads(task.threads)
    method = make_baseline(asked.name, task.device)
    image = tensor_of(mosaic(task.size // SCALE))
    seconds = [next(iter(method.enlarge(image, SCALE))).seconds for _ in range(task.repeats + 1)]
    stages = dict.fromkeys(STAGES, 0.0) | {"decode": statistics.median(seconds[1:])}
    device = torch.device(task.device)
    return [
        Measured(
            *(method.names[0], task.size, fidelity, stages, 1, 1),
            *(seconds[0], peak_memory(device), describe(device)),
        )
        for fidelity in task.fidelities
    ]


def measure_checkout(checkout: Path, task: Task) -> list[Measured]:
    """What the benchmark of another checkout of this project says of its own build."""
    command = [sys.executable, "-m", "benchmarks.image", "--json", "--preset", task.preset]
    command += ["--weights", task.weights, "--device", task.device, "--sizes", str(task.size)]
    command += ["--repeats", str(task.repeats), "--threads", str(task.threads)]
    command += ["--w", *map(str, task.fidelities)]
    if task.steps is not None:
        command += ["--steps", str(task.steps)]
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    done = subprocess.run(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    names = {field.name for field in fields(Measured)}
    rows = [{k: v for k, v in row.items() if k in names} for row in json.loads(done.stdout)]
    return [Measured(**{**row, "way": f"{checkout.name} {row['way']}"}) for row in rows]


def decoding(results: Sequence[Measured]) -> list[float | None]:
    """Of each, decoding's seconds divided by those of the same way and size at w = 0; None at w = 0
    and where that was not measured."""
    short = {(r.way, r.size): r.seconds["decode"] for r in results if not r.fidelity_weight}
    return [
        r.seconds["decode"] / short[r.way, r.size]
        if r.fidelity_weight and (r.way, r.size) in short
        else None
        for r in results
    ]


def table(results: Sequence[Measured], preset: str) -> str:
    """For a person."""
    lines = [
        f"{preset}, one image alone, seconds; {results[0].machine}",
        f"{'':24}{'size':>6}{'w':>6}"
        + "".join(f"{stage:>9}" for stage in STAGES)
        + f"{'all':>9}{'ratio':>7}{'calls':>7}{'a call':>9}{'first':>8}{'peak GB':>9}",
    ]
    against: dict[tuple[int, float], Measured] = {}
    for r, times in zip(results, decoding(results), strict=True):
        base = against.setdefault((r.size, r.fidelity_weight), r)
        stages = "".join(f"{r.seconds[stage]:9.3f}" for stage in STAGES)
        lines.append(
            f"{r.way:24}{r.size:6}{r.fidelity_weight:6g}{stages}{r.total:9.3f}"
            f"{base.total / r.total:7.2f}{r.calls:7}{r.seconds['denoise'] / r.calls:9.4f}"
            f"{r.first_seconds:8.1f}{r.peak_memory_bytes / 1e9:9.2f}"
        )
        share = "".join(f"{r.seconds[stage] / r.total:9.0%}" for stage in STAGES)
        lines.append(f"{'':36}{share}" + (f"   decode {times:.2f} x w = 0" if times else ""))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model(parser)
    parser.add_argument("--sizes", nargs="+", type=int, default=[512], help="sides of results, px")
    parser.add_argument("--w", nargs="+", type=float, default=[0.0, 0.5], help="fidelity weights")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="off")
    parser.add_argument(
        "--compare", action="append", default=[], help="plain, a checkout, or NETWORK=PATH"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    if wrong := [size for size in a.sizes if size % SCALE]:
        parser.error(f"sizes must be multiples of {SCALE}, but {wrong[0]} is not.")
    check_model(parser, a)
    if a.repeats < 1:
        parser.error("there must be a repeat: the first image is not counted.")
    dtype = dtype_of(a)
    compile_: CompileMode = a.compile
    ways = [Way(dtype, dtype, compile=compile_)]
    if "plain" in a.compare:
        ways.insert(0, Way(f"plain {dtype}", dtype, fold=False))
    others = [name for name in a.compare if name != "plain"]
    results: list[Measured] = []
    for size in a.sizes:
        tasks = [
            Task(
                way, a.preset, a.weights, a.device, size, tuple(a.w), a.steps, a.repeats, a.threads
            )
            for way in ways
        ]
        for name in others:
            if Path(name).is_dir():
                results += measure_checkout(Path(name), tasks[0])
            else:
                results += alone(measure_network, NetworkTask(name, tasks[0]))
        for task in tasks:
            results += alone(measure, task)
    if a.json:
        figures = [
            asdict(r) | {"all": r.total, "decode_ratio": times}
            for r, times in zip(results, decoding(results), strict=True)
        ]
        print(json.dumps(figures, indent=2))
    else:
        print(table(results, a.preset))


if __name__ == "__main__":
    main()
