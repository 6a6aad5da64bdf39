"""Sizes on the way of an image, px."""

from __future__ import annotations

from dataclasses import dataclass

from models.config import ModelConfig
from models.errors import InvalidOption
from models.options import Options
from models.presets import Preset
from models.tiling import TileGrid

__all__ = ["MAX_CANVAS", "Layout", "canvas_size", "output_size"]

# 11585 x 11585: keeps a strip of one pixel's width from asking for terabytes. `jobs.presets` has
# the same number, for a service that refuses a larger one at once.
MAX_CANVAS = 2**27
"""Pixels."""


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Sides of the result: `round(scale * side)`, at least 1 since scale is."""
    return round(scale * height), round(scale * width)


def canvas_size(height: int, width: int, scale: float, native: int) -> tuple[int, int]:
    """Sides of the upsampled image: at least `native`, what the networks know, on the shorter.

    Raises:
        InvalidOption: it would have more than MAX_CANVAS pixels.
    """
    least = native / min(height, width)
    canvas = output_size(height, width, max(scale, least))
    if canvas[0] * canvas[1] > MAX_CANVAS:
        because = f", because its shorter side is enlarged to {native} at least"
        raise InvalidOption(
            f"The image of {width} x {height} pixels at scale {scale:g} needs a canvas "
            f"of {canvas[1]} x {canvas[0]} = {canvas[0] * canvas[1]} pixels"
            f"{because if least > scale else ''}; at most {MAX_CANVAS} pixels are possible."
        )
    return canvas


@dataclass(frozen=True)
class Layout:
    """All sizes of one image, each (height, width)."""

    source: tuple[int, int]
    """The input, px"""
    size: tuple[int, int]
    """The result, px"""
    canvas: tuple[int, int]
    """The upsampled image, px; larger than the result where the input is small"""
    padded: tuple[int, int]
    """The canvas filled up to whole latent pixels, px"""
    grid: TileGrid
    """How its latent is cut"""

    @classmethod
    def of(
        cls, config: ModelConfig, preset: Preset, height: int, width: int, options: Options
    ) -> Layout:
        """For an image of these sides.

        Raises:
            InvalidOption: the canvas would be too large, or the overlap is none.
        """
        downscale = config.autoencoder.downscale
        canvas = canvas_size(height, width, options.scale, preset.native)
        rows, columns = (-(-side // downscale) for side in canvas)
        overlap = preset.overlap if options.tile_overlap is None else options.tile_overlap
        return cls(
            (height, width),
            output_size(height, width, options.scale),
            canvas,
            (downscale * rows, downscale * columns),
            TileGrid(rows, columns, preset.tile, overlap),
        )
