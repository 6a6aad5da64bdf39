"""Blur kernels of the degradation, and the filter that applies one.

Families, sizes and shape ranges are those of Real-ESRGAN (arXiv 2107.10833, section 3.1 and 4.1).
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Range", "filtered", "gaussian_kernel", "sinc_kernel"]

Range = tuple[float, float]

_SIZES = tuple(range(7, 22, 2))
_GENERALIZED_BETA: Range = (0.5, 4.0)
_PLATEAU_BETA: Range = (1.0, 2.0)
_FAMILIES = ("gaussian", "generalized", "plateau")
_FAMILY_WEIGHTS = (0.70, 0.15, 0.15)
_ISOTROPIC = (0.64, 0.80, 0.80)  # share of round kernels in each family


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with an odd square kernel, the border repeated outwards.

    Through the Fourier transform: several times faster on a CPU at the larger kernel sizes.
    """
    side = kernel.shape[-1]
    padded = F.pad(image, [side // 2] * 4, mode="replicate")
    height, width = (n + -n % 16 for n in padded.shape[-2:])  # sizes that transform quickly
    spectrum = torch.fft.rfft2(kernel.to(image).flip(0, 1), s=(height, width))
    out: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded, s=(height, width)) * spectrum)
    return out[..., side - 1 : padded.shape[-2], side - 1 : padded.shape[-1]]


def gaussian_kernel(sigma: Range, draw: random.Random) -> Tensor:
    """Gaussian, generalized Gaussian or plateau kernel, round or elongated, summing to 1."""
    family = draw.choices(range(3), _FAMILY_WEIGHTS)[0]
    y, x = _grid(draw.choice(_SIZES))
    first = draw.uniform(*sigma)
    isotropic = draw.random() < _ISOTROPIC[family]
    second, angle = (first, 0.0) if isotropic else (draw.uniform(*sigma), draw.uniform(0, math.pi))
    along = (x * math.cos(angle) + y * math.sin(angle)) / first
    across = (y * math.cos(angle) - x * math.sin(angle)) / second
    distance = along.square() + across.square()
    if _FAMILIES[family] == "gaussian":
        kernel: Tensor = torch.exp(-distance / 2)
    elif _FAMILIES[family] == "generalized":
        kernel = torch.exp(-torch.pow(distance, draw.uniform(*_GENERALIZED_BETA)) / 2)
    else:
        kernel = (1 + torch.pow(distance, draw.uniform(*_PLATEAU_BETA))).reciprocal()
    return kernel / kernel.sum()


def sinc_kernel(draw: random.Random, *, last: bool = False) -> Tensor:
    """Ideal round low-pass of a drawn cutoff, cut off at the kernel's border, summing to 1.

    In a round, kernels of 13 pixels and more may cut lower; `last`, at the end of the pipeline,
    none does.
    """
    side = draw.choice(_SIZES)
    y, x = _grid(side)
    cutoff = draw.uniform(math.pi / (3 if last or side < 13 else 5), math.pi)
    radius = torch.hypot(x, y)
    kernel: Tensor = cutoff * torch.special.bessel_j1(cutoff * radius) / (2 * math.pi * radius)
    kernel[radius == 0] = cutoff**2 / (4 * math.pi)  # the limit at the centre, where it is 0 / 0
    return kernel / kernel.sum()


def _grid(side: int) -> tuple[Tensor, Tensor]:
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x
