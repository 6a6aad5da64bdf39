"""JPEG's segments (ITU-T T.81, annex B)."""

from __future__ import annotations

import struct
from typing import IO

from .header import (
    Bytes,
    Header,
    MalformedFile,
    Mode,
    TruncatedFile,
    UnsupportedPixels,
    orientation_in,
)

__all__ = ["read"]

# In entropy-coded data an FF is followed by 00 (stuffing) or a restart marker; FF FF is filling.
NO_MARKER = frozenset({0x00, *range(0xD0, 0xD8), 0xFF})
# Start of frame: C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
ALONE = frozenset({0x01, 0xD8})
APP1, SOS, EOI = 0xE1, 0xDA, 0xD9
MODES: dict[int, Mode] = {1: "L", 3: "RGB", 4: "CMYK"}


def read(data: Bytes, file: IO[bytes]) -> Header:
    """The first picture's header; a phone's gain map or preview behind it (MPO) does not count."""
    position, size, orientation, scanned = 2, (0, 0), 1, False
    mode: Mode = "RGB"
    while True:
        marker, position = _next_marker(data, position)
        if marker in ALONE:
            continue
        if marker == EOI:
            if not scanned or 0 in size:
                raise MalformedFile("it has no scan, so no pixels")
            return Header("JPEG", *size, orientation=orientation, mode=mode)
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
            orientation = orientation_in(segment[6:])
        elif marker == SOS:
            scanned = True
        position += length


def _next_marker(data: Bytes, position: int) -> tuple[int, int]:
    """The next marker's code and the byte behind it."""
    while (position := data.find(b"\xff", position) + 1) and position < len(data):
        if (marker := data[position]) not in NO_MARKER:
            return marker, position + 1
    raise TruncatedFile("it ends before its EOI marker")
