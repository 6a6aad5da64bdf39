"""Unsharp masking of training targets, as Real-ESRGAN offers it (arXiv 2107.10833, section 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from training.kernels import filtered

__all__ = ["sharpen"]

_SIDE, _SIGMA = 51, 8.0  # of the blur, in pixels


def sharpen(image: Tensor, *, amount: float = 0.5, threshold: float = 10.0) -> Tensor:
    """Edges made steeper, flat places and grain left alone: (B, 3, H, W) in [0, 1] -> the same.

    Args:
        image: clean photographs.
        amount: how much of the difference to the blurred image is added.
        threshold: differences up to this many 8-bit levels are not sharpened.
    """
    axis = torch.arange(_SIDE, dtype=torch.float64) - _SIDE // 2
    line = torch.exp(-axis.square() / (2 * _SIGMA**2))
    kernel = torch.outer(line, line) / line.sum() ** 2
    residual = image - filtered(image, kernel)
    # A blurred mask: the seam between what is sharpened and what is not must not show.
    mask = filtered((residual.abs() * 255 > threshold).to(image), kernel).clamp(0, 1)
    sharp = (image + amount * residual).clamp(0, 1)
    return mask * sharp + (1 - mask) * image
