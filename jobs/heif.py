"""AVIF files by their boxes (ISO/IEC 14496-12, 4.2) and the properties of their primary item.

Pillow's decoder says size, frames and orientation. What it does not say is read here: the colours,
their range, a clean aperture, opacity that is multiplied in (ISO/IEC 23008-12, 6 to 7).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from .image_file import (
    MAX_PARTS,
    Bytes,
    Header,
    Mode,
    ascii_of,
    colours_of_cicp,
    too_many,
    truncated,
    unreadable,
)

MODES: dict[str, Mode] = {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
# In the third byte of an AV1 codec configuration (AV1 in ISOBMFF, 2.3).
HIGH_DEPTH, TWELVE_BITS, MONOCHROME = 0x40, 0x20, 0x10
FULL_RANGE = 0x80


class Box(NamedTuple):
    kind: bytes
    start: int
    """Of its content, in bytes."""
    end: int


def read_avif(data: Bytes) -> Header:
    """The header of a whole file; of an animation only that it has several frames is right."""
    top = list(_boxes(data, 0, len(data)))
    if not any(box.kind == b"mdat" for box in top):
        raise truncated("AVIF", "it has no mdat box, so no pixels")
    from PIL import _avif

    try:
        # Not AvifImageFile, which would unpack every tag of an EXIF block that the decoder, going
        # by the file's own properties, does not heed.
        decoder = _avif.AvifDecoder(data[:], "auto", 1)
        (width, height), frames, mode, _, _, orientation, _ = decoder.get_info()
    # It raises ValueError and others, and all of it says the same: this header cannot be read.
    except Exception as error:
        raise unreadable("AVIF", f"its header cannot be read ({error})") from error
    if mode not in MODES:
        raise unreadable("AVIF", f"its mode is {mode}")
    properties, is_premultiplied = _primary_item(data, top)
    bits = properties.get(b"av1C", bytes(3))[2]
    is_grey = bool(bits & MONOCHROME)
    cicp, is_full = properties.get(b"colr", b"")[:11], True
    colours = None
    if cicp[:4] == b"nclx":
        primaries, transfer, _, flags = struct.unpack_from(">HHHB", cicp, 4)
        colours, is_full = colours_of_cicp("AVIF", primaries, transfer), bool(flags & FULL_RANGE)
    if aperture := properties.get(b"clap"):
        width, height = _cut("width", aperture, 0, width), _cut("height", aperture, 8, height)
    return Header(
        "AVIF",
        width,
        height,
        frames,
        orientation if 1 <= orientation <= 8 else 1,
        MODES["L" + mode[3:] if is_grey else mode],
        8 if not bits & HIGH_DEPTH else 12 if bits & TWELVE_BITS else 10,
        colours=colours,
        # The decoder spreads the levels of colours itself, not those of grey.
        narrow_range=is_grey and not is_full,
        premultiplied=is_premultiplied,
    )


def _boxes(data: Bytes, start: int, end: int) -> Iterator[Box]:
    """Those side by side from byte `start` on, which must fill all up to `end`."""
    for _ in range(MAX_PARTS):
        if start >= end:
            return
        length, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if length == 1:
            length, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        elif length == 0:
            length = end - start
        if length < head:
            raise unreadable("AVIF", f"the box at byte {start} has a length of {length}")
        if start + length > end:
            raise truncated("AVIF", f"it ends inside the {ascii_of(kind)} box at byte {start}")
        yield Box(kind, start + head, start + length)
        start += length
    raise too_many("AVIF", "boxes")


def _primary_item(data: Bytes, top: list[Box]) -> tuple[dict[bytes, bytes], bool]:
    """The properties of the image to show, the first of each kind (of colours the coded ones), and
    whether its opacity is multiplied in."""
    meta = {
        box.kind: box
        for parent in top
        if parent.kind == b"meta"
        # Behind its version and flags.
        for box in _boxes(data, parent.start + 4, parent.end)
    }
    if not meta.keys() >= {b"pitm", b"iprp"}:
        raise unreadable("AVIF", "it does not say which of its items is the image")
    place = meta[b"pitm"].start
    item = struct.unpack_from(">I" if data[place] else ">H", data, place + 4)[0]
    parts = list(_boxes(data, meta[b"iprp"].start, meta[b"iprp"].end))
    values = [box for part in parts if part.kind == b"ipco" for box in _boxes(data, *part[1:])]
    properties: dict[bytes, bytes] = {}
    for part in parts:
        for index in _associations(data, part, item) if part.kind == b"ipma" else ():
            if not 1 <= index <= len(values):
                raise unreadable("AVIF", f"it names a property {index} of {len(values)}")
            kind, start, end = values[index - 1]
            value = data[start:end]
            if kind not in properties or value[:4] == b"nclx":
                properties[kind] = value
    return properties, b"iref" in meta and _is_premultiplied(data, meta[b"iref"], item)


def _associations(data: Bytes, box: Box, item: int) -> Iterator[int]:
    """The numbers, from 1, of an item's properties (ISO/IEC 23008-12, 9.3)."""
    version, flags = data[box.start], data[box.start + 3]
    count = struct.unpack_from(">I", data, box.start + 4)[0]
    names, numbers = ">I" if version else ">H", ">H" if flags & 1 else ">B"
    width, most = struct.calcsize(numbers), 0x7FFF if flags & 1 else 0x7F
    position = box.start + 8
    for _ in range(min(count, MAX_PARTS)):
        owner = struct.unpack_from(names, data, position)[0]
        position += struct.calcsize(names)
        for place in range(position + 1, position + 1 + data[position] * width, width):
            if owner == item:
                # The highest bit says that a reader must know the property.
                yield struct.unpack_from(numbers, data, place)[0] & most
        position += 1 + data[position] * width


def _is_premultiplied(data: Bytes, box: Box, item: int) -> bool:
    """Whether the item refers to its opacity as multiplied into its colours."""
    layout = ">I" if data[box.start] else ">H"
    return any(
        kind == b"prem" and struct.unpack_from(layout, data, start)[0] == item
        for kind, start, _ in _boxes(data, box.start + 4, box.end)
    )


def _cut(side: str, aperture: bytes, place: int, length: int) -> int:
    """A side of the clean aperture, in pixels."""
    number, divisor = struct.unpack_from(">II", aperture, place)
    if not divisor or number % divisor or not 1 <= number // divisor <= length:
        reason = f"its clean aperture has a {side} of {number}/{divisor} pixels of {length}"
        raise unreadable("AVIF", reason)
    return int(number // divisor)
