"""Whether an uploaded file may become a job: format, one frame, completeness, pixels in and out.

Nothing is decoded. What passes here can still fail in the worker (a damaged pixel stream), but it
is a whole file of an allowed format whose decoded size and result are within the limits.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import IO

from jobs.errors import (
    ImageAnimated,
    ImageError,
    ImageTooLarge,
    ImageTruncated,
    OutputTooLarge,
    UnsupportedFormat,
)
from jobs.schema import ImageInfo, Parameters
from jobs.settings import Settings
from service.errors import ImageEmpty
from service.formats import FORMATS, Header, MalformedFile, TruncatedFile, read_header, sniff

__all__ = ["MEDIA_TYPES", "inspect", "output_size"]

MEDIA_TYPES: Mapping[str, str] = MappingProxyType(
    {name: f"image/{name.lower()}" for name in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")}
)
# What the formats of results can hold; PNG's limit of 2**31 - 1 is out of reach.
LONGEST_SIDE: Mapping[str, int] = MappingProxyType({"webp": 16_383, "jpeg": 65_535})
LONGEST_NAME = 200


def output_size(width: int, height: int, scale: float) -> tuple[int, int]:
    """(width, height) in pixels of the result of an upright image of that size."""
    return round(scale * width), round(scale * height)


def inspect(
    file: IO[bytes], filename: str | None, parameters: Parameters, settings: Settings
) -> ImageInfo:
    """Describes an uploaded image, sides in pixels as a viewer sees them.

    Args:
        file: the whole upload, on disk (it is mapped, not read) and seekable.
        filename: the client's name for it; kept for the result's name only.
        parameters: scale and output_format decide whether the result is possible.
        settings: the pixel limits.

    Raises:
        ImageError: the tree in `jobs.errors` and ImageEmpty, with the limits as members.
    """
    size = file.seek(0, 2)
    if size == 0:
        raise ImageEmpty("The file has 0 bytes; an image is needed.")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        name = sniff(data[:32])
        if name is None:
            allowed = ", ".join(FORMATS)
            raise UnsupportedFormat(
                f"The file is none of {allowed}; its content decides, not its name.",
                allowed=list(FORMATS),
            )
        header = _header(name, data, file)
    width, height = header.upright
    _check_input(width, height, settings)
    _check_output(width, height, parameters, settings)
    return ImageInfo(
        width=width,
        height=height,
        format=name,
        media_type=MEDIA_TYPES[name],
        bytes=size,
        filename=_safe_name(filename),
    )


def _header(name: str, data: mmap.mmap, file: IO[bytes]) -> Header:
    file.seek(0)
    try:
        header = read_header(name, data, file)
    except TruncatedFile as error:
        raise ImageTruncated(f"The {name} file is cut short: {error}.") from error
    except MalformedFile as error:
        raise ImageError(f"The {name} file cannot be read: {error}.") from error
    if header.frames != 1:
        raise ImageAnimated(f"The {name} file has more than one frame; a still image is needed.")
    if header.width < 1 or header.height < 1:
        raise ImageError(
            f"The {name} file says it has {header.width} x {header.height} pixels; "
            "each side must be at least 1."
        )
    return header


def _check_input(width: int, height: int, settings: Settings) -> None:
    limit = settings.max_input_pixels
    if width * height > limit:
        raise ImageTooLarge(
            f"The image has {width} x {height} = {width * height} pixels; "
            f"at most {limit} are taken.",
            width=width,
            height=height,
            pixels=width * height,
            max_input_pixels=limit,
        )


def _check_output(width: int, height: int, parameters: Parameters, settings: Settings) -> None:
    limit, kind = settings.max_output_pixels, parameters.output_format
    out_width, out_height = output_size(width, height, parameters.scale)
    facts = {"width": out_width, "height": out_height, "scale": parameters.scale}
    said = f"At scale {parameters.scale:g} the result would have {out_width} x {out_height}"
    if out_width * out_height > limit:
        raise OutputTooLarge(
            f"{said} = {out_width * out_height} pixels; at most {limit} are made.",
            pixels=out_width * out_height,
            max_output_pixels=limit,
            **facts,
        )
    longest = LONGEST_SIDE.get(kind)
    if longest is not None and max(out_width, out_height) > longest:
        raise OutputTooLarge(
            f"{said} pixels; a side of a {kind} file has at most {longest}. "
            "A smaller scale or output_format=png would do.",
            max_side=longest,
            **facts,
        )


def _safe_name(filename: str | None) -> str | None:
    """The last part of a client's path, printable and not too long; None when nothing is left."""
    last = PurePosixPath((filename or "").replace("\\", "/")).name
    printable = "".join(letter for letter in last if letter.isprintable())
    return printable[-LONGEST_NAME:].strip(". ") or None
