"""What approximations save and what they cost, on photographs that were never trained on.

    python -m benchmarks.approximations [--photographs 4]

The test photographs, degraded as in the paper and enlarged four times at w = 0, so that the
diffusion alone is judged; two groups, each against its first row in the same run:

    fewer steps than the preset's
    less overlap than half a tile, with tiles of 32 cells, so that a picture of 512 px has several

Seconds are of denoising, the median over the photographs; the difference is the mean over all
values of the results, in levels of 255.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import describe, synchronize
from evaluation.figures.variants import with_tile
from evaluation.metrics import BORDER, offline_scores
from evaluation.pictures import Pixels, degraded, pixels_of, read, tensor_of
from models.options import Options
from models.pipeline import Progress, StableSR
from models.presets import PRESETS

PHOTOGRAPHS = Path(__file__).parents[1] / "tests" / "photographs"
SCALE = 4


@dataclass(frozen=True)
class Row:
    """One setting, over all photographs."""

    group: str
    name: str
    seconds: float
    ratio: float
    """How many times as fast as the group's first row"""
    scores: dict[str, float]
    difference: float
    """To the group's first row"""


@dataclass(frozen=True)
class Way:
    group: str
    name: str
    sr: StableSR
    options: Options


def ways(sr: StableSR) -> list[Way]:
    """In their groups, the exact one first."""
    few, tiles = sr.preset.steps, with_tile(sr, 32)
    made = [
        Way("steps", f"{n} steps", sr, Options(fidelity_weight=0, steps=n))
        for n in (few, *(n for n in (few // 2, few // 4) if n))
    ]
    made += [
        Way("overlap", f"{n} of 32 cells", tiles, Options(fidelity_weight=0, tile_overlap=n))
        for n in (16, 8, 4, 0)
    ]
    return made


def upscaled(way: Way, image: Tensor) -> tuple[float, Pixels]:
    """Seconds of denoising, and the result."""
    at: dict[str, float] = {}

    def note(progress: Progress) -> None:
        synchronize(way.sr.device)
        at.setdefault(progress.stage, time.perf_counter())

    result = way.sr.upscale(image, way.options, note)
    return at["decode"] - at["denoise"], pixels_of(result)


def measure(sr: StableSR, photographs: dict[str, Pixels]) -> list[Row]:
    """Way after way, over all photographs."""
    rows: list[Row] = []
    exact: dict[str, tuple[float, list[Pixels]]] = {}
    inputs = {n: tensor_of(degraded(p, n, SCALE, "paper", 0)) for n, p in photographs.items()}
    for way in ways(sr):
        made = [upscaled(way, image) for image in inputs.values()]
        seconds = statistics.median(taken for taken, _ in made)
        results = [pixels for _, pixels in made]
        base, wanted = exact.setdefault(way.group, (seconds, results))
        pairs = list(zip(results, wanted, strict=True))
        apart = [float(abs(one.astype(int) - other.astype(int)).mean()) for one, other in pairs]
        found = [
            offline_scores(pixels, original, BORDER)
            for pixels, original in zip(results, photographs.values(), strict=True)
        ]
        scores = {name: statistics.fmean(one[name] for one in found) for name in found[0]}
        rows.append(
            Row(
                way.group, way.name, seconds, base / seconds, scores, float(statistics.fmean(apart))
            )
        )
        print(line(rows[-1]), flush=True)
    return rows


def line(row: Row) -> str:
    scores = "".join(f"{value:9.3f}" for value in row.scores.values())
    seconds = f"{row.seconds:8.2f}{row.ratio:7.2f}"
    return f"{row.group:10}{row.name:24}{seconds}{scores}{row.difference:8.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photographs", type=int, default=4, help="how many")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="tiny")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    a = parser.parse_args()
    sr = StableSR.from_preset(a.preset, a.device)
    paths = sorted(PHOTOGRAPHS.glob("*.webp"))[: a.photographs]
    photographs = {path.stem: read(path) for path in paths}
    print(describe(sr.device))
    print(f"{a.preset}, {len(paths)} photographs, w = 0")
    print(f"{'':34}{'seconds':>8}{'ratio':>7}{'psnr':>9}{'ssim':>9}{'niqe':>9}{'differ':>8}")
    rows = measure(sr, photographs)
    if a.json:
        figures = {"rows": [asdict(row) for row in rows]}
        a.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
