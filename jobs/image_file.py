"""Image files as both sides describe them: what a header says, what a result's file can hold."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from models.parameters import OutputFormat

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
}
"""Media types of results."""

# What a format can state in its header, in pixels.
MAX_SIDE = {"png": 2**31 - 1, "webp": 16_383, "jpeg": 65_535, "tiff": 2**32 - 1}
# TIFF's offsets have 32 bits; four channels of 16 bits are the most that is written, and the
# compression may not help.
MAX_TIFF_PIXELS = 2**32 // 8 - 2**20


@dataclass(frozen=True)
class Header:
    """What a file's header says: the sides in pixels as stored, the EXIF orientation (5 to 8 swap
    the sides), 1 frame for a still image, the bits of a channel or of a palette's colours."""

    format: str
    width: int
    height: int
    frames: int = 1
    orientation: int = 1
    mode: Mode = "RGB"
    depth: int = 8

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


def truncated(name: str, reason: str) -> ImageTruncated:
    return ImageTruncated(f"The {name} file is cut short: {reason}.")


def unreadable(name: str, reason: str) -> ImageError:
    return ImageError(f"The {name} file cannot be read: {reason}.")


def unsupported(name: str, reason: str) -> UnsupportedFormat:
    return UnsupportedFormat(f"The {name} file is of a kind not read: {reason}.")
