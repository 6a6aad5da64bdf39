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
from torch.nn.functional import avg_pool2d, interpolate

Depth = Literal[8, 16]

STRIP = 64
"""Rows that are handled at once: enough for speed, and some megabytes at most."""

# As above, of an input that is whole; even, so that cells of two rows stay whole.
FILL_STRIP = 256

# Brightness of red, green and blue in sRGB's primaries (Rec. ITU-R BT.709), applied to the encoded
# values. A grey input enters as three equal channels, so what leaves differs from grey only by
# what the network invented; weights that add up to 1 keep every true grey as it is, and staying
# in the encoded domain keeps it on the curve of the levels that are written.
LUMA = (0.2126, 0.7152, 0.0722)

# The cubic convolution that torch.nn.functional.interpolate calls bicubic.
CUBIC_A = -0.75


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

    The same as resizing all of it and taking those rows, but for the last bit of a float32.
    """
    rows = channel.shape[-2]
    # Where the centres of the new rows lie among the old ones, as in interpolate.
    centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * rows / height - 0.5
    above = centre.floor()
    taps = (above.long()[:, None] + torch.arange(-1, 3)).clamp(0, rows - 1)
    first = int(taps.min())
    wide = channel[:, :, first : int(taps.max()) + 1]
    wide = interpolate(wide, (wide.shape[-2], width), mode="bicubic", align_corners=False)[0]
    weights = _cubic_weights((centre - above).to(channel.dtype))
    # One tap after the other: all four at once would take four times the memory.
    result = wide.new_zeros(1, stop - start, width)
    for tap in range(4):
        result += weights[:, tap, None] * wide[:, taps[:, tap] - first]
    return result.clamp_(0, 1)


def _cubic_weights(t: Tensor) -> Tensor:
    """(n,) places in [0, 1) between the second and the third of four taps to (n, 4) weights."""

    def near(x: Tensor) -> Tensor:
        return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A

    return torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], dim=1)


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
