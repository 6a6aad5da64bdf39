"""Uploads by what they say of themselves: format by content, size, frames, completeness.

Nothing is decoded, so a bomb costs nothing, and a file cut off in transfer is found at once, in a
moment and little memory, however it is made. So PNG, JPEG, WebP and TIFF are read here: a file has
to be walked to its end anyway, and Pillow opens them neither lazily (WebP) nor in bounded time
(50 MB of empty JPEG segments), and refuses PNG files whose metadata is long.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable

from PIL import features

from . import tiff
from .errors import ImageAnimated, ImageError, ImageTooLarge, UnsupportedFormat
from .image_file import MAX_PARTS, Bytes, Header, Mode, truncated, unreadable, unsupported

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_PALETTE = 3
PNG_MODES: dict[int, Mode] = {0: "L", 2: "RGB", PNG_PALETTE: "RGB", 4: "LA", 6: "RGBA"}
PNG_KEYED: dict[Mode, Mode] = {"L": "LA", "RGB": "RGBA"}
"""The mode once a tRNS chunk, a transparent colour or the palette's alpha, is applied."""

JPEG_MODES: dict[int, Mode] = {1: "L", 3: "RGB", 4: "CMYK"}
# In entropy-coded data an FF is followed by 00 (stuffing) or a restart marker; FF FF is filling.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Start of frame: C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
ALONE = (0x01, 0xD8)
APP1, SOS, EOI = 0xE1, 0xDA, 0xD9

VP8X_ANIMATED, VP8X_ALPHA = 0x02, 0x10

AVIF_MODES: dict[str, Mode] = {"L": "L", "LA": "LA", "RGB": "RGB", "RGBA": "RGBA"}
# In the third byte of an AV1 codec configuration (AV1 in ISOBMFF, 2.3).
AV1_HIGH_DEPTH, AV1_TWELVE_BITS = 0x40, 0x20

BLOCK = 1 << 18
"""Bytes that are searched at once, so that other threads get their turn in between."""


def examine(data: Bytes, max_pixels: int) -> Header:
    """The header of a whole image file of at most `max_pixels`, without decoding anything.

    Raises ImageError: UnsupportedFormat, also for pixels of a kind that is not read,
    ImageTruncated, ImageAnimated, ImageTooLarge, and itself for a broken file.
    """
    name, read = _format_of(data[:32])
    try:
        header = read(data)
    except (struct.error, IndexError) as error:
        # A field that should be there lies behind the last byte.
        raise truncated(name, "it ends inside a header") from error
    if header.frames != 1:
        raise ImageAnimated(f"The {name} file has more than one frame; a still image is needed.")
    width, height = header.upright
    pixels = width * height
    if width < 1 or height < 1:
        raise ImageError(
            f"The {name} file says it has {width} x {height} pixels; each side must be at least 1."
        )
    if pixels > max_pixels:
        raise ImageTooLarge(
            f"The image has {width} x {height} = {pixels} pixels; at most {max_pixels} are taken.",
            width=width,
            height=height,
            pixels=pixels,
            max_input_pixels=max_pixels,
        )
    return header


def _format_of(head: bytes) -> tuple[str, Reader]:
    """The format that these first 32 bytes (or fewer) belong to; raises UnsupportedFormat."""
    for name, (signature, read) in FORMATS.items():
        if re.match(signature, head, re.DOTALL):
            return name, read
    names = ", ".join(FORMATS)
    raise UnsupportedFormat(
        f"The file is none of {names}; its content decides, not its name.", allowed=list(FORMATS)
    )


