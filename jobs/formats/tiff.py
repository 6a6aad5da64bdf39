"""TIFF's first directory (TIFF 6.0, sections 2 to 8, 18 to 23; BigTIFF likewise).

Pillow parses the directory and no more: which kinds of pixels are read is decided here, since
the decoder reads more of them, and others, than Pillow does.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import IO, Any

from PIL.TiffImagePlugin import ImageFileDirectory_v2

from .header import (
    ORIENTATION,
    Bytes,
    Header,
    MalformedFile,
    Mode,
    TruncatedFile,
    UnsupportedPixels,
    opening,
    valid,
)

__all__ = ["SIGNATURES", "read"]

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# Tags (TIFF 6.0, appendix A).
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, CHANNELS = 256, 257, 258, 259, 262, 277
STRIPS, TILES = (273, 279), (324, 325)
"""The tags of the offsets and of the byte counts."""
INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 332, 338, 339

MODES: dict[int, Mode] = {0: "L", 1: "L", 2: "RGB", 3: "RGB", 5: "CMYK", 6: "YCbCr"}
"""By PhotometricInterpretation: white or black is zero, RGB, palette, inks, YCbCr."""
PALETTE = 3
WITH_ALPHA: dict[Mode, Mode] = {"L": "LA", "RGB": "RGBA", "CMYK": "CMYKA"}
COLOURS = {"L": 1, "RGB": 3, "CMYK": 4, "YCbCr": 3}
JPEG_COMPRESSION = 7
COMPRESSIONS = frozenset({1, 2, 3, 4, 5, JPEG_COMPRESSION, 8, 32773, 32946})
"""None, CCITT, LZW, JPEG, deflate, PackBits: what libvips' wheel was built with."""
UNSIGNED, UNDEFINED = 1, 4
SUBFILE, REDUCED = 254, 1
MOST_DIRECTORIES = 64
# An extra channel of no stated kind (0) is some selection or mask of an editor, not opacity.
ALPHA = frozenset({1, 2})


def read(data: Bytes, file: IO[bytes]) -> Header:
    big = data[2:4] in (b"+\0", b"\0+")
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)[0]
    if start >= len(data):
        raise TruncatedFile("its directory lies behind the last byte")
    with opening("TIFF"):
        head = data[: 16 if big else 8]
        tags = _directory(head, file, start)
        pieces = [
            (offset, count)
            for offsets, counts in (STRIPS, TILES)
            for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        ]
        mode, depth = _pixels(tags)
        header = Header(
            "TIFF",
            width=int(tags[WIDTH]),
            height=int(tags[HEIGHT]),
            frames=1 + _further_pages(head, file, tags.next),
            orientation=valid(tags.get(ORIENTATION)),
            mode=mode,
            depth=depth,
        )
    if not pieces:
        raise MalformedFile("it has no image data")
    if any(offset + count > len(data) for offset, count in pieces):
        raise TruncatedFile("its image data ends behind the last byte")
    return header


def _directory(head: bytes, file: IO[bytes], start: int) -> ImageFileDirectory_v2:
    tags = ImageFileDirectory_v2(head)
    file.seek(start)
    tags.load(file)
    return tags


def _further_pages(head: bytes, file: IO[bytes], start: int) -> int:
    """How many of the directories from `start` on are pages, and not previews of the first one."""
    pages = 0
    for _ in range(MOST_DIRECTORIES):
        if not start:
            break
        tags = _directory(head, file, start)
        pages += not int(tags.get(SUBFILE, 0)) & REDUCED
        start = tags.next
    return pages


def _pixels(tags: Mapping[int, Any]) -> tuple[Mode, int]:
    """The mode, and the bits of a channel."""
    compression = int(tags.get(COMPRESSION, 1))
    if compression not in COMPRESSIONS:
        raise UnsupportedPixels(
            f"it is compressed by method {compression}; none, CCITT, LZW, JPEG, deflate and "
            "PackBits are read"
        )
    photometric = int(tags[PHOTOMETRIC])
    mode = MODES.get(photometric)
    if mode is None or (mode == "CMYK" and tags.get(INK_SET, 1) != 1):
        raise UnsupportedPixels(
            f"its pixels are of the photometric kind {photometric}; "
            "greyscale, RGB, palette, CMYK and YCbCr are read"
        )
    bits = {int(value) for value in tags.get(BITS, (1,))}
    kinds = {int(value) for value in tags.get(SAMPLE_FORMAT, (UNSIGNED,))} - {UNDEFINED}
    depth = max(bits)
    most = 8 if photometric == PALETTE or mode == "YCbCr" else 16
    allowed = {1, 2, 4, 8, most} if mode == "L" or photometric == PALETTE else {8, most}
    if kinds - {UNSIGNED} or len(bits) > 1 or depth not in allowed:
        raise UnsupportedPixels(
            f"its channels are of {depth} bits and sample format {sorted(kinds)}; unsigned whole "
            "numbers (1) of 8 or 16 bits are read, so save it as 16 bits a channel"
        )
    if photometric == PALETTE:
        depth = 8
    colours = 1 if photometric == PALETTE else COLOURS[mode]
    channels = int(tags.get(CHANNELS, 1))
    if channels < colours:
        raise MalformedFile(f"it has {channels} channels and its kind of pixels has {colours}")
    # The decoder of JPEG gives RGB.
    if mode == "YCbCr" and compression == JPEG_COMPRESSION:
        mode = "RGB"
    extra = tags.get(EXTRA_SAMPLES, ())
    if channels > colours and extra and int(extra[0]) in ALPHA:
        mode = WITH_ALPHA.get(mode, mode)
    return mode, depth
