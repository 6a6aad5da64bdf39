"""Training pairs: crops of photographs and their degraded selves.

Paper, section 4.1. All follows from the seed and the number of the batch: a resumed run sees what
an uninterrupted one sees.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training.config import DataSettings, NoPhotographs
from training.degradation import DEGRADATIONS, degrade

Batch = dict[str, Tensor]
"""Tensors by name, of one length."""

SCALE = 4
"""Of all that is trained: a degraded image has a quarter of the side."""


def stream(seed: int, name: str, rank: int = 0) -> int:
    """A seed of its own for each use and process of a run."""
    return random.Random(f"{seed}/{name}/{rank}").getrandbits(31)


def generator_of(seed: int, number: int, device: torch.device | str = "cpu") -> torch.Generator:
    """What a batch of this number is drawn with."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + number)


def upsample(low: Tensor, scale: int = SCALE) -> Tensor:
    """Degraded images as the pipeline upsamples its input, in [0, 1]."""
    return F.interpolate(low, scale_factor=scale, mode="bicubic").clamp(0, 1)


def turn(image: Tensor, way: int) -> Tensor:
    """One of eight orientations of (..., H, W)."""
    image = image.rot90(way % 4, (-2, -1))
    return image.flip(-1) if way >= 4 else image


def read_photographs(folder: Path, size: int, sizes: Sequence[float] = (1.0,)) -> list[Tensor]:
    """All PNG, JPEG and WebP files of a folder, by name, reduced to each fraction of `sizes`:
    uint8 (H, W, 3), those with a side below `size` left out.

    Raises:
        NoPhotographs: the folder does not exist, or holds none of that size.
    """
    if not folder.is_dir():
        raise NoPhotographs(
            f"There is no folder {folder}: make it with `python -m tools.photographs "
            f"{folder.parent}`, or name your own photographs."
        )
    images = []
    for path in sorted(folder.glob("[!.]*")):
        if path.suffix not in (".png", ".jpg", ".webp"):
            continue
        with Image.open(path) as file:
            for fraction in sizes:
                sides = round(file.width * fraction), round(file.height * fraction)
                if min(sides) >= size:
                    image = file.convert("RGB")
                    if sides != image.size:
                        image = image.resize(sides, Image.Resampling.LANCZOS)
                    images.append(torch.from_numpy(np.array(image)))
    if not images:
        raise NoPhotographs(f"{folder} holds no photograph of at least {size} x {size} pixels.")
    return images


class Pairs:
    """Batches by number of photographs, and of their degraded selves: random square crops of
    `crop` pixels a side, turned at random, made on the device; the seed is this use's, of `stream`.

    An image, uint8 (H, W, 3), is drawn with a chance proportional to its number of pixels, so every
    place is about equally likely. Of `candidates` places the one with the most detail is kept: with
    2 or more, skies and blurred backgrounds become rarer.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        settings: DataSettings,
        *,
        crop: int,
        batch: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self._images, self._settings, self._seed = images, settings, seed
        self._areas = torch.tensor([float(i.shape[0] * i.shape[1]) for i in images])
        self._degradations = {**DEGRADATIONS, **settings.degradations}
        self._size, self._batch, self._device = crop, batch, device

    def high(self, number: int) -> Tensor:
        """Photographs alone: float32 (batch, 3, crop, crop) in [0, 1]."""
        generator, candidates = generator_of(self._seed, number), self._settings.candidates
        places = self._batch * candidates
        numbers = torch.multinomial(self._areas, places, replacement=True, generator=generator)
        corners = torch.rand(places, 2, generator=generator).tolist()
        ways = torch.randint(0, 8, (self._batch,), generator=generator).tolist()
        crops = torch.stack(
            [self._crop(i, y, x) for i, (y, x) in zip(numbers.tolist(), corners, strict=True)]
        ).to(self._device)
        if candidates > 1:
            best = _detail(crops).view(self._batch, candidates).argmax(dim=1)
            first = torch.arange(0, places, candidates, device=self._device)
            crops = crops[first + best]
        images = crops.permute(0, 3, 1, 2).float() / 255
        return torch.stack([turn(image, way) for image, way in zip(images, ways, strict=True)])

    def _crop(self, index: int, y: float, x: float) -> Tensor:
        image = self._images[index]
        top = int(y * (image.shape[0] - self._size + 1))
        left = int(x * (image.shape[1] - self._size + 1))
        return image[top : top + self._size, left : left + self._size]

    def at(self, number: int) -> Batch:
        """`high`, and `low`: (batch, 3, crop / 4, crop / 4) on 8-bit levels."""
        high = self.high(number)
        generator = generator_of(self._seed, number, self._device)
        draw, mix = random.Random(generator.initial_seed()), self._settings.mix
        names = draw.choices(list(mix), list(mix.values()), k=len(high))
        lows = [
            degrade(image, SCALE, generator=generator, settings=self._degradations[name])
            for image, name in zip(torch.split(high, 1), names, strict=True)
        ]
        return {"high": high, "low": torch.cat(lows)}


def _detail(crops: Tensor) -> Tensor:
    """Mean difference between neighbours in the green channel, on every fourth row, of each."""
    rows = crops[:, ::4, :, 1].short()
    return (rows[..., 1:] - rows[..., :-1]).abs().float().mean(dim=(1, 2))
