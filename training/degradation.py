"""Low-resolution training inputs made from clean photographs: the second-order degradation.

The pipeline is the one of Real-ESRGAN (arXiv 2107.10833, section 3) that StableSR (arXiv
2305.07015, section 4.1) trains with, written from the papers. Two rounds of blur, resize, noise and
JPEG; then the resize to the final size with a sinc filter (ringing, overshoot) and the second JPEG
in either order.

All arithmetic is torch's, on the device of the images, JPEG too (`training.filters`); all
randomness comes from one generator, so a seed fixes the result on a device.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor

from training.filters import Range, correlate, gaussian_kernel, jpeg, sinc_kernel

_INTERPOLATIONS = ("area", "bilinear", "bicubic")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_WHITE = 255.0  # noise strengths are in 8-bit grey levels; Poisson counts 255 photons at white


@dataclass(frozen=True)
class RoundSettings:
    """One round: chances in [0, 1], ranges drawn from uniformly, noise in 8-bit grey levels."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")  # in a file

    blur: float = 1.0
    blur_sigma: Range = (0.2, 1.5)
    sinc: float = 0.1
    """Chance that the blur kernel is a sinc filter."""
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Chances of enlarging, reducing and keeping the size."""
    resize_range: Range = (0.3, 1.5)
    gaussian: float = 0.5
    """Chance of Gaussian noise; Poisson noise otherwise."""
    gaussian_sigma: Range = (1.0, 15.0)
    poisson_scale: Range = (0.05, 2.0)
    grey: float = 0.4
    """Chance that the noise is the same in the three channels."""
    jpeg_quality: Range = (60.0, 95.0)

    def __post_init__(self) -> None:
        for name in ("blur", "sinc", "gaussian", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a chance is from 0 to 1")
        if len(self.resize) != 3 or min(self.resize) < 0 or abs(sum(self.resize) - 1) > 1e-6:
            raise ValueError(f"resize is {self.resize}; three chances that sum to 1 are needed")
        low, high = self.resize_range
        if not 0 < low <= 1 <= high:
            raise ValueError(f"resize_range is {self.resize_range}; it must hold 1 and exceed 0")
        low, high = self.jpeg_quality
        if not 1 <= low <= high <= 100:
            raise ValueError(f"jpeg_quality is {self.jpeg_quality}; qualities are from 1 to 100")
        for name in ("blur_sigma", "gaussian_sigma", "poisson_scale"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name} is {(low, high)}; it must rise and exceed 0")


@dataclass(frozen=True)
class DegradationSettings:
    """The two rounds and the chance of the last sinc filter."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    first: RoundSettings = RoundSettings()
    second: RoundSettings = field(
        default_factory=lambda: RoundSettings(
            blur=0.5,
            blur_sigma=(0.2, 1.0),
            resize=(0.3, 0.4, 0.3),
            resize_range=(0.6, 1.2),
            gaussian_sigma=(1.0, 12.0),
            poisson_scale=(0.05, 1.0),
            jpeg_quality=(60.0, 100.0),
        )
    )
    final_sinc: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.final_sinc <= 1:
            raise ValueError(f"final_sinc is {self.final_sinc}; a chance is from 0 to 1")


PAPER = DegradationSettings()
"""What StableSR trains with: milder than Real-ESRGAN, so that the prior isn't drowned."""

MILD = DegradationSettings(
    first=RoundSettings(
        blur=0.7,
        blur_sigma=(0.2, 0.8),
        sinc=0.05,
        resize=(0.2, 0.4, 0.4),
        resize_range=(0.6, 1.2),
        gaussian_sigma=(1.0, 5.0),
        poisson_scale=(0.05, 0.5),
        jpeg_quality=(80.0, 98.0),
    ),
    second=RoundSettings(
        blur=0.2,
        blur_sigma=(0.2, 0.6),
        sinc=0.05,
        resize=(0.1, 0.2, 0.7),
        resize_range=(0.8, 1.1),
        gaussian_sigma=(0.5, 4.0),
        poisson_scale=(0.02, 0.3),
        jpeg_quality=(80.0, 100.0),
    ),
    final_sinc=0.4,
)
"""Good photographs made small: little noise, light JPEG. Small networks learn detail from these."""


