"""Seconds per tile and step: encoder and UNet on one batch of tiles.

    python -m benchmarks.step --preset stablesr-512 --weights random

Every precision runs in a process of its own, so that its peak memory is its own. The ratio is
of medians from one invocation; the processes run one after the other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from dataclasses import asdict, dataclass

import torch

from benchmarks.machine import describe, peak_memory, synchronize
from models.config import ModelConfig
from models.pipeline import StableSR
from models.presets import PRESETS, Preset
from models.sampling import StepRequest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Task:
    """One precision at one batch size."""

    preset: str
    weights: str
    device: str
    dtype: str
    batch: int
    repeats: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """What one precision took."""

    dtype: str
    batch: int
    seconds_per_tile_step: float
    """Median over the repeats of a call's seconds, divided by the batch."""
    fastest: float
    slowest: float
    peak_memory_bytes: int
    parameters: int
    machine: str


def load(task: Task, preset: Preset) -> StableSR:
    """The preset's weights, or networks of its size with random ones."""
    dtype = DTYPES[task.dtype]
    if task.weights == "random":
        return StableSR.with_random_weights(ModelConfig(), preset, task.device, dtype)
    return StableSR.from_preset(preset.name, task.device, dtype)


def measure(task: Task) -> Measured:
    """Runs one precision in this process; the first call is not counted."""
    torch.set_num_threads(task.threads)
    preset = PRESETS[task.preset]
    sr = load(task, preset)
    channels, side = sr.networks.config.unet.in_channels, preset.tile
    generator = torch.Generator().manual_seed(0)
    tiles = torch.randn(2, task.batch, channels, side, side, generator=generator).to(sr.device)
    context = sr.networks.context.float().expand(task.batch, -1, -1)
    request = StepRequest(tiles[0], tiles[1], 500, context, 0, 1)
    taken = []
    for _ in range(task.repeats + 1):
        synchronize(sr.device)
        began = time.perf_counter()
        sr.predict([request])
        synchronize(sr.device)
        taken.append((time.perf_counter() - began) / task.batch)
    counted = taken[1:]
    networks = (sr.networks.unet, sr.networks.encoder)
    return Measured(
        dtype=task.dtype,
        batch=task.batch,
        seconds_per_tile_step=statistics.median(counted),
        fastest=min(counted),
        slowest=max(counted),
        peak_memory_bytes=peak_memory(sr.device),
        parameters=sum(p.numel() for n in networks for p in n.parameters()),
        machine=describe(sr.device),
    )


def table(results: list[Measured], preset: Preset) -> str:
    """The results for a person, ratios against the first precision."""
    first = results[0]
    lines = [
        first.machine,
        f"{preset.name}: one {preset.tile} x {preset.tile} tile and step, encoder and UNet, "
        f"{first.parameters / 1e6:.0f} M parameters, batch {first.batch}",
        f"{'':6}{'median s':>10}{'min s':>9}{'max s':>9}{'ratio':>8}{'peak GB':>9}",
    ]
    for r in results:
        ratio = first.seconds_per_tile_step / r.seconds_per_tile_step
        lines.append(
            f"{r.dtype:6}{r.seconds_per_tile_step:10.3f}{r.fastest:9.3f}{r.slowest:9.3f}"
            f"{ratio:8.2f}{r.peak_memory_bytes / 1e9:9.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=tuple(PRESETS), default="stablesr-512")
    parser.add_argument("--weights", choices=("random", "preset"), default="random")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(DTYPES), default=["fp32", "bf16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    a = parser.parse_args()
    if a.preset == "tiny" and a.weights == "random":
        parser.error("tiny comes with its weights: use --weights preset.")
    context = multiprocessing.get_context("spawn")
    results = []
    for dtype in a.dtypes:
        task = Task(a.preset, a.weights, a.device, dtype, a.batch, a.repeats, a.threads)
        with context.Pool(1) as pool:
            results.append(pool.apply(measure, (task,)))
    if a.json:
        print(json.dumps([asdict(r) for r in results], indent=2))
    else:
        print(table(results, PRESETS[a.preset]))


if __name__ == "__main__":
    main()
