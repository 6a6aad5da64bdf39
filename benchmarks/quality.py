"""Scores of results against their originals, and what faster settings cost.

    python -m benchmarks.quality
    python -m benchmarks.quality --degrade paper --w 0 --steps 4 2 1
    python -m benchmarks.quality --w 0 --samplers ddpm dpmpp unipc --steps 10 20
    python -m benchmarks.quality --w 0 --size 1024 --overlap 32 16 8 0
    python -m benchmarks.quality --w 0.5 --size 192 --compare ../other-checkout

Test photographs that no training has seen are reduced to a quarter (bicubic with antialiasing, or
the paper's degradation) and upscaled again with every combination of the options; larger ones are
several photographs beside each other. Scores are means, PSNR and SSIM of luma, and `differing by`
is the mean difference to the first combination's results. Seconds are the median of whole images.
`--compare` puts what another checkout of this project gives before, with its own weights.
"""

from __future__ import annotations

import statistics
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import get_args

from benchmarks.checkouts import measure_checkout
from benchmarks.images import SCALE, Difference, Pixels, mosaic
from benchmarks.model import Variant, add_model, load, model_of
from benchmarks.report import command_parser, publish
from benchmarks.results import Measurement, Result, Unit
from evaluation.images import Degradation, degrade_pixels, pixels_of, tensor_of
from evaluation.metrics import BORDER, METRICS, offline_scores
from evaluation.niqe import BLOCK
from models.parameters import SamplerName, UpscaleParameters, preset_parameters
from models.pipeline import StableSR
from training.degradation import DEGRADATIONS

MIN_SIZE = 2 * BLOCK
"""px; smaller ones have no NIQE."""


@dataclass(frozen=True)
class Pair:
    """An original, and its degraded quarter."""

    original: Pixels
    input: Pixels


def pairs_of(count: int, size: int, kind: Degradation) -> list[Pair]:
    """The first images of this side (px)."""
    originals = [mosaic(size, first=number) for number in range(count)]
    return [
        Pair(pixels, degrade_pixels(pixels, str(number), SCALE, kind, 0))
        for number, pixels in enumerate(originals)
    ]


def name_of(options: UpscaleParameters, overlap: int) -> str:
    """The options in words; `overlap` is the preset's."""
    own = options.tile_overlap
    end = "" if own == overlap else f", tiles overlap by {own}"
    return f"{options.sampler}, {options.steps} steps, w = {options.fidelity_weight:g}{end}"


def measure(
    sr: StableSR, pairs: Sequence[Pair], combinations: Sequence[UpscaleParameters]
) -> list[Measurement]:
    """Every combination over all images."""
    measurements: list[Measurement] = []
    first: list[Pixels] = []
    for options in combinations:
        seconds, results = [], []
        for pair in pairs:
            start = time.perf_counter()
            results.append(pixels_of(sr.upscale(tensor_of(pair.input), options)))
            seconds.append(time.perf_counter() - start)
        first = first or results
        scores = [
            offline_scores(result, pair.original, BORDER)
            for result, pair in zip(results, pairs, strict=True)
        ]
        difference = Difference.of(zip(results, first, strict=True))
        figures: list[tuple[str, float, Unit]] = [
            ("an image", statistics.median(seconds), "s"),
            *(
                (METRICS[name].label, statistics.fmean(score[name] for score in scores), "score")
                for name in scores[0]
            ),
            ("differing by", difference.mean, "levels"),
        ]
        measurements += [
            Measurement(name_of(options, sr.preset.overlap), "", quantity, value, unit)
            for quantity, value, unit in figures
        ]
    return measurements


def main() -> None:
    parser = command_parser(__doc__)
    add_model(parser)
    parser.add_argument("--images", type=int, default=4, help="how many")
    parser.add_argument("--size", type=int, default=512, help="side of the originals, px")
    parser.add_argument("--degrade", choices=tuple(DEGRADATIONS), default="bicubic")
    parser.add_argument("--w", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[None], help="the preset's")
    parser.add_argument("--samplers", nargs="+", choices=get_args(SamplerName), default=["ddpm"])
    parser.add_argument(
        "--overlap", type=int, nargs="+", default=[None], help="of tiles, latent pixels"
    )
    other = ArgumentParser(add_help=False)
    for one in (other, parser):
        one.add_argument("--compare", type=Path, action="append", default=[], help="a checkout")
    _, arguments = other.parse_known_args()
    a = parser.parse_args()
    if a.images < 1 or a.size < MIN_SIZE or a.size % SCALE:
        parser.error(f"there must be an image of at least {MIN_SIZE} px, a multiple of {SCALE}.")
    model = model_of(parser, a)
    sr = load(model, Variant(""))
    combinations = [
        preset_parameters(
            sr.preset,
            fidelity_weight=w,
            steps=steps,
            sampler=sampler,
            tile_overlap=overlap,
        )
        for overlap, sampler, steps, w in product(a.overlap, a.samplers, a.steps, a.w)
    ]
    pairs = pairs_of(a.images, a.size, a.degrade)
    measurements = [m for path in a.compare for m in measure_checkout(path, "quality", arguments)]
    measurements += measure(sr, pairs, combinations)
    subject = f"{model.preset}, {a.images} photographs of {a.size} px, degraded: {a.degrade}"
    publish(Result.of("benchmarks.quality", subject, model.device, measurements), a.json)


if __name__ == "__main__":
    main()
