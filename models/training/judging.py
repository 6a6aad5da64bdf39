"""The set that results are judged on: held-out photographs and their degraded selves, in files.

    python -m models.training.judging photographs/held-out judged [--degradation paper] [--seed 0]

Writes `judged/hr/NAME.png`, 512 x 512, and `judged/lr/NAME.png`, 128 x 128. What a photograph
becomes follows from the seed and its name alone, so that one more changes none of the others.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from models.training.degradation import degrade
from models.training.errors import NoPhotographs
from models.training.pairs import NAMED, stream

__all__ = ["main", "write_judged"]

_SUFFIXES = (".png", ".webp", ".jpg")


def write_judged(
    photographs: Path, out: Path, *, degradation: str = "paper", scale: int = 4, seed: int = 0
) -> int:
    """Writes both folders; returns how many photographs there are.

    Args:
        degradation: a name of `models.training.pairs.NAMED`, or `bicubic`.

    Raises:
        NoPhotographs: there are none in the folder.
        ValueError: a side is no multiple of the scale.
    """
    paths = sorted(p for p in photographs.glob("*") if p.suffix in _SUFFIXES)
    if not paths:
        raise NoPhotographs(f"There is no photograph in {photographs}.")
    for path in paths:
        with Image.open(path) as opened:
            pixels = np.array(opened.convert("RGB"))
        high = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        if degradation == "bicubic":
            low = F.interpolate(high, scale_factor=1 / scale, mode="bicubic", antialias=True)
        else:
            generator = torch.Generator().manual_seed(stream(seed, path.stem))
            low = degrade(high, scale, generator=generator, settings=NAMED[degradation])
        _write(high, out / "hr" / f"{path.stem}.png")
        _write(low.clamp(0, 1), out / "lr" / f"{path.stem}.png")
    return len(paths)


def _write(image: Tensor, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).numpy()
    aside = path.with_name(f".{path.name}")
    Image.fromarray(pixels).save(aside, "PNG")
    aside.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m models.training.judging")
    parser.add_argument("photographs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--degradation", default="paper", choices=(*NAMED, "bicubic"))
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args(arguments)
    try:
        count = write_judged(
            parsed.photographs,
            parsed.out,
            degradation=parsed.degradation,
            scale=parsed.scale,
            seed=parsed.seed,
        )
    except (NoPhotographs, ValueError) as problem:
        print(problem, file=sys.stderr)
        return 1
    print(f"{count} photographs in {parsed.out / 'hr'} and {parsed.out / 'lr'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
