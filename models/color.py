"""Pixels outside the networks: the input is enlarged, the result corrected and reduced.

Colour correction toward the enlarged input: paper, section 3.4. The result comes in strips, so that
no second image stands beside the decoded one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import reduce
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import InvalidOption, NotFinite
from models.layout import Layout
from models.presets import ColorFix
from models.statistics import Statistics

# Pixels of a strip of the result, and rows at least, because the wavelet reads 31 more on both
# sides.
_STRIP_PIXELS, _STRIP_ROWS = 2**18, 64
_EPSILON = 1e-5
_LEVELS = 5
# How far a row's low frequencies reach: the sum of the dilations.
_HALO = 2**_LEVELS - 1


def enlarge(image: Tensor, canvas: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """An image (1, 3, h, w) in [0, 1] -> the networks' input (1, 3, *size) in [-1, 1], float32 on
    the host: bicubic to the canvas, reflected right and below, by less than there is."""
    height, width = canvas
    out = torch.empty((1, image.shape[1], *size))
    # A channel at a time, so that no second image of this size is made.
    for channel in range(image.shape[1]):
        part = image[:, channel : channel + 1].to("cpu", torch.float32)
        part = F.interpolate(part, size=canvas, mode="bicubic", align_corners=False)
        out[:, channel : channel + 1, :height, :width] = part.clamp_(0, 1).mul_(2).sub_(1)
    below, right = size[0] - height, size[1] - width
    out[:, :, :, width:] = out[:, :, :, width - 1 - right : width - 1].flip(3)
    out[:, :, height:] = out[:, :, height - 1 - below : height - 1].flip(2)
    return out


def check_finite(values: Tensor, what: str, dtype: torch.dtype) -> None:
    """Stops what would be written as a black image: `what` it is, (1, c, h, w), and the dtype that
    it was computed in. A few rows at a time are looked at.

    Raises:
        NotFinite: an infinity or no number is among the values.
    """
    if all(bool(part.isfinite().all()) for part in torch.split(values, _STRIP_ROWS, dim=2)):
        return
    name = str(dtype).removeprefix("torch.")
    hint = "Use bfloat16 or float32, which hold larger ones."
    if dtype != torch.float16:
        hint = "Verify the weights (`stablesr weights verify`)."
    raise NotFinite(f"The {what}, computed in {name}, has values that are not finite. {hint}")


@torch.no_grad()
def result_rows(
    image: Tensor, reference: Tensor, layout: Layout, fix: ColorFix, share: float = 1.0
) -> Iterator[Tensor]:
    """The result from top to bottom, (3, n, W) each, in [0, 1]: corrected, cut and reduced. `image`
    is the decoder's, (1, 3, *layout.padded), in [-1, 1] or so, float32 on the host; `reference`,
    whose colours it gets, is the enlarged input; `share` is how far toward them it goes."""
    height, width = layout.canvas
    step = max(_STRIP_ROWS, _STRIP_PIXELS // width)
    strips = correct_rows(image, reference, fix if share else "none", step)
    if 0 < share < 1:
        pairs = zip(torch.split(image, step, dim=2), strips, strict=True)
        strips = (torch.lerp(*pair, share) for pair in pairs)
    rows: Iterator[Tensor] = (
        (strip[0, :, : height - top, :width] + 1) / 2
        for top, strip in zip(range(0, height, step), strips, strict=False)
    )
    if layout.size != layout.canvas:
        rows = reduce_rows(rows, height, layout.size)
    for row in rows:
        yield row.clamp(0, 1)


def join_rows(rows: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
    """Rows (3, n, W) from top to bottom -> (1, 3, *size)."""
    result = torch.empty((1, 3, *size))
    top = 0
    for strip in rows:
        result[0, :, top : top + strip.shape[1]] = strip
        top += strip.shape[1]
    return result


def correct_rows(image: Tensor, reference: Tensor, fix: ColorFix, rows: int) -> Iterator[Tensor]:
    """Colour correction of an image (1, 3, h, w), float32, to a reference like it, `rows` rows at a
    time: (1, 3, n, w) each, from top to bottom.

    AdaIN gives each channel the mean and deviation of the reference's (eq. 7); both are pooled from
    strips before the first comes. The wavelet's low frequencies reach 31 rows, which are read on
    both sides of a strip.

    Raises:
        InvalidOption: an unknown name; at the first strip.
    """
    if fix == "none":
        yield from torch.split(image, rows, dim=2)
    elif fix == "adain":
        mean, deviation = _mean_and_deviation(image, rows)
        reference_mean, reference_deviation = _mean_and_deviation(reference, rows)
        for strip in torch.split(image, rows, dim=2):
            yield (strip - mean) / deviation * reference_deviation + reference_mean
    elif fix == "wavelet":
        height = image.shape[2]
        for top in range(0, height, rows):
            first, last = max(top - _HALO, 0), min(top + rows + _HALO, height)
            wide = wavelet(image[:, :, first:last], reference[:, :, first:last])
            yield wide[:, :, top - first : min(top + rows, height) - first]
    else:
        names = ", ".join(get_args(ColorFix))
        raise InvalidOption(f"color_fix is {fix!r}, but must be one of {names}.")


def _mean_and_deviation(image: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Of each channel of (1, 3, h, w), (1, 3, 1, 1)."""
    strips = torch.split(image, rows, dim=2)
    statistics = reduce(Statistics.merge, map(Statistics.of, strips))
    deviation = (statistics.m2 / max(statistics.count - 1, 1) + _EPSILON).sqrt()
    mean, deviation = (x.to(image).view(1, -1, 1, 1) for x in (statistics.mean, deviation))
    return mean, deviation


