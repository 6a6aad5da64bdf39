"""Scores that run anywhere: PSNR and SSIM on luma, NIQE, and what a lattice shows.

As the field counts: Y of BT.601 in limited range (16 to 235), a border of a few pixels left out,
peak 255. Published figures are only comparable where all three agree. NIQE and the lattice's
scores see the whole picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
from skimage.metrics import structural_similarity

from evaluation.errors import EvaluationError
from evaluation.lattice import lattice, phase
from evaluation.niqe import niqe
from evaluation.pictures import Pixels

__all__ = ["BORDER", "METRICS", "Metric", "luma", "offline_scores", "psnr", "ssim"]

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


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
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
)
"""In the order of the tables."""


def luma(picture: Pixels) -> npt.NDArray[np.float64]:
    """(height, width), 16 to 235, not rounded: BT.601, section 2.5.3, of 8-bit RGB."""
    weights = np.array([65.481, 128.553, 24.966]) / 255
    y: npt.NDArray[np.float64] = 16 + picture.astype(np.float64) @ weights
    return y


def _inner(picture: Pixels, original: Pixels, border: int) -> list[npt.NDArray[np.float64]]:
    if picture.shape != original.shape:
        raise EvaluationError(
            f"The result has {picture.shape[1]} x {picture.shape[0]} pixels, but the original has "
            f"{original.shape[1]} x {original.shape[0]}."
        )
    height, width = original.shape[:2]
    if min(height, width) < 2 * border + _WINDOW:
        raise EvaluationError(
            f"A picture of {width} x {height} pixels is too small for a border of {border}: at "
            f"least {_WINDOW} pixels must be left."
        )
    cut = np.s_[border : height - border, border : width - border]
    return [luma(picture)[cut], luma(original)[cut]]


def psnr(picture: Pixels, original: Pixels, border: int = BORDER) -> float:
    """Peak signal-to-noise ratio of Y in dB; infinite for equal pictures.

    Raises:
        EvaluationError: sizes differ or are too small.
    """
    ours, theirs = _inner(picture, original, border)
    error = float(np.mean((ours - theirs) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(picture: Pixels, original: Pixels, border: int = BORDER) -> float:
    """Structural similarity of Y: Gaussian window of 11 pixels, sigma 1.5 (Wang et al., 2004).

    Raises:
        EvaluationError: sizes differ or are too small.
    """
    ours, theirs = _inner(picture, original, border)
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


def offline_scores(picture: Pixels, original: Pixels, border: int) -> dict[str, float]:
    """All of them by name.

    Raises:
        EvaluationError: the picture is too small for one of them.
    """
    return {
        "psnr": psnr(picture, original, border),
        "ssim": ssim(picture, original, border),
        "niqe": niqe(picture),
        "lattice": lattice(picture),
        "phase": phase(picture),
    }
