"""NIQE, how natural an image's local statistics are, without an original; lower is better.

Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", IEEE Signal
Processing Letters 20(3), 2013; equations are theirs. `niqe_pristine.npz` holds the statistics of
pristine images that they published, as BasicSR (Apache-2.0) distributes them.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage, special
from torch.nn import functional as F

from evaluation.images import EvaluationError, Pixels

Array = npt.NDArray[np.float64]

BLOCK = 96
"""Side in pixels of the patches whose statistics are taken; half of it at half the size."""
_PRISTINE = Path(__file__).with_name("niqe_pristine.npz")
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_SHAPES = np.arange(0.2, 10.001, 0.001)
_RATIOS = special.gamma(2 / _SHAPES) ** 2 / (
    special.gamma(1 / _SHAPES) * special.gamma(3 / _SHAPES)
)


@cache
def _pristine() -> tuple[Array, Array]:
    """Mean (36,) and covariance (36, 36) of pristine images' features."""
    with np.load(_PRISTINE) as arrays:
        return arrays["mean"], arrays["covariance"]


def niqe(image: Pixels) -> float:
    """NIQE of an image, over whole patches from the upper left. Raises EvaluationError: it holds
    fewer than two patches of 96 x 96 pixels, or too flat ones."""
    grey = np.rint(image.astype(np.float64) @ (0.298936, 0.587043, 0.114021))
    rows, columns = grey.shape[0] // BLOCK, grey.shape[1] // BLOCK
    if rows * columns < 2:
        raise EvaluationError(
            f"NIQE needs two patches of {BLOCK} x {BLOCK} pixels at least, but the image has "
            f"{grey.shape[1]} x {grey.shape[0]} pixels."
        )
    grey = grey[: rows * BLOCK, : columns * BLOCK]
    features = np.hstack([_features(grey, BLOCK), _features(_half(grey), BLOCK // 2)])
    features = features[np.isfinite(features).all(axis=1)]
    if len(features) < 2:
        raise EvaluationError("NIQE needs two patches with texture at least, but has fewer.")
    mean, covariance = _pristine()
    distance = mean - features.mean(axis=0)
    # Eq. 10. The pseudo-inverse, because few patches leave the covariance without full rank.
    inverse = np.linalg.pinv((covariance + np.cov(features, rowvar=False)) / 2)
    return float(math.sqrt(distance @ inverse @ distance))


def _half(grey: Array) -> Array:
    """Half the size by an antialiased bicubic filter (a = -0.5)."""
    image = torch.from_numpy(grey)[None, None]
    half = F.interpolate(image, scale_factor=0.5, mode="bicubic", antialias=True)
    return half[0, 0].numpy()


def _features(grey: Array, block: int) -> Array:
    """18 of each patch, (patches, 18): section II-A and II-B."""
    side = np.arange(-3, 4)
    window = np.exp(-(side**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()

    def local(x: Array) -> Array:
        for axis in (1, 0):
            x = ndimage.correlate1d(x, window, axis=axis, mode="nearest")
        return x

    mean = local(grey)
    deviation = np.sqrt(np.abs(local(grey * grey) - mean * mean))
    normal = (grey - mean) / (deviation + 1)  # eq. 1
    rows, columns = (n // block for n in normal.shape)
    patches = normal.reshape(rows, block, columns, block).swapaxes(1, 2)
    return np.array([_patch(p) for row in patches for p in row])


def _patch(patch: Array) -> list[float]:
    shape, left, right = _asymmetric(patch)
    features = [shape, (left + right) / 2]
    for shift in _SHIFTS:
        shape, left, right = _asymmetric(patch * np.roll(patch, shift, axis=(0, 1)))
        mean = (right - left) * special.gamma(2 / shape) / special.gamma(1 / shape)  # eq. 8
        features += [shape, float(mean), left, right]
    return features


def _asymmetric(values: Array) -> tuple[float, float, float]:
    """Shape and both scales of an asymmetric generalized Gaussian, fitted by moments: eq. 4-7."""
    below, above = values[values < 0], values[values > 0]
    if not below.size or not above.size:
        return math.nan, math.nan, math.nan
    left, right = math.sqrt(np.mean(below**2)), math.sqrt(np.mean(above**2))
    ratio = left / right
    spread = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    moments = spread * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = float(_SHAPES[np.argmin((_RATIOS - moments) ** 2)])
    scale = math.sqrt(special.gamma(1 / shape) / special.gamma(3 / shape))
    return shape, left * scale, right * scale
