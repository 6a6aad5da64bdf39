"""Sizes of an image on its way, px. Free of torch."""

from __future__ import annotations

from models.errors import InvalidOption

# 11585 x 11585: keeps a strip of one pixel's width from asking for terabytes.
MAX_CANVAS = 2**27
"""Pixels."""


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Sides of the result: `round(scale * side)`, at least 1 since scale is."""
    return round(scale * height), round(scale * width)


def canvas_size(height: int, width: int, scale: float, shortest: int) -> tuple[int, int]:
    """Sides of the upsampled image: at least `shortest` on the shorter one."""
    return output_size(height, width, max(scale, shortest / min(height, width)))


def bounded_canvas_size(height: int, width: int, scale: float, shortest: int) -> tuple[int, int]:
    """As canvas_size.

    Raises:
        InvalidOption: it would have more than MAX_CANVAS pixels.
    """
    canvas = canvas_size(height, width, scale, shortest)
    if (pixels := canvas[0] * canvas[1]) > MAX_CANVAS:
        grows = shortest / min(height, width) > scale
        reason = f", because its shorter side is enlarged to {shortest} at least" if grows else ""
        raise InvalidOption(
            f"The image of {width} x {height} pixels at scale {scale:g} needs a canvas "
            f"of {canvas[1]} x {canvas[0]} = {pixels} pixels{reason}; at most {MAX_CANVAS} pixels "
            "are possible."
        )
    return canvas
