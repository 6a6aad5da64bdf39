"""Training pairs: crops of photographs and their degraded selves, upsampled as the pipeline does.

Paper, section 4.1. All follows from the seed and the number of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training.config import DataSettings, NoPhotographs
from training.degradation import MILD, PAPER, degrade, reduce_bicubic
from training.filters import sharpen

_MAX_ON_DEVICE = 4 * 10**9  # bytes of photographs


def stream(seed: int, name: str, rank: int = 0) -> int:
    """A seed of its own for each use and process of a run."""
    return random.Random(f"{seed}/{name}/{rank}").getrandbits(31)


def upsample(low: Tensor, scale: int) -> Tensor:
    """Degraded images as the pipeline upsamples its input, in [0, 1]."""
    return F.interpolate(low, scale_factor=scale, mode="bicubic").clamp(0, 1)


def read_photographs(folder: Path, size: int, sizes: Sequence[float] = (1.0,)) -> list[Tensor]:
    """All PNG, JPEG and WebP files of a folder, by name: uint8 (H, W, 3).

    Args:
        folder: where they lie.
        size: a photograph with a smaller side is left out.
        sizes: fractions that each is reduced to.

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


class PhotographCrops:
    """Random square crops of photographs, flipped and turned at random, from memory.

    An image is drawn with a chance proportional to its number of pixels, so every place is about
    equally likely.

    Args:
        images: uint8 (H, W, 3), at least `size` a side.
        candidates: places that a crop is chosen from, by detail: with 2 or more, skies and
            blurred backgrounds become rarer.
        device: where they are cropped, if there is room on it; else on the host.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        size: int,
        seed: int = 0,
        *,
        candidates: int = 1,
        device: torch.device | None = None,
    ) -> None:
        fits = device is not None and sum(i.nbytes for i in images) <= _MAX_ON_DEVICE
        self._images = [i.to(device) for i in images] if fits else images
        self._areas = torch.tensor([float(i.shape[0] * i.shape[1]) for i in images])
        self._size, self._seed, self._candidates = size, seed, candidates

    def at(self, step: int, batch: int) -> Tensor:
        """The crops of one training step, float32 (batch, 3, size, size) in [0, 1].

        They follow from seed and step alone: a resumed run sees what an uninterrupted one sees.
        """
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        places = batch * self._candidates
        numbers = torch.multinomial(self._areas, places, replacement=True, generator=generator)
        corners = torch.rand(places, 2, generator=generator).tolist()
        turns = torch.randint(0, 8, (batch,), generator=generator).tolist()
        crops = torch.stack(
            [self._crop(i, y, x) for i, (y, x) in zip(numbers.tolist(), corners, strict=True)]
        )
        if self._candidates > 1:
            best = _detail(crops).view(batch, self._candidates).argmax(dim=1)
            first = torch.arange(0, places, self._candidates, device=best.device)
            crops = crops[first + best]
        crops = crops.permute(0, 3, 1, 2).float() / 255
        result = torch.empty_like(crops, memory_format=torch.contiguous_format)
        for turn in set(turns):
            at = [i for i, other in enumerate(turns) if other == turn]
            group = crops[at].rot90(turn % 4, (2, 3))
            result[at] = group.flip(3) if turn >= 4 else group
        return result

    def _crop(self, index: int, y: float, x: float) -> Tensor:
        image = self._images[index]
        top = int(y * (image.shape[0] - self._size + 1))
        left = int(x * (image.shape[1] - self._size + 1))
        return image[top : top + self._size, left : left + self._size]


def _detail(crops: Tensor) -> Tensor:
    """Mean difference between neighbours in the green channel, on every fourth row, of each."""
    rows = crops[:, ::4, :, 1].short()
    return (rows[..., 1:] - rows[..., :-1]).abs().float().mean(dim=(1, 2))


class Pairs:
    """Batches of pairs by number.

    Args:
        settings: photographs and degradations.
        crop: side of a crop in pixels.
        batch: pairs of one number.
        seed: of this use, from `stream`.
        device: where the pairs are made.

    Raises:
        NoPhotographs: as of `read_photographs`.
    """

    def __init__(
        self, settings: DataSettings, *, crop: int, batch: int, seed: int, device: torch.device
    ) -> None:
        images = read_photographs(settings.photographs, crop, settings.sizes)
        self._crops = PhotographCrops(
            images, crop, seed, candidates=settings.candidates, device=device
        )
        self._settings, self._batch, self._seed, self._device = settings, batch, seed, device
        self._degradations = {"paper": PAPER, "mild": MILD, **settings.degradations}
        self._pool = PairPool(self._make, settings.pool, batch, seed) if settings.pool else None

    def high(self, number: int) -> Tensor:
        """Photographs alone: (batch, 3, crop, crop) in [0, 1]."""
        crops = self._crops.at(number, self._batch).to(self._device)
        return sharpen(crops) if self._settings.sharpen else crops

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """Photographs and their degraded selves at the same size, both as `high`."""
        return self._make(number) if self._pool is None else self._pool.at(number)

    def low_resolution(self, number: int) -> tuple[Tensor, Tensor]:
        """Photographs and their degraded selves, these not upsampled: (batch, 3, crop / scale,
        ...), on 8-bit levels."""
        s, high = self._settings, self.high(number)
        seed = self._seed * 1_000_003 + number
        generator = torch.Generator(self._device).manual_seed(seed)
        parts = torch.split(high, s.alike if self._pool is None else len(high))
        names = random.Random(seed).choices(list(s.mix), list(s.mix.values()), k=len(parts))
        lows = [
            reduce_bicubic(part, s.scale)
            if name == "bicubic"
            else degrade(
                part,
                s.scale,
                generator=generator,
                settings=self._degradations[name],
                one_draw=True,
            )
            for part, name in zip(parts, names, strict=True)
        ]
        return high, torch.cat(lows)

    def _make(self, number: int) -> tuple[Tensor, Tensor]:
        high, low = self.low_resolution(number)
        return high, upsample(low, self._settings.scale)


class PairPool:
    """Mixes the pairs of many batches, as Real-ESRGAN's pool does.

    What a step gets follows from its number alone: a resumed run makes the pairs again that the
    interrupted one held.

    Args:
        make: batch number -> the pair of tensors, each (n, ...), the same for the same number.
        size: pairs in the pool, rounded down to whole batches.
        batch: n.
        seed: of the drawing.
    """

    def __init__(
        self, make: Callable[[int], tuple[Tensor, Tensor]], size: int, batch: int, seed: int
    ) -> None:
        self._make, self._batch, self._seed = make, batch, seed
        self._size = max(1, size // batch) * batch
        self._step = 0
        # Number of the batch and place in it; the pool's before `_step`.
        self._places: list[tuple[int, int]] = []
        self._pairs: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The pairs of one step."""
        if step < self._step:
            self._step, self._places = 0, []
        while self._step < step:
            self._draw()
        drawn_places = self._draw()
        alive = {*self._places, *drawn_places}
        for number in {number for number, _ in alive - self._pairs.keys()}:
            for at, pair in enumerate(zip(*self._make(number), strict=True)):
                self._pairs[number, at] = pair
        self._pairs = {place: self._pairs[place] for place in alive}
        highs, lows = zip(*(self._pairs[place] for place in drawn_places), strict=True)
        return torch.stack(highs), torch.stack(lows)

    def _draw(self) -> list[tuple[int, int]]:
        """What the next step gets; the pool is then as the step after it finds it."""
        step, self._step = self._step, self._step + 1
        fresh = [(step, at) for at in range(self._batch)]
        if len(self._places) < self._size:
            self._places += fresh
            return fresh
        slots = random.Random(self._seed * 1_000_003 + step).sample(range(self._size), self._batch)
        result = [self._places[slot] for slot in slots]
        for slot, place in zip(slots, fresh, strict=True):
            self._places[slot] = place
        return result
