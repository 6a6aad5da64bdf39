"""Results as files, written while their rows come in.

PNG and TIFF are written here, strip by strip, so that memory does not depend on the image's height:
libvips' savers write the same as fast, but from an image that is whole. JPEG and WebP go through
libvips: they need it whole, hold it once, at 8 bits, and their formats bound its sides.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pyvips
import torch
from isal import isal_zlib
from numpy.typing import NDArray
from pyvips.enums import ForeignKeep
from torch import Tensor

from jobs.image_file import check_side
from models.parameters import OutputFormat

from .image import STRIP, Depth
from .vips import Levels, image_of, srgb_profile

QUALITY = 95

# Of ISA-L, whose files are some percent larger than zlib's for a fifth of the time
# (`benchmarks.io`).
LEVEL = 2

PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""By channels: grey, grey and alpha, RGB, RGB and alpha (W3C PNG, third edition, 11.2.1)."""
PNG_AVERAGE = 3
"""The filter of every row (9.2): of photographs the one with the smallest files."""

SHORT, LONG, RATIONAL, BYTE_DATA = 3, 4, 5, 7
TIFF_TYPES = {SHORT: "H", LONG: "I", RATIONAL: "II", BYTE_DATA: "B"}
BLACK_IS_ZERO, RGB = 1, 2
DEFLATE, HORIZONTAL, CONTIGUOUS, NO_UNIT, STRAIGHT_ALPHA = 8, 2, 1, 1, 2


def write(
    path: Path,
    rows: Iterable[Tensor],
    *,
    width: int,
    height: int,
    channels: int,
    format: OutputFormat,
    depth: Depth,
) -> None:
    """Write an image as its rows come, values rounded to the nearest level and clamped.

    PNG and TIFF are lossless; WebP and JPEG are written at quality 95, JPEG with full-resolution
    colour and, having no transparency, over white. Both are of 8 bits, whatever `depth` says.

    Args:
        path: the file, which is overwritten; half of it remains when something is raised.
        rows: (channels, n, width) float32 from top to bottom, in strips of any height; grey, grey
            and alpha, RGB, or RGB and alpha.
        width, height: in pixels; what `rows` amount to.

    Raises:
        OutputTooLarge: `format` cannot hold that size.
        ValueError: `rows` amount to another size.
        OSError: the file cannot be written.
    """
    check_side(width, height, format)
    if format == "jpeg" and channels in (2, 4):
        rows, channels = (_over_white(strip) for strip in rows), channels - 1
    shape = height, width, channels
    if format in ("png", "tiff"):
        strips = _levels(rows, shape, 2**depth - 1)
        with path.open("wb") as file:
            (write_png if format == "png" else write_tiff)(file, strips, shape)
        return
    levels = np.empty(shape, np.uint8)
    for number, strip in enumerate(_levels(rows, shape, 255)):
        levels[number * STRIP : number * STRIP + len(strip)] = strip
    # Grey stays without a profile: sRGB's would not fit it.
    space, profile = ("srgb", srgb_profile()) if channels >= 3 else ("b-w", None)
    image = image_of(levels, space, profile)
    try:
        if format == "webp":
            image.webpsave(path, Q=QUALITY, alpha_q=100, effort=4, keep=ForeignKeep.ICC)
        else:
            image.jpegsave(path, Q=QUALITY, subsample_mode="off", keep=ForeignKeep.ICC)
    except pyvips.Error as error:
        raise OSError(f"{path} cannot be written: {error.detail.strip()}") from error


def _over_white(strip: Tensor) -> Tensor:
    colours, alpha = strip[:-1], strip[-1:]
    return colours * alpha + (1 - alpha)


def _levels(rows: Iterable[Tensor], shape: tuple[int, int, int], top: int) -> Iterator[Levels]:
    """Quantised strips, (STRIP, width, channels) and a last one that may be lower."""
    height, width, channels = shape
    strip: Levels = np.empty((STRIP, width, channels), np.uint8 if top == 255 else np.uint16)
    count = total = 0
    for tensor in rows:
        total += tensor.shape[1]
        if total > height:
            break
        if tensor.shape[0] != channels or tensor.shape[2] != width:
            raise ValueError(f"rows must be {(channels, 'n', width)}; got {tuple(tensor.shape)}")
        start = 0
        while start < tensor.shape[1]:
            part = tensor[:, start : start + STRIP - count]
            # Round half up: floor(x + 0.5), never half to even.
            levels = (part.detach().float().clamp(0, 1) * top + 0.5).floor_().to(torch.int32)
            stop = count + part.shape[1]
            strip[count:stop] = levels.permute(1, 2, 0).cpu().numpy()
            count, start = stop, start + part.shape[1]
            if count == STRIP:
                yield strip
                count = 0
    if total != height:
        raise ValueError(f"{height} rows were announced and {total} came")
    if count:
        yield strip[:count]


