"""WebP's RIFF chunks (RFC 9649, 2 and 3)."""

from __future__ import annotations

import struct
from typing import IO

from .exif import MOST_EXIF, orientation_in
from .header import Bytes, Header, MalformedFile, TruncatedFile, check_pieces, name_of

__all__ = ["read"]

ANIMATED, ALPHA = 0x02, 0x10
"""Flags of the VP8X chunk."""


def read(data: Bytes, file: IO[bytes]) -> Header:
    declared = struct.unpack_from("<I", data, 4)[0] + 8
    if declared > len(data):
        raise TruncatedFile(f"its header declares {declared} bytes and it has {len(data)}")
    position, size, frames, exif, pixels, alpha = 12, (0, 0), 1, b"", False, False
    count = 0
    while position + 8 <= declared:
        count += 1
        check_pieces(count, "chunks")
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if start + length > declared:
            raise TruncatedFile(f"it ends inside the {name_of(kind)} chunk at byte {position}")
        if kind == b"VP8X":
            flags, width = data[start], data[start + 4 : start + 7]
            height = data[start + 7 : start + 10]
            size = (int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1)
            # The header tells that it is animated, not how many frames follow.
            frames, alpha = 2 if flags & ANIMATED else 1, bool(flags & ALPHA)
        elif kind == b"VP8 ":
            pixels = True
            if data[start + 3 : start + 6] != b"\x9d\x01\x2a":
                raise MalformedFile("its VP8 chunk does not start with a key frame")
            sides = struct.unpack_from("<HH", data, start + 6)
            size = size if all(size) else (sides[0] & 0x3FFF, sides[1] & 0x3FFF)
        elif kind == b"VP8L":
            pixels = True
            if data[start] != 0x2F:
                raise MalformedFile("its VP8L chunk has the wrong signature")
            bits = struct.unpack_from("<I", data, start + 1)[0]
            size = size if all(size) else ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
            alpha = alpha or bool(bits >> 28 & 1)
        elif kind == b"EXIF":
            exif = data[start : start + min(length, MOST_EXIF)]
        # Chunks are padded to an even length.
        position = start + length + (length & 1)
    if not pixels and frames == 1:
        raise TruncatedFile("it has no VP8 or VP8L chunk, so no pixels")
    return Header("WEBP", *size, frames, orientation_in(exif), "RGBA" if alpha else "RGB")
