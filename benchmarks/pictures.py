"""Pictures to upscale, and how far two results are from each other."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

__all__ = ["Difference", "Pixels", "decoded", "picture"]

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""(H, W, 3)"""


def picture(side: int, seed: int) -> bytes:
    """A photograph's like as a PNG file: smooth, with grain; another one for each seed."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((1, 3, 16, 16), generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    image = (smooth + 0.05 * torch.randn((1, 3, side, side), generator=generator)).clamp(0, 1)
    levels = (image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def decoded(file: bytes) -> Pixels:
    """The 8-bit pixels of an image file."""
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


@dataclass(frozen=True)
class Difference:
    """Between pairs of pictures, in 8-bit levels over all values of all pairs."""

    largest: int
    mean: float
    differing: float
    """Fraction of the values that are not equal"""

    @classmethod
    def of(cls, pairs: Iterable[tuple[Pixels, Pixels]]) -> Difference:
        """Raises ValueError when two pictures have different sizes, or there are no pairs."""
        largest = total = unequal = count = 0
        for one, other in pairs:
            if one.shape != other.shape:
                raise ValueError(f"pictures of {one.shape} and {other.shape} cannot be compared")
            levels = np.abs(one.astype(np.int16) - other.astype(np.int16))
            largest = max(largest, int(levels.max()))
            total += int(levels.sum(dtype=np.int64))
            unequal += int(np.count_nonzero(levels))
            count += levels.size
        if not count:
            raise ValueError("there are no pictures to compare")
        return cls(largest, total / count, unequal / count)
