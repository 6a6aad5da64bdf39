"""Training pairs: crops of photographs and their degraded selves, upsampled as the pipeline does.

Paper, section 4.1. All follows from the seed and the number of the batch.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional as F

from training.config import DataSettings
from training.crops import PhotographCrops
from training.degradation import MILD, PAPER, DegradationSettings, degrade
from training.errors import NoPhotographs
from training.pool import PairPool
from training.sharpening import sharpen

__all__ = ["NAMED", "Pairs", "enlarged", "stream"]

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
