"""What the samplers make of few steps, with the photographs kept aside from training.

    python -m benchmarks.samplers

Two tables over the first `--photographs` of them, each reduced to a quarter and upscaled again
as in `benchmarks.quality`, from one seed:

- PSNR in dB against the original, at fidelity weight 0 and 0.5;
- how far the sampled latent is from what the same noise becomes in the limit of many steps
  (`unipc` with `--limit` of them), relative to its size: the error of the solver alone. For the
  samplers that add no noise; the others have no such limit.

`--save DIR` writes the pictures at fidelity weight 0.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from benchmarks.quality import PHOTOGRAPHS, psnr, read, reduce
from models.options import Options
from models.pipeline import Prepared, StableSR
from models.sampling import drive_all

SAMPLERS = {
    "ddpm": Options(sampler="ddpm"),
    "ddim, eta 1": Options(sampler="ddim"),
    "ddim, eta 0": Options(sampler="ddim", eta=0.0),
    "dpmpp": Options(sampler="dpmpp"),
    "unipc": Options(sampler="unipc"),
}
NOISELESS = ("ddim, eta 0", "dpmpp", "unipc")
WEIGHTS = (0.0, 0.5)


def sampled(sr: StableSR, prepared: Prepared, options: Options) -> Tensor:
    """The latent."""
    [latent] = drive_all([sr.sample(prepared, options)], sr.predict, max_tiles=8)
    return latent


def distance(latent: Tensor, limit: Tensor) -> float:
    return float((latent - limit).norm() / limit.norm())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--photographs", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 10, 20])
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--save", type=Path, help="write the pictures here")
    a = parser.parse_args()
    sr = StableSR.from_preset(a.preset)
    quality: dict[tuple[str, int, float], list[float]] = defaultdict(list)
    off: dict[tuple[str, int], list[float]] = defaultdict(list)
    for path in sorted(PHOTOGRAPHS.glob("*.webp"))[: a.photographs]:
        original = read(path)
        with sr.prepare(reduce(original), Options()) as prepared:
            limit = sampled(sr, prepared, Options(sampler="unipc", steps=a.limit))
            for name, steps in product(SAMPLERS, a.steps):
                latent = sampled(sr, prepared, replace(SAMPLERS[name], steps=steps))
                if name in NOISELESS:
                    off[name, steps].append(distance(latent, limit))
                for w in WEIGHTS:
                    image = sr.decode(prepared, latent, Options(fidelity_weight=w))
                    quality[name, steps, w].append(psnr(image, original))
                    if a.save and w == 0:
                        write(image, a.save / f"{path.stem}-{name.replace(', ', '-')}-{steps}.png")
    print(
        f"PSNR in dB at w = {' and '.join(f'{w:g}' for w in WEIGHTS)}, {a.photographs} photographs"
    )
    heading = "".join(f"{f'{n} steps':>16}" for n in a.steps)
    print(f"{'':14}{heading}")
    for name in SAMPLERS:
        cells = (
            "  ".join(f"{statistics.mean(quality[name, n, w]):.2f}" for w in WEIGHTS)
            for n in a.steps
        )
        print(f"{name:14}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"\nDistance from {a.limit} steps of unipc\n{'':14}{heading}")
    for name in NOISELESS:
        cells = (f"{statistics.mean(off[name, n]):.1%}" for n in a.steps)
        print(f"{name:14}" + "".join(f"{cell:>16}" for cell in cells))


def write(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
    Image.fromarray(pixels.numpy()).save(path)


if __name__ == "__main__":
    main()
