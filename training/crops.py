"""Random square crops of photographs, from memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["PhotographCrops"]

_MOST_ON_DEVICE = 4 * 10**9  # bytes


class PhotographCrops:
    """Random square crops of photographs, flipped and turned at random, from memory.

    An image is drawn with a chance proportional to its number of pixels, so every place is about
    equally likely. Of `candidates` places the one with the most detail is kept: with 2 or more,
    skies and blurred backgrounds become rarer. The same images, arguments and seed give the same
    crops in the same order.
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
        self._generator = torch.Generator().manual_seed(seed)

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
        """The crops of one training step: they follow from seed and step alone, so that a
        resumed run sees what an uninterrupted one sees."""
        # One of its own: steps may be drawn on several threads.
        return self._drawn(batch, torch.Generator().manual_seed(self._seed * 1_000_003 + step))

    def sample(self, batch: int) -> Tensor:
        """The next `batch` crops: float32 (batch, 3, size, size) in [0, 1]."""
        return self._drawn(batch, self._generator)

    def _drawn(self, batch: int, generator: torch.Generator) -> Tensor:
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
