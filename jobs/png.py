"""PNG files: chunks, and what they say of colours (W3C PNG, third edition)."""

from __future__ import annotations

import struct
import zlib

from . import tiff
from .image_file import (
    MAX_PARTS,
    SRGB,
    Bytes,
    Colours,
    Header,
    Mode,
    ascii_of,
    colours_of_cicp,
    too_many,
    truncated,
    unreadable,
)

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE = 3
MODES: dict[int, Mode] = {0: "L", 2: "RGB", PALETTE: "RGB", 4: "LA", 6: "RGBA"}
LABELS = frozenset((b"cICP", b"iCCP", b"sRGB", b"gAMA", b"cHRM"))
KEYED: dict[Mode, Mode] = {"L": "LA", "RGB": "RGBA"}
"""The mode once a tRNS chunk, a transparent colour or the palette's alpha, is applied."""


def read_png(data: Bytes) -> Header:
    """Chunks (W3C PNG, third edition, 5 and 11)."""
    position, size, frames, exif, pixels = len(SIGNATURE), (0, 0), 1, b"", False
    mode: Mode = "RGB"
    depth = 8
    # The chunks that say what colours mean.
    labels: dict[bytes, bytes] = {}
    for _ in range(MAX_PARTS):
        # Some writers, and old transfers, leave the last chunk out: nothing is in it.
        is_over = pixels and position == len(data)
        length, kind = (0, b"IEND") if is_over else struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if end + 4 > len(data) and not is_over:
            raise truncated("PNG", f"it ends inside the {ascii_of(kind)} chunk at byte {position}")
        if (kind == b"IHDR") != (position == len(SIGNATURE)):
            raise unreadable("PNG", "its first chunk is not IHDR, or it has several")
        # Bit 5 of the first letter is unset in the chunks a decoder needs.
        if (
            not kind[0] & 0x20
            and not is_over
            and _crc(data, position + 4, end) != data[end : end + 4]
        ):
            raise unreadable("PNG", f"the checksum of its {ascii_of(kind)} chunk is wrong")
        if kind == b"IHDR":
            width, height, depth, colours = struct.unpack_from(">IIBB", data, start)
            if colours not in MODES:
                raise unreadable("PNG", f"its colour type is {colours}, which PNG does not have")
            size, mode = (width, height), MODES[colours]
            depth = 8 if colours == PALETTE else depth
        elif kind == b"tRNS":
            mode = KEYED.get(mode, mode)
        elif kind == b"acTL":
            frames = max(struct.unpack_from(">I", data, start)[0], 1)
        elif kind == b"eXIf":
            exif = data[start : min(end, start + tiff.MAX_EXIF)]
        elif kind in LABELS:
            labels.setdefault(kind, data[start : min(end, start + 32)])
        elif kind == b"IDAT":
            pixels = True
        elif kind == b"IEND":
            if not pixels:
                raise unreadable("PNG", "it has no IDAT chunk, so no pixels")
            orientation, colours = tiff.orientation_in(exif), _colours(labels)
            image = "PNG", *size, frames, orientation, mode, depth
            return Header(*image, colours=colours, lacks_end=is_over)
        position = end + 4
    raise too_many("PNG", "chunks")


def _colours(labels: dict[bytes, bytes]) -> Colours | None:
    """What the chunks say that no ICC profile says; of several kinds the first counts (W3C PNG,
    third edition, 4.3)."""
    if cicp := labels.get(b"cICP"):
        primaries, transfer = struct.unpack_from(">BB", cicp)
        return colours_of_cicp("PNG", primaries, transfer)
    if b"iCCP" in labels or b"sRGB" in labels:
        return None
    gamma, primaries = None, SRGB.primaries
    if b"gAMA" in labels and (value := struct.unpack_from(">I", labels[b"gAMA"])[0]):
        gamma = 100_000 / value
    if b"cHRM" in labels:
        x = [value / 100_000 for value in struct.unpack_from(">8I", labels[b"cHRM"])]
        primaries = (x[0], x[1]), (x[2], x[3]), (x[4], x[5]), (x[6], x[7])
        if any(not 0 < y <= 1 or not 0 <= x <= 1 for x, y in primaries):
            raise unreadable("PNG", f"its cHRM chunk says {primaries}, which are no colours")
    # Old writers say so of sRGB.
    if gamma is not None and abs(gamma - 2.2) < 0.03:
        gamma = None
    near = zip(primaries, SRGB.primaries, strict=True)
    if all(abs(a - b) < 0.005 for pair in near for a, b in zip(*pair, strict=True)):
        primaries = SRGB.primaries
    colours = Colours(primaries, gamma)
    return None if colours == SRGB else colours


def _crc(data: Bytes, start: int, end: int) -> bytes:
    with memoryview(data) as whole, whole[start:end] as chunk:
        return zlib.crc32(chunk).to_bytes(4, "big")
