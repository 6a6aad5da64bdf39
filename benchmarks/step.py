"""Seconds per tile and step: encoder and UNet on one batch of tiles.

    python -m benchmarks.step --preset stablesr-512 --weights random
    python -m benchmarks.step --preset stablesr-512 --weights random --compare eager

Every way of computing runs in a process of its own, so that its peak memory is its own. The ratio
is of medians from one invocation; the processes run one after the other. Beside wall-clock seconds
stand the processor's, divided by the threads: on a machine that others use as well they say more
(start it with OMP_WAIT_POLICY=PASSIVE, or threads that wait are counted too).

`--compare eager` is the optimised call, folded and compiled, against the same networks without
either, in float32 and with float32 weights under bfloat16 autocast, at batch 1 and 4.

A way whose call takes longer than `--limit` is ended, and stands in the table as slower than that:
a processor without instructions for bfloat16 is a hundred times as slow at autocast's convolutions.
Compiling is not limited, nor the first call, where that compiles.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import repeat
from multiprocessing.connection import Connection

import torch

from benchmarks.machine import describe, peak_memory, synchronize
from benchmarks.model import DTYPES, check_model, load
from models.compiler import CompileMode, CompileOptions
from models.pipeline import StableSR
from models.presets import PRESETS, Preset
from models.sampling import StepRequest


@dataclass(frozen=True)
class Way:
    """How a call is computed."""

    name: str
    dtype: str
    """Of the weights"""
    fold: bool = True
    compile: CompileMode = "off"
    autocast: bool = False
    """Whether what can be is computed in bfloat16 all the same"""


EAGER = (
    Way("eager fp32", "fp32", fold=False),
    Way("eager bf16 autocast", "fp32", fold=False, autocast=True),
)


@dataclass(frozen=True)
class Task:
    """One way at one batch size."""

    way: Way
    preset: str
    weights: str
    device: str
    batch: int
    repeats: int
    threads: int
    limit: float
    """Seconds that a call may take, one that compiles excepted"""


@dataclass(frozen=True)
class Endless:
    """A way of which one call took longer than it may."""

    way: str
    batch: int
    limit: float
    """Seconds; the call took more"""


@dataclass(frozen=True)
class Measured:
    """What one way took."""

    way: str
    batch: int
    seconds_per_tile_step: float
    """Median over the repeats of a call's seconds, divided by the batch."""
    fastest: float
    slowest: float
    processor_seconds: float
    """The least of the process's processor time of a call, divided by batch and threads."""
    first_seconds: float
    """The first call, compiling included; not in the others."""
    eager_calls: int
    """That were to be compiled and were not."""
    peak_memory_bytes: int
    parameters: int
    machine: str


def loaded(way: Way, preset: str, weights: str, device: str) -> StableSR:
    """The model that computes so."""
    compiling = CompileOptions(way.compile)
    return load(preset, weights, device, DTYPES[way.dtype], fold=way.fold, compiling=compiling)


def measure(task: Task, called: Callable[[], None] = lambda: None) -> Measured:
    """Runs one way in this process; the first call is not counted. `called` hears of each end, and
    before the first call that everything is loaded."""
    torch.set_num_threads(task.threads)
    preset = PRESETS[task.preset]
    sr = loaded(task.way, task.preset, task.weights, task.device)
    channels, side = sr.networks.config.unet.in_channels, preset.tile
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(2, task.batch, channels, side, side, generator=generator).to(sr.device)
    taken, worked = [], []
    for step in range(task.repeats + 1):
        request = StepRequest(tiles[0], tiles[1], 999 - step, None, step, 1)
        synchronize(sr.device)
        called()
        began, busy = time.perf_counter(), time.process_time()
        with torch.autocast(sr.device.type, torch.bfloat16) if task.way.autocast else nullcontext():
            sr.predict([request])
        synchronize(sr.device)
        taken.append((time.perf_counter() - began) / task.batch)
        worked.append((time.process_time() - busy) / task.batch / task.threads)
    counted = taken[1:]
    networks = (sr.networks.unet, sr.networks.encoder)
    return Measured(
        way=task.way.name,
        batch=task.batch,
        seconds_per_tile_step=statistics.median(counted),
        fastest=min(counted),
        slowest=max(counted),
        processor_seconds=min(worked[1:]),
        first_seconds=taken[0] * task.batch,
        eager_calls=sum(sr.denoiser.eager_calls.values()),
        peak_memory_bytes=peak_memory(sr.device),
        parameters=sum(p.numel() for n in networks for p in n.parameters()),
        machine=describe(sr.device),
    )


