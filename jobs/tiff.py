"""TIFF's directories of tags (TIFF 6.0 and BigTIFF), of a file's pixels and in EXIF blocks.

Pillow's reader opens neither 16 bits in planes nor 16-bit greyscale with opacity, and it reads all
values of every tag, where a small file can claim any amount. Here only those that are asked for are
read: whole numbers, and no more than make sense.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

from .errors import ImageError
from .image_file import (
    MAX_PARTS,
    Bytes,
    Header,
    Mode,
    too_many,
    truncated,
    unreadable,
    unsupported,
)

BIG = (b"+\0", b"\0+")
MAX_ENTRIES = 4096
"""Of one directory; cameras write some dozens."""
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
OTHER_COMPRESSIONS = {6: "old JPEG", 34712: "JPEG 2000", 34925: "LZMA", 50000: "Zstandard"}
OTHER_KINDS = {
    **{8: "CIELab", 9: "ICCLab", 10: "ITULab", 32844: "LogL", 32845: "LogLuv"},
    **dict.fromkeys((32803, 34892), "the raw ones of a camera"),
}
UNSIGNED_INTEGER, UNDEFINED_FORMAT = 1, 4
REDUCED_RESOLUTION, MASK = 1, 4
"""Bits of SUBFILE: a preview of another page, and what of one is to be seen."""
# An extra channel of no stated kind (0) is some selection or mask of an editor, not opacity.
ALPHA = {1, 2}
SUB_DIRECTORIES, EXIF, INTEROPERABILITY, INDEX, DNG_VERSION = 330, 34665, 40965, 1, 50706
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 129: 1}
"""Bytes of a value, by the types that EXIF knows (129: text in UTF-8)."""

SIGNATURES = (b"II*\0", b"MM\0*")
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
        self.length = entries
        self.next: int = struct.unpack_from(self._offset, data, position)[0]
        """Where the next directory starts; 0 after the last."""

    def values(self, tag: int) -> tuple[int, ...]:
        """The numbers of a tag; none where there is no such tag."""
        kind, count, place = self._entries.get(tag, (1, 0, b""))
        if kind not in NUMBERS or count > MAX_PARTS:
            reason = f"its tag {tag} has {count} values of type {kind}"
            raise unreadable("TIFF", f"{reason}; at most {MAX_PARTS} whole numbers are read")
        layout = f"{self._order}{count}{NUMBERS[kind]}"
        return struct.unpack(layout, self._bytes(tag, place, struct.calcsize(layout)))

    def text(self, tag: int) -> bytes:
        """The first four bytes of a tag; none where there is no such tag."""
        return self._entries.get(tag, (2, 0, b""))[2][:4]

    def raw(self, tag: int, limit: int) -> tuple[int, bytes]:
        """A tag's type and its values, of any kind, as they lie in the file; no bytes where there
        is no such tag. Raises ImageError for more than `limit` bytes."""
        kind, count, place = self._entries.get(tag, (1, 0, b""))
        size = SIZES.get(kind, limit + 1) * count
        if size > limit:
            reason = f"its tag {tag} has {count} values of type {kind}"
            raise unreadable("TIFF", f"{reason}; at most {limit} bytes are read")
        return kind, self._bytes(tag, place, size)

    def _bytes(self, tag: int, place: bytes, size: int) -> bytes:
        """So many of a tag's values, which lie in its place or where that says."""
        if size <= len(place):
            return place[:size]
        start = struct.unpack(self._offset, place)[0]
        if start + size > len(self._data):
            raise truncated("TIFF", f"the values of its tag {tag} lie behind its end")
        return self._data[start : start + size]

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
    """In their order, at least one. Raises ImageError for more tags than MAX_PARTS in all of them,
    so also where they go round."""
    layout, place = ("Q", 8) if data[2:4] in BIG else ("I", 4)
    order = "<" if data[:2] == b"II" else ">"
    position: int = struct.unpack_from(order + layout, data, place)[0]
    tags = 0
    while tags < MAX_PARTS:
        yield (directory := Directory(data, position))
        if not (position := directory.next):
            return
        tags += 1 + directory.length
    raise too_many("TIFF", "tags in its directories")


def first_directory(data: Bytes) -> Directory:
    """Of a file, or of an EXIF block without its prefix. Raises as Directory does."""
    return next(_directories(data))


def bare(exif: bytes) -> bytes:
    """An EXIF block without its prefix, which some programs write twice."""
    return exif.removeprefix(EXIF_PREFIX).removeprefix(EXIF_PREFIX)


def orientation_in(exif: bytes) -> int:
    """The orientation in an EXIF block (CIPA DC-008), 1 (upright) when it has none or is broken."""
    block = bare(exif[:MAX_EXIF])
    # A camera's broken EXIF block does not make its image unreadable.
    with suppress(ImageError, struct.error):
        if block.startswith(SIGNATURES):
            return first_directory(block).orientation
    return 1


