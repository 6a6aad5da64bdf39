"""What the paper measured: arXiv 2305.07015, table 1; 128 -> 512, 200 steps, w = 0.5."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["PUBLISHED"]

PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "DIV2K-val": {
            "psnr": 23.26,
            "ssim": 0.5726,
            "lpips": 0.3113,
            "fid": 24.44,
            "musiq": 65.92,
            "clipiqa": 0.6771,
        },
        "RealSR": {
            "psnr": 24.70,
            "ssim": 0.7085,
            "lpips": 0.3018,
            "fid": 128.51,
            "musiq": 65.78,
            "clipiqa": 0.6178,
        },
        "DRealSR": {
            "psnr": 28.03,
            "ssim": 0.7536,
            "lpips": 0.3284,
            "fid": 148.98,
            "musiq": 58.51,
            "clipiqa": 0.6356,
        },
    }
)
"""Scores by test set. On other pictures they are a scale, not a comparison."""