def _child(task: Task, parent: Connection) -> None:
    parent.send(measure(task, lambda: parent.send(None)))


def limits(task: Task) -> Iterator[float | None]:
    """Seconds to wait for all that is loaded, and then for the end of each call; None is any.

    Neither loading nor compiling, which is part of the first call, says how fast a way is.
    """
    yield None
    if task.way.compile != "off":
        yield None
    yield from repeat(task.limit)


def measured(task: Task) -> Measured | Endless:
    """`measure` in a process of its own, which is ended with a call that takes too long.

    Raises:
        ChildProcessError: it ended without a result; it has printed why.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(task, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        for limit in limits(task):
            if not ours.poll(limit):
                break
            result = ours.recv()
            if isinstance(result, Measured):
                return result
        return Endless(task.way.name, task.batch, task.limit)
    except EOFError:
        raise ChildProcessError(f"{task.way.name} at batch {task.batch} did not end.") from None
    finally:
        process.kill()
        process.join()


def table(results: list[Measured | Endless], preset: Preset) -> str:
    """The results for a person, ratios against the first way at the same batch."""
    known = [r for r in results if isinstance(r, Measured)]
    lines = [
        f"{preset.name}: one {preset.tile} x {preset.tile} tile and step, encoder and UNet",
        f"{'':24}{'batch':>6}{'median s':>10}{'min s':>9}{'max s':>9}{'ratio':>7}"
        f"{'CPU s':>9}{'ratio':>7}{'first s':>9}{'peak GB':>9}",
    ]
    if known:
        lines[0] += f", {known[0].parameters / 1e6:.0f} M parameters"
        lines.insert(0, known[0].machine)
    against: dict[int, Measured] = {}
    for r in results:
        base = against.get(r.batch)
        if isinstance(r, Endless):
            least = r.limit / r.batch
            line = f"{r.way:24}{r.batch:6}{f'> {least:.4g}':>10}"
            if base is not None:
                line += f"{f'< {base.seconds_per_tile_step / least:.2f}':>25}"
            lines.append(line)
            continue
        base = against.setdefault(r.batch, r)
        lines.append(
            f"{r.way:24}{r.batch:6}{r.seconds_per_tile_step:10.4f}{r.fastest:9.4f}{r.slowest:9.4f}"
            f"{base.seconds_per_tile_step / r.seconds_per_tile_step:7.2f}"
            f"{r.processor_seconds:9.4f}{base.processor_seconds / r.processor_seconds:7.2f}"
            f"{r.first_seconds:9.1f}{r.peak_memory_bytes / 1e9:9.2f}"
            + (f"  {r.eager_calls} calls not compiled" if r.eager_calls else "")
        )
    return "\n".join(lines)


def ways(dtypes: Iterable[str], compile_: CompileMode, *, compare: bool) -> list[Way]:
    """What is measured, what the others are measured against first."""
    if not compare:
        return [Way(dtype, dtype, compile=compile_) for dtype in dtypes]
    return [*EAGER, *(Way(f"optimised {dtype}", dtype, compile=compile_) for dtype in dtypes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="stablesr-512")
    parser.add_argument("--weights", choices=("random", "preset"), default="random")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--compare", choices=("eager",), help="against the plain networks")
    parser.add_argument("--compile", choices=("auto", "on", "off"), help="on where it compares")
    parser.add_argument("--batch", nargs="+", type=int, help="1, or 1 4 where it compares")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--limit",
        type=float,
        default=900,
        help="seconds that a call may take, one that compiles excepted",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    a = parser.parse_args()
    check_model(parser, a)
    compare = a.compare is not None
    compile_: CompileMode = a.compile or ("on" if compare else "off")
    results: list[Measured | Endless] = []
    for batch in a.batch or ([1, 4] if compare else [1]):
        for way in ways(a.dtypes, compile_, compare=compare):
            task = Task(way, a.preset, a.weights, a.device, batch, a.repeats, a.threads, a.limit)
            results.append(measured(task))
            if not a.json:
                print(said(results[-1]), flush=True)
    if a.json:
        print(json.dumps([asdict(r) for r in results], indent=2))
    else:
        print(table(results, PRESETS[a.preset]))


def said(result: Measured | Endless) -> str:
    """One line, while the others are still to come."""
    if isinstance(result, Endless):
        took = f"a call took longer than {result.limit:g} s"
    else:
        took = f"{result.seconds_per_tile_step:.4f} s a tile"
    return f"{result.way}, batch {result.batch}: {took}"


if __name__ == "__main__":
    main()
