"""Scores that run anywhere, how each is written, and what the paper measured.

PSNR and SSIM are of luma, as the field counts: Y of BT.601 in limited range (16 to 235), a border
of a few pixels left out, peak 255. Published figures are only comparable where all three agree.
NIQE and the lattice's scores see the whole image.

Decoders that interleave channels, or work in latent pixels of 8 x 8, leave patterns of period 2, 4
and 8. Two scores find them, of luma: the power of neighbours' differences at the frequencies of
such a pattern, over what is around these frequencies; and in flat places, how far the mean of each
of the 4 x 4 places is from the others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.metrics import structural_similarity

from evaluation.images import EvaluationError, Pixels
from evaluation.niqe import niqe

BORDER = 4
"""Pixels left out on every side by default: the scale, as is usual for 4."""
_WINDOW = 11


@dataclass(frozen=True)
class Metric:
    """How a score is written and read."""

    name: str
    label: str
    higher_is_better: bool
    digits: int


METRICS: Mapping[str, Metric] = {
    m.name: m
    for m in (
        Metric("psnr", "PSNR", True, 2),
        Metric("ssim", "SSIM", True, 4),
        Metric("lpips", "LPIPS", False, 4),
        Metric("vgg", "VGG distance", False, 3),
        Metric("fid", "FID", False, 2),
        Metric("clipiqa", "CLIP-IQA", True, 4),
        Metric("musiq", "MUSIQ", True, 2),
        Metric("niqe", "NIQE", False, 2),
        Metric("lattice", "lattice (dB)", False, 1),
        Metric("phase", "phase", False, 3),
    )
}
"""In the order of the tables."""


def luma(image: Pixels) -> npt.NDArray[np.float64]:
    """(height, width), 16 to 235, not rounded: BT.601, section 2.5.3, of 8-bit RGB."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    y: npt.NDArray[np.float64] = 16 + image.astype(np.float64) @ weights
    return y


def _inner(image: Pixels, original: Pixels, border: int) -> list[npt.NDArray[np.float64]]:
    if image.shape != original.shape:
        raise EvaluationError(
            f"The result has {image.shape[1]} x {image.shape[0]} pixels, but the original has "
            f"{original.shape[1]} x {original.shape[0]}."
        )
    height, width = original.shape[:2]
    if min(height, width) < 2 * border + _WINDOW:
        raise EvaluationError(
            f"An image of {width} x {height} pixels is too small for a border of {border}: at "
            f"least {_WINDOW} pixels must be left."
        )
    cut = np.s_[border : height - border, border : width - border]
    return [luma(image)[cut], luma(original)[cut]]


def psnr(image: Pixels, original: Pixels, border: int = BORDER) -> float:
    """Peak signal-to-noise ratio of Y in dB; infinite for equal images. Raises EvaluationError:
    sizes differ or are too small."""
    ours, theirs = _inner(image, original, border)
    error = float(np.mean((ours - theirs) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(image: Pixels, original: Pixels, border: int = BORDER) -> float:
    """Structural similarity of Y: Gaussian window of 11 pixels, sigma 1.5 (Wang et al., 2004).
    Raises as `psnr`."""
    ours, theirs = _inner(image, original, border)
    return float(
        structural_similarity(  # type: ignore[no-untyped-call]  # the package is typed, it is not
            ours,
            theirs,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def offline_scores(image: Pixels, original: Pixels, border: int) -> dict[str, float]:
    """All of them by name. Raises EvaluationError: the image is too small for one of them."""
    return {
        "psnr": psnr(image, original, border),
        "ssim": ssim(image, original, border),
        "niqe": niqe(image),
        "lattice": lattice(image),
        "phase": phase(image),
    }


_LUMA = np.array([0.299, 0.587, 0.114])
_EIGHTHS = (1, 2, 3, 4)  # cycles a pixel
_AROUND = 36  # of all frequencies, the share that one is compared with, on either side
_PERIOD, _MEAN, _FLAT = 4, 9, 12.0  # pixels, pixels, grey levels


def lattice(image: Pixels) -> float:
    """The strongest line in dB, of rows and columns; images without a lattice have about 1.

    Pixels (height, width, 3), 8 bits, at least 64 a side.
    """
    y = image.astype(np.float64) @ _LUMA
    return max(_line(y), _line(y.T))


def _line(y: npt.NDArray[np.float64]) -> float:
    steps = np.diff(y, axis=1)
    n = steps.shape[1] // 8 * 8
    spectrum = np.abs(np.fft.rfft(steps[:, :n] * np.hanning(n), axis=1)) ** 2
    power = spectrum.mean(axis=0)
    reach = max(4, n // _AROUND)
    strongest = 0.0
    for eighth in _EIGHTHS:
        at = n * eighth // 8
        near = range(max(at - reach, 1), min(at + reach + 1, len(power)))
        around = np.median([power[i] for i in near if abs(i - at) > 2])
        peak = power[max(at - 1, 0) : at + 2].max()
        strongest = max(strongest, 10 * float(np.log10((peak + 1e-9) / (around + 1e-9))))
    return strongest


def phase(image: Pixels) -> float:
    """Deviation of the means of 4 x 4 phases in flat places, in grey levels; photographs: 0.03."""
    y = image.astype(np.float64) @ _LUMA
    high = y - ndimage.uniform_filter(y, _MEAN)
    flat = np.abs(high) < _FLAT
    places = [np.s_[i::_PERIOD, j::_PERIOD] for i in range(_PERIOD) for j in range(_PERIOD)]
    return float(np.std([high[at][flat[at]].mean() if flat[at].any() else 0.0 for at in places]))


_COLUMNS = ("psnr", "ssim", "lpips", "fid", "musiq", "clipiqa")
PAPER_SCORES: Mapping[str, Mapping[str, float]] = {
    name: dict(zip(_COLUMNS, values, strict=True))
    for name, values in {
        "DIV2K-val": (23.26, 0.5726, 0.3113, 24.44, 65.92, 0.6771),
        "RealSR": (24.70, 0.7085, 0.3018, 128.51, 65.78, 0.6178),
        "DRealSR": (28.03, 0.7536, 0.3284, 148.98, 58.51, 0.6356),
    }.items()
}
"""Scores by test set. On other images they are a scale, not a comparison."""