def write_png(file: IO[bytes], strips: Iterable[Levels], shape: tuple[int, int, int]) -> None:
    """Write an image of `shape` (height, width, channels), uint8 or uint16, from top to bottom.

    The file says that it is sRGB, grey ones by the same curve (11.3.2.5), and nothing else.
    """
    height, width, channels = shape
    packer = isal_zlib.compressobj(LEVEL)
    above: NDArray[np.uint8] | None = None
    for strip in strips:
        depth = strip.itemsize * 8
        rows = strip.astype(strip.dtype.newbyteorder(">"), copy=False)
        rows = rows.reshape(len(strip), -1).view(np.uint8)
        if above is None:
            above = np.zeros_like(rows[0])
            file.write(b"\x89PNG\r\n\x1a\n")
            header = (width, height, depth, PNG_COLOUR_TYPES[channels], 0, 0, 0)
            _chunk(file, b"IHDR", struct.pack(">IIBBBBB", *header))
            _chunk(file, b"sRGB", b"\0")
        # Each byte less the mean of the one a pixel to the left and the one above.
        pixel = channels * strip.itemsize
        means = np.vstack([above, rows[:-1]]).astype(np.uint16)
        means[:, pixel:] += rows[:, :-pixel]
        lines = np.full((rows.shape[0], rows.shape[1] + 1), PNG_AVERAGE, np.uint8)
        means >>= 1
        np.subtract(rows, means.astype(np.uint8), out=lines[:, 1:])
        _chunk(file, b"IDAT", packer.compress(lines.tobytes()))
        above = rows[-1].copy()
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: IO[bytes], kind: bytes, body: bytes) -> None:
    if body or kind == b"IEND":
        file.write(struct.pack(">I4s", len(body), kind))
        file.write(body)
        file.write(struct.pack(">I", isal_zlib.crc32(body, isal_zlib.crc32(kind))))


def write_tiff(file: IO[bytes], strips: Iterable[Levels], shape: tuple[int, int, int]) -> None:
    """Write an image of `shape` (height, width, channels), uint8 or uint16, from top to bottom
    (TIFF 6.0; the predictor: section 14; deflate: Adobe's technical notes).

    RGB files carry a small sRGB profile; grey ones none, as it would not fit them. `file` must be
    seekable; the directory lies behind the pixels.
    """
    height, width, channels = shape
    offsets, counts, depth = [], [], 0
    file.write(struct.pack("<2sHI", b"II", 42, 0))
    for strip in strips:
        depth = strip.itemsize * 8
        # Each value less the one to its left, little-endian.
        values = strip.astype(strip.dtype.newbyteorder("<"))
        values[:, 1:] -= strip[:, :-1]
        offsets.append(file.tell())
        counts.append(file.write(isal_zlib.compress(values.tobytes(), LEVEL)))
    tags: dict[int, tuple[int, list[int] | bytes]] = {
        256: (LONG, [width]),
        257: (LONG, [height]),
        258: (SHORT, [depth] * channels),
        259: (SHORT, [DEFLATE]),
        262: (SHORT, [BLACK_IS_ZERO if channels < 3 else RGB]),
        273: (LONG, offsets),
        277: (SHORT, [channels]),
        278: (LONG, [min(STRIP, height)]),
        279: (LONG, counts),
        # A resolution is obligatory; this one says nothing.
        282: (RATIONAL, [1, 1]),
        283: (RATIONAL, [1, 1]),
        284: (SHORT, [CONTIGUOUS]),
        296: (SHORT, [NO_UNIT]),
        317: (SHORT, [HORIZONTAL]),
    }
    if channels in (2, 4):
        tags[338] = (SHORT, [STRAIGHT_ALPHA])
    if channels >= 3:
        tags[34675] = (BYTE_DATA, srgb_profile())
    _directory(file, tags)


def _directory(file: IO[bytes], tags: dict[int, tuple[int, list[int] | bytes]]) -> None:
    """Write the tags at the file's end, and where they are at its start."""
    start = file.tell() + file.tell() % 2
    behind = start + 2 + 12 * len(tags) + 4
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"<{len(numbers)}{TIFF_TYPES[kind][0]}", *numbers)
        place = data.ljust(4, b"\0")
        if len(data) > 4:
            place = struct.pack("<I", behind + len(values))
            values += data + bytes(len(data) % 2)
        count = len(numbers) // len(TIFF_TYPES[kind])
        entries += struct.pack("<HHI", tag, kind, count) + place
    file.seek(start)
    file.write(struct.pack("<H", len(tags)) + entries + bytes(4) + values)
    file.seek(4)
    file.write(struct.pack("<I", start))
