"""A decoded image, and its result's rows: grey or coloured, with opacity beside them.

What lies under fully transparent pixels is arbitrary, often black or white, and upscaling mixes it
into the visible edge: a dark fringe on every background but black. So `fill_hidden` replaces it by
what is visible around, before the image is upscaled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

Depth = Literal[8, 16]

STRIP = 64
"""Rows that are handled at once: enough for speed, and some megabytes at most."""

# As above, of an input that is whole; even, so that cells of two rows stay whole.
FILL_STRIP = 256

# Brightness of red, green and blue in sRGB's primaries (Rec. ITU-R BT.709), applied to the encoded
# values: weights that add up to 1 keep every true grey as it is, on the curve of its levels.
LUMA = (0.2126, 0.7152, 0.0722)


@dataclass(frozen=True)
class DecodedImage:
    """An input as the pipeline takes it.

    `rgb` is (1, 3, H, W) float32 in [0, 1], sRGB, upright; three equal channels where the file is
    `grey`. `alpha` is the opacity, (1, 1, H, W) likewise, or None for a file without such a
    channel. `depth` is the bits a channel that the result deserves: 16 where the file had more
    than 8.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    depth: Depth = 8

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[-1], self.rgb.shape[-2]

    @property
    def channels(self) -> int:
        """Of the result: grey 1, grey and alpha 2, RGB 3, RGB and alpha 4."""
        return (1 if self.grey else 3) + (self.alpha is not None)


def rows_of(
    image: DecodedImage, rgb_rows: Iterable[Tensor], height: int, width: int
) -> Iterator[Tensor]:
    """What a result's file holds, from the pipeline's rows.

    Args:
        image: the input; decides whether the result is grey and brings the opacity.
        rgb_rows: (3, n, width) float32 in [0, 1] from top to bottom, in strips of any height.
        height, width: the result's size in pixels.

    Yields:
        (image.channels, n, width): colours or their brightness, then the bicubic opacity.
    """
    start = 0
    for strip in rgb_rows:
        # The pipeline may hand over everything at once; the opacity is resized piece by piece.
        for rgb in torch.split(strip, STRIP, dim=1):
            colours = rgb
            if image.grey:
                colours = torch.einsum("c,chw->hw", rgb.new_tensor(LUMA), rgb)[None]
            stop = start + rgb.shape[1]
            if image.alpha is not None:
                colours = torch.cat([colours, _resize(image.alpha, start, stop, height, width)])
            yield colours
            start = stop


def _resize(channel: Tensor, start: int, stop: int, height: int, width: int) -> Tensor:
    """Rows `start` to `stop` of a (1, 1, H, W) channel resized to height x width, in [0, 1].

    As of bicubic interpolation of all of it, but for the last bit of a float32.
    """
    rows = channel.shape[-2]
    # The old rows between which the new ones lie, and two more for the kernel.
    first = max(start * rows // height - 3, 0)
    part = channel[:, :, first : stop * rows // height + 4].double()
    y = (torch.arange(start, stop, dtype=part.dtype) + 0.5) * rows / height - first
    x = (torch.arange(width, dtype=part.dtype) + 0.5) / width
    # From -1 to 1 over the sides of `part`, beyond which its border goes on.
    places = torch.meshgrid(2 * x - 1, 2 * y / part.shape[-2] - 1, indexing="xy")
    grid = torch.stack(places, dim=-1)[None]
    resized = grid_sample(part, grid, "bicubic", padding_mode="border", align_corners=False)
    return resized[0].to(channel.dtype).clamp_(0, 1)


def fill_hidden(rgb: Tensor, alpha: Tensor) -> None:
    """Gives the pixels of `rgb`, (1, 3, H, W), in place, a colour where `alpha` is 0.

    Averages over ever larger cells, weighted by opacity, from which each hidden pixel takes the
    finest one with anything visible (push-pull filling: Gortler et al., "The Lumigraph", SIGGRAPH
    1996, section 3.4). Everything that shows at all stays exactly as it is, and so does an image
    that is hidden altogether. Needs about as much memory again as `rgb`.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return
    height = rgb.shape[-2]
    strips = [slice(top, min(top + FILL_STRIP, height)) for top in range(0, height, FILL_STRIP)]
    weights = _halve(alpha)
    colours = rgb.new_empty((1, 3, *weights.shape[-2:]))
    for rows in strips:
        visible = rgb[:, :, rows] * alpha[:, :, rows]
        colours[:, :, rows.start // 2 : (rows.stop + 1) // 2] = _halve(visible)
    around = _spread(colours, weights)
    for rows in strips:
        # One row of cells more on either side, for the interpolation between cells.
        first = max(rows.start // 2 - 1, 0)
        cells = around[:, :, first : (rows.stop + 1) // 2 + 1]
        fine = _double(cells)[:, :, rows.start - 2 * first :, : rgb.shape[-1]]
        part = rgb[:, :, rows]
        part.copy_(torch.where(hidden[:, :, rows], fine[:, :, : part.shape[-2]], part))


def _spread(colours: Tensor, weights: Tensor) -> Tensor:
    """A colour for every cell, in place of the sums of opacity times colour."""
    visible = weights > 0
    coarse = None if visible.all() else (_halve(colours), _halve(weights))
    colours.div_(weights.where(visible, 1))
    if coarse is None:
        return colours
    around = _double(_spread(*coarse))[:, :, : colours.shape[-2], : colours.shape[-1]]
    return torch.where(visible, colours, around, out=colours)


def _halve(cells: Tensor) -> Tensor:
    return avg_pool2d(cells, 2, ceil_mode=True)


def _double(cells: Tensor) -> Tensor:
    return interpolate(cells, scale_factor=2, mode="bilinear", align_corners=False)
