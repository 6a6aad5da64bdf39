"""Image files made by hand, byte by byte: the kinds that Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Levels = NDArray[np.unsignedinteger[Any]]

COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
# Where each pass of an interlaced PNG starts, and its steps (PNG 8.1): x, y, across, down.
ADAM7 = [
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
]


def file_of(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """What Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int = 12, height: int = 8, channels: int = 3) -> NDArray[np.uint8]:
    values = np.arange(width * height * channels) * 7 % 256
    return values.reshape(height, width, channels).astype(np.uint8)


def ramp16(channels: int = 3, width: int = 21, height: int = 13) -> NDArray[np.uint16]:
    """Levels of 16 bits whose low bytes matter: a step of 1 within every step of 256, and ends."""
    values = np.arange(width * height * channels) * 257 % 65536
    values[:4] = 0, 1, 65534, 65535
    return values.reshape(height, width, channels).astype(np.uint16)


def png_of(levels: Levels, *, bits: int, interlaced: bool = False) -> bytes:
    """A PNG of (H, W, C) levels of `bits` a channel; 1, 2 and 4 bits for grey only."""
    height, width, channels = levels.shape
    passes = ADAM7 if interlaced else [(0, 0, 1, 1)]
    rows = b""
    for x, y, across, down in passes:
        for row in levels[y::down, x::across] if x < width else ():
            rows += b"\0" + _packed(row, bits)
    header = (width, height, bits, COLOUR_TYPES[channels], 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", *header))
        + _chunk(b"IDAT", zlib.compress(rows))
        + _chunk(b"IEND", b"")
    )


def _packed(row: Levels, bits: int) -> bytes:
    if bits == 16:
        return row.astype(">u2").tobytes()
    if bits == 8:
        return row.astype(np.uint8).tobytes()
    each = (row.reshape(-1, 1) >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(each.astype(np.uint8)).tobytes()


def _chunk(kind: bytes, body: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + body))
    return struct.pack(">I", len(body)) + kind + body + check


def tiff_of(
    data: bytes,
    width: int,
    height: int,
    *,
    photometric: int,
    bits: Sequence[int],
    order: str = "<",
    planes: int = 1,
    tags: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> bytes:
    """An uncompressed TIFF of one strip, or of one a plane; further `tags` are SHORT."""
    size = len(data) // planes
    entries: dict[int, tuple[str, Sequence[int]]] = {
        256: ("I", (width,)),
        257: ("I", (height,)),
        258: ("H", bits),
        259: ("H", (1,)),
        262: ("H", (photometric,)),
        273: ("I", (0,) * planes),
        277: ("H", (len(bits),)),
        278: ("I", (height,)),
        279: ("I", (size,) * planes),
        284: ("H", (1 if planes == 1 else 2,)),
        **{tag: ("H", values) for tag, values in tags.items()},
    }
    behind = 8 + 2 + 12 * len(entries) + 4
    sizes = [struct.calcsize(f"={len(values)}{kind}") for kind, values in entries.values()]
    pixels = behind + sum(size for size in sizes if size > 4)
    entries[273] = ("I", [pixels + size * plane for plane in range(planes)])
    directory, values_behind = b"", b""
    for tag, (kind, values) in sorted(entries.items()):
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", behind + len(values_behind))
            values_behind += packed
        else:
            place = packed.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, 3 if kind == "H" else 4, len(values)) + place
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(entries))
    return start + directory + bytes(4) + values_behind + data


def grey_profile(gamma: float) -> bytes:
    """A greyscale ICC profile (ICC.1:2010) whose levels are light to the power of 1 / gamma."""
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    body, table = b"", struct.pack(">I", 2)
    for name, tag in ((b"wtpt", white), (b"kTRC", curve)):
        table += name + struct.pack(">II", 128 + 4 + 2 * 12 + len(body), len(tag))
        body += tag
    size = 128 + len(table) + len(body)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", b"GRAY", b"XYZ ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body
