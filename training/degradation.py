"""Low-resolution training inputs made from clean photographs: the second-order degradation.

The pipeline is the one of Real-ESRGAN (arXiv 2107.10833, section 3) that StableSR (arXiv
2305.07015, section 4.1) trains with, written from the papers. Two rounds of blur, resize, noise and
JPEG; then the resize to the final size with a sinc filter (ringing, overshoot) and the second JPEG
in either order. All arithmetic is torch's, on the device of the images.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, ConfigDict, Field, PositiveFloat
from pydantic.dataclasses import dataclass
from torch import Tensor

from training.filters import correlate, gaussian_kernel, jpeg, sinc_kernel

_INTERPOLATIONS = ("area", "bilinear", "bicubic")
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_WHITE = 255.0  # noise strengths are in 8-bit grey levels; Poisson counts 255 photons at white


def _check_order(limits: tuple[float, float]) -> tuple[float, float]:
    if limits[0] > limits[1]:
        raise ValueError(f"{limits} must rise")
    return limits


Chance = Annotated[float, Field(ge=0, le=1)]
Quality = Annotated[float, Field(ge=1, le=100)]
Range = Annotated[tuple[PositiveFloat, PositiveFloat], AfterValidator(_check_order)]
"""A value is drawn from it uniformly."""
AroundOne = tuple[Annotated[PositiveFloat, Field(le=1)], Annotated[float, Field(ge=1)]]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RoundSettings:
    """One round; noise in 8-bit grey levels."""

    blur: Chance = 1.0
    blur_sigma: Range = (0.2, 1.5)
    sinc: Chance = 0.1  # that the blur kernel is a sinc filter
    resize: tuple[Chance, Chance, Chance] = (0.2, 0.7, 0.1)  # of enlarging, reducing, keeping
    resize_range: AroundOne = (0.3, 1.5)
    gaussian: Chance = 0.5  # of Gaussian noise; Poisson noise otherwise
    gaussian_sigma: Range = (1.0, 15.0)
    poisson_scale: Range = (0.05, 2.0)
    grey: Chance = 0.4  # that the noise is the same in the three channels
    jpeg_quality: Annotated[tuple[Quality, Quality], AfterValidator(_check_order)] = (60.0, 95.0)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class DegradationSettings:
    """The two rounds and the chance of the last sinc filter."""

    first: RoundSettings = RoundSettings()
    second: RoundSettings = RoundSettings(
        blur=0.5,
        blur_sigma=(0.2, 1.0),
        resize=(0.3, 0.4, 0.3),
        resize_range=(0.6, 1.2),
        gaussian_sigma=(1.0, 12.0),
        poisson_scale=(0.05, 1.0),
        jpeg_quality=(60.0, 100.0),
    )
    final_sinc: Chance = 0.8


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

DEGRADATIONS: Mapping[str, DegradationSettings | None] = {
    "paper": PAPER,
    "mild": MILD,
    "bicubic": None,
}
"""By name; None is bicubic reduction alone."""


@torch.no_grad()
def degrade(
    hr: Tensor,
    scale: int = 4,
    *,
    generator: torch.Generator,
    settings: DegradationSettings | None = PAPER,
) -> Tensor:
    """Clean images (B, 3, H, W) in [0, 1] -> float32 (B, 3, H / scale, W / scale) on 8-bit levels.

    Every image draws its own parameters. The generator may live on any device.

    Raises:
        ValueError: another shape, or sides that the scale does not divide.
    """
    if hr.ndim != 4 or hr.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(hr.shape)}; (B, 3, H, W) is needed")
    height, width = hr.shape[-2:]
    if scale < 1 or height % scale or width % scale:
        raise ValueError(f"{width} x {height} pixels cannot be divided by the scale {scale}")
    size = (height // scale, width // scale)
    if settings is None:
        low = F.interpolate(hr, size, mode="bicubic", antialias=True)
        return (low.clamp(0, 1) * _WHITE).round() / _WHITE
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    draw = random.Random(int(seed))  # scalars without a device round trip each
    images = torch.split(hr.float(), 1)
    return torch.cat([_degrade_one(image, size, draw, generator, settings) for image in images])


def _degrade_one(
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
    return F.interpolate(image, size, mode=mode)


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
