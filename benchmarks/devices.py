"""One image's network calls over several devices, against the first of them alone.

    python -m benchmarks.devices --devices cuda:0,cuda:1 [--preset tiny] [--size 2048]

The same picture and seed go through `StableSR.upscale` on one device, and on all of them
(`models.data_parallel`). Seconds are of the denoising alone: the first device does the rest either
way. Each way has gone once before. Devices that share cores, such as cpu,cpu, show that it
works and not that it helps. If the two results differ by more than one level, the exit status is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe, synchronize
from benchmarks.pictures import Difference, picture
from jobs.settings import Settings
from models.options import Options
from models.pipeline import Progress, StableSR
from models.presets import PRESETS
from worker.images import decode
from worker.loading import load

SCALE = 4


@dataclass(frozen=True)
class Way:
    devices: str
    seconds: float
    """Of denoising"""


@dataclass(frozen=True)
class Measured:
    machine: str
    preset: str
    size: int
    steps: int
    alone: Way
    parallel: Way
    difference: Difference

    @property
    def ratio(self) -> float:
        return self.alone.seconds / self.parallel.seconds


def run(sr: StableSR, image: Tensor, options: Options) -> tuple[float, Tensor]:
    """Seconds between the begins of denoising and decoding, and the image."""
    at: dict[str, float] = {}

    def note(progress: Progress) -> None:
        synchronize(sr.device)
        at.setdefault(progress.stage, time.perf_counter())

    result = sr.upscale(image, options, note)
    return at["decode"] - at["denoise"], result


def measured(settings: Settings, image: Tensor, steps: int) -> tuple[Way, Tensor]:
    sr = load(settings, jobs=1)
    sr.compile()
    run(sr, image, Options(scale=SCALE, steps=1, seed=1))
    seconds, result = run(sr, image, Options(scale=SCALE, steps=steps, seed=1))
    return Way(", ".join(map(str, sr.denoiser.devices)), seconds), result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--devices", required=True, help="by commas")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--size", type=int, default=2048, help="side of the result, px")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="off")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    a = parser.parse_args()
    first = a.devices.split(",")[0]
    image = decode(picture(a.size // SCALE, 1), a.size**2).rgb
    given = {"preset": a.preset, "compile": a.compile, "slots": 1}
    alone, one = measured(Settings(device=first, **given), image, a.steps)
    parallel, other = measured(Settings(devices=a.devices, **given), image, a.steps)
    levels = [(255 * x[0].permute(1, 2, 0)).round().byte().numpy() for x in (one, other)]
    m = Measured(
        describe(torch.device(first)),
        a.preset,
        a.size,
        a.steps,
        alone,
        parallel,
        Difference.of([(levels[0], levels[1])]),
    )
    print(m.machine)
    print(f"{m.preset}, {m.size} x {m.size}, {m.steps} steps, seconds of denoising")
    for way in (alone, parallel):
        print(f"{way.devices:24}{way.seconds:9.2f}{alone.seconds / way.seconds:7.2f}")
    print(f"largest difference of the results: {m.difference.largest} levels")
    if a.json:
        a.json.write_text(json.dumps({**asdict(m), "ratio": m.ratio}, indent=2) + "\n")
    return 0 if m.difference.largest <= 1 else 1


if __name__ == "__main__":
    sys.exit(main())
