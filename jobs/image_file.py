"""Image files as both sides judge them: what is taken in, and what a result's format can hold."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import IO

from .errors import (
    ImageAnimated,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    OutputTooLarge,
    UnsupportedFormat,
)
from .formats import (
    FORMATS,
    Bytes,
    FileFault,
    Header,
    TruncatedFile,
    UnsupportedPixels,
    read_header,
    sniff,
)
from .schema import OutputFormat

__all__ = ["RESULT_TYPES", "check_side", "examine"]

RESULT_TYPES: Mapping[OutputFormat, str] = MappingProxyType(
    {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg", "tiff": "image/tiff"}
)
"""Media types of results."""

LONGEST_SIDE: Mapping[OutputFormat, int] = MappingProxyType(
    {"png": 2**31 - 1, "webp": 16_383, "jpeg": 65_535, "tiff": 2**32 - 1}
)
"""What a format can state in its header, in pixels."""

# TIFF's offsets have 32 bits; four channels of 16 bits are the most that is written, and the
# compression may not help.
MOST_TIFF_PIXELS = 2**32 // 8 - 2**20


def examine(data: Bytes, file: IO[bytes], max_pixels: int) -> Header:
    """The header of a whole image file of at most `max_pixels`, without decoding anything.

    `file` holds the same bytes as `data` and is seekable.

    Raises:
        UnsupportedFormat: none of `FORMATS`, or pixels of a kind that is not read.
        ImageTruncated: it ends too early.
        ImageAnimated: it has more than one frame.
        ImageTooLarge: it has too many pixels.
        ImageError: it is broken.
    """
    name = sniff(data[:32])
    if name is None:
        allowed = ", ".join(FORMATS)
        raise UnsupportedFormat(
            f"The file is none of {allowed}; its content decides, not its name.",
            allowed=list(FORMATS),
        )
    file.seek(0)
    try:
        header = read_header(name, data, file)
    except TruncatedFile as error:
        raise ImageTruncated(f"The {name} file is cut short: {error}.") from error
    except UnsupportedPixels as error:
        raise UnsupportedFormat(f"The {name} file is of a kind not read: {error}.") from error
    except FileFault as error:
        raise ImageError(f"The {name} file cannot be read: {error}.") from error
    if header.frames != 1:
        raise ImageAnimated(f"The {name} file has more than one frame; a still image is needed.")
    if header.width < 1 or header.height < 1:
        raise ImageError(
            f"The {name} file says it has {header.width} x {header.height} pixels; "
            "each side must be at least 1."
        )
    _check_pixels(header, max_pixels)
    return header


def _check_pixels(header: Header, limit: int) -> None:
    width, height = header.upright
    if width * height > limit:
        raise ImageTooLarge(
            f"The image has {width} x {height} = {width * height} pixels; "
            f"at most {limit} are taken.",
            width=width,
            height=height,
            pixels=width * height,
            max_input_pixels=limit,
        )


def check_side(width: int, height: int, format: OutputFormat) -> None:
    """Refuse a result that its file format cannot hold, before it is computed.

    Raises:
        OutputTooLarge: a side of `width` x `height` pixels is longer than `format` can state, or
            the file may not fit into the 4 GiB of a TIFF.
    """
    said = f"the result would be {width} x {height}"
    longest = LONGEST_SIDE[format]
    if max(width, height) > longest:
        raise OutputTooLarge(
            f"A {format} file has at most {longest} pixels a side; {said}. "
            "A smaller scale or output_format=png would do.",
            max_side=longest,
            width=width,
            height=height,
        )
    if format == "tiff" and width * height > MOST_TIFF_PIXELS:
        raise OutputTooLarge(
            f"A tiff file has at most {MOST_TIFF_PIXELS} pixels, for its 4 GiB; {said}. "
            "A smaller scale or output_format=png would do.",
            max_pixels=MOST_TIFF_PIXELS,
            width=width,
            height=height,
        )
