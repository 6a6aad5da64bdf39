"""Colour correction of the result toward the upsampled LR image: paper, section 3.4."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from models.errors import InvalidOption

__all__ = ["ColorFix", "adain", "correct_color", "wavelet"]

ColorFix = Literal["adain", "wavelet", "none"]

_EPSILON = 1e-5
_LEVELS = 5


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
    known = ", ".join(get_args(ColorFix))
    raise InvalidOption(f"color_fix is {fix!r}, but must be one of {known}.")
