"""AVIF and HEIC files by their boxes (ISO/IEC 14496-12, 4.2) and the properties of their image.

Their decoders say size, frames and orientation. What they do not say is read here: the colours,
their range, a clean aperture, opacity that is multiplied in (ISO/IEC 23008-12, 6 to 7).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import replace
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
    properties, is_premultiplied = _primary_item(data, "AVIF")
    from PIL import _avif

    try:
        # Not AvifImageFile, which would unpack every tag of an EXIF block that the decoder, going
        # by the file's own properties, does not heed.
        decoder = _avif.AvifDecoder(data[:], "auto", 1)
        (width, height), frames, mode, _, _, orientation, _ = decoder.get_info()
    # It raises ValueError and others, and all of it says the same: this header cannot be read.
    except Exception as error:
        raise unreadable("AVIF", f"its header cannot be read ({error})") from error
    bits = properties.get(b"av1C", bytes(3))[2]
    # The decoder makes RGBA of grey with opacity.
    mode = "L" + mode[3:] if bits & MONOCHROME else mode
    depth = 8 if not bits & HIGH_DEPTH else 12 if bits & TWELVE_BITS else 10
    pixels = width * height
    if aperture := properties.get(b"clap"):
        width, height = _cut("width", aperture, 0, width), _cut("height", aperture, 8, height)
    orientation = orientation if 1 <= orientation <= 8 else 1
    header = Header("AVIF", width, height, frames, orientation, depth=depth, coded_pixels=pixels)
    return _with_colours(header, mode, properties, is_premultiplied)


def read_heic(data: Bytes) -> Header:
    """The header of a whole file, upright as its decoder gives it. Of several images the primary
    one is meant."""
    import pi_heif

    properties, is_premultiplied = _primary_item(data, "HEIC")
    try:
        file = pi_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
        image = file[file.primary_index]
        (width, height), mode, depth = image.size, image.mode, image.info["bit_depth"]
    # As above.
    except Exception as error:
        raise unreadable("HEIC", f"its header cannot be read ({error})") from error
    # The decoder says one of two sizes, and makes the other.
    sides = struct.unpack_from(">II", properties.get(b"ispe", b""), 4)
    if sorted(sides) != sorted((width, height)) and b"clap" not in properties:
        reason = f"it says {sides[0]} x {sides[1]} pixels, and its pixels {width} x {height}"
        raise unreadable("HEIC", reason)
    header = Header("HEIC", width, height, depth=depth, coded_pixels=sides[0] * sides[1])
    mode = "L" if mode == "I;16" else mode.partition(";")[0].upper()
    return _with_colours(header, mode, properties, is_premultiplied)


def _with_colours(
    header: Header, mode: str, properties: dict[bytes, bytes], is_premultiplied: bool
) -> Header:
    if mode not in MODES:
        raise unreadable(header.format, f"its mode is {mode}")
    colour, is_full, colours = properties.get(b"colr", b""), True, None
    if colour[:4] == b"nclx":
        primaries, transfer, _, flags = struct.unpack_from(">HHHB", colour, 4)
        colours = colours_of_cicp(header.format, primaries, transfer)
        is_full = bool(flags & FULL_RANGE)
    return replace(
        header,
        mode=MODES[mode],
        colours=colours,
        # Decoders spread the levels of colours themselves, not those of grey.
        narrow_range=mode.startswith("L") and not is_full,
        is_premultiplied=is_premultiplied,
    )


def boxes(data: Bytes, start: int, end: int, name: str) -> Iterator[Box]:
    """The boxes side by side from byte `start` on, which must fill all up to `end`."""
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
            raise unreadable(name, f"the box at byte {start} has a length of {length}")
        if start + length > end:
            raise truncated(name, f"it ends inside the {ascii_of(kind)} box at byte {start}")
        yield Box(kind, start + head, start + length)
        start += length
    raise too_many(name, "boxes")


def _primary_item(data: Bytes, name: str) -> tuple[dict[bytes, bytes], bool]:
    """The properties of the image to show in a file that is whole, the first of each kind (of
    colours the coded ones), and whether its opacity is multiplied in."""
    top = list(boxes(data, 0, len(data), name))
    if not any(box.kind == b"mdat" for box in top):
        raise truncated(name, "it has no mdat box, so no pixels")
    meta = {
        box.kind: box
        for parent in top
        if parent.kind == b"meta"
        # Behind its version and flags.
        for box in boxes(data, parent.start + 4, parent.end, name)
    }
    if not meta.keys() >= {b"pitm", b"iprp"}:
        raise unreadable(name, "it does not say which of its items is the image")
    place = meta[b"pitm"].start
    item = struct.unpack_from(">I" if data[place] else ">H", data, place + 4)[0]
    parts = list(boxes(data, *meta[b"iprp"][1:], name))
    stores = [part for part in parts if part.kind == b"ipco"]
    values = [box for store in stores for box in boxes(data, *store[1:], name)]
    properties: dict[bytes, bytes] = {}
    for part in parts:
        for index in _associations(data, part, item) if part.kind == b"ipma" else ():
            if not 1 <= index <= len(values):
                raise unreadable(name, f"it names a property {index} of {len(values)}")
            kind, start, end = values[index - 1]
            value = data[start:end]
            if kind not in properties or value[:4] == b"nclx":
                properties[kind] = value
    is_premultiplied = False
    if references := meta.get(b"iref"):
        layout = ">I" if data[references.start] else ">H"
        is_premultiplied = any(
            kind == b"prem" and struct.unpack_from(layout, data, start)[0] == item
            for kind, start, _ in boxes(data, references.start + 4, references.end, name)
        )
    return properties, is_premultiplied


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


def _cut(side: str, aperture: bytes, place: int, length: int) -> int:
    """A side of the clean aperture, in pixels."""
    number, divisor = struct.unpack_from(">II", aperture, place)
    if not divisor or number % divisor or not 1 <= number // divisor <= length:
        reason = f"its clean aperture has a {side} of {number}/{divisor} pixels of {length}"
        raise unreadable("AVIF", reason)
    return int(number // divisor)