def _read_png(data: Bytes) -> Header:
    """Chunks (W3C PNG, third edition, 5 and 11)."""
    position, size, frames, exif, pixels = len(PNG_SIGNATURE), (0, 0), 1, b"", False
    mode: Mode = "RGB"
    depth = 8
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", data, position)
        start, end = position + 8, position + 8 + length
        if end + 4 > len(data):
            raise truncated("PNG", f"it ends inside the {_ascii(kind)} chunk at byte {position}")
        if (kind == b"IHDR") != (position == len(PNG_SIGNATURE)):
            raise unreadable("PNG", "its first chunk is not IHDR, or it has several")
        # Bit 5 of the first letter is unset in the chunks a decoder needs.
        if not kind[0] & 0x20 and _crc(data, position + 4, end) != data[end : end + 4]:
            raise unreadable("PNG", f"the checksum of its {_ascii(kind)} chunk is wrong")
        if kind == b"IHDR":
            width, height, depth, colours = struct.unpack_from(">IIBB", data, start)
            if colours not in PNG_MODES:
                raise unreadable("PNG", f"its colour type is {colours}, which PNG does not have")
            size, mode = (width, height), PNG_MODES[colours]
            depth = 8 if colours == PNG_PALETTE else depth
        elif kind == b"tRNS":
            mode = PNG_KEYED.get(mode, mode)
        elif kind == b"acTL":
            frames = max(struct.unpack_from(">I", data, start)[0], 1)
        elif kind == b"eXIf":
            exif = data[start : min(end, start + tiff.MAX_EXIF)]
        elif kind == b"IDAT":
            pixels = True
        elif kind == b"IEND":
            if not pixels:
                raise unreadable("PNG", "it has no IDAT chunk, so no pixels")
            return Header("PNG", *size, frames, tiff.orientation_in(exif), mode, depth)
        position = end + 4
    raise _too_many("PNG", "chunks")


def _crc(data: Bytes, start: int, end: int) -> bytes:
    with memoryview(data) as whole, whole[start:end] as chunk:
        return zlib.crc32(chunk).to_bytes(4, "big")


def _read_jpeg(data: Bytes) -> Header:
    """Segments of the first image (ITU-T T.81, annex B); a phone's gain map or preview behind it
    (MPO) does not count."""
    position, size, exif, has_scan = 2, (0, 0), b"", False
    mode: Mode = "RGB"
    for _ in range(MAX_PARTS):
        marker, position = _next_marker(data, position)
        if marker in ALONE:
            continue
        if marker == EOI:
            if not has_scan or 0 in size:
                raise unreadable("JPEG", "it has no scan, so no pixels")
            return Header("JPEG", *size, orientation=tiff.orientation_in(exif), mode=mode)
        length = struct.unpack_from(">H", data, position)[0]
        segment = data[position + 2 : position + length]
        if length < 2:
            raise unreadable("JPEG", f"the segment at byte {position} has a length of {length}")
        if len(segment) < length - 2:
            raise truncated("JPEG", f"it ends inside the segment at byte {position}")
        if marker in SOF:
            precision, height, width, components = struct.unpack_from(">BHHB", segment)
            if precision != 8 or components not in JPEG_MODES:
                channels = f"{components} channels of {precision} bits"
                reason = f"it has {channels}; 1, 3 or 4 channels of 8 bits are read"
                raise unsupported("JPEG", reason)
            size, mode = (width, height), JPEG_MODES[components]
        elif marker == APP1 and segment.startswith(tiff.EXIF_PREFIX):
            exif = segment
        has_scan = has_scan or marker == SOS
        position += length
    raise _too_many("JPEG", "segments")


def _next_marker(data: Bytes, position: int) -> tuple[int, int]:
    """The next marker's code and the byte behind it."""
    for start in range(position, len(data), BLOCK):
        # One byte more, for a marker of which the FF is the last one here.
        if marker := JPEG_MARKER.search(data, start, start + BLOCK + 1):
            return data[marker.end() - 1], marker.end()
    raise truncated("JPEG", "it ends before its EOI marker")


