"""Strips: consecutive rows of a feature map, and what layers make of them.

A strip knows where it lies, so a convolution knows which of its edges are the image's, where
zeros come in as in the whole image, and which are cuts, where it gives up a row instead. Whoever
wants n rows of a result therefore reads n and a halo on either side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.fusing.upsampling import PhaseUpsample
from models.fusing.winograd import WinogradConv2d

__all__ = ["Convolution", "Span", "Strip", "convolve", "downsample", "join", "upsample"]

Convolution = nn.Conv2d | WinogradConv2d
"""Without stride."""


class Span(NamedTuple):
    """Rows `top` to `bottom`, the latter not counted."""

    top: int
    bottom: int


class Strip(NamedTuple):
    """Rows of a map."""

    rows: Tensor
    """(1, channels, n, width)"""
    top: int
    """Which row of the map the first one is."""
    height: int
    """Rows of the whole map."""

    @property
    def bottom(self) -> int:
        return self.top + self.rows.shape[2]

    def crop(self, span: Span) -> Strip:
        """Those of the span's rows that the strip has, as a view."""
        top, bottom = max(span.top, self.top), min(span.bottom, self.bottom)
        return Strip(self.rows[:, :, top - self.top : bottom - self.top], top, self.height)


def join(strips: Sequence[Strip]) -> Strip:
    """Channels of strips of the same rows, one after the other."""
    first = strips[0]
    if len(strips) == 1:
        return first
    return first._replace(rows=torch.cat([s.rows for s in strips], dim=1))


def convolve(strip: Strip, conv: Convolution) -> Strip:
    """A 3x3 convolution with padding 1, or a 1x1 one."""
    radius = conv.kernel_size[0] // 2
    above = radius if strip.top == 0 else 0
    below = radius if strip.bottom == strip.height else 0
    rows, padding = strip.rows, above
    if above != below:
        rows, padding = F.pad(rows, (0, 0, above, below)), 0
    if isinstance(conv, WinogradConv2d):
        out = conv.rows(rows, padding=padding)
    else:
        out = F.conv2d(rows, conv.weight, conv.bias, padding=(padding, radius))
    return Strip(out, strip.top + radius - above, strip.height)


def upsample(strip: Strip, sampler: Convolution | PhaseUpsample, span: Span) -> Strip:
    """Each cell doubled both ways, then a 3x3 convolution; `span` is of the result.

    `sampler` is that convolution, or what it was fused into.
    """
    if isinstance(sampler, PhaseUpsample):
        above, below = int(strip.top == 0), int(strip.bottom == strip.height)
        rows, padding = strip.rows, above
        if above != below:
            rows, padding = F.pad(rows, (0, 0, above, below)), 0
        out = sampler.rows(rows, padding=padding)
        return Strip(out, 2 * (strip.top + 1 - above), 2 * strip.height)
    doubled = F.interpolate(strip.rows, scale_factor=2.0, mode="nearest")
    wide = Strip(doubled, 2 * strip.top, 2 * strip.height)
    return convolve(wide.crop(Span(span.top - 1, span.bottom + 1)), sampler)


def downsample(strip: Strip, conv: nn.Conv2d, span: Span) -> Strip:
    """A 3x3 convolution of stride 2 over a map padded right and below; `span` is of the result.

    Row y of the result reads rows 2y to 2y + 2.
    """
    strip = strip.crop(Span(2 * span.top, 2 * span.bottom + 1))
    below = 2 * span.bottom + 1 - strip.bottom
    padded = F.pad(strip.rows, (0, 1, 0, below))
    out = F.conv2d(padded, conv.weight, conv.bias, stride=2)
    return Strip(out, span.top, strip.height // 2)
