"""What a result says beside its pixels: of the input what still holds, and how it was made.

Nothing that describes the input's pixels is kept (sizes, previews, regions, an editor's steps);
only `metadata=all` keeps where it was taken. EXIF's values are copied byte for byte: their texts
are often UTF-8, which Pillow would write as question marks. What is broken or too long is dropped
and logged.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from jobs.image_file import Header
from jobs.tiff import EXIF, SIZES, Directory, first_directory
from models.parameters import UpscaleParameters

from .blocks import IPTC_RESOURCE, PHOTOSHOP_PREFIX, Blocks, read
from .xmp import packet, software

Tags = Mapping[int, tuple[int, bytes]]
"""By tag the type and the values of it, little-endian."""

BYTE, ASCII, SHORT, LONG, RATIONAL, UNDEFINED, UTF_8 = 1, 2, 3, 4, 5, 7, 129
UNITS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8}
"""Bytes of a number, by the types whose byte order matters."""

MAX_RESULT = 60_000
"""Bytes of each block of a result: what a segment of a JPEG holds, less some that writers add."""

# Tags (CIPA DC-008-2023, 4.6): texts, dates, the camera, how it was set.
X_DENSITY, Y_DENSITY, DENSITY_UNIT, SOFTWARE, GPS = 282, 283, 296, 305, 34853
INCHES = {2: 1.0, 3: 2.54}
MAIN_TAGS = {
    **dict.fromkeys((269, 270, 271, 272, 306, 315, 33432), ASCII),
    **{18246: SHORT, 18249: SHORT, **dict.fromkeys(range(40091, 40096), BYTE)},
    **{X_DENSITY: RATIONAL, Y_DENSITY: RATIONAL},
}
"""And their types: with others libtiff would not read a result."""
EXIF_TAGS = (
    *(33434, 33437, 34850, 34852, 34855, *range(34864, 34870), 36864, 36867, 36868),
    *(*range(36880, 36883), *range(37377, 37387), 37510, *range(37520, 37523), 41493, 41495),
    *(41728, 41729, *range(41985, 41995), 41996, 42016, *range(42032, 42045)),
)
EXIF_VERSION, USER_COMMENT = 36864, 37510
COLOUR_SPACE, EXIF_WIDTH, EXIF_HEIGHT = 40961, 40962, 40963
GPS_TAGS = range(32)

# IIM 4.2: data sets of record 2 that say where, and previews; all of record 1 but the encoding.
IPTC_ENCODING, IPTC_DROPPED = (1, 90), {10, 200, 201, 202}
IPTC_LOCATION = {26, 27, 90, 92, 95, 100, 101}
IPTC_TEXTS = {
    **{5: "title", 25: "keywords", 55: "dated"},
    **{80: "author", 116: "copyright", 120: "description"},
}


@dataclass(frozen=True)
class Metadata:
    """What is written into a result: EXIF's tags and its directories by their pointers, XMP, IPTC's
    data sets, pixels per inch across and down. `faults` names what of the input was broken."""

    tags: Tags
    directories: Mapping[int, Tags]
    xmp: bytes
    iptc: bytes
    density: tuple[float, float] | None
    faults: tuple[str, ...] = ()

    @property
    def exif(self) -> bytes:
        """A block without a prefix."""
        return struct.pack("<2sHI", b"II", 42, 8) + with_directories(self.tags, self.directories, 8)

    @property
    def photoshop(self) -> bytes:
        """IPTC as the APP13 segment of a JPEG holds it; nothing without any."""
        if not self.iptc:
            return b""
        head = struct.pack(">4sHHI", b"8BIM", IPTC_RESOURCE, 0, len(self.iptc))
        return PHOTOSHOP_PREFIX + head + self.iptc + bytes(len(self.iptc) % 2)


def metadata_of(
    data: bytes, header: Header, parameters: UpscaleParameters, width: int, height: int
) -> Metadata | None:
    """For a result of these sides, px, of an image file with this header; None for
    `metadata=strip`.

    Depends on nothing else, such as the time, so that the same request gives the same bytes.
    """
    if parameters.metadata == "strip":
        return None
    blocks, location = read(data, header.format), parameters.metadata == "all"
    tags, directories = dict[int, tuple[int, bytes]](), dict[int, Tags]()
    if blocks.exif:
        with blocks.guard("exif"):
            tags, directories = _exif(blocks, location)
    density = _density(blocks.density)
    if density is not None and header.orientation >= 5:
        density = density[::-1]
    iptc = b""
    with blocks.guard("iptc"):
        iptc = _iptc(blocks, location)
    xmp = packet(blocks, parameters)
    # No orientation, which is upright. Where no density is known, EXIF wants 72.
    x, y = (_rational(side) for side in density or (72, 72))
    tags |= {
        SOFTWARE: (ASCII, software().encode() + b"\0"),
        X_DENSITY: x,
        Y_DENSITY: y,
        DENSITY_UNIT: (SHORT, struct.pack("<H", 2)),
    }
    directories[EXIF] = {
        EXIF_VERSION: (UNDEFINED, b"0232"),
        **directories.get(EXIF, {}),
        COLOUR_SPACE: (SHORT, struct.pack("<H", 1)),
        EXIF_WIDTH: (LONG, struct.pack("<I", width)),
        EXIF_HEIGHT: (LONG, struct.pack("<I", height)),
    }
    return Metadata(tags, directories, xmp, iptc, density, tuple(blocks.faults))


def with_directories(tags: Tags, directories: Mapping[int, Tags], start: int) -> bytes:
    """A directory of a little-endian TIFF at its byte `start`, an even one, and behind it others,
    to which the tags by which they are given point."""
    tags = {**tags, **dict.fromkeys(directories, (LONG, bytes(4)))}
    end, behind = start + len(_directory(tags, start)), b""
    for pointer, further in directories.items():
        tags[pointer] = LONG, struct.pack("<I", end + len(behind))
        behind += _directory(further, end + len(behind))
    return _directory(tags, start) + behind


def _directory(tags: Tags, start: int) -> bytes:
    """The entries, in order, and behind them the values that do not fit in (TIFF 6.0, 2)."""
    entries, values = struct.pack("<H", len(tags)), b""
    place = start + 2 + 12 * len(tags) + 4
    for tag, (kind, value) in sorted(tags.items()):
        inline = value.ljust(4, b"\0")
        if len(value) > 4:
            inline = struct.pack("<I", place + len(values))
            values += value + bytes(len(value) % 2)
        entries += struct.pack("<HHI", tag, kind, len(value) // SIZES[kind]) + inline
    return entries + bytes(4) + values


def _rational(value: float) -> tuple[int, bytes]:
    fraction = Fraction(value).limit_denominator(10_000)
    return RATIONAL, struct.pack("<II", fraction.numerator, fraction.denominator)


def _density(density: tuple[float, float] | None) -> tuple[float, float] | None:
    """Without what rounding to whole pixels a metre has done; None for what is no density."""
    if density is None or not all(0.1 <= side <= 60_000 for side in density):
        return None
    x, y = (round(side) if abs(side - round(side)) < 0.013 else side for side in density)
    return float(x), float(y)


def _exif(blocks: Blocks, location: bool) -> tuple[dict[int, tuple[int, bytes]], dict[int, Tags]]:
    """The tags that are kept and the directories; notes the density unless the file says one."""
    block, room = blocks.exif, MAX_RESULT
    order = "<" if block.startswith(b"II") else ">"

    def copy(directory: Directory, names: Iterable[int]) -> dict[int, tuple[int, bytes]]:
        nonlocal room
        tags = {}
        for tag in names:
            with blocks.guard("exif"):
                kind, value = directory.raw(tag, room)
                # EXIF 3.0's own type, in which only few readers know a text.
                kind = ASCII if kind == UTF_8 else kind
                if value and MAIN_TAGS.get(tag, kind) == kind:
                    tags[tag] = kind, _little(order, tag, kind, value)
                    room -= len(value)
        return tags

    directory, directories = first_directory(block), dict[int, Tags]()
    tags = copy(directory, MAIN_TAGS)
    x, y = (tags.pop(tag, None) for tag in (X_DENSITY, Y_DENSITY))
    with blocks.guard("density"):
        unit = directory.value(DENSITY_UNIT, 2)
        if blocks.density is None and unit in INCHES and x and y:
            across, down = (struct.unpack("<II", value) for _, value in (x, y))
            inches = INCHES[unit]
            blocks.density = across[0] / across[1] * inches, down[0] / down[1] * inches
    for pointer, names in ((EXIF, EXIF_TAGS), (GPS, GPS_TAGS if location else ())):
        with blocks.guard("exif"):
            if names and (start := directory.value(pointer, 0)):
                directories[pointer] = copy(Directory(block, start), names)
    return tags, directories


def _little(order: str, tag: int, kind: int, value: bytes) -> bytes:
    """The value in little-endian order."""
    unit, head = UNITS.get(kind, 1), b""
    if tag == USER_COMMENT and value.startswith(b"UNICODE\0") and len(value) % 2 == 0:
        unit, head, value = 2, value[:8], value[8:]
    return head + np.frombuffer(value, f"{order}u{unit}").astype(f"<u{unit}").tobytes()


def _iptc(blocks: Blocks, location: bool) -> bytes:
    """The data sets that are kept; notes their texts, which XMP gets for formats without IPTC."""
    data, position, selection, texts = blocks.iptc, 0, b"", dict[str, list[str]]()
    drop = IPTC_DROPPED if location else IPTC_DROPPED | IPTC_LOCATION
    while data[position : position + 1] == b"\x1c":
        record, number, length = struct.unpack_from(">BBH", data, position + 1)
        whole = data[position : position + 5 + length]
        if len(whole) < 5 + length:
            raise ValueError(f"the data set {record}:{number} says it has {length} bytes")
        if (record == 2 and number not in drop) or (record, number) == IPTC_ENCODING:
            selection += whole
        if record == 2 and (name := IPTC_TEXTS.get(number)):
            texts.setdefault(name, []).append(_decode(whole[5:]))
        position += 5 + length
    if len(selection) > MAX_RESULT:
        raise ValueError(f"it has {len(selection)} bytes; at most {MAX_RESULT} are kept")
    blocks.texts = texts | blocks.texts
    return selection


def _decode(text: bytes) -> str:
    """Text that is UTF-8 as a rule, whatever its file says, and Latin-1 otherwise."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return text.decode("latin-1")
