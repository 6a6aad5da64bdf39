"""Fidelity of the embedded weights over the photographs kept aside from training.

    python -m benchmarks.quality

Each photograph (512 x 512) is reduced to a quarter by bicubic interpolation with antialiasing,
rounded to 8 bits and upscaled again. PSNR is over RGB, against the original, in dB. `--save DIR`
writes sheets: input as pixels, bicubic, each fidelity weight, original.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.options import Options
from models.pipeline import StableSR

PHOTOGRAPHS = Path(__file__).parents[1] / "tests" / "photographs"


def read(path: Path) -> Tensor:
    """(1, 3, H, W) in [0, 1]."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def reduce(image: Tensor) -> Tensor:
    """A quarter of each side, on 8-bit levels."""
    small = F.interpolate(image, scale_factor=0.25, mode="bicubic", antialias=True)
    return (small.clamp(0, 1) * 255).round() / 255


def psnr(image: Tensor, original: Tensor) -> float:
    """Peak signal-to-noise ratio in dB over all channels, of images rounded to 8 bits."""
    rounded = (image * 255).round() / 255
    return -10 * math.log10(max(float((rounded - original).square().mean()), 1e-10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--photographs", type=Path, default=PHOTOGRAPHS)
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.5, 1.0], metavar="W")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--color-fix", default="adain", choices=("adain", "wavelet", "none"))
    parser.add_argument("--save", type=Path, help="write a sheet for each photograph here")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    sr = StableSR.from_preset(a.preset)
    columns = ["bicubic", *(f"w={w:g}" for w in a.weights)]
    rows: dict[str, list[float]] = {}
    seconds = []
    for path in sorted(p for p in a.photographs.iterdir() if p.suffix in (".webp", ".png")):
        original = read(path)
        small = reduce(original)
        images = [F.interpolate(small, size=original.shape[2:], mode="bicubic").clamp(0, 1)]
        for w in a.weights:
            began = time.perf_counter()
            options = Options(fidelity_weight=w, steps=a.steps, color_fix=a.color_fix)
            images.append(sr.upscale(small, options))
            seconds.append(time.perf_counter() - began)
        rows[path.stem] = [psnr(i, original) for i in images]
        if a.save:
            a.save.mkdir(parents=True, exist_ok=True)
            pixels = F.interpolate(small, size=original.shape[2:], mode="nearest")
            sheet = torch.cat([pixels, *images, original], dim=3)[0].permute(1, 2, 0)
            Image.fromarray((sheet * 255).round().byte().numpy()).save(a.save / f"{path.stem}.png")
    means = [statistics.mean(r[i] for r in rows.values()) for i in range(len(columns))]
    if a.json:
        print(json.dumps({"columns": columns, "psnr_db": rows, "mean": means}, indent=2))
        return
    print(f"PSNR in dB, {len(rows)} photographs, {statistics.median(seconds):.1f} s an image")
    print(f"{'':36}" + "".join(f"{c:>9}" for c in columns))
    for name, values in [*rows.items(), ("mean", means)]:
        print(f"{name:36}" + "".join(f"{v:9.2f}" for v in values))


if __name__ == "__main__":
    main()
