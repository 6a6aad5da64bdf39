"""Grain: texture that a small decoder cannot make, as noise where the image already has some.

An addition to the paper, for weights whose configuration asks for it. A decoder of a few layers
gives the mean of what could be there, which is smooth; docs/training.md has what noise changes in
the scores. StyleGAN adds noise for the same reason (arXiv
1812.04948, section 3.2), and AV1 gives a film its grain back after it was smoothed away (film
grain synthesis, AV1 specification, 7.18.3). Here the amplitude is not learned: it is the least
contrast around, so that a sky keeps none, not even beside an edge.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Windows, px: what is not contrast, where contrast is averaged, how far the least is looked for,
# and over what that is smoothed.
_BASE, _CONTRAST, _LEAST, _SMOOTH = 5, 9, 13, 5
_HALO = (_BASE + _CONTRAST + _LEAST + _SMOOTH) // 2 - 2
# Of 2, which is from black to white: more is seen as noise.
_MOST = 8 / 255
# Share of the neighbours on either side: makes grains of about a pixel and a half.
_SOFT = 0.135
# Of a strip: the maps of one are some megabytes.
_STRIP_PIXELS, _STRIP_ROWS = 2**17, 64


@torch.inference_mode()
def add_grain(image: Tensor, strength: float, seed: int, share: float = 1.0) -> None:
    """Adds grain to a decoded image (1, 3, H, W) in [-1, 1], float32 on the host, in place.

    It depends on the place and the seed alone, not on how many rows are done at once. `strength` is
    the deviation over the least contrast around, and `share` how much of that is added; all
    channels get the same.
    """
    height, width = image.shape[2:]
    if strength * share == 0 or min(height, width) < _CONTRAST:
        return
    # What was above a strip has its grain already, so its brightness is kept from before.
    above = image.new_empty((1, 1, 0, width))
    step = max(_STRIP_ROWS, _STRIP_PIXELS // width)
    for top in range(0, height, step):
        bottom = min(top + step, height)
        own = _brightness(image[:, :, top : bottom + _HALO])
        rows = torch.cat([above, own], dim=2)
        first = above.shape[2]
        amplitude = share * (strength * _least_contrast(rows)).clamp(max=_MOST)
        noise = _noise(seed, top, bottom, width)
        image[:, :, top:bottom] += amplitude[:, :, first : first + bottom - top] * noise
        above = rows[:, :, : first + bottom - top][:, :, -_HALO:]


def _brightness(image: Tensor) -> Tensor:
    """Luma of Rec. ITU-R BT.601: (1, 3, H, W) -> (1, 1, H, W)."""
    weights = image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (image * weights).sum(dim=1, keepdim=True)


def _least_contrast(brightness: Tensor) -> Tensor:
    """Deviation of what is finer than a few pixels, the least of it around; of (1, 1, H, W)."""
    detail = brightness - _mean(brightness, _BASE)
    contrast = _mean(detail.square(), _CONTRAST).sqrt()
    return _mean(_least(_least(contrast, 2), 3), _SMOOTH)


def _least(x: Tensor, dim: int) -> Tensor:
    """Of the `_LEAST` px around each place along a dimension; what lies outside does not count."""
    side = _LEAST // 2
    x = F.pad(x, (0, 0, side, side) if dim == 2 else (side, side), value=torch.inf)
    # By doubling: pooling compares each value anew for every place that sees it.
    reach = 1
    while reach < _LEAST:
        step = min(reach, _LEAST - reach)
        count = x.shape[dim] - step
        x = torch.minimum(x.narrow(dim, 0, count), x.narrow(dim, step, count))
        reach += step
    return x


def _mean(x: Tensor, side: int) -> Tensor:
    """Of the square of `side` px around each place; the image is reflected at its borders."""
    return F.avg_pool2d(F.pad(x, (side // 2,) * 4, mode="reflect"), side, stride=1)


def _noise(seed: int, top: int, bottom: int, width: int) -> Tensor:
    """Rows of the noise that belongs to a seed: (bottom - top, width), deviation 1."""
    rows = [
        # A generator for each row: any strip can ask for its own.
        np.random.Generator(np.random.Philox(key=seed << 64 | row + 1)).standard_normal(
            width + 2, dtype=np.float32
        )
        for row in range(top - 1, bottom + 1)
    ]
    noise = np.stack(rows)
    # Written out: a convolution rounds by the number of rows.
    noise = noise[1:-1] + _SOFT * (noise[:-2] + noise[2:])
    noise = noise[:, 1:-1] + _SOFT * (noise[:, :-2] + noise[:, 2:])
    return torch.from_numpy(noise / np.float32(1 + 2 * _SOFT**2))
