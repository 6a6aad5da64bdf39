"""What TIFF's first directory says of its pixels (TIFF 6.0, sections 3 to 8, 18 to 23)."""

from __future__ import annotations

from typing import IO

from .directory import Directory, directories
from .header import (
    ORIENTATION,
    Bytes,
    Header,
    MalformedFile,
    Mode,
    TruncatedFile,
    UnsupportedPixels,
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
    further = directories(data, 1 + MOST_DIRECTORIES)
    first = next(further)
    pieces = [
        (offset, count)
        for offsets, counts in (STRIPS, TILES)
        for offset, count in zip(first.values(offsets), first.values(counts), strict=False)
    ]
    mode, depth = _pixels(first)
    header = Header(
        "TIFF",
        width=first.value(WIDTH),
        height=first.value(HEIGHT),
        # Pages, and not previews of the first one.
        frames=1 + sum(not tags.value(SUBFILE, 0) & REDUCED for tags in further),
        orientation=valid(first.value(ORIENTATION, 1)),
        mode=mode,
        depth=depth,
    )
    if not pieces:
        raise MalformedFile("it has no image data")
    if any(offset + count > len(data) for offset, count in pieces):
        raise TruncatedFile("its image data ends behind the last byte")
    return header


def _pixels(tags: Directory) -> tuple[Mode, int]:
    """The mode, and the bits of a channel."""
    compression = tags.value(COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        raise UnsupportedPixels(
            f"it is compressed by method {compression}; none, CCITT, LZW, JPEG, deflate and "
            "PackBits are read"
        )
    photometric = tags.value(PHOTOMETRIC)
    mode = MODES.get(photometric)
    if mode is None or (mode == "CMYK" and tags.value(INK_SET, 1) != 1):
        raise UnsupportedPixels(
            f"its pixels are of the photometric kind {photometric}; "
            "greyscale, RGB, palette, CMYK and YCbCr are read"
        )
    bits = set(tags.values(BITS)) or {1}
    kinds = set(tags.values(SAMPLE_FORMAT)) - {UNDEFINED}
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
    channels = tags.value(CHANNELS, 1)
    if channels < colours:
        raise MalformedFile(f"it has {channels} channels and its kind of pixels has {colours}")
    # The decoder of JPEG gives RGB.
    if mode == "YCbCr" and compression == JPEG_COMPRESSION:
        mode = "RGB"
    extra = tags.values(EXTRA_SAMPLES)
    if channels > colours and extra and extra[0] in ALPHA:
        mode = WITH_ALPHA.get(mode, mode)
    return mode, depth