@torch.no_grad()
def degrade(
    hr: Tensor,
    scale: int = 4,
    *,
    generator: torch.Generator,
    settings: DegradationSettings = PAPER,
    one_draw: bool = False,
) -> Tensor:
    """Degrade clean images.

    Every image draws its own parameters; with `one_draw` the batch shares one, which is quicker
    on a GPU: `training.pairs` mixes such batches.

    `hr`: (B, 3, H, W) in [0, 1], H and W multiples of `scale`. Returns float32
    (B, 3, H / scale, W / scale) in [0, 1] on 8-bit levels, as a decoded file would be, on `hr`'s
    device. Raises ValueError for another shape. The generator may live on either device.
    """
    if hr.ndim != 4 or hr.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(hr.shape)}; (B, 3, H, W) is needed")
    height, width = hr.shape[-2:]
    if scale < 1 or height % scale or width % scale:
        raise ValueError(f"{width} x {height} pixels cannot be divided by the scale {scale}")
    size = (height // scale, width // scale)
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    draw = random.Random(int(seed))  # scalars without a device round trip each
    parts = torch.split(hr.float(), len(hr) if one_draw else 1)
    return torch.cat([_one(part, size, draw, generator, settings) for part in parts])


def reduce_bicubic(image: Tensor, scale: int) -> Tensor:
    """Images as of `degrade`, reduced with antialiasing and no more than that."""
    low = F.interpolate(image, scale_factor=1 / scale, mode="bicubic", antialias=True)
    return (low.clamp(0, 1) * _WHITE).round() / _WHITE


def _one(
    image: Tensor,
    size: tuple[int, int],
    draw: random.Random,
    generator: torch.Generator,
    settings: DegradationSettings,
) -> Tensor:
    first, second = settings.first, settings.second
    full = (int(image.shape[-2]), int(image.shape[-1]))
    image = _resize(_blur(image, first, draw), full, first, draw)
    image = _add_noise(image, first, draw, generator)
    image = jpeg(image, draw.uniform(*first.jpeg_quality))
    image = _resize(_blur(image, second, draw), size, second, draw)
    image = _add_noise(image, second, draw, generator)
    quality = draw.uniform(*second.jpeg_quality)
    kernel = sinc_kernel(draw, last=True) if draw.random() < settings.final_sinc else None
    mode = draw.choice(_INTERPOLATIONS)
    if draw.random() < 0.5:
        image = jpeg(_finish(image, size, mode, kernel), quality)
    else:
        image = _finish(jpeg(image, quality), size, mode, kernel)
    return (image * _WHITE).round() / _WHITE


def _finish(image: Tensor, size: tuple[int, int], mode: str, kernel: Tensor | None) -> Tensor:
    image = _interpolate(image, size, mode)
    return (image if kernel is None else correlate(image, kernel)).clamp(0, 1)


def _blur(image: Tensor, settings: RoundSettings, draw: random.Random) -> Tensor:
    if draw.random() >= settings.blur:
        return image
    if draw.random() < settings.sinc:
        return correlate(image, sinc_kernel(draw))
    return correlate(image, gaussian_kernel(settings.blur_sigma, draw))


def _resize(
    image: Tensor, base: tuple[int, int], settings: RoundSettings, draw: random.Random
) -> Tensor:
    """Resize to `base` times a drawn factor: the second round's base is the final size."""
    low, high = settings.resize_range
    way = draw.choices(("up", "down", "keep"), settings.resize)[0]
    factor = {"up": draw.uniform(1, high), "down": draw.uniform(low, 1), "keep": 1.0}[way]
    size = (max(1, round(base[0] * factor)), max(1, round(base[1] * factor)))
    return _interpolate(image, size, draw.choice(_INTERPOLATIONS))


def _interpolate(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    # No antialiasing: many programs reduce images without, and the network has to cope with it.
    if mode == "area":
        return F.interpolate(image, size, mode="area")
    return F.interpolate(image, size, mode=mode, align_corners=False)


def _add_noise(
    image: Tensor, settings: RoundSettings, draw: random.Random, generator: torch.Generator
) -> Tensor:
    image = image.clamp(0, 1)
    grey = draw.random() < settings.grey
    if draw.random() < settings.gaussian:
        shape = (len(image), 1 if grey else 3, *image.shape[-2:])
        noise = torch.randn(shape, generator=generator, device=generator.device).to(image.device)
        noise = noise * (draw.uniform(*settings.gaussian_sigma) / _WHITE)
    else:
        light = image
        if grey:
            light = (image * image.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        rate = light.to(generator.device) * _WHITE
        counts = torch.poisson(rate, generator=generator)
        noise = (counts - rate).to(image.device) / _WHITE * draw.uniform(*settings.poisson_scale)
    return (image + noise).clamp(0, 1)
