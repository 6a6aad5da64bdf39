"""What a file says about itself: format by content, size, frames, orientation, completeness.

Each reader walks the outer structure of one format (chunks, segments, boxes) and never decodes a
pixel, so that a bomb costs nothing and a file cut off in transfer is found at once. PNG, JPEG and
WebP are walked here; TIFF and AVIF have no cheap outer size, so Pillow reads their headers.

Sources: PNG (W3C, third edition) 5 and 11; JPEG (ITU-T T.81) annex B; WebP container (RFC 9649) 2;
TIFF 6.0 section 2; ISO base media file format (ISO/IEC 14496-12) 4.2.
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from PIL import AvifImagePlugin, Image, TiffImagePlugin, features

__all__ = ["FORMATS", "Bytes", "Header", "MalformedFile", "TruncatedFile", "read_header", "sniff"]

Bytes = bytes | mmap.mmap

ORIENTATION = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
CRC_BLOCK = 1 << 20


class MalformedFile(Exception):
    """The bytes are not a well-formed file of their format; the message says where."""


class TruncatedFile(MalformedFile):
    """The file ends before its own structure does."""


@dataclass(frozen=True)
class Header:
    """What a file's header says, before decoding.

    `width` and `height` are in pixels as stored; `orientation` is the EXIF value 1..8 and
    5 to 8 swap the sides. `frames` is 1 for a still image and more for anything else.
    """

    format: str
    width: int
    height: int
    frames: int = 1
    orientation: int = 1

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) in pixels once the orientation is applied."""
        if self.orientation >= 5:
            return self.height, self.width
        return self.width, self.height


