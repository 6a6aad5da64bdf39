"""TIFF's directories of tags (TIFF 6.0 and BigTIFF), of a file's pixels and in EXIF blocks.

Pillow's reader opens neither 16 bits in planes nor 16-bit greyscale with opacity, and it reads all
values of every tag, where a small file can claim any amount. Here only those that are asked for are
read: whole numbers, and no more than make sense.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from itertools import islice

from .errors import ImageError
from .image_file import MAX_PARTS, Bytes, Header, Mode, truncated, unreadable, unsupported

BIG = (b"+\0", b"\0+")
MAX_ENTRIES = 4096
"""Of one directory; cameras write some dozens."""
MAX_PAGES = 64
NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
"""Types of whole numbers, as `struct` names them."""

# Tags (TIFF 6.0, appendix A).
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
ORIENTATION, CHANNELS, INK_SET, EXTRA_SAMPLES, SAMPLE_FORMAT = 274, 277, 332, 338, 339
STRIPS, TILES = (273, 279), (324, 325)
"""The tags of the offsets and of the byte counts."""

PALETTE, INKS = 3, 5
KINDS: dict[int, tuple[Mode, int, set[int]]] = {
    0: ("L", 1, {1, 2, 4, 8, 16}),
    1: ("L", 1, {1, 2, 4, 8, 16}),
    2: ("RGB", 3, {8, 16}),
    PALETTE: ("RGB", 1, {1, 2, 4, 8}),
    INKS: ("CMYK", 4, {8, 16}),
    6: ("YCbCr", 3, {8}),
}
"""By PhotometricInterpretation: the mode, its channels, and how many bits of each are read."""
WITH_ALPHA: dict[Mode, Mode] = {"L": "LA", "RGB": "RGBA", "CMYK": "CMYKA"}
JPEG = 7
COMPRESSIONS = {1, 2, 3, 4, 5, JPEG, 8, 32773, 32946}
"""None, CCITT, LZW, JPEG, deflate, PackBits: what libvips' wheel was built with."""
UNSIGNED_INTEGER, UNDEFINED_FORMAT = 1, 4
REDUCED_RESOLUTION = 1
# An extra channel of no stated kind (0) is some selection or mask of an editor, not opacity.
ALPHA = {1, 2}

EXIF_PREFIX = b"Exif\0\0"
MAX_EXIF = 64 * 1024
"""What a JPEG can hold; in other formats as much of a longer block is looked at."""


class Directory:
    """The tags of one directory of `data`, which starts at byte `start`.

    Raises ImageTruncated where it, or values that are asked for, lie behind the last byte (or
    struct.error, inside a number), ImageError for too many or other values.
    """

    def __init__(self, data: Bytes, start: int) -> None:
        order = "<" if data[:2] == b"II" else ">"
        count, entry, offset = ("Q", "HHQ8s", "Q") if data[2:4] in BIG else ("H", "HHI4s", "I")
        if start >= len(data):
            raise truncated("TIFF", "its directory lies behind its end")
        entries = struct.unpack_from(order + count, data, start)[0]
        if entries > MAX_ENTRIES:
            reason = f"its directory has {entries} entries; at most {MAX_ENTRIES} are read"
            raise unreadable("TIFF", reason)
        # Type, number of values, and the values or where they are.
        self._entries: dict[int, tuple[int, int, bytes]] = {}
        position = start + struct.calcsize(order + count)
        for _ in range(entries):
            tag, kind, number, place = struct.unpack_from(order + entry, data, position)
            self._entries.setdefault(tag, (kind, number, place))
            position += struct.calcsize(order + entry)
        self._data, self._order, self._offset = data, order, order + offset
        self.next: int = struct.unpack_from(self._offset, data, position)[0]
        """Where the next directory starts; 0 after the last."""

    def values(self, tag: int) -> tuple[int, ...]:
        """The numbers of a tag; none where there is no such tag."""
        kind, count, place = self._entries.get(tag, (1, 0, b""))
        if kind not in NUMBERS or count > MAX_PARTS:
            reason = f"its tag {tag} has {count} values of type {kind}"
            raise unreadable("TIFF", f"{reason}; at most {MAX_PARTS} whole numbers are read")
        layout = f"{self._order}{count}{NUMBERS[kind]}"
        size = struct.calcsize(layout)
        if size <= len(place):
            return struct.unpack(layout, place[:size])
        start = struct.unpack(self._offset, place)[0]
        if start + size > len(self._data):
            raise truncated("TIFF", f"the values of its tag {tag} lie behind its end")
        return struct.unpack_from(layout, self._data, start)

    def value(self, tag: int, default: int | None = None) -> int:
        """The first number of a tag; without a default it has to be there."""
        values = self.values(tag) or (default,)
        if values[0] is None:
            raise unreadable("TIFF", f"its directory has no tag {tag}")
        return values[0]

    @property
    def orientation(self) -> int:
        """1 (upright) where it is not one of 1 to 8."""
        value = self.value(ORIENTATION, 1)
        return value if 1 <= value <= 8 else 1


