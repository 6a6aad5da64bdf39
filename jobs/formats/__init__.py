"""What a file says about itself: format by content, size, frames, orientation, completeness.

Each reader walks the outer structure of one format (chunks, segments, boxes) and never decodes a
pixel, so that a bomb costs nothing and a file cut off in transfer is found at once. PNG, JPEG and
WebP are walked here, TIFF's directories too; AVIF's properties are read by libavif in Pillow. Every
walk is bounded: however a file is made, looking at it takes a moment and no memory to speak of.

The service asks this before it takes an upload, and the worker again before it decodes one.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import IO

from PIL import features

from . import avif, jpeg, png, tiff, webp
from .header import (
    Bytes,
    FileFault,
    Header,
    MalformedFile,
    Mode,
    TruncatedFile,
    UnsupportedPixels,
)

__all__ = [
    "FORMATS",
    "Bytes",
    "FileFault",
    "Header",
    "MalformedFile",
    "Mode",
    "TruncatedFile",
    "UnsupportedPixels",
    "read_header",
    "sniff",
]

FORMATS: dict[str, Callable[[Bytes, IO[bytes]], Header]] = {
    "PNG": png.read,
    "JPEG": jpeg.read,
    "WEBP": webp.read,
    "TIFF": tiff.read,
}
# Pillow can be built without AVIF.
if features.check("avif"):
    FORMATS["AVIF"] = avif.read


def sniff(head: bytes) -> str | None:
    """The allowed format these first 32 bytes (or fewer) belong to, or None."""
    if head.startswith(png.SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith(tiff.SIGNATURES):
        return "TIFF"
    if head[4:8] == b"ftyp" and "AVIF" in FORMATS and {b"avif", b"avis"} & avif.brands(head):
        return "AVIF"
    return None


def read_header(name: str, data: Bytes, file: IO[bytes]) -> Header:
    """Walk `data`, the whole file of format `name`, whose bytes `file` also holds.

    Raises FileFault: TruncatedFile, MalformedFile or UnsupportedPixels.
    """
    try:
        return FORMATS[name](data, file)
    except (struct.error, IndexError) as error:
        # A field that should be there lies behind the last byte.
        raise TruncatedFile("it ends inside a header") from error