def wavelet(image: Tensor, reference: Tensor) -> Tensor:
    """High frequencies of `image` on the low ones of `reference`, both (n, 3, h, w)."""
    return image - _low_frequencies(image) + _low_frequencies(reference)


def _low_frequencies(image: Tensor) -> Tensor:
    """What 3x3 binomial blurs leave, with holes of 1, 2, 4 ... pixels, borders replicated."""
    kernel = image.new_tensor([0.25, 0.5, 0.25])
    channels = image.shape[1]
    across = kernel.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
    down = kernel.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
    for dilation in (2**level for level in range(_LEVELS)):
        image = F.pad(image, (dilation,) * 4, mode="replicate")
        image = F.conv2d(image, across, dilation=(1, dilation), groups=channels)
        image = F.conv2d(image, down, dilation=(dilation, 1), groups=channels)
    return image


def reduce_rows(rows: Iterable[Tensor], height: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Resizes an image, given as rows (channels, n, width), float32, together of this height, to a
    size (height, width) that is in neither direction larger. The result comes as rows too, and only
    those under the filter are in memory.

    It is that of `F.interpolate(mode="bicubic", antialias=True)` on the whole image: a cubic filter
    (Keys 1981, a = -0.5) stretched by the factor of reduction, across and down.
    """
    scale = torch.tensor(height / size[0])
    centers = scale * (torch.arange(size[0]) + 0.5)
    starts = (centers - 2 * scale + 0.5).long().clamp(min=0)
    stops = (centers + 2 * scale + 0.5).long().clamp(max=height)
    window, top, row = None, 0, 0
    for strip in rows:
        # Rows do not mix here: the factor down is 1, where the filter is the identity.
        narrow = F.interpolate(
            strip[None], size=(strip.shape[1], size[1]), mode="bicubic", antialias=True
        )[0]
        window = narrow if window is None else torch.cat([window, narrow], dim=1)
        bottom = top + window.shape[1]
        stop = int(torch.searchsorted(stops, bottom, right=True))
        if stop == row:
            continue
        places = torch.arange(top, bottom)
        weights = _cubic((places - centers[row:stop, None] + 0.5) * (1 / scale))
        weights *= (places >= starts[row:stop, None]) & (places < stops[row:stop, None])
        yield weights / weights.sum(1, keepdim=True) @ window
        row = stop
        if row < size[0]:
            window = window[:, int(starts[row]) - top :]
            top = bottom - window.shape[1]


def _cubic(x: Tensor) -> Tensor:
    """The filter at a distance of `x` rows of the result."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
