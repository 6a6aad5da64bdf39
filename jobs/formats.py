"""Uploads by what they say of themselves: format by content, size, frames, completeness.

Nothing is decoded, except a JPEG without its end, at an eighth of its size. So a bomb costs
nothing, and a file cut off in transfer is found at once, in a moment and little memory, however it
is made. So PNG, JPEG, WebP and TIFF are read here: a file has to be walked to its end anyway, and
Pillow opens them neither lazily (WebP) nor in bounded time (50 MB of empty JPEG segments), and
refuses PNG files whose metadata is long.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec

from PIL import Image, features
from pydantic import JsonValue

from . import png, tiff
from .errors import ImageAnimated, ImageError, ImageTooLarge, PageNotFound, UnsupportedFormat
from .heif import read_avif, read_heic
from .image_file import (
    ADOBE_RGB,
    MAX_JPEG_SIDE,
    MAX_PARTS,
    Bytes,
    Header,
    Mode,
    ascii_of,
    too_many,
    truncated,
    unreadable,
    unsupported,
)
from .pillow import read_bmp, read_gif, read_jpeg2000

JPEG_MODES: dict[int, Mode] = {1: "L", 3: "RGB", 4: "CMYK"}
# In entropy-coded data an FF is followed by 00 (stuffing) or a restart marker; FF FF is filling.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# Start of frame: C0 to CF without DHT (C4), JPG (C8) and DAC (CC).
SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL = (0xC0, 0xC1)
ALONE = (0x01, 0xD8)
APP1, SOS, EOI, DRI = 0xE1, 0xDA, 0xD9, 0xDD
ALL_APP, COMMENT = range(0xE0, 0xF0), 0xFE

VP8X_ANIMATED, VP8X_ALPHA = 0x02, 0x10

BLOCK = 1 << 18
"""Bytes that are searched at once, so that other threads get their turn in between."""


def examine(data: Bytes, max_pixels: int, page: int | None = None) -> Header:
    """The header of a whole image file of at most `max_pixels`; of one with several pages that of
    the `page`, from 1, of an animation that of its first frame.

    Raises ImageError: UnsupportedFormat, also for pixels of a kind that is not read,
    ImageTruncated, ImageAnimated for several pages of which none was asked for, PageNotFound,
    ImageTooLarge, and itself for a broken file.
    """
    name, read = format_of(data[:32])
    try:
        header = tiff.read_tiff(data, page or 1) if name == "TIFF" else read(data)
    except (struct.error, IndexError) as error:
        # A field that should be there lies behind the last byte.
        raise truncated(name, "it ends inside a header") from error
    _check_page(header, page)
    width, height = header.upright
    pixels = max(width * height, header.coded_pixels)
    if width < 1 or height < 1:
        raise ImageError(
            f"The {name} file says it has {width} x {height} pixels; each side must be at least 1."
        )
    if pixels > max_pixels:
        raise ImageTooLarge(
            f"The image has {width} x {height} = {pixels} pixels; at most {max_pixels} are taken."
            if pixels == width * height
            else f"The image is cut out of one of {pixels} pixels; at most {max_pixels} are taken.",
            width=width,
            height=height,
            pixels=pixels,
            max_input_pixels=max_pixels,
        )
    if header.lacks_end and name == "JPEG" and not _has_every_pixel(data):
        raise truncated("JPEG", "it ends before its EOI marker")
    return header


def kind_of(head: bytes) -> str | None:
    """What a file that begins so is and what to do with it, where no image is read from it."""
    return next((f"{k}; {a}" for s, k, a in OTHERS if re.match(s, head, re.DOTALL)), None)


def _check_page(header: Header, page: int | None) -> None:
    name, frames = header.format, header.frames
    # Another frame than the first would cost all those before it.
    last = frames if name == "TIFF" else 1
    if page is None and frames > 1:
        raise ImageAnimated(
            f"The TIFF file has {last} pages; page, of 1 to {last}, says which one is meant."
            if name == "TIFF"
            else f"The {name} file has more than one frame; page=1 takes the first."
        )
    if page is not None and page > last:
        detail = f"must be at most {last} for this {name} file; got {page}"
        fault: dict[str, JsonValue] = {"field": "page", "detail": detail, "maximum": last}
        raise PageNotFound(f"page {detail}.", errors=[fault])


def format_of(head: bytes) -> tuple[str, Reader]:
    """The format that these first 32 bytes (or fewer) belong to; raises UnsupportedFormat."""
    for name, (signature, read) in FORMATS.items():
        if re.match(signature, head, re.DOTALL):
            return name, read
    if (kind := kind_of(head)) is not None:
        raise UnsupportedFormat(f"The file is {kind}.", allowed=list(FORMATS))
    names = ", ".join(FORMATS)
    raise UnsupportedFormat(
        f"The file is none of {names}; its content decides, not its name.", allowed=list(FORMATS)
    )


def _read_jpeg(data: Bytes) -> Header:
    """Segments of the first image (ITU-T T.81, annex B); a phone's gain map or preview behind it
    (MPO) does not count."""
    position, size, exif, has_scan = 2, (0, 0), b"", False
    mode: Mode = "RGB"
    for _ in range(MAX_PARTS):
        marker, position = _next_marker(data, position)
        lacks_end = position > len(data)
        if marker in ALONE:
            continue
        if marker == EOI:
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
            header = Header("JPEG", *size, orientation=orientation, mode=mode, colours=colours)
            return replace(header, lacks_end=lacks_end)
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
        # Of several blocks the first is the camera's.
        elif marker == APP1 and not exif and segment.startswith(tiff.EXIF_PREFIX):
            exif = segment
        has_scan = has_scan or marker == SOS
        position += length
    raise too_many("JPEG", "segments")


def _next_marker(data: Bytes, position: int) -> tuple[int, int]:
    """The next marker's code and the byte behind it; of a file that ends without one EOI, as if it
    followed."""
    for start in range(position, len(data), BLOCK):
        # One byte more, for a marker of which the FF is the last one here.
        if marker := JPEG_MARKER.search(data, start, start + BLOCK + 1):
            return data[marker.end() - 1], marker.end()
    return EOI, len(data) + 2


def _has_every_pixel(data: Bytes) -> bool:
    """Whether the one scan of a JPEG without its end seems whole: no block's brightness depends on
    what is put behind it. False for several scans and for restart intervals, of which any could be
    missing.

    An eighth of the pixels is made, in a fraction of a second; what is missing of the last block's
    details libjpeg's warnings tell the worker.
    """
    tables, position, components = b"", 2, 0
    while True:
        marker, position = _next_marker(data, position)
        if marker in ALONE:
            continue
        if marker == DRI:
            return False
        length = struct.unpack_from(">H", data, position)[0]
        segment = data[position : position + length]
        if marker in SOF:
            components = segment[7] if marker in SEQUENTIAL else 0
        if marker not in ALL_APP and marker != COMMENT:
            tables += bytes((0xFF, marker)) + segment
        position += length
        if marker == SOS:
            break
    if segment[2] != components or _next_marker(data, position)[1] <= len(data):
        return False
    images = []
    for filling in (b"", bytes(range(3, 255, 2))):
        file = io.BytesIO(b"\xff\xd8" + tables + data[position:] + filling + b"\xff\xd9")
        try:
            with Image.open(file, formats=("JPEG",)) as image:
                image.draft(None, (1, 1))
                images.append(image.tobytes())
        # It raises errors of many kinds for codes that make no sense.
        except (OSError, ValueError, SyntaxError):
            return False
    return images[0] == images[1]


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
            raise truncated("WEBP", f"it ends inside the {ascii_of(kind)} chunk at byte {position}")
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
        raise too_many("WEBP", "chunks")
    if not pixels and frames == 1:
        raise truncated("WEBP", "it has no VP8 or VP8L chunk, so no pixels")
    return Header("WEBP", *size, frames, tiff.orientation_in(exif), "RGBA" if alpha else "RGB")


Reader = Callable[[Bytes], Header]
FORMATS: dict[str, tuple[bytes, Reader]] = {
    "PNG": (png.SIGNATURE, png.read_png),
    "JPEG": (rb"\xff\xd8\xff", _read_jpeg),
    "WEBP": (rb"RIFF.{4}WEBP", _read_webp),
    # Canon's raw files begin as TIFF does.
    "TIFF": (rb"(?!.{8}CR)(II[*+]\0|MM\0[*+])", tiff.read_tiff),
    # The major brand, or one of as many compatible ones as fit.
    "AVIF": (rb".{4}ftyp(.{8}(.{4})*)?avi[fs]", read_avif),
    "HEIC": (rb".{4}ftyp(.{8}(.{4})*)?hei[cxms]", read_heic),
    "GIF": (rb"GIF8[79]a", read_gif),
    "BMP": (rb"BM.{4}\0{4}", read_bmp),
    "JPEG2000": (rb"\xff\x4f\xff\x51|.{4}jP  ", read_jpeg2000),
}
"""What a file begins with, as a pattern, and what reads its header."""
_DEVELOP = "develop it to TIFF or JPEG first"
_SAVE = "save it as PNG, TIFF or JPEG first"
OTHERS = (
    (rb"II\*\0.{4}CR|.{4}ftypcrx|II[RU][OS\0]|MMOR|FUJIFILMCCD", "a camera's raw file", _DEVELOP),
    (rb".{4}ftyp(.{8}(.{4})*)?(hei[cxms]|hev[cx])", "a HEIC image", _SAVE),
    (rb".{4}ftyp(isom|iso\d|mp4\d|avc1|qt  |M4V )", "a video", "send one of its frames"),
    (rb"\xff\x0a|.{4}JXL ", "a JPEG XL image", _SAVE),
    (rb"\xff\x4f\xff\x51|.{4}jP  ", "a JPEG 2000 image", _SAVE),
    (rb"8BPS", "a Photoshop document", _SAVE),
    (rb"%PDF", "a PDF document", "save its pages as images first"),
    (rb"\s*<(svg|\?xml)", "a drawing or a web page, not pixels", "send an image"),
)
"""What files begin with that people send too: what they are, and what to do."""
# Pillow can be built without some, and not every machine has a package for HEIC.
for _format, _is_read in {
    "AVIF": features.check("avif"),
    "HEIC": find_spec("pi_heif") is not None,
    "JPEG2000": features.check("jpg_2000"),
}.items():
    if not _is_read:
        del FORMATS[_format]
MEDIA_TYPES = {"JPEG2000": "image/jp2"}
"""Where they are not called as the format."""
