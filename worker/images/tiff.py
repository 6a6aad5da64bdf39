"""TIFF, strip by strip (TIFF 6.0; the predictor: section 14; deflate: Adobe's technical notes).

Written here for the same reason as PNG: memory does not depend on the picture's height.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import IO

from isal import isal_zlib

from .library import srgb_profile
from .picture import Levels

__all__ = ["write_tiff"]

LEVEL = 2
"""As in PNG."""

SHORT, LONG, RATIONAL, UNDEFINED = 3, 4, 5, 7
FORMATS = {SHORT: "H", LONG: "I", RATIONAL: "II", UNDEFINED: "B"}

BLACK_IS_ZERO, RGB = 1, 2
DEFLATE, HORIZONTAL, CONTIGUOUS, NO_UNIT, UNASSOCIATED = 8, 2, 1, 1, 2


def write_tiff(
    file: IO[bytes],
    strips: Iterable[Levels],
    *,
    width: int,
    height: int,
    channels: int,
) -> None:
    """Write strips of (n, width, channels), uint8 or uint16, all but the last of one height.

    RGB files carry a small sRGB profile; grey ones none, as it would not fit them. `file` must be
    seekable; the directory lies behind the pixels.
    """
    offsets, counts, rows_per_strip, depth = [], [], 0, 0
    file.write(struct.pack("<2sHI", b"II", 42, 0))
    for strip in strips:
        rows_per_strip, depth = rows_per_strip or len(strip), strip.itemsize * 8
        packed = isal_zlib.compress(_differences(strip), LEVEL)
        offsets.append(file.tell())
        counts.append(file.write(packed))
    tags: dict[int, tuple[int, Iterable[int]]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [depth] * channels),
        259: (SHORT, [DEFLATE]),
        262: (SHORT, [BLACK_IS_ZERO if channels < 3 else RGB]),
        273: (LONG, offsets),
        277: (SHORT, [channels]),
        278: (LONG, [rows_per_strip]),
        279: (LONG, counts),
        # A resolution is obligatory; this one says nothing.
        282: (RATIONAL, [1, 1]),
        283: (RATIONAL, [1, 1]),
        284: (SHORT, [CONTIGUOUS]),
        296: (SHORT, [NO_UNIT]),
        317: (SHORT, [HORIZONTAL]),
    }
    if channels in (2, 4):
        tags[338] = (SHORT, [UNASSOCIATED])
    if channels >= 3:
        tags[34675] = (UNDEFINED, srgb_profile())
    _directory(file, tags)


def _differences(strip: Levels) -> bytes:
    """Each value less the one to its left, little-endian."""
    values = strip.astype(strip.dtype.newbyteorder("<"))
    values[:, 1:] -= strip[:, :-1]
    return values.tobytes()


def _directory(file: IO[bytes], tags: dict[int, tuple[int, Iterable[int]]]) -> None:
    """Write the tags at the file's end, and where they are at its start."""
    start = file.tell() + file.tell() % 2
    behind = start + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        items = list(numbers)
        packed = struct.pack(f"<{len(items)}{FORMATS[kind][0]}", *items)
        count = len(items) // len(FORMATS[kind])
        if len(packed) > 4:
            place = struct.pack("<I", behind + len(values))
            values += packed + bytes(len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, count) + place
    file.seek(start)
    file.write(struct.pack("<H", len(tags)) + entries + bytes(4) + values)
    file.seek(4)
    file.write(struct.pack("<I", start))
