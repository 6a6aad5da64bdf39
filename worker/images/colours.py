"""Colours that no ICC profile describes, to sRGB: chromaticities and a curve, YCbCr, ranges."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.image_file import SRGB, Colours, Point

from .vips import Levels

Matrix = NDArray[np.float64]

BRADFORD: Matrix = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
"""From XYZ to the responses of the eye's cones, in which whites adapt (ICC.1:2022, annex E)."""


def to_srgb(planes: Tensor, colours: Colours) -> Tensor:
    """(1, 1 or 3, H, W) levels in [0, 1] as sRGB; what sRGB cannot show is clipped."""
    light = _light(planes) if colours.gamma is None else planes**colours.gamma
    if planes.shape[1] == 3 and colours.primaries != SRGB.primaries:
        matrix = np.linalg.inv(_xyz(SRGB.primaries)) @ _xyz(colours.primaries)
        light = torch.einsum("oc,nchw->nohw", torch.from_numpy(matrix).to(light), light)
    # IEC 61966-2-1, 5.2.
    light = light.clamp_(0, 1)
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def _light(levels: Tensor) -> Tensor:
    """What sRGB's levels are of the brightest light."""
    return torch.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _xyz(primaries: tuple[Point, Point, Point, Point]) -> Matrix:
    """From light of these colours to XYZ, with their white adapted to that of sRGB."""
    white, *corners = (np.array([x / y, 1, (1 - x - y) / y]) for x, y in primaries)
    basis = np.stack(corners, axis=1)
    matrix = basis * np.linalg.solve(basis, white)
    x, y = SRGB.primaries[0]
    target = np.array([x / y, 1, (1 - x - y) / y])
    cones = (BRADFORD @ target) / (BRADFORD @ white)
    result: Matrix = np.linalg.inv(BRADFORD) @ (cones[:, None] * BRADFORD) @ matrix
    return result


def from_ycbcr(planes: Tensor) -> Tensor:
    """TIFF's bare YCbCr (TIFF 6.0, section 21): full range, the matrix of Rec. ITU-R BT.601."""
    y, cb, cr = planes[:, 0], planes[:, 1] - 128 / 255, planes[:, 2] - 128 / 255
    red, blue = y + 1.402 * cr, y + 1.772 * cb
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], dim=1).clamp(0, 1)


def full_range(levels: Levels, depth: int, *, narrow: bool = False) -> Levels:
    """AVIF's levels spread to all of 0..255 or 0..65535: those of 10 and 12 bits come in the upper
    bits of 16; `narrow` ones have black at 16 and white at 235 of 255."""
    if levels.itemsize == 1 and not narrow:
        return levels
    top = np.iinfo(levels.dtype).max
    unit = 1 if levels.itemsize == 1 else 1 << (16 - depth)
    black, white = (16, 235) if narrow else (0, 255)
    scale = 1 << (depth - 8)
    low = black * scale * unit
    high = (white * scale if narrow else (1 << depth) - 1) * unit
    spread = (levels.astype(np.float32) - low) * np.float32(top / (high - low))
    result: Levels = np.rint(spread).clip(0, top).astype(levels.dtype)
    return result


def unpremultiply(levels: Levels, opacity: int) -> Levels:
    """(H, W, C) levels whose colours were multiplied by the channel `opacity` as they were before;
    where nothing is opaque they stay."""
    top = np.iinfo(levels.dtype).max
    alpha = levels[:, :, opacity : opacity + 1]
    factor = np.where(alpha > 0, top / np.maximum(alpha, 1, dtype=np.float32), 1)
    straight = np.rint(levels * factor.astype(np.float32)).clip(0, top).astype(levels.dtype)
    straight[:, :, opacity] = levels[:, :, opacity]
    result: Levels = straight
    return result
