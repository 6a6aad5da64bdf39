"""JPEG files by their segments (ITU-T T.81, annex B)."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

from PIL import Image

from . import tiff
from .image_file import (
    ADOBE_RGB,
    MAX_JPEG_SIDE,
    MAX_PARTS,
    Bytes,
    Header,
    Mode,
    too_many,
    truncated,
    unreadable,
    unsupported,
)

MODES: dict[int, Mode] = {1: "L", 3: "RGB", 4: "CMYK"}
# In entropy-coded data an FF is followed by 00 (stuffing) or a restart marker; FF FF is filling.
MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Start of frame: C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1)
APP0, APP1, APP13, SOS, EOI, DRI = 0xE0, 0xE1, 0xED, 0xDA, 0xD9, 0xDD
ALONE = (0x01, 0xD8, EOI)
"""Markers without a segment."""
NO_TABLES = frozenset((*ALONE, *range(0xE0, 0xF0), 0xFE))
"""And those of applications and comments."""

BLOCK = 1 << 18
"""Bytes that are searched at once, so that other threads get their turn in between."""


def segments(data: Bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, and where what belongs to it begins and ends: of a scan up to the next marker."""
    marker, start = _next_marker(data, 2)
    for _ in range(MAX_PARTS):
        if start > len(data):
            return
        stop = start
        if marker not in ALONE:
            stop += int.from_bytes(data[start : start + 2], "big")
        following, behind = _next_marker(data, stop)
        yield marker, start, min(behind - 2, len(data)) if marker == SOS else stop
        if marker == EOI:
            return
        marker, start = following, behind
    raise too_many("JPEG", "segments")


def _next_marker(data: Bytes, position: int) -> tuple[int, int]:
    """Its code and the byte behind it; of a file that ends without one EOI, as if it followed."""
    for start in range(position, len(data), BLOCK):
        # One byte more, for a marker of which the FF is the last one here.
        if marker := MARKER.search(data, start, start + BLOCK + 1):
            return data[marker.end() - 1], marker.end()
    return EOI, len(data) + 2


def read_jpeg(data: Bytes) -> Header:
    """The header of the first image; a phone's gain map or preview behind it (MPO) does not
    count."""
    size, exif, has_scan = (0, 0), b"", False
    mode: Mode = "RGB"
    marker = 0
    for marker, start, _ in segments(data):
        if marker in ALONE:
            continue
        length = struct.unpack_from(">H", data, start)[0]
        segment = data[start + 2 : start + length]
        if length < 2:
            raise unreadable("JPEG", f"the segment at byte {start} has a length of {length}")
        if len(segment) < length - 2:
            raise truncated("JPEG", f"it ends inside the segment at byte {start}")
        if marker in SOF:
            precision, height, width, components = struct.unpack_from(">BHHB", segment)
            if precision != 8 or components not in MODES:
                channels = f"{components} channels of {precision} bits"
                reason = f"it has {channels}; 1, 3 or 4 channels of 8 bits are read"
                raise unsupported("JPEG", reason)
            size, mode = (width, height), MODES[components]
        # Of several blocks the first is the camera's.
        elif marker == APP1 and not exif and segment.startswith(tiff.EXIF_PREFIX):
            exif = segment
        has_scan = has_scan or marker == SOS
    lacks_end = marker != EOI
    if lacks_end and not has_scan:
        raise truncated("JPEG", "it ends before its pixels")
    if not has_scan or not size[0]:
        raise unreadable("JPEG", "it has no scan, so no pixels")
    if not size[1]:
        reason = "its height is told behind its pixels (DNL)"
        raise unsupported("JPEG", f"{reason}; save it anew with another program")
    if max(size) > MAX_JPEG_SIDE:
        reason = f"its longer side has {max(size)} pixels"
        raise unsupported("JPEG", f"{reason}; {MAX_JPEG_SIDE} are read, so send a PNG")
    colours = ADOBE_RGB if tiff.is_adobe_rgb(exif) else None
    orientation = tiff.orientation_in(exif)
    return Header("JPEG", *size, 1, orientation, mode=mode, colours=colours, lacks_end=lacks_end)


def has_every_pixel(data: Bytes) -> bool:
    """Whether the one scan of a JPEG without its end seems whole: no block's brightness depends on
    what is put behind it. False for several scans and for restart intervals, of which any could be
    missing.

    An eighth of the pixels is made, in a fraction of a second; what is missing of the last block's
    details libjpeg's warnings tell the worker.
    """
    head, components = b"\xff\xd8", 0
    for marker, start, stop in segments(data):
        segment = data[start:stop]
        if marker in SOF:
            components = segment[7] if marker in SEQUENTIAL else 0
        if marker not in NO_TABLES:
            head += bytes((0xFF, marker)) + segment
        if marker == DRI or (marker == SOS and (segment[2] != components or stop < len(data))):
            return False
        if marker == SOS:
            break
    images = []
    for filling in (b"", bytes(range(3, 255, 2))):
        try:
            with Image.open(io.BytesIO(head + filling + b"\xff\xd9"), formats=("JPEG",)) as image:
                image.draft(None, (1, 1))
                images.append(image.tobytes())
        # It raises errors of many kinds for codes that make no sense.
        except (OSError, ValueError, SyntaxError):
            return False
    return images[0] == images[1]
