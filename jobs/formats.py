"""Uploads by what they say of themselves: format by content, size, frames, completeness.

Nothing is decoded, except a JPEG without its end, at an eighth of its size. So a bomb costs
nothing, and a file cut off in transfer is found at once, in a moment and little memory, however it
is made. So PNG, JPEG, WebP and TIFF are read here: a file has to be walked to its end anyway, and
Pillow opens them neither lazily (WebP) nor in bounded time (50 MB of empty JPEG segments), and
refuses PNG files whose metadata is long.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from importlib.util import find_spec

from PIL import features
from pydantic import JsonValue

from . import png, tiff
from .errors import ImageAnimated, ImageError, ImageTooLarge, PageNotFound, UnsupportedFormat
from .heif import read_avif, read_heic
from .image_file import MAX_PARTS, Bytes, Header, ascii_of, too_many, truncated, unreadable
from .jpeg import has_every_pixel, read_jpeg
from .pillow import read_bmp, read_gif, read_jpeg2000

VP8X_ANIMATED, VP8X_ALPHA = 0x02, 0x10


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
    if header.lacks_end and name == "JPEG" and not has_every_pixel(data):
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
    "JPEG": (rb"\xff\xd8\xff", read_jpeg),
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
