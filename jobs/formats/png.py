"""PNG's chunks (W3C, third edition, 5 and 11)."""

from __future__ import annotations

import struct
import zlib
from typing import IO

from .exif import MOST_EXIF, orientation_in
from .header import (
    Bytes,
    Header,
    MalformedFile,
    Mode,
    TruncatedFile,
    check_pieces,
    name_of,
)

__all__ = ["SIGNATURE", "read"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE = 3
MODES: dict[int, Mode] = {0: "L", 2: "RGB", PALETTE: "RGB", 4: "LA", 6: "RGBA"}
KEYED: dict[Mode, Mode] = {"L": "LA", "RGB": "RGBA"}
"""The mode once a tRNS chunk, a transparent colour or the palette's alpha, is applied."""
CRC_BLOCK = 1 << 20


def read(data: Bytes, file: IO[bytes]) -> Header:
    position, size, frames, exif, pixels = len(SIGNATURE), (0, 0), 1, b"", False
    mode: Mode = "RGB"
    depth, count = 8, 0
    while True:
        count += 1
        check_pieces(count, "chunks")
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if end + 4 > len(data):
            raise TruncatedFile(f"it ends inside the {name_of(kind)} chunk at byte {position}")
        if (kind == b"IHDR") != (position == len(SIGNATURE)):
            raise MalformedFile("its first chunk is not IHDR, or it has several")
        # Bit 5 of the first letter is unset in the chunks a decoder needs.
        if not kind[0] & 0x20:
            _check_crc(data, kind, position + 4, end)
        if kind == b"IHDR":
            width, height, bits, colours = struct.unpack_from(">IIBB", data, start)
            if colours not in MODES:
                raise MalformedFile(f"its colour type is {colours}, which PNG does not have")
            size, mode, depth = (width, height), MODES[colours], bits
            if colours == PALETTE:
                depth = 8
        elif kind == b"tRNS":
            mode = KEYED.get(mode, mode)
        elif kind == b"acTL":
            frames = struct.unpack_from(">I", data, start)[0]
        elif kind == b"eXIf":
            exif = data[start : min(end, start + MOST_EXIF)]
        elif kind == b"IDAT":
            pixels = True
        elif kind == b"IEND":
            if not pixels:
                raise MalformedFile("it has no IDAT chunk, so no pixels")
            return Header("PNG", *size, max(frames, 1), orientation_in(exif), mode, depth)
        position = end + 4


def _check_crc(data: Bytes, kind: bytes, start: int, end: int) -> None:
    crc = 0
    for block in range(start, end, CRC_BLOCK):
        crc = zlib.crc32(data[block : min(block + CRC_BLOCK, end)], crc)
    if crc != struct.unpack_from(">I", data, end)[0]:
        raise MalformedFile(f"the checksum of its {name_of(kind)} chunk is wrong")
