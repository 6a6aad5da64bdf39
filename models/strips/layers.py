"""Strips, consecutive rows of a feature map, and what layers make of them.

A strip knows where it lies, so a convolution knows which of its edges are the image's, where
zeros come in as in the whole image, and which are cuts, where it gives up a row instead. For n
rows of a result, n rows and a halo on either side are read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.networks.layers import Upsample
from models.statistics import Statistics
from models.strips.maps import FeatureMap

_Layer = TypeVar("_Layer", bound=nn.Module)


class _RowConvolution(Protocol):
    """What fusing puts in the place of a convolution (`models.fusing`), or of one and the doubling
    before it."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]

    def rows(self, x: Tensor, *, padding: int) -> Tensor:
        """Of rows (n, in, h, w); `padding` is 1 where zeros stand above and below them, 0 where the
        first and the last are only read."""


Convolution = nn.Conv2d | _RowConvolution
"""3x3 with padding 1, or 1x1."""


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

    def apply(self, function: Callable[[Tensor], Tensor]) -> Strip:
        """A function of each pixel alone."""
        return self._replace(rows=function(self.rows))


class Normalization:
    """A group norm with the whole maps' statistics.

    Args:
        norm: the layer.
        maps: those whose channels, one after the other, are normalized; all written when the
            first strip comes.
    """

    def __init__(self, norm: nn.GroupNorm, maps: Sequence[FeatureMap]) -> None:
        self._norm, self._maps = norm, maps

    @cached_property
    def _arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norm, parts = self._norm, [x.statistics for x in self._maps]
        mean, variance = Statistics(
            parts[0].count, torch.cat([s.mean for s in parts]), torch.cat([s.m2 for s in parts])
        ).pool(norm.num_groups)
        # As in a group norm, parameters and statistics are at least float32.
        dtype = torch.promote_types(norm.weight.dtype, torch.float32)
        return mean.to(dtype), variance.to(dtype), norm.weight.to(dtype), norm.bias.to(dtype)

    def __call__(self, rows: Tensor) -> Tensor:
        """(1, channels, n, width) -> the same, a tensor of its own."""
        # With given statistics, a batch norm is the same arithmetic, rounded once.
        return F.batch_norm(rows, *self._arguments, False, 0.0, self._norm.eps)

    def silu(self, rows: Tensor) -> Tensor:
        """SiLU of the normalized rows."""
        return F.silu(self(rows), inplace=True)


def layers(modules: nn.Module, kind: type[_Layer]) -> list[_Layer]:
    """The members of a list of layers, whose type torch does not know."""
    members = list(modules.children())
    assert all(isinstance(layer, kind) for layer in members), f"not all of {members} are {kind}"
    return cast("list[_Layer]", members)


def count_flops(convs: Sequence[Convolution], pixels: int) -> int:
    """Of convolutions with so many pixels of output; a product and a sum are two. One that was
    fused is counted as what it was."""
    areas = (conv.kernel_size[0] * conv.kernel_size[1] for conv in convs)
    kernels = (c.in_channels * c.out_channels * area for c, area in zip(convs, areas, strict=True))
    return 2 * sum(kernels) * pixels


def join(strips: Sequence[Strip]) -> Strip:
    """Channels of strips of the same rows, one after the other."""
    first = strips[0]
    if len(strips) == 1:
        return first
    return first._replace(rows=torch.cat([s.rows for s in strips], dim=1))


def convolve(strip: Strip, conv: Convolution) -> Strip:
    """A convolution without stride."""
    radius = conv.kernel_size[0] // 2
    rows, padding, above = _pad(strip, radius)
    if isinstance(conv, nn.Conv2d):
        out = F.conv2d(rows, conv.weight, conv.bias, padding=(padding, radius))
    else:
        out = conv.rows(rows, padding=padding)
    return Strip(out, strip.top + radius - above, strip.height)


def upsample(strip: Strip, layer: Upsample | _RowConvolution, span: Span) -> Strip:
    """Each pixel doubled both ways, then a 3x3 convolution; `span` is of the result."""
    if isinstance(layer, Upsample):
        rows = F.interpolate(strip.rows, scale_factor=2.0, mode="nearest")
        wide = Strip(rows, 2 * strip.top, 2 * strip.height)
        conv = cast("Convolution", layer.conv)
        return convolve(wide.crop(Span(span.top - 1, span.bottom + 1)), conv)
    rows, padding, above = _pad(strip, 1)
    out = layer.rows(rows, padding=padding)
    return Strip(out, 2 * (strip.top + 1 - above), 2 * strip.height)


def downsample(strip: Strip, conv: nn.Conv2d, span: Span) -> Strip:
    """A 3x3 convolution of stride 2 over a map padded right and below; `span` is of the result.

    Row y of the result reads rows 2y to 2y + 2.
    """
    strip = strip.crop(Span(2 * span.top, 2 * span.bottom + 1))
    below = 2 * span.bottom + 1 - strip.bottom
    rows = F.pad(strip.rows, (0, 1, 0, below))
    out = F.conv2d(rows, conv.weight, conv.bias, stride=2)
    return Strip(out, span.top, strip.height // 2)


def _pad(strip: Strip, radius: int) -> tuple[Tensor, int, int]:
    """The rows, how many of zeros a convolution adds on both sides, and those above in all: zeros
    stand at the image's edges alone."""
    above = radius if strip.top == 0 else 0
    below = radius if strip.bottom == strip.height else 0
    if above == below:
        return strip.rows, above, above
    return F.pad(strip.rows, (0, 0, above, below)), 0, above
