"""Image files for tests, made here: whole ones, and the many ways in which one can be broken."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def picture(
    kind: str,
    width: int = 24,
    height: int = 16,
    *,
    mode: str = "RGB",
    orientation: int | None = None,
    **options: Any,
) -> bytes:
    """A gradient with some detail, so that no format compresses it to nothing."""
    image = Image.linear_gradient("L").resize((width, height)).convert(mode)
    noise = Image.effect_noise((width, height), 40).convert(mode)
    image = Image.blend(image, noise, 0.5)
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def animated(kind: str) -> bytes:
    """Two frames in one file: APNG, animated WebP, multi-page TIFF or an AVIF sequence."""
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A valid PNG of black one-bit pixels: some kilobytes that decode to a great many pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", pixels)
        + png_chunk(b"IEND", b"")
    )
