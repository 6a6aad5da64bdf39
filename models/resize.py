"""The input made as large as the canvas, and the canvas as small as the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["reduced_rows", "upsampled"]


def upsampled(image: Tensor, canvas: tuple[int, int], padded: tuple[int, int]) -> Tensor:
    """The networks' picture of the LR image: bicubic, in [-1, 1], reflected right and below.

    Args:
        image: (1, 3, h, w) in [0, 1].
        canvas: height and width to enlarge it to.
        padded: height and width to fill it up to.

    Returns:
        (1, 3, *padded), float32 on the host.
    """
    height, width = canvas
    out = torch.empty((1, image.shape[1], *padded))
    # A channel at a time, so that no second image of this size is made.
    for channel in range(image.shape[1]):
        part = image[:, channel : channel + 1].to("cpu", torch.float32)
        part = F.interpolate(part, size=canvas, mode="bicubic", align_corners=False)
        out[:, channel : channel + 1, :height, :width] = part.clamp_(0, 1).mul_(2).sub_(1)
    out[:, :, :, width:] = out[:, :, :, _reflected(width, padded[1])]
    out[:, :, height:] = out[:, :, _reflected(height, padded[0])]
    return out


def _reflected(size: int, padded: int) -> Tensor:
    """Which of `size` places stands at each place beyond them, the border itself once."""
    period = max(2 * (size - 1), 1)
    places = torch.arange(size, padded) % period
    return torch.where(places < size, places, period - places)


def reduced_rows(rows: Iterable[Tensor], height: int, size: tuple[int, int]) -> Iterator[Tensor]:
    """Resizes an image to a size that is in neither direction larger than its own.

    The result is that of `F.interpolate(mode="bicubic", antialias=True)` on the whole image: a
    cubic filter (Keys 1981, a = -0.5) stretched by the factor of reduction, across and down.

    Args:
        rows: (channels, n, width) each, together `height` rows, float32.
        height: of the image.
        size: height and width of the result.

    Yields:
        (channels, n, width) each, together the result. Held are the rows under the filter.
    """
    scale = torch.tensor(height / size[0])
    centers = scale * (torch.arange(size[0]) + 0.5)
    starts = (centers - 2 * scale + 0.5).long().clamp(min=0)
    stops = (centers + 2 * scale + 0.5).long().clamp(max=height)
    window, top, done = None, 0, 0
    for strip in rows:
        # Rows do not mix here: the factor down is 1, where the filter is the identity.
        narrow = F.interpolate(
            strip[None], size=(strip.shape[1], size[1]), mode="bicubic", antialias=True
        )[0]
        window = narrow if window is None else torch.cat([window, narrow], dim=1)
        bottom = top + window.shape[1]
        ready = int(torch.searchsorted(stops, bottom, right=True))
        if ready == done:
            continue
        places = torch.arange(top, bottom)
        weights = _cubic((places - centers[done:ready, None] + 0.5) * (1 / scale))
        weights *= (places >= starts[done:ready, None]) & (places < stops[done:ready, None])
        yield weights / weights.sum(1, keepdim=True) @ window
        done = ready
        if done < size[0]:
            window = window[:, int(starts[done]) - top :]
            top = bottom - window.shape[1]


def _cubic(x: Tensor) -> Tensor:
    """The filter at a distance of `x` rows of the result."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
