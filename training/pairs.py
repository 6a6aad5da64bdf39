"""Training pairs: crops of photographs and their degraded selves, upsampled as the pipeline does.

Paper, section 4.1. All follows from the seed and the number of the batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from training.config import DataSettings, NoPhotographs
from training.degradation import MILD, PAPER, DegradationSettings, degrade
from training.filters import sharpen

__all__ = ["NAMED", "PairPool", "Pairs", "PhotographCrops", "enlarged", "stream"]

_MOST_ON_DEVICE = 4 * 10**9  # bytes


class PhotographCrops:
    """Random square crops of photographs, flipped and turned at random, from memory.

    An image is drawn with a chance proportional to its number of pixels, so every place is about
    equally likely. Of `candidates` places the one with the most detail is kept: with 2 or more,
    skies and blurred backgrounds become rarer. The same images, arguments and seed give the same
    crops at each step.
    """

    def __init__(
        self,
        images: Iterable[np.ndarray[Any, Any]],
        size: int,
        seed: int = 0,
        *,
        candidates: int = 1,
        device: torch.device | None = None,
    ) -> None:
        """`images`: uint8 (H, W, 3), at least `size` a side; ValueError names one that is not.

        `device`: where they are cut, if they do not take too much of it; else on the host.
        """
        self._images = [torch.from_numpy(np.ascontiguousarray(i)) for i in images]
        if not self._images:
            raise ValueError("no photographs to crop from; at least one is needed")
        for at, image in enumerate(self._images):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8:
                raise ValueError(
                    f"photograph {at} is {image.dtype} {tuple(image.shape)}; uint8 (H, W, 3) needed"
                )
            if min(image.shape[:2]) < size:
                raise ValueError(
                    f"photograph {at} is {image.shape[1]} x {image.shape[0]} pixels; "
                    f"crops of {size} need at least {size} a side"
                )
        if candidates < 1:
            raise ValueError(f"candidates is {candidates}; at least 1 place is needed")
        self.size = size
        self.candidates = candidates
        self._area = torch.tensor([float(i.shape[0] * i.shape[1]) for i in self._images])
        if device is not None and sum(i.nbytes for i in self._images) <= _MOST_ON_DEVICE:
            self._images = [i.to(device) for i in self._images]
        self._seed = seed

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        size: int,
        seed: int = 0,
        *,
        candidates: int = 1,
        sizes: Sequence[float] = (1.0,),
        device: torch.device | None = None,
    ) -> PhotographCrops:
        """All PNG, JPEG and WebP files of a folder, by name; ones smaller than `size` left out.

        `sizes`: fractions that each is reduced to.
        """
        paths = sorted(
            p
            for p in folder.glob("*")
            if p.suffix in (".png", ".jpg", ".webp") and not p.name.startswith(".")
        )
        images = []
        for path in paths:
            with Image.open(path) as opened:
                for fraction in sizes:
                    sides = round(opened.width * fraction), round(opened.height * fraction)
                    if min(sides) >= size:
                        image = opened.convert("RGB")
                        if sides != image.size:
                            image = image.resize(sides, Image.Resampling.LANCZOS)
                        images.append(np.array(image))
        if not images:
            raise ValueError(f"{folder} holds no photograph of at least {size} x {size} pixels")
        return cls(images, size, seed, candidates=candidates, device=device)

    def __len__(self) -> int:
        return len(self._images)

    def at(self, step: int, batch: int) -> Tensor:
        """The crops of one training step, float32 (batch, 3, size, size) in [0, 1].

        They follow from seed and step alone: a resumed run sees what an uninterrupted one sees.
        """
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        places = batch * self.candidates
        chosen = torch.multinomial(self._area, places, replacement=True, generator=generator)
        corners = torch.rand(places, 2, generator=generator).tolist()
        turns = torch.randint(0, 8, (batch,), generator=generator).tolist()
        crops = torch.stack(
            [self._crop(i, y, x) for i, (y, x) in zip(chosen.tolist(), corners, strict=True)]
        )
        if self.candidates > 1:
            best = _detail(crops).view(batch, self.candidates).argmax(dim=1)
            first = torch.arange(0, places, self.candidates, device=best.device)
            crops = crops[first + best]
        crops = crops.permute(0, 3, 1, 2).float() / 255
        turned = torch.empty_like(crops, memory_format=torch.contiguous_format)
        for turn in set(turns):
            at = [i for i, other in enumerate(turns) if other == turn]
            group = crops[at].rot90(turn % 4, (2, 3))
            turned[at] = group.flip(3) if turn >= 4 else group
        return turned

    def _crop(self, index: int, y: float, x: float) -> Tensor:
        image = self._images[index]
        top = int(y * (image.shape[0] - self.size + 1))
        left = int(x * (image.shape[1] - self.size + 1))
        return image[top : top + self.size, left : left + self.size]


def _detail(crops: Tensor) -> Tensor:
    """Mean difference between neighbours in the green channel, on every fourth row, of each."""
    rows = crops[:, ::4, :, 1].short()
    return (rows[..., 1:] - rows[..., :-1]).abs().float().mean(dim=(1, 2))


NAMED: dict[str, DegradationSettings] = {"paper": PAPER, "mild": MILD}
"""Degradations that a configuration may name; `bicubic`, plain reduction, is one more."""


def stream(seed: int, name: str, rank: int = 0) -> int:
    """A seed of its own for each use and process of a run."""
    return random.Random(f"{seed}/{name}/{rank}").getrandbits(31)


def enlarged(low: Tensor, scale: int) -> Tensor:
    """Degraded images as the pipeline enlarges its input, in [0, 1]."""
    return F.interpolate(low, scale_factor=scale, mode="bicubic").clamp(0, 1)


class Pairs:
    """Batches of pairs by number.

    Args:
        settings: photographs and degradations.
        crop: side of a crop in pixels.
        batch: pairs of one number.
        seed: of this use, from `stream`.
        device: where the pairs are made.

    Raises:
        NoPhotographs: the folder is not there, or holds none of that size.
    """

    def __init__(
        self, settings: DataSettings, *, crop: int, batch: int, seed: int, device: torch.device
    ) -> None:
        if not settings.photographs.is_dir():
            raise NoPhotographs(
                f"There is no folder {settings.photographs}: make it with "
                f"`python -m tools.photographs {settings.photographs.parent}`, "
                "or name your own photographs."
            )
        try:
            self._crops = PhotographCrops.from_folder(
                settings.photographs,
                crop,
                seed,
                candidates=settings.candidates,
                sizes=settings.sizes,
                device=device,
            )
        except ValueError as error:
            raise NoPhotographs(f"{error}.") from error
        self._settings, self._batch, self._seed, self._device = settings, batch, seed, device
        self._pool = (
            PairPool(self._make, settings.pool - settings.pool % batch, batch, seed)
            if settings.pool
            else None
        )

    def high(self, number: int) -> Tensor:
        """Photographs alone: (batch, 3, crop, crop) in [0, 1]."""
        crops = self._crops.at(number, self._batch).to(self._device)
        return sharpen(crops) if self._settings.sharpen else crops

    def at(self, number: int) -> tuple[Tensor, Tensor]:
        """Photographs and their degraded selves at the same size, both as `high`."""
        return self._make(number) if self._pool is None else self._pool.at(number)

    def reduced(self, number: int) -> tuple[Tensor, Tensor]:
        """Photographs and their degraded selves, these not enlarged: (batch, 3, crop / scale, ...),
        on 8-bit levels."""
        high = self.high(number)
        seed = self._seed * 1_000_003 + number
        generator = torch.Generator(self._device).manual_seed(seed)
        names = list(self._settings.mix)
        draw = random.Random(seed)
        parts = torch.split(high, len(high) if self._pool is not None else self._settings.alike)
        chosen = draw.choices(names, list(self._settings.mix.values()), k=len(parts))
        lows = [
            self._reduced(part, name, generator) for part, name in zip(parts, chosen, strict=True)
        ]
        return high, torch.cat(lows)

    def _make(self, number: int) -> tuple[Tensor, Tensor]:
        high, low = self.reduced(number)
        return high, enlarged(low, self._settings.scale)

    def _reduced(self, high: Tensor, name: str, generator: torch.Generator) -> Tensor:
        scale = self._settings.scale
        if name == "bicubic":
            low = F.interpolate(high, scale_factor=1 / scale, mode="bicubic", antialias=True)
            return (low.clamp(0, 1) * 255).round() / 255
        settings = self._settings.degradations.get(name) or NAMED[name]
        return degrade(high, scale, generator=generator, settings=settings, shared=True)


_Place = tuple[int, int]  # number of the batch, place in it


class PairPool:
    """What a step gets follows from its number alone: a resumed run makes the pairs anew that the
    interrupted one had kept.

    Args:
        make: batch number -> the pair of tensors, each (n, ...), the same for the same number.
        size: pairs kept, a multiple of the batch.
        batch: n.
        seed: of the drawing.
    """

    def __init__(
        self, make: Callable[[int], tuple[Tensor, Tensor]], size: int, batch: int, seed: int
    ) -> None:
        if size < batch or size % batch:
            raise ValueError(f"the pool holds {size} pairs; it must be a multiple of {batch}")
        self._make, self._size, self._batch, self._seed = make, size, batch, seed
        self._next = 0
        self._kept: dict[_Place, tuple[Tensor, Tensor]] = {}
        self._order: list[_Place] = []

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The pairs of one step."""
        if step != self._next:
            self._seek(step)
        self._next = step + 1
        self._keep(step, range(self._batch))
        pairs = [self._kept[place] for place in self._draw(step)]
        live = set(self._order)
        self._kept = {place: pair for place, pair in self._kept.items() if place in live}
        return torch.stack([high for high, _ in pairs]), torch.stack([low for _, low in pairs])

    def _draw(self, step: int) -> list[_Place]:
        """What the step gets; afterwards the order is as the next step finds it."""
        fresh = [(step, at) for at in range(self._batch)]
        if len(self._order) < self._size:
            self._order += fresh
            return fresh
        slots = random.Random(self._seed * 1_000_003 + step).sample(range(self._size), self._batch)
        drawn = [self._order[slot] for slot in slots]
        for slot, place in zip(slots, fresh, strict=True):
            self._order[slot] = place
        return drawn

    def _keep(self, number: int, places: Sequence[int]) -> None:
        high, low = self._make(number)
        for at in places:
            self._kept[number, at] = (high[at], low[at])

    def _seek(self, step: int) -> None:
        """As if every step before had been drawn; makes only what would still be kept."""
        if step < self._next:
            self._next = 0
            self._order.clear()
            self._kept.clear()
        for past in range(self._next, step):
            self._draw(past)
        wanted: dict[int, list[int]] = {}
        for number, at in self._order:
            if (number, at) not in self._kept:
                wanted.setdefault(number, []).append(at)
        for number, places in wanted.items():
            self._keep(number, places)
