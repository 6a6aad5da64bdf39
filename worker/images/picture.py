"""A decoded picture, and its result's rows: grey or coloured, with opacity beside them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

__all__ = ["STRIP", "Depth", "Levels", "Picture", "rows_of"]

Depth = Literal[8, 16]

Levels = NDArray[np.unsignedinteger[Any]]
"""(rows, width, channels) of uint8 or uint16, as they are in files."""

STRIP = 64
"""Rows that are handled at once: enough for speed, and some megabytes at most."""

# Brightness of red, green and blue in sRGB's primaries (Rec. ITU-R BT.709), applied to the encoded
# values. A grey input enters as three equal channels, so what leaves differs from grey only by
# what the network invented; weights that add up to 1 keep every true grey as it is, and staying
# in the encoded domain keeps it on the curve of the levels that are written.
LUMA = (0.2126, 0.7152, 0.0722)

# The cubic convolution that torch.nn.functional.interpolate calls bicubic.
CUBIC_A = -0.75


@dataclass(frozen=True)
class Picture:
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
    picture: Picture, rgb_rows: Iterable[Tensor], height: int, width: int
) -> Iterator[Tensor]:
    """What a result's file holds, from the pipeline's rows.

    Args:
        picture: the input; decides whether the result is grey and brings the opacity.
        rgb_rows: (3, n, width) float32 in [0, 1] from top to bottom, in strips of any height.
        height, width: the result's size in pixels.

    Yields:
        (picture.channels, n, width): colours or their brightness, then the bicubic opacity.
    """
    done = 0
    for strip in rgb_rows:
        # The pipeline may hand over everything at once; the opacity is made piece by piece.
        for rgb in torch.split(strip, STRIP, dim=1):
            colours = _luma(rgb) if picture.grey else rgb
            stop = done + rgb.shape[1]
            if picture.alpha is None:
                yield colours
            else:
                yield torch.cat([colours, _resized(picture.alpha, done, stop, height, width)])
            done = stop


def _luma(rgb: Tensor) -> Tensor:
    weights = torch.tensor(LUMA, dtype=rgb.dtype, device=rgb.device)
    return torch.einsum("c,chw->hw", weights, rgb)[None]


def _resized(channel: Tensor, start: int, stop: int, height: int, width: int) -> Tensor:
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
    resized = sum(weights[:, k, None] * wide[:, taps[:, k] - first] for k in range(4))
    assert isinstance(resized, Tensor)
    return resized.clamp(0, 1)


def _cubic_weights(t: Tensor) -> Tensor:
    """(n,) places in [0, 1) between the second and the third of four taps to (n, 4) weights."""

    def near(x: Tensor) -> Tensor:
        return ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1

    def far(x: Tensor) -> Tensor:
        return ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A

    return torch.stack([far(t + 1), near(t), near(1 - t), far(2 - t)], dim=1)
