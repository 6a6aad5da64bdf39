"""Colour correction of the result toward the upsampled LR image: paper, section 3.4.

`correct_color` takes a whole image; `corrected_rows` gives the same in strips, so that the
corrected image never stands beside the one it was made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from models.errors import InvalidOption
from models.parameters import ColorFix
from models.pieces.statistics import Statistics

__all__ = ["adain", "correct_color", "corrected_rows", "wavelet"]

_EPSILON = 1e-5
_LEVELS = 5
# How far a row's low frequencies reach: the sum of the dilations.
_HALO = 2**_LEVELS - 1


def _statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over the image, (n, c, 1, 1)."""
    deviation = (image.var(dim=(2, 3), keepdim=True) + _EPSILON).sqrt()
    return image.mean(dim=(2, 3), keepdim=True), deviation


def adain(image: Tensor, reference: Tensor) -> Tensor:
    """Gives each channel of `image` (n, 3, h, w) the mean and deviation of `reference` (eq. 7)."""
    mean, deviation = _statistics(image)
    wanted_mean, wanted_deviation = _statistics(reference)
    return (image - mean) / deviation * wanted_deviation + wanted_mean


def _blur(image: Tensor, dilation: int) -> Tensor:
    """3x3 binomial blur with holes of `dilation`, borders replicated."""
    row = image.new_tensor([0.25, 0.5, 0.25])
    channels = image.shape[1]
    padded = F.pad(image, (dilation,) * 4, mode="replicate")
    across = row.view(1, 1, 1, 3).expand(channels, 1, 1, 3)
    down = row.view(1, 1, 3, 1).expand(channels, 1, 3, 1)
    padded = F.conv2d(padded, across, dilation=(1, dilation), groups=channels)
    return F.conv2d(padded, down, dilation=(dilation, 1), groups=channels)


def _low_frequencies(image: Tensor) -> Tensor:
    for level in range(_LEVELS):
        image = _blur(image, 2**level)
    return image


def wavelet(image: Tensor, reference: Tensor) -> Tensor:
    """High frequencies of `image` on the low ones of `reference`, both (n, 3, h, w)."""
    return image - _low_frequencies(image) + _low_frequencies(reference)


def correct_color(image: Tensor, reference: Tensor, fix: ColorFix) -> Tensor:
    """The correction of that name.

    Raises:
        InvalidOption: an unknown name.
    """
    if fix == "adain":
        return adain(image, reference)
    if fix == "wavelet":
        return wavelet(image, reference)
    if fix == "none":
        return image
    raise InvalidOption(_unknown(fix))


def corrected_rows(image: Tensor, reference: Tensor, fix: ColorFix, rows: int) -> Iterator[Tensor]:
    """`correct_color`, `rows` rows at a time: (1, 3, n, w) each, from top to bottom.

    AdaIN needs statistics of both whole images, which are pooled before the first strip comes;
    the wavelet's low frequencies reach 31 rows, which are read on both sides of a strip.

    Args:
        image: (1, 3, h, w), float32.
        reference: like it.
        fix: which correction.
        rows: of a strip, the last one excepted.

    Raises:
        InvalidOption: an unknown name; at the first strip.
    """
    height = image.shape[2]
    strip: Callable[[int, int], Tensor]
    if fix == "adain":
        mean, deviation = _pooled(image, rows)
        wanted_mean, wanted_deviation = _pooled(reference, rows)

        def strip(top: int, bottom: int) -> Tensor:
            normal = (image[:, :, top:bottom] - mean) / deviation
            return normal * wanted_deviation + wanted_mean

    elif fix == "wavelet":

        def strip(top: int, bottom: int) -> Tensor:
            first, last = max(top - _HALO, 0), min(bottom + _HALO, height)
            wide = wavelet(image[:, :, first:last], reference[:, :, first:last])
            return wide[:, :, top - first : bottom - first]

    elif fix == "none":

        def strip(top: int, bottom: int) -> Tensor:
            return image[:, :, top:bottom]

    else:
        raise InvalidOption(_unknown(fix))
    for top in range(0, height, rows):
        yield strip(top, min(top + rows, height))


def _pooled(image: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """`_statistics` of (1, 3, h, w), merged from those of strips."""
    parts = (Statistics.of(strip) for strip in torch.split(image, rows, dim=2))
    found = reduce(Statistics.merged, parts)
    deviation = (found.m2 / max(found.count - 1, 1) + _EPSILON).sqrt()
    mean, deviation = (x.to(image).view(1, -1, 1, 1) for x in (found.mean, deviation))
    return mean, deviation


def _unknown(fix: str) -> str:
    return f"color_fix is {fix!r}, but must be one of {', '.join(get_args(ColorFix))}."