def is_adobe_rgb(exif: bytes) -> bool:
    """Whether an EXIF block says Adobe RGB, as cameras do that add no profile (DCF 2.0, 4.2)."""
    block = bare(exif[:MAX_EXIF])
    with suppress(ImageError, struct.error):
        if block.startswith(SIGNATURES):
            directory = first_directory(block)
            for tag in (EXIF, INTEROPERABILITY):
                directory = Directory(block, directory.value(tag))
            return directory.text(INDEX) == b"R03\0"
    return False


def read_tiff(data: Bytes, page: int = 1) -> Header:
    """The header of a whole file's page, or of its first one where it has fewer.

    Raises as Directory does, and UnsupportedFormat.
    """
    directories = enumerate(_directories(data))
    place, first = next(directories)
    is_preview = first.value(SUBFILE, 0) & REDUCED_RESOLUTION
    if first.values(DNG_VERSION) or (is_preview and first.values(SUB_DIRECTORIES)):
        reason = "it is a camera's raw file, and its first image a preview"
        raise unsupported("TIFF", f"{reason}; develop it to TIFF or JPEG first")
    tags, frames = first, 1
    for index, directory in directories:
        # Pages, and not previews or masks of one.
        if not directory.value(SUBFILE, 0) & (REDUCED_RESOLUTION | MASK):
            frames += 1
            place, tags = (index, directory) if frames == page else (place, tags)
    mode, depth, opacity = _pixels(tags)
    size = tags.value(WIDTH), tags.value(HEIGHT)
    offsets = [offset for tag, _ in (STRIPS, TILES) for offset in tags.values(tag)]
    # Old writers leave out how long the one strip of an uncompressed image is.
    counts = [count for _, tag in (STRIPS, TILES) for count in tags.values(tag)]
    if not counts and len(offsets) == 1 and tags.value(COMPRESSION, 1) == 1:
        channels = tags.value(CHANNELS, 1)
        counts = [(size[0] * channels * tags.value(BITS, 1) + 7) // 8 * size[1]]
    if not offsets:
        raise unreadable("TIFF", "it does not say where its pixels are (tags 273, 324)")
    if len(counts) != len(offsets):
        reason = f"it has {len(offsets)} pieces and says how long {len(counts)} of them are"
        raise unreadable("TIFF", f"{reason} (tags 279, 325)")
    if any(offset + count > len(data) for offset, count in zip(offsets, counts, strict=True)):
        raise truncated("TIFF", "its pixels go on behind its end")
    return Header("TIFF", *size, frames, tags.orientation, mode, depth, opacity, directory=place)


def _pixels(tags: Directory) -> tuple[Mode, int, int]:
    """The mode, the bits of a channel, and which of the channels behind the colours is the opacity
    (TIFF 6.0, sections 3 to 8, 18 to 23)."""
    compression = tags.value(COMPRESSION, 1)
    if compression not in COMPRESSIONS:
        read = "LZW, deflate, JPEG, PackBits and CCITT are read"
        method = OTHER_COMPRESSIONS.get(compression, f"method {compression}")
        raise unsupported("TIFF", f"it is compressed by {method}; {read}")
    photometric = tags.value(PHOTOMETRIC)
    if photometric not in KINDS or (photometric == INKS and tags.value(INK_SET, 1) != 1):
        read = "greyscale, RGB, palette, CMYK and YCbCr are read"
        kind = OTHER_KINDS.get(photometric, f"of the photometric kind {photometric}")
        raise unsupported("TIFF", f"its pixels are {kind}; {read}")
    mode, colours, depths = KINDS[photometric]
    bits = set(tags.values(BITS)) or {1}
    kinds = set(tags.values(SAMPLE_FORMAT)) - {UNDEFINED_FORMAT}
    depth = max(bits)
    if kinds - {UNSIGNED_INTEGER} or len(bits) > 1 or depth not in depths:
        words = {2: "signed numbers", 3: "floating-point numbers"}
        kind = " and ".join(words.get(kind, "whole numbers") for kind in sorted(kinds or {1}))
        several = " and ".join(map(str, sorted(bits)))
        reason = f"its channels are {kind} of {several} bits"
        raise unsupported("TIFF", f"{reason}; save it with 8 or 16 bits a channel")
    channels, extra = tags.value(CHANNELS, 1), tags.values(EXTRA_SAMPLES)
    if channels < colours:
        raise unreadable("TIFF", f"it has {channels} channels; its kind of pixels has {colours}")
    # The decoder of JPEG gives RGB.
    if mode == "YCbCr" and compression == JPEG:
        mode = "RGB"
    # Where no tag says what a single further channel is, editors take it for opacity.
    extra = extra[: channels - colours] or ((2,) if channels == colours + 1 else ())
    opacity = next((place for place, kind in enumerate(extra) if kind in ALPHA), None)
    if opacity is not None:
        mode = WITH_ALPHA.get(mode, mode)
    return mode, 8 if photometric == PALETTE else depth, opacity or 0