def _read_webp(data: Bytes) -> Header:
    """RIFF chunks (RFC 9649, 2 and 3)."""
    end = struct.unpack_from("<I", data, 4)[0] + 8
    if end > len(data):
        raise truncated("WEBP", f"its header declares {end} bytes and it has {len(data)}")
    position, size, frames, exif, pixels, alpha = 12, (0, 0), 1, b"", False, False
    for _ in range(MAX_PARTS + 1):
        if position + 8 > end:
            break
        kind, length = struct.unpack_from("<4sI", data, position)
        start = position + 8
        if start + length > end:
            raise truncated("WEBP", f"it ends inside the {_ascii(kind)} chunk at byte {position}")
        sides = (0, 0)
        if kind == b"VP8X":
            width, height = data[start + 4 : start + 7], data[start + 7 : start + 10]
            size = (int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1)
            # The header tells that it is animated, not how many frames follow.
            frames, alpha = 1 + bool(data[start] & VP8X_ANIMATED), bool(data[start] & VP8X_ALPHA)
        elif kind == b"VP8 ":
            if data[start + 3 : start + 6] != b"\x9d\x01\x2a":
                raise unreadable("WEBP", "its VP8 chunk does not start with a key frame")
            width, height = struct.unpack_from("<HH", data, start + 6)
            pixels, sides = True, (width & 0x3FFF, height & 0x3FFF)
        elif kind == b"VP8L":
            if data[start] != 0x2F:
                raise unreadable("WEBP", "its VP8L chunk has the wrong signature")
            bits = struct.unpack_from("<I", data, start + 1)[0]
            pixels, sides = True, ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
            alpha = alpha or bool(bits >> 28 & 1)
        elif kind == b"EXIF":
            exif = data[start : start + min(length, tiff.MAX_EXIF)]
        size = size if all(size) else sides
        # Chunks are padded to an even length.
        position = start + length + (length & 1)
    else:
        raise _too_many("WEBP", "chunks")
    if not pixels and frames == 1:
        raise truncated("WEBP", "it has no VP8 or VP8L chunk, so no pixels")
    return Header("WEBP", *size, frames, tiff.orientation_in(exif), "RGBA" if alpha else "RGB")


def _read_avif(data: Bytes) -> Header:
    """Boxes (ISO/IEC 14496-12, 4.2), for their completeness; libavif reads the properties."""
    position, pixels = 0, False
    for _ in range(MAX_PARTS + 1):
        if position >= len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        pixels = pixels or kind == b"mdat"
        if length == 1:
            length = struct.unpack_from(">Q", data, position + 8)[0]
        elif length == 0:
            length = len(data) - position
        if length < 8:
            raise unreadable("AVIF", f"the box at byte {position} has a length of {length}")
        if position + length > len(data):
            raise truncated("AVIF", f"it ends inside the {_ascii(kind)} box at byte {position}")
        position += length
    else:
        raise _too_many("AVIF", "boxes")
    if not pixels:
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
    if mode not in AVIF_MODES:
        raise unreadable("AVIF", f"its mode is {mode}")
    orientation = orientation if 1 <= orientation <= 8 else 1
    # The first codec configuration is the image's.
    flags = re.search(rb"av1C..(.)", data, re.DOTALL)
    bits = flags[1][0] if flags else 0
    depth = 8 if not bits & AV1_HIGH_DEPTH else 12 if bits & AV1_TWELVE_BITS else 10
    return Header("AVIF", width, height, frames, orientation, AVIF_MODES[mode], depth)


Reader = Callable[[Bytes], Header]
FORMATS: dict[str, tuple[bytes, Reader]] = {
    "PNG": (PNG_SIGNATURE, _read_png),
    "JPEG": (rb"\xff\xd8\xff", _read_jpeg),
    "WEBP": (rb"RIFF.{4}WEBP", _read_webp),
    "TIFF": (rb"II[*+]\0|MM\0[*+]", tiff.read_tiff),
    # The major brand, or one of as many compatible ones as fit.
    "AVIF": (rb".{4}ftyp(.{8}(.{4})*)?avi[fs]", _read_avif),
}
"""What a file begins with, as a pattern, and what reads its header."""
# Pillow can be built without it.
if not features.check("avif"):
    del FORMATS["AVIF"]


def _too_many(name: str, what: str) -> ImageError:
    return unreadable(name, f"it has more than {MAX_PARTS} {what}, the most that are read")


def _ascii(kind: bytes) -> str:
    """A chunk's four letters, safe to print."""
    return kind.decode("ascii", "backslashreplace").strip()
