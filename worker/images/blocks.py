"""Metadata as files hold it: blocks of EXIF, XMP and IPTC, a density, and PNG's texts.

Read from the containers themselves: decoders leave out what lies behind the pixels of a PNG, take
the last EXIF block of a JPEG for the first, or unpack every tag.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from PIL import Image

from jobs.jpeg import APP0, APP1, APP13, SOS, segments
from jobs.tiff import EXIF_PREFIX, SIGNATURES, bare, first_directory

log = structlog.get_logger(__name__)

XMP_PREFIX, PHOTOSHOP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0", b"Photoshop 3.0\0"
IPTC_RESOURCE = 0x0404
XMP, IPTC, PHOTOSHOP = 700, 33723, 34377
"""Tags of TIFF (XMP specification, part 3, 1.1)."""
INCH = {1: 1.0, 2: 2.54}
"""Inches in JFIF's units."""

MAX_BLOCK = 1 << 20
"""Bytes that are read of one block: programs write some hundred KiB, and padding."""

PNG_CHUNKS = (b"pHYs", b"eXIf", b"tEXt", b"zTXt", b"iTXt")
KEYWORDS = {
    **{b"Title": "title", b"Author": "author", b"Description": "description"},
    **{b"Copyright": "copyright", b"Creation Time": "created"},
}
"""Of the texts in a PNG (W3C PNG, third edition, 11.3.3.1), by what they are called in `texts`."""
XMP_KEYWORD = b"XML:com.adobe.xmp"
PROFILES = {
    **{b"Raw profile type exif": b"", b"Raw profile type APP1": b""},
    **{b"Raw profile type iptc": b"", b"Raw profile type 8bim": b""},
    b"Raw profile type xmp": XMP_PREFIX,
}
"""How ImageMagick stores blocks, as text of hexadecimal digits; what a block then begins with."""


@dataclass
class Blocks:
    """What a file says beside its pixels: `exif` begins as a TIFF does, `iptc` has bare data sets;
    `density` is pixels per inch, across and down, of the pixels as stored. `faults` names what was
    broken or too long."""

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    density: tuple[float, float] | None = None
    texts: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def add(self, block: bytes) -> None:
        """Takes a block that says itself what it is, unless there is such a one."""
        if block.startswith(XMP_PREFIX):
            self.xmp = self.xmp or block.removeprefix(XMP_PREFIX)
        elif block.startswith((EXIF_PREFIX, *SIGNATURES)):
            self.exif = self.exif or bare(block)
        elif block.startswith((PHOTOSHOP_PREFIX, b"8BIM")):
            self.iptc = self.iptc or _iptc_of(block.removeprefix(PHOTOSHOP_PREFIX))
        elif block.startswith(b"\x1c"):
            self.iptc = self.iptc or block

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """Whatever goes wrong in it costs no more than what it is about."""
        try:
            yield
        # Decoders raise errors of many kinds, and no broken block is worth a job.
        except Exception as error:
            if name not in self.faults:
                self.faults.append(name)
                reason = f"{type(error).__name__}: {error}"
                log.warning("metadata dropped", what=name, reason=reason)


def read(data: bytes, format: str) -> Blocks:
    """The blocks of a whole file of that format (`jobs.formats.FORMATS`), of several the first."""
    blocks = Blocks()
    if format in READERS:
        with blocks.guard("blocks"):
            READERS[format](data, blocks)
    return blocks


def _piece(data: bytes, start: int, length: int) -> bytes:
    if length > MAX_BLOCK:
        raise ValueError(f"it has {length} bytes; at most {MAX_BLOCK} are read")
    return data[start : start + length]


def _jpeg(data: bytes, blocks: Blocks) -> None:
    photoshop = b""
    for marker, start, stop in segments(data):
        if marker == SOS:
            break
        part = data[start + 2 : stop]
        if marker == APP0 and part.startswith(b"JFIF\0"):
            with blocks.guard("density"):
                unit, x, y = struct.unpack_from(">BHH", part, 7)
                blocks.density = (x * INCH[unit], y * INCH[unit]) if unit in INCH else None
        elif marker == APP1:
            blocks.add(part)
        elif marker == APP13 and part.startswith(PHOTOSHOP_PREFIX) and len(photoshop) < MAX_BLOCK:
            # A long block goes on in further segments.
            photoshop += part.removeprefix(PHOTOSHOP_PREFIX)
    with blocks.guard("iptc"):
        blocks.add(photoshop)


