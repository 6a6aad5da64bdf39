"""JPEG's segments (ITU-T T.81, annex B)."""

from __future__ import annotations

import struct
from typing import IO

from .exif import orientation_in
from .header import (
    Bytes,
    Header,
    MalformedFile,
    Mode,
    TruncatedFile,
    UnsupportedPixels,
    check_pieces,
)

__all__ = ["read"]

# In entropy-coded data an FF is followed by 00 (stuffing) or a restart marker; FF FF is filling.
KINDS = bytes(
    0xFF if byte == 0xFF else 0x00 if byte == 0 or 0xD0 <= byte < 0xD8 else 0x01
    for byte in range(256)
)
"""FF stays, what makes no marker behind it becomes 00, and what makes one 01."""
MARKER = b"\xff\x01"
# So far ahead at first, and at most: a scan full of FFs costs no more than one of other bytes, many
# segments no more than their bytes, and other threads get their turn in between.
NEAR, FAR = 1 << 6, 1 << 18
# Start of frame: C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
ALONE = frozenset({0x01, 0xD8})
APP1, SOS, EOI = 0xE1, 0xDA, 0xD9
MODES: dict[int, Mode] = {1: "L", 3: "RGB", 4: "CMYK"}


def read(data: Bytes, file: IO[bytes]) -> Header:
    """The first picture's header; a phone's gain map or preview behind it (MPO) does not count."""
    position, size, exif, scanned, count = 2, (0, 0), b"", False, 0
    mode: Mode = "RGB"
    while True:
        marker, position = _next_marker(data, position)
        count += 1
        check_pieces(count, "segments")
        if marker in ALONE:
            continue
        if marker == EOI:
            if not scanned or 0 in size:
                raise MalformedFile("it has no scan, so no pixels")
            return Header("JPEG", *size, orientation=orientation_in(exif), mode=mode)
        length = struct.unpack_from(">H", data, position)[0]
        if length < 2:
            raise MalformedFile(f"the segment at byte {position} has a length of {length}")
        segment = data[position + 2 : position + length]
        if len(segment) < length - 2:
            raise TruncatedFile(f"it ends inside the segment at byte {position}")
        if marker in SOF:
            precision, height, width, components = struct.unpack_from(">BHHB", segment)
            if precision != 8 or components not in MODES:
                raise UnsupportedPixels(
                    f"it has {components} channels of {precision} bits; "
                    "1, 3 or 4 channels of 8 bits are read"
                )
            size, mode = (width, height), MODES[components]
        elif marker == APP1 and segment.startswith(b"Exif\0\0"):
            exif = segment
        elif marker == SOS:
            scanned = True
        position += length


def _next_marker(data: Bytes, position: int) -> tuple[int, int]:
    """The next marker's code and the byte behind it."""
    ahead = NEAR
    while position < len(data):
        # One byte more, for a marker of which the FF is the last one here.
        found = data[position : position + ahead + 1].translate(KINDS).find(MARKER)
        if found >= 0:
            return data[position + found + 1], position + found + 2
        position += ahead
        ahead = min(2 * ahead, FAR)
    raise TruncatedFile("it ends before its EOI marker")
