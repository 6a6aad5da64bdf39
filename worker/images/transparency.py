"""Colours where nothing is seen.

What lies under fully transparent pixels is arbitrary, often black or white, and upscaling mixes it
into the visible edge: a dark fringe on every background but black. So it is replaced by what is
visible around, before the picture is upscaled: averages over ever larger cells, weighted by
opacity, from which each hidden pixel takes the finest one that saw anything (push-pull filling:
Gortler et al., "The Lumigraph", SIGGRAPH 1996, section 3.4).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

__all__ = ["fill_hidden"]

# Rows of the whole picture handled at once; even, so that cells of two rows stay whole.
STRIP = 256


def fill_hidden(rgb: Tensor, alpha: Tensor) -> None:
    """Gives the pixels of `rgb`, (1, 3, H, W), in place, a colour where `alpha` is 0.

    Everything that shows at all stays exactly as it is, and so does a picture that is hidden
    altogether. Needs about as much memory again as `rgb`.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return
    height = rgb.shape[-2]
    strips = [slice(top, min(top + STRIP, height)) for top in range(0, height, STRIP)]
    weights = _halved(alpha)
    colours = rgb.new_empty((1, 3, *weights.shape[-2:]))
    for rows in strips:
        seen = rgb[:, :, rows] * alpha[:, :, rows]
        colours[:, :, rows.start // 2 : (rows.stop + 1) // 2] = _halved(seen)
    around = _spread(colours, weights)
    for rows in strips:
        # One row of cells more on either side, for the interpolation between cells.
        first = max(rows.start // 2 - 1, 0)
        cells = around[:, :, first : (rows.stop + 1) // 2 + 1]
        fine = _doubled(cells)[:, :, rows.start - 2 * first :, : rgb.shape[-1]]
        part = rgb[:, :, rows]
        part.copy_(torch.where(hidden[:, :, rows], fine[:, :, : part.shape[-2]], part))


def _spread(colours: Tensor, weights: Tensor) -> Tensor:
    """A colour for every cell, in place of the sums of opacity times colour."""
    seen = weights > 0
    coarse = None if seen.all() else (_halved(colours), _halved(weights))
    colours.div_(weights.where(seen, 1))
    if coarse is None:
        return colours
    around = _doubled(_spread(*coarse))[:, :, : colours.shape[-2], : colours.shape[-1]]
    return torch.where(seen, colours, around, out=colours)


def _halved(cells: Tensor) -> Tensor:
    return avg_pool2d(cells, 2, ceil_mode=True)


def _doubled(cells: Tensor) -> Tensor:
    return interpolate(cells, scale_factor=2, mode="bilinear", align_corners=False)