def _png(data: bytes, blocks: Blocks) -> None:
    position, once = 8, {XMP_KEYWORD, *PROFILES, *KEYWORDS}
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind in PNG_CHUNKS:
            with blocks.guard(kind.decode()):
                _png_chunk(kind, _piece(data, position + 8, length), blocks, once)
        position += 12 + length


def _png_chunk(kind: bytes, body: bytes, blocks: Blocks, once: set[bytes]) -> None:
    """Takes one in; a text only if its keyword is in `once`, so that few are unpacked."""
    keyword, _, text = body.partition(b"\0")
    if kind == b"eXIf":
        blocks.exif = body
    elif kind == b"pHYs":
        x, y, unit = struct.unpack(">IIB", body)
        blocks.density = (x * 0.0254, y * 0.0254) if unit == 1 else None
    elif keyword in once:
        once.remove(keyword)
        text = _text(kind, text)
        if keyword in KEYWORDS:
            encoding = "utf-8" if kind == b"iTXt" else "latin-1"
            blocks.texts[KEYWORDS[keyword]] = [text.decode(encoding, "replace")]
        elif keyword in PROFILES:
            # An empty line, the name, the length, and lines of digits.
            digits = text.split(b"\n", 3)[3].decode("ascii")
            blocks.add(PROFILES[keyword] + bytes.fromhex(digits))
        else:
            blocks.add(XMP_PREFIX + text)


def _text(kind: bytes, body: bytes) -> bytes:
    """What follows the keyword of a text chunk, unpacked."""
    is_packed = kind == b"zTXt"
    if kind == b"iTXt":
        is_packed, body = bool(body[0]), body[2:].split(b"\0", 2)[2]
    elif is_packed:
        body = body[1:]
    if not is_packed:
        return body
    unpacker = zlib.decompressobj()
    text = unpacker.decompress(body, MAX_BLOCK)
    if not unpacker.eof:
        raise ValueError(f"a text is cut off or has more than {MAX_BLOCK} bytes")
    return text


def _webp(data: bytes, blocks: Blocks) -> None:
    position, prefixes = 12, {b"EXIF": b"", b"XMP ": XMP_PREFIX}
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind in prefixes:
            with blocks.guard(kind.decode().strip()):
                blocks.add(prefixes[kind] + _piece(data, position + 8, length))
        position += 8 + length + (length & 1)


def _tiff(data: bytes, blocks: Blocks) -> None:
    blocks.exif = data
    tags = first_directory(data)
    with blocks.guard("xmp"):
        blocks.xmp = tags.raw(XMP, MAX_BLOCK)[1]
    for tag in (IPTC, PHOTOSHOP):
        with blocks.guard("iptc"):
            blocks.add(tags.raw(tag, MAX_BLOCK)[1])


def _avif(data: bytes, blocks: Blocks) -> None:
    from PIL import _avif

    *_, exif, _, xmp = _avif.AvifDecoder(data, "auto", 1).get_info()
    blocks.add(exif or b"")
    blocks.xmp = xmp or b""


def _heic(data: bytes, blocks: Blocks) -> None:
    import pi_heif

    file = pi_heif.open_heif(io.BytesIO(data))
    info = file[file.primary_index].info
    blocks.add(info.get("exif") or b"")
    blocks.xmp = info.get("xmp") or b""


def _pillow(data: bytes, blocks: Blocks) -> None:
    with Image.open(io.BytesIO(data), formats=("BMP", "JPEG2000")) as image:
        blocks.density = image.info.get("dpi")


def _iptc_of(resources: bytes) -> bytes:
    """The data sets among Photoshop's image resources."""
    position = 0
    while resources[position : position + 4] == b"8BIM":
        kind, name = struct.unpack_from(">HB", resources, position + 4)
        # A name of `name` letters, padded with its length to an even one.
        position += 7 + name + (name + 1) % 2
        (length,) = struct.unpack_from(">I", resources, position)
        if kind == IPTC_RESOURCE:
            return resources[position + 4 : position + 4 + length]
        position += 4 + length + length % 2
    return b""


READERS: dict[str, Callable[[bytes, Blocks], None]] = {
    **{"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "TIFF": _tiff, "AVIF": _avif, "HEIC": _heic},
    **{"BMP": _pillow, "JPEG2000": _pillow},
}
