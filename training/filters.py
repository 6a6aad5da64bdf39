"""What the degradation does to an image: blur kernels and their filter, JPEG.

Kernel families, sizes and shape ranges are those of Real-ESRGAN (arXiv 2107.10833, section 3.1 and
4.1). JPEG is the lossy half of the baseline codec (ITU-T T.81) in torch, so on any device: colour
transform (JFIF), 4:2:0 chroma, 8 x 8 cosine transform, quantization with libjpeg's tables.
"""

from __future__ import annotations

import functools
import io
import math
import random

import torch
import torch.nn.functional as F
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

Range = tuple[float, float]

_SIZES = tuple(range(7, 22, 2))
_GENERALIZED_BETA: Range = (0.5, 4.0)
_PLATEAU_BETA: Range = (1.0, 2.0)
_FAMILIES = {"gaussian": 0.70, "generalized": 0.15, "plateau": 0.15}


def correlate(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with an odd square kernel, the border repeated outwards.

    Through the Fourier transform: several times faster on a CPU at the larger kernel sizes.
    """
    side = kernel.shape[-1]
    image = F.pad(image, [side // 2] * 4, mode="replicate")
    height, width = (n + -n % 16 for n in image.shape[-2:])  # sizes that transform quickly
    spectrum = torch.fft.rfft2(kernel.to(image).flip(0, 1), s=(height, width))
    out: Tensor = torch.fft.irfft2(torch.fft.rfft2(image, s=(height, width)) * spectrum)
    return out[..., side - 1 : image.shape[-2], side - 1 : image.shape[-1]]


def gaussian_kernel(sigma: Range, draw: random.Random) -> Tensor:
    """Gaussian, generalized Gaussian or plateau kernel, round or elongated, summing to 1."""
    family = draw.choices(list(_FAMILIES), list(_FAMILIES.values()))[0]
    y, x = _grid(draw.choice(_SIZES))
    first = draw.uniform(*sigma)
    isotropic = draw.random() < (0.64 if family == "gaussian" else 0.80)
    second, angle = (first, 0.0) if isotropic else (draw.uniform(*sigma), draw.uniform(0, math.pi))
    along = (x * math.cos(angle) + y * math.sin(angle)) / first
    across = (y * math.cos(angle) - x * math.sin(angle)) / second
    distance = along.square() + across.square()
    if family == "gaussian":
        kernel: Tensor = torch.exp(-distance / 2)
    elif family == "generalized":
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


_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


@functools.cache
def _tables(quality: int) -> Tensor:
    """What libjpeg divides the coefficients of luma and chroma by, (2, 8, 8)."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG", quality=quality)
    file.seek(0)
    tables = JpegImageFile(file).quantization
    return torch.tensor([tables[0], tables[1]], dtype=torch.float32).view(2, 8, 8)


@functools.cache
def _basis() -> Tensor:
    """Of the cosine transform, (8, 8)."""
    k = torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    return basis.float()


def jpeg(image: Tensor, quality: float) -> Tensor:
    """Compress and decompress: (B, 3, H, W) float in [0, 1] -> the same, on 8-bit levels.

    `quality` from 1 to 100 as the Independent JPEG Group counts it, rounded to an integer.
    """
    if not 1 <= round(quality) <= 100:
        raise ValueError(f"JPEG quality is {quality}; it goes from 1 to 100")
    tables, basis = _tables(round(quality)).to(image.device), _basis().to(image.device)
    to_ycc, to_rgb = image.new_tensor(_TO_YCC), image.new_tensor(_TO_RGB)
    height, width = image.shape[-2:]
    levels = (image.float() * 255).round().clamp(0, 255)
    levels = F.pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
    # Codecs keep every plane in 8 bits on both ways, so the planes are rounded here too.
    ycc = torch.einsum("rc,bchw->brhw", to_ycc, levels).round()
    luma = _code(ycc[:, :1] - 128, tables[0], basis) + 128
    chroma = _code(F.avg_pool2d(ycc[:, 1:], 2).round(), tables[1], basis)
    # Triangle interpolation between chroma samples, as decoders do by default.
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("rc,bchw->brhw", to_rgb, torch.cat((luma, chroma), 1))
    return rgb[..., :height, :width].round().clamp(0, 255) / 255


def _code(plane: Tensor, table: Tensor, basis: Tensor) -> Tensor:
    """Transform, quantize and restore planes (B, C, H, W) of multiples of 8 a side."""
    batch, channels, height, width = plane.shape
    blocks = plane.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = basis @ blocks @ basis.T
    blocks = basis.T @ ((coefficients / table).round() * table) @ basis
    blocks = blocks.round().clamp(-128, 127)
    return blocks.transpose(3, 4).reshape(batch, channels, height, width)