def sniff(head: bytes) -> str | None:
    """The allowed format these first 32 bytes (or fewer) belong to, or None."""
    if head.startswith(PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return "TIFF"
    if head[4:8] == b"ftyp" and "AVIF" in FORMATS and {b"avif", b"avis"} & _brands(head):
        return "AVIF"
    return None


def read_header(name: str, data: Bytes, file: IO[bytes]) -> Header:
    """Walk `data`, the whole file of format `name`, whose bytes `file` also holds.

    Raises TruncatedFile or MalformedFile.
    """
    try:
        return FORMATS[name](data, file)
    except (struct.error, IndexError) as error:
        # A field that should be there lies behind the last byte.
        raise TruncatedFile("it ends inside a header") from error


def _png(data: Bytes, file: IO[bytes]) -> Header:
    position, size, frames, orientation, pixels = len(PNG_SIGNATURE), (0, 0), 1, 1, False
    while True:
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if end + 4 > len(data):
            raise TruncatedFile(f"it ends inside the {_name(kind)} chunk at byte {position}")
        if (kind == b"IHDR") != (position == len(PNG_SIGNATURE)):
            raise MalformedFile("its first chunk is not IHDR, or it has several")
        # Bit 5 of the first letter is unset in the chunks a decoder needs.
        if not kind[0] & 0x20:
            _check_crc(data, kind, position + 4, end)
        if kind == b"IHDR":
            size = struct.unpack_from(">II", data, start)
        elif kind == b"acTL":
            frames = struct.unpack_from(">I", data, start)[0]
        elif kind == b"eXIf":
            orientation = _orientation(data[start:end])
        elif kind == b"IDAT":
            pixels = True
        elif kind == b"IEND":
            if not pixels:
                raise MalformedFile("it has no IDAT chunk, so no pixels")
            return Header("PNG", *size, frames=max(frames, 1), orientation=orientation)
        position = end + 4


def _check_crc(data: Bytes, kind: bytes, start: int, end: int) -> None:
    crc = 0
    for block in range(start, end, CRC_BLOCK):
        crc = zlib.crc32(data[block : min(block + CRC_BLOCK, end)], crc)
    if crc != struct.unpack_from(">I", data, end)[0]:
        raise MalformedFile(f"the checksum of its {_name(kind)} chunk is wrong")


# In entropy-coded data an FF is followed by 00 (stuffing) or a restart marker; FF FF is filling.
JPEG_NO_MARKER = frozenset({0x00, *range(0xD0, 0xD8), 0xFF})
# Start of frame: C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_ALONE = frozenset({0x01, 0xD8})
JPEG_APP1, JPEG_SOS, JPEG_EOI = 0xE1, 0xDA, 0xD9


def _jpeg(data: Bytes, file: IO[bytes]) -> Header:
    position, size, orientation, scanned = 2, (0, 0), 1, False
    while True:
        marker, position = _next_marker(data, position)
        if marker in JPEG_ALONE:
            continue
        if marker == JPEG_EOI:
            if not scanned or 0 in size:
                raise MalformedFile("it has no scan, so no pixels")
            return Header("JPEG", *size, orientation=orientation)
        length = struct.unpack_from(">H", data, position)[0]
        if length < 2:
            raise MalformedFile(f"the segment at byte {position} has a length of {length}")
        segment = data[position + 2 : position + length]
        if len(segment) < length - 2:
            raise TruncatedFile(f"it ends inside the segment at byte {position}")
        if marker in JPEG_SOF:
            height, width = struct.unpack_from(">HH", segment, 1)
            size = (width, height)
        elif marker == JPEG_APP1 and segment.startswith(b"Exif\0\0"):
            orientation = _orientation(segment[6:])
        elif marker == JPEG_SOS:
            scanned = True
        position += length


def _next_marker(data: Bytes, position: int) -> tuple[int, int]:
    """The next marker's code and the byte behind it."""
    while (position := data.find(b"\xff", position) + 1) and position < len(data):
        if (marker := data[position]) not in JPEG_NO_MARKER:
            return marker, position + 1
    raise TruncatedFile("it ends before its EOI marker")


def _webp(data: Bytes, file: IO[bytes]) -> Header:
    declared = struct.unpack_from("<I", data, 4)[0] + 8
    if declared > len(data):
        raise TruncatedFile(f"its header declares {declared} bytes and it has {len(data)}")
    position, size, frames, orientation, pixels = 12, (0, 0), 1, 1, False
    while position + 8 <= declared:
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if start + length > declared:
            raise TruncatedFile(f"it ends inside the {_name(kind)} chunk at byte {position}")
        if kind == b"VP8X":
            flags, width = data[start], data[start + 4 : start + 7]
            height = data[start + 7 : start + 10]
            size = (int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1)
            # The header tells that it is animated, not how many frames follow.
            frames = 2 if flags & 0x02 else 1
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
        elif kind == b"EXIF":
            orientation = _orientation(data[start : start + length].removeprefix(b"Exif\0\0"))
        # Chunks are padded to an even length.
        position = start + length + (length & 1)
    if not pixels and frames == 1:
        raise TruncatedFile("it has no VP8 or VP8L chunk, so no pixels")
    return Header("WEBP", *size, frames=frames, orientation=orientation)


def _tiff(data: Bytes, file: IO[bytes]) -> Header:
    order = "<" if data[:2] == b"II" else ">"
    if struct.unpack_from(order + "I", data, 4)[0] >= len(data):
        raise TruncatedFile("its directory lies behind the last byte")
    with _opening("TIFF"):
        tags = TiffImagePlugin.TiffImageFile(file).tag_v2
        # StripOffsets and StripByteCounts, or TileOffsets and TileByteCounts.
        pieces = [
            (offset, count)
            for offsets, counts in ((273, 279), (324, 325))
            for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        ]
        header = Header(
            "TIFF",
            # Pillow's own size is upright already; these are the stored sides.
            width=int(tags[256]),
            height=int(tags[257]),
            frames=2 if tags.next else 1,
            orientation=_valid(tags.get(ORIENTATION)),
        )
    if not pieces:
        raise MalformedFile("it has no image data")
    if any(offset + count > len(data) for offset, count in pieces):
        raise TruncatedFile("its image data ends behind the last byte")
    return header


def _avif(data: Bytes, file: IO[bytes]) -> Header:
    position, pixels = 0, False
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        pixels = pixels or kind == b"mdat"
        if length == 1:
            length = struct.unpack_from(">Q", data, position + 8)[0]
        elif length == 0:
            length = len(data) - position
        if length < 8:
            raise MalformedFile(f"the box at byte {position} has a length of {length}")
        if position + length > len(data):
            raise TruncatedFile(f"it ends inside the {_name(kind)} box at byte {position}")
        position += length
    if not pixels:
        raise TruncatedFile("it has no mdat box, so no pixels")
    with _opening("AVIF"):
        image = AvifImagePlugin.AvifImageFile(file)
        orientation = _valid(image.getexif().get(ORIENTATION))
        return Header("AVIF", *image.size, frames=image.n_frames, orientation=orientation)


@contextmanager
def _opening(name: str) -> Iterator[None]:
    """Turns whatever Pillow's parser stumbles over into a MalformedFile."""
    try:
        yield
    # On hostile bytes Pillow's plugins raise anything from SyntaxError to OverflowError, and all
    # of it says the same: this header cannot be read.
    except Exception as error:
        raise MalformedFile(f"its {name} header cannot be read ({error})") from error


def _orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 (upright) when the block has none or is broken."""
    block = Image.Exif()
    try:
        block.load(exif)
        return _valid(block.get(ORIENTATION))
    # A camera's broken EXIF block does not make its image unreadable, and Pillow may raise
    # anything on one.
    except Exception:
        return 1


def _valid(orientation: object) -> int:
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _name(kind: bytes) -> str:
    """A chunk's four letters, safe to print."""
    return kind.decode("ascii", "backslashreplace").strip()


def _brands(head: bytes) -> set[bytes]:
    """The major and compatible brands that fit into the first 32 bytes of an ftyp box."""
    return {head[8:12]} | {head[start : start + 4] for start in range(16, len(head), 4)}


FORMATS: dict[str, Callable[[Bytes, IO[bytes]], Header]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "WEBP": _webp,
    "TIFF": _tiff,
}
# Pillow can be built without AVIF.
if features.check("avif"):
    FORMATS["AVIF"] = _avif
