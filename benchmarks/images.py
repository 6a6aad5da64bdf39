"""Images to upscale, and how far two results are from each other."""

from __future__ import annotations

import io
from argparse import ArgumentTypeError
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3)"""

SCALE = 4
"""Of every benchmark: sizes are the sides of results."""

PHOTOGRAPHS = Path(__file__).parents[1] / "tests" / "photographs"


def result_side(text: str) -> int:
    """Of a result, px; an option's type."""
    if not text.isdecimal() or not int(text) or int(text) % SCALE:
        raise ArgumentTypeError(f"sizes must be multiples of {SCALE}, but {text} is not.")
    return int(text)


def synthetic_png(side: int, seed: int) -> bytes:
    """A PNG file like a photograph's: smooth, with grain; another one for each seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, 16, 16), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    image = (smooth + 0.05 * torch.randn((1, 3, side, side), generator=generator)).clamp(0, 1)
    levels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def mosaic(side: int, first: int = 0) -> Pixels:
    """(side, side, 3) of the test photographs in turn, from number `first` on."""
    paths = sorted(PHOTOGRAPHS.glob("*.webp"))
    height, width = pixels_of_file(paths[0].read_bytes()).shape[:2]
    rows, columns = -(-side // height), -(-side // width)
    tiles = [
        pixels_of_file(paths[(first + i) % len(paths)].read_bytes()) for i in range(rows * columns)
    ]
    lines = [np.concatenate(tiles[r * columns : (r + 1) * columns], axis=1) for r in range(rows)]
    return np.ascontiguousarray(np.concatenate(lines)[:side, :side])


def pixels_of_file(file: bytes) -> Pixels:
    """The 8-bit pixels of an image file."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Difference:
    """Between pairs of images, in 8-bit levels over all values of all pairs."""

    largest: int
    mean: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[Pixels, Pixels]]) -> Difference:
        """Raises ValueError when two images have different sizes, or there are no pairs."""
        largest = total = count = 0
        for one, other in pairs:
            if one.shape != other.shape:
                raise ValueError(f"Images of {one.shape} and {other.shape} cannot be compared.")
            levels = np.abs(one.astype(np.int16) - other.astype(np.int16))
            largest = max(largest, int(levels.max()))
            total += int(levels.sum(dtype=np.int64))
            count += levels.size
        if not count:
            raise ValueError("There are no images to compare.")
        return cls(largest, total / count)