def _directories(data: Bytes) -> Iterator[Directory]:
    """In their order, at least one, and without end where they go round."""
    layout, place = ("Q", 8) if data[2:4] in BIG else ("I", 4)
    order = "<" if data[:2] == b"II" else ">"
    position: int = struct.unpack_from(order + layout, data, place)[0]
    while True:
        yield (directory := Directory(data, position))
        if not (position := directory.next):
            return


def orientation_in(exif: bytes) -> int:
    """The orientation in an EXIF block (CIPA DC-008), 1 (upright) when it has none or is broken."""
    block = exif[:MAX_EXIF].removeprefix(EXIF_PREFIX).removeprefix(EXIF_PREFIX)
    if not block.startswith((b"II*\0", b"MM\0*")):
        return 1
    try:
        return next(_directories(block)).orientation
    # A camera's broken EXIF block does not make its image unreadable.
    except (ImageError, struct.error):
        return 1


def read_tiff(data: Bytes) -> Header:
    """The header of a whole file's first page.

    Raises as Directory does, and UnsupportedFormat.
    """
    pages = islice(_directories(data), 1 + MAX_PAGES)
    first = next(pages)
    parts = [
        (offset, count)
        for offsets, counts in (STRIPS, TILES)
        for offset, count in zip(first.values(offsets), first.values(counts), strict=False)
    ]
    mode, depth = _pixels(first)
    size = first.value(WIDTH), first.value(HEIGHT)
    # Pages, and not previews of the first one.
    frames = 1 + sum(not page.value(SUBFILE, 0) & REDUCED_RESOLUTION for page in pages)
    if not parts:
        raise unreadable("TIFF", "it has no image data")
    if any(offset + count > len(data) for offset, count in parts):
        raise truncated("TIFF", "its image data ends behind its end")
    return Header("TIFF", *size, frames, first.orientation, mode, depth)


def _pixels(tags: Directory) -> tuple[Mode, int]:
    """The mode, and the bits of a channel (TIFF 6.0, sections 3 to 8, 18 to 23)."""
    compression = tags.value(COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        read = "none, CCITT, LZW, JPEG, deflate and PackBits are read"
        raise unsupported("TIFF", f"it is compressed by method {compression}; {read}")
    photometric = tags.value(PHOTOMETRIC)
    if photometric not in KINDS or (photometric == INKS and tags.value(INK_SET, 1) != 1):
        read = "greyscale, RGB, palette, CMYK and YCbCr are read"
        raise unsupported("TIFF", f"its pixels are of the photometric kind {photometric}; {read}")
    mode, colours, depths = KINDS[photometric]
    bits = set(tags.values(BITS)) or {1}
    kinds = set(tags.values(SAMPLE_FORMAT)) - {UNDEFINED_FORMAT}
    depth = max(bits)
    if kinds - {UNSIGNED_INTEGER} or len(bits) > 1 or depth not in depths:
        reason = f"its channels are of {depth} bits and sample format {sorted(kinds)}"
        read = (
            "unsigned whole numbers (1) of 8 or 16 bits are read, so save it as 16 bits a channel"
        )
        raise unsupported("TIFF", f"{reason}; {read}")
    channels, extra = tags.value(CHANNELS, 1), tags.values(EXTRA_SAMPLES)
    if channels < colours:
        raise unreadable("TIFF", f"it has {channels} channels; its kind of pixels has {colours}")
    # The decoder of JPEG gives RGB.
    if mode == "YCbCr" and compression == JPEG:
        mode = "RGB"
    if channels > colours and extra and extra[0] in ALPHA:
        mode = WITH_ALPHA.get(mode, mode)
    return mode, 8 if photometric == PALETTE else depth
