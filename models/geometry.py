"""Sizes on the way of an image, px."""

from __future__ import annotations

from models.errors import InvalidOption

__all__ = ["MAX_CANVAS", "canvas_size", "output_size", "padded_size"]

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


def padded_size(canvas: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Sides of the canvas filled up to multiples of a latent cell's side."""
    height, width = (side + -side % multiple for side in canvas)
    return height, width
