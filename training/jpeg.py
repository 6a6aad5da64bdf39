"""What JPEG does to an image, in torch: the lossy half of the baseline codec (ITU-T T.81).

Colour transform (JFIF), 4:2:0 chroma, 8 x 8 cosine transform, quantization with the standard's
example tables (Annex K) at a quality, and back. No entropy coding: it loses nothing.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["jpeg"]

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
_TO_YCC = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cosine basis (8, 8), tables (2, 8, 8), and the two colour matrices, float32."""
    k = torch.arange(8, dtype=torch.float64)
    basis = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    basis[0] /= math.sqrt(2)
    tables = torch.tensor((_LUMA, _CHROMA), dtype=torch.float32)
    return (
        basis.float().to(device),
        tables.to(device),
        torch.tensor(_TO_YCC).to(device),
        torch.tensor(_TO_RGB).to(device),
    )


def jpeg(image: Tensor, quality: float) -> Tensor:
    """Compress and decompress: (B, 3, H, W) float in [0, 1] -> the same, on 8-bit levels.

    `quality` from 1 to 100 as the Independent JPEG Group counts it, rounded to an integer.
    """
    whole = round(quality)
    if not 1 <= whole <= 100:
        raise ValueError(f"JPEG quality is {quality}; it goes from 1 to 100")
    basis, tables, to_ycc, to_rgb = _constants(image.device)
    percent = 5000 // whole if whole < 50 else 200 - 2 * whole
    tables = ((tables * percent + 50) / 100).floor().clamp(1, 255)
    height, width = image.shape[-2:]
    levels = (image.float() * 255).round().clamp(0, 255)
    levels = F.pad(levels, (0, -width % 16, 0, -height % 16), mode="replicate")
    # Codecs keep every plane in 8 bits on both ways, so the planes are rounded here too.
    ycc = torch.einsum("rc,bchw->brhw", to_ycc, levels).round()
    luma = _coded(ycc[:, :1] - 128, tables[0], basis) + 128
    chroma = _coded(F.avg_pool2d(ycc[:, 1:], 2).round(), tables[1], basis)
    # Triangle interpolation between chroma samples, as decoders do by default.
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("rc,bchw->brhw", to_rgb, torch.cat((luma, chroma), 1))
    return rgb[..., :height, :width].round().clamp(0, 255) / 255


def _coded(plane: Tensor, table: Tensor, basis: Tensor) -> Tensor:
    """Transform, quantize and restore planes (B, C, H, W) of multiples of 8 a side."""
    batch, channels, height, width = plane.shape
    blocks = plane.reshape(batch, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    coefficients = basis @ blocks @ basis.T
    restored = basis.T @ ((coefficients / table).round() * table) @ basis
    restored = restored.round().clamp(-128, 127)
    return restored.transpose(3, 4).reshape(batch, channels, height, width)
