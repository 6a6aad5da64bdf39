"""GIF, BMP and JPEG 2000 files: their structure read here, the rest of a header by Pillow.

Pillow alone would walk through any number of blocks and boxes, for minutes, and not notice that a
file was cut off in transfer.
"""

from __future__ import annotations

import io
import struct

from PIL import Image, UnidentifiedImageError

from .heif import boxes
from .image_file import MAX_PARTS, Bytes, Header, Mode, too_many, truncated, unreadable, unsupported

MODES: dict[str, Mode] = {
    **{"1": "L", "L": "L", "LA": "LA", "I;16": "L"},
    **{"P": "RGB", "RGB": "RGB", "YCbCr": "RGB", "RGBA": "RGBA", "PA": "RGBA"},
}
# `examine` judges sizes, by the settings.
Image.MAX_IMAGE_PIXELS = None

GIF_EXTENSION, GIF_IMAGE, GIF_END = 0x21, 0x2C, 0x3B
GIF_CONTROL = 0xF9
GIF_TABLE, GIF_TRANSPARENT = 0x80, 0x01
# A block has 255 bytes where a program fills it.
GIF_BLOCK = 128

JPEG2000_END = b"\xff\xd9"
# A file may have some bytes more behind its end.
TAIL = 64


def read_gif(data: Bytes) -> Header:
    """Blocks (GIF89a, 12 to 27)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position, frames, is_keyed = 13 + _table(flags), 0, False
    for _ in range(MAX_PARTS + len(data) // GIF_BLOCK):
        kind = data[position]
        if kind == GIF_END:
            if not frames:
                raise unreadable("GIF", "it has no image")
            return Header("GIF", width, height, frames, mode="RGBA" if is_keyed else "RGB")
        if kind == GIF_EXTENSION:
            if data[position + 1] == GIF_CONTROL and not frames:
                is_keyed = bool(data[position + 3] & GIF_TRANSPARENT)
            position += 2
        elif kind == GIF_IMAGE:
            frames += 1
            if frames == 1:
                left, top, *sides = struct.unpack_from("<4H", data, position + 1)
                right, bottom = left + sides[0], top + sides[1]
                # What a smaller image leaves of its screen is transparent; a larger one counts.
                is_keyed |= left + top > 0 or right < width or bottom < height
                width, height = max(width, right), max(height, bottom)
            # One byte more, the size of its codes.
            position += 11 + _table(data[position + 9])
        else:
            raise unreadable("GIF", f"the block at byte {position} is of no kind that GIF has")
        # Pieces of up to 255 bytes, the last of which is empty.
        for _ in range(MAX_PARTS + len(data) // GIF_BLOCK):
            size = data[position]
            position += 1 + size
            if not size:
                break
        else:
            raise too_many("GIF", "pieces")
        # All frames need not be counted.
        if frames > 1:
            return Header("GIF", width, height, frames, mode="RGBA" if is_keyed else "RGB")
    raise too_many("GIF", "blocks")


def _table(flags: int) -> int:
    """The bytes of a colour table."""
    return 3 << (1 + (flags & 7)) if flags & GIF_TABLE else 0


def read_bmp(data: Bytes) -> Header:
    """Of its head the size of the file counts here."""
    size = struct.unpack_from("<I", data, 2)[0]
    if len(data) < size:
        raise truncated("BMP", f"its head declares {size} bytes and it has {len(data)}")
    return _read("BMP", data)


def read_jpeg2000(data: Bytes) -> Header:
    """Boxes around a codestream, or that alone (ITU-T T.800, A.4.4 and I.4)."""
    start = 0
    for box in boxes(data, 0, len(data), "JPEG2000") if data[:1] == b"\0" else ():
        if box.kind == b"jp2c":
            start = box.start
        if box.kind == b"jp2h":
            # Pillow walks through them; there must not be too many.
            for _ in boxes(data, *box[1:], "JPEG2000"):
                pass
    if JPEG2000_END not in data[-TAIL:]:
        raise truncated("JPEG2000", "the end of its codestream is missing")
    header = _read("JPEG2000", data)
    components = struct.unpack_from(">H", data, start + 40)[0]
    # Bits less one, and whether signed (A.5.1).
    depth = 1 + max(size & 0x7F for size in data[start + 42 : start + 42 + 3 * components : 3])
    # Pillow would make 8 bits of them, and black of white.
    if depth > 8 and header.depth == 8:
        read = "of more than 8 bits only greyscale is read; save it as TIFF or PNG"
        raise unsupported("JPEG2000", f"it has channels of {depth} bits; {read}")
    return header


def _read(name: str, data: Bytes) -> Header:
    try:
        with Image.open(io.BytesIO(data), formats=(name,)) as image:
            mode, size = image.mode, image.size
    except UnidentifiedImageError as error:
        # Its sentence names an object in memory.
        raise unreadable(name, "its header cannot be read") from error
    # It raises errors of many kinds for a header that makes no sense.
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise unreadable(name, f"its header cannot be read ({error})") from error
    if mode not in MODES:
        raise unsupported(name, f"its mode is {mode}; greyscale, palette and RGB are read")
    return Header(name, *size, mode=MODES[mode], depth=16 if mode == "I;16" else 8)
