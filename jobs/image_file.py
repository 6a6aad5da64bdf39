"""Image files as both sides describe them: what a header says, what a result's file can hold."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from models.errors import InvalidOption
from models.geometry import MAX_CANVAS
from models.layout import Layout
from models.parameters import OutputFormat, UpscaleParameters

from .errors import ImageError, ImageTruncated, OutputTooLarge, UnsupportedFormat

Bytes = bytes | mmap.mmap

Mode = Literal["L", "LA", "RGB", "RGBA", "CMYK", "CMYKA", "YCbCr"]
"""The channels that a decoder gives: palettes are spread out and a colour key becomes alpha.

YCbCr only where it is stored bare; a JPEG is RGB, whatever it has inside.
"""

MAX_PARTS = 65_536
"""Chunks, segments, boxes or strips of one file: reading more would take seconds, and no program
writes so many."""

RESULT_TYPES: Mapping[OutputFormat, str] = {
    "png": "image/png",
    "webp": "image/webp",
    "jpeg": "image/jpeg",
    "tiff": "image/tiff",
    "avif": "image/avif",
}
"""Media types of results."""

# libjpeg's own limit; the format could state 65,535.
MAX_JPEG_SIDE = 65_500
# What a format can state in its header, in pixels.
MAX_SIDE = {
    **{"png": 2**31 - 1, "webp": 16_383, "jpeg": MAX_JPEG_SIDE, "tiff": 2**32 - 1},
    # More no reader of AVIF takes by default.
    "avif": 32_768,
}
# TIFF's offsets have 32 bits; four channels of 16 bits are the most that is written, and the
# compression may not help.
MAX_TIFF_PIXELS = 2**32 // 8 - 2**20


Point = tuple[float, float]
"""A chromaticity, x and y (CIE 1931)."""
D65: Point = (0.3127, 0.3290)


@dataclass(frozen=True)
class Colours:
    """What levels mean where no ICC profile says so: white, red, green and blue, and the power of
    a level that is light; None is the curve of sRGB."""

    primaries: tuple[Point, Point, Point, Point]
    gamma: float | None = None


SRGB = Colours((D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06)))
ADOBE_RGB = Colours((D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), 563 / 256)
"""Of Adobe RGB (1998), 4.3."""
# By number (ITU-T H.273, tables 2 and 3); 2 is "not stated", which is sRGB's as well.
_SMPTE_C = (D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
_PRIMARIES = {
    1: SRGB.primaries,
    2: SRGB.primaries,
    4: ((0.310, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: (D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: _SMPTE_C,
    7: _SMPTE_C,
    9: (D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: (D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}
# Video's own curves (1, 6, 7, 11, 12, 14, 15) are made for a camera; viewers show them as sRGB.
_GAMMAS = {**dict.fromkeys((1, 2, 6, 7, 11, 12, 13, 14, 15)), 4: 2.2, 5: 2.8, 8: 1.0}
_HDR = {16: "PQ", 18: "HLG"}


def colours_of_cicp(name: str, primaries: int, transfer: int) -> Colours:
    """The colours that these numbers stand for. Raises UnsupportedFormat."""
    if transfer in _HDR:
        reason = f"it is HDR ({_HDR[transfer]})"
        raise unsupported(name, f"{reason}; save it for ordinary screens (SDR) first")
    if primaries not in _PRIMARIES or transfer not in _GAMMAS:
        reason = f"its colours are of primaries {primaries} and transfer {transfer} (H.273)"
        raise unsupported(name, f"{reason}; save it as sRGB first")
    return Colours(_PRIMARIES[primaries], _GAMMAS[transfer])


@dataclass(frozen=True)
class Header:
    """What a file's header says: the sides in pixels as stored, the EXIF orientation (5 to 8 swap
    the sides), 1 frame for a still image, the bits of a channel or of a palette's colours.
    Of a TIFF's directories it is the one at place `directory`. `lacks_end`: the mark of the file's
    end is missing, behind which nothing would be.

    Of the channels behind the colours `opacity` is the one that `mode` calls A. `colours` holds
    unless an ICC profile stands for them. `narrow_range`: black is 16 and white 235 (of 8 bits) in
    what the decoder gives; `is_premultiplied`: it gives colours times opacity. It decodes
    `coded_pixels`, of which the sides may be a part.
    """

    format: str
    width: int
    height: int
    frames: int = 1
    orientation: int = 1
    mode: Mode = "RGB"
    depth: int = 8
    opacity: int = 0
    colours: Colours | None = None
    narrow_range: bool = False
    is_premultiplied: bool = False
    coded_pixels: int = 0
    directory: int = 0
    lacks_end: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) in pixels once the orientation is applied."""
        sides = self.width, self.height
        return sides[::-1] if self.orientation >= 5 else sides


def check_side(width: int, height: int, format: OutputFormat) -> None:
    """Raises OutputTooLarge for a result of these sides, px, that its file format cannot hold."""
    if max(width, height) > (longest := MAX_SIDE[format]):
        reason, limit = f"{longest} pixels a side", {"max_side": longest}
    elif format == "tiff" and width * height > MAX_TIFF_PIXELS:
        reason, limit = f"{MAX_TIFF_PIXELS} pixels, for its 4 GiB", {"max_pixels": MAX_TIFF_PIXELS}
    else:
        return
    raise OutputTooLarge(
        f"A {format} file has at most {reason}; the result would be {width} x {height}. "
        "A smaller scale or output_format=png would do.",
        width=width,
        height=height,
        **limit,
    )


def check_output(width: int, height: int, parameters: UpscaleParameters, limit: int) -> None:
    """Raises OutputTooLarge where the result of an image of these sides, px, or the canvas that it
    is computed on, has more pixels than the limit, or its file format cannot hold it."""
    layout = Layout.of((height, width), parameters)
    result_height, result_width = layout.size
    members = {"width": result_width, "height": result_height, "scale": parameters.scale}
    if (pixels := result_width * result_height) > limit:
        raise OutputTooLarge(
            f"At scale {parameters.scale:g} the result would have {result_width} x "
            f"{result_height} = {pixels} pixels; at most {limit} are made.",
            pixels=pixels,
            max_output_pixels=limit,
            **members,
        )
    check_side(result_width, result_height, parameters.output_format)
    try:
        layout.check_canvas(limit)
    except InvalidOption as error:
        raise OutputTooLarge(
            f"{error} Cut it into smaller pieces.",
            pixels=math.prod(layout.canvas),
            max_canvas_pixels=min(limit, MAX_CANVAS),
            **members,
        ) from error


def truncated(name: str, reason: str) -> ImageTruncated:
    return ImageTruncated(f"The {name} file is cut short: {reason}.")


def unreadable(name: str, reason: str) -> ImageError:
    return ImageError(f"The {name} file cannot be read: {reason}.")


def unsupported(name: str, reason: str) -> UnsupportedFormat:
    return UnsupportedFormat(f"The {name} file is of a kind not read: {reason}.")


def too_many(name: str, what: str) -> ImageError:
    return unreadable(name, f"it has more than {MAX_PARTS} {what}, the most that are read")


def ascii_of(kind: bytes) -> str:
    """A chunk's four letters, safe to print."""
    return kind.decode("ascii", "backslashreplace").strip()
