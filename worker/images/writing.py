"""Results as files, written while their rows come in.

PNG and TIFF are written here, strip by strip, so that memory does not depend on the image's height:
libvips' savers write the same as fast, but from an image that is whole. JPEG and WebP go through
libvips, AVIF through Pillow, which is ten times as fast at it: they need the image whole, hold it
once, at 8 bits, and their formats bound its sides.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import IO

import numpy as np
import pyvips
import torch
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image
from pyvips.enums import ForeignKeep
from torch import Tensor
from torch.nn.functional import grid_sample

from jobs.image_file import check_side
from models.parameters import Alpha, OutputFormat

from .blocks import IPTC, XMP, XMP_KEYWORD
from .decoding import DecodedImage, Depth
from .metadata import BYTE, LONG, RATIONAL, SHORT, UNDEFINED, Metadata, Tags, with_directories
from .vips import Levels, attach, image_of, srgb_profile

STRIP = 64
"""Rows that are handled at once: enough for speed, and some megabytes at most."""

QUALITY = 95
VP8X_EXIF = 0x08
AVIF_SPEED = 8
"""Of 10: twice as fast would be a tenth larger."""

# Brightness of red, green and blue in sRGB's primaries (Rec. ITU-R BT.709), applied to the encoded
# values: weights that add up to 1 keep every true grey as it is, on the curve of its levels.
LUMA = (0.2126, 0.7152, 0.0722)

# Of ISA-L, whose files are some percent larger than zlib's for a fifth of the time
# (`benchmarks.io`).
LEVEL = 2

PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
"""By channels: grey, grey and alpha, RGB, RGB and alpha (W3C PNG, third edition, 11.2.1)."""
PNG_AVERAGE = 3
"""The filter of every row (9.2): of photographs the one with the smallest files."""

TIFF_TYPES = {"H": SHORT, "I": LONG, "II": RATIONAL, "B": UNDEFINED}
"""By format of `struct`."""
BLACK_IS_ZERO, RGB = 1, 2
DEFLATE, HORIZONTAL, CONTIGUOUS, NO_UNIT, STRAIGHT_ALPHA = 8, 2, 1, 1, 2


def rows_of(
    image: DecodedImage,
    rgb_rows: Iterable[Tensor],
    height: int,
    width: int,
    alpha: Alpha = "soft",
) -> Iterator[Tensor]:
    """What a result's file holds, from the pipeline's rows.

    Args:
        image: the input; decides whether the result is grey and brings the opacity.
        rgb_rows: (3, n, width) float32 in [0, 1] from top to bottom, in strips of any height.
        height, width: the result's size in pixels.
        alpha: "binary" makes the opacity 0 or 1, with its edge at the half.

    Yields:
        (image.channels, n, width): colours or their brightness, then the bicubic opacity.
    """
    start = 0
    for strip in rgb_rows:
        # The pipeline may hand over everything at once; the opacity is resized piece by piece.
        for rgb in torch.split(strip, STRIP, dim=1):
            colours = rgb
            if image.grey:
                colours = torch.einsum("c,chw->hw", rgb.new_tensor(LUMA), rgb)[None]
            stop = start + rgb.shape[1]
            if image.alpha is not None:
                opacity = _resize(image.alpha, start, stop, height, width)
                opacity = (opacity >= 0.5).to(opacity.dtype) if alpha == "binary" else opacity
                colours = torch.cat([colours, opacity])
            yield colours
            start = stop


def _resize(channel: Tensor, start: int, stop: int, height: int, width: int) -> Tensor:
    """Rows `start` to `stop` of a (1, 1, H, W) channel resized to height x width, in [0, 1].

    As of bicubic interpolation of all of it, but for the last bit of a float32.
    """
    rows = channel.shape[-2]
    # The old rows between which the new ones lie, and two more for the kernel.
    first = max(start * rows // height - 3, 0)
    part = channel[:, :, first : stop * rows // height + 4].double()
    y = (torch.arange(start, stop, dtype=part.dtype) + 0.5) * rows / height - first
    x = (torch.arange(width, dtype=part.dtype) + 0.5) / width
    # From -1 to 1 over the sides of `part`, beyond which its border goes on.
    places = torch.meshgrid(2 * x - 1, 2 * y / part.shape[-2] - 1, indexing="xy")
    grid = torch.stack(places, dim=-1)[None]
    resized = grid_sample(part, grid, "bicubic", padding_mode="border", align_corners=False)
    return resized[0].to(channel.dtype).clamp_(0, 1)


def write(
    path: Path,
    rows: Iterable[Tensor],
    *,
    width: int,
    height: int,
    channels: int,
    format: OutputFormat,
    depth: Depth,
    quality: int | None = None,
    metadata: Metadata | None = None,
) -> None:
    """Write an image as its rows come, values rounded to the nearest level and clamped.

    PNG and TIFF are lossless; WebP, JPEG and AVIF are written at `quality` (95) of 100, the latter
    two with full-resolution colour, and JPEG, having no transparency, over white. They are of 8
    bits, whatever `depth` says.

    Args:
        path: the file, which is overwritten; half of it remains when something is raised.
        rows: (channels, n, width) float32 from top to bottom, in strips of any height; grey, grey
            and alpha, RGB, or RGB and alpha.
        width, height: in pixels; what `rows` amount to.
        metadata: what else the file says; without it nothing.

    Raises:
        OutputTooLarge: `format` cannot hold that size.
        ValueError: `rows` amount to another size.
        OSError: the file cannot be written.
    """
    check_side(width, height, format)
    quality = quality or QUALITY
    if format == "jpeg" and channels in (2, 4):
        rows, channels = (_over_white(strip) for strip in rows), channels - 1
    shape = height, width, channels
    if format in ("png", "tiff"):
        strips = _levels(rows, shape, 2**depth - 1)
        with path.open("wb") as file:
            (_write_png if format == "png" else _write_tiff)(file, strips, shape, metadata)
        return
    levels = np.empty(shape, np.uint8)
    for number, strip in enumerate(_levels(rows, shape, 255)):
        levels[number * STRIP : number * STRIP + len(strip)] = strip
    if format == "avif":
        _write_avif(path, levels, quality, metadata)
        return
    # Grey stays without a profile: sRGB's would not fit it.
    space, profile = ("srgb", srgb_profile()) if channels >= 3 else ("b-w", None)
    image, keep = image_of(levels, space, profile), ForeignKeep.ICC
    if metadata is not None:
        attach(image, "xmp-data", metadata.xmp)
        keep |= ForeignKeep.XMP
    try:
        if format == "webp":
            image.webpsave(path, Q=quality, alpha_q=100, effort=4, keep=keep)
            if metadata is not None:
                _add_exif(path, metadata.exif)
        else:
            if metadata is not None:
                image, keep = _with_more(image, metadata), ForeignKeep.ALL
            image.jpegsave(path, Q=quality, subsample_mode="off", keep=keep)
    except pyvips.Error as error:
        raise OSError(f"{path} cannot be written: {error.detail.strip()}") from error


def _with_more(image: pyvips.Image, metadata: Metadata) -> pyvips.Image:
    """With what libvips writes into a JPEG."""
    attach(image, "exif-data", metadata.exif)
    if metadata.iptc:
        attach(image, "iptc-data", metadata.photoshop)
    # In pixels a millimetre, which it writes over those of the block.
    x, y = (side / 25.4 for side in metadata.density or (72, 72))
    return image.copy(xres=x, yres=y)


def _add_exif(path: Path, exif: bytes) -> None:
    """Adds a chunk to a WebP with XMP, so with a VP8X chunk (RFC 9649, 2.7). libvips would begin it
    with a prefix that belongs into JPEG."""
    with path.open("r+b") as file:
        file.seek(20)
        flags = file.read(1)[0] | VP8X_EXIF
        file.seek(20)
        file.write(bytes((flags,)))
        file.seek(0, 2)
        file.write(struct.pack("<4sI", b"EXIF", len(exif)) + exif + bytes(len(exif) % 2))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def _write_avif(path: Path, levels: Levels, quality: int, metadata: Metadata | None) -> None:
    channels = levels.shape[2]
    pixels = levels[:, :, 0] if channels == 1 else levels
    image = Image.fromarray(pixels).convert("RGB" if channels % 2 else "RGBA")
    subsampling = "4:0:0" if channels < 3 else "4:4:4"
    blocks = {} if metadata is None else {"exif": metadata.exif, "xmp": metadata.xmp}
    options = {"quality": quality, "speed": AVIF_SPEED, "subsampling": subsampling, **blocks}
    with path.open("wb") as file:
        image.save(file, "AVIF", **options)


def _over_white(strip: Tensor) -> Tensor:
    colours, alpha = strip[:-1], strip[-1:]
    return colours * alpha + (1 - alpha)


def _levels(rows: Iterable[Tensor], shape: tuple[int, int, int], top: int) -> Iterator[Levels]:
    """Quantised strips, (STRIP, width, channels) and a last one that may be lower."""
    height, width, channels = shape
    levels: Levels = np.empty((0, width, channels), np.uint8 if top == 255 else np.uint16)
    total = 0
    for part in chain.from_iterable(torch.split(tensor, STRIP, dim=1) for tensor in rows):
        if part.shape[0] != channels or part.shape[2] != width:
            raise ValueError(f"rows must be {(channels, 'n', width)}; got {tuple(part.shape)}")
        total += part.shape[1]
        if total > height:
            break
        # Round half up: floor(x + 0.5), never half to even.
        rounded = (part.detach().float().clamp(0, 1) * top + 0.5).floor_().to(torch.int32)
        more = rounded.permute(1, 2, 0).cpu().numpy().astype(levels.dtype)
        levels = np.concatenate([levels, more])
        if len(levels) >= STRIP:
            yield levels[:STRIP]
            levels = levels[STRIP:]
    if total != height:
        raise ValueError(f"{height} rows were announced and {total} came")
    if len(levels):
        yield levels


def _write_png(
    file: IO[bytes],
    strips: Iterable[Levels],
    shape: tuple[int, int, int],
    metadata: Metadata | None,
) -> None:
    """(height, width, channels); the file says that it is sRGB, grey ones by the same curve
    (11.3.2.5)."""
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
            for kind, body in _png_metadata(metadata) if metadata else ():
                _chunk(file, kind, body)
        # Each byte less the mean of the one a pixel to the left and the one above.
        pixel = channels * strip.itemsize
        means = np.vstack([above, rows[:-1]]).astype(np.uint16)
        means[:, pixel:] += rows[:, :-pixel]
        lines = np.full((rows.shape[0], rows.shape[1] + 1), PNG_AVERAGE, np.uint8)
        means >>= 1
        np.subtract(rows, means.astype(np.uint8), out=lines[:, 1:])
        _chunk(file, b"IDAT", packer.compress(lines.tobytes()))
        above = rows[-1]
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _png_metadata(metadata: Metadata) -> Iterator[tuple[bytes, bytes]]:
    """Chunks (11.3.3 and 11.3.4): before the pixels, where every reader finds them."""
    if metadata.density is not None:
        x, y = (round(side / 0.0254) for side in metadata.density)
        yield b"pHYs", struct.pack(">IIB", x, y, 1)
    yield b"eXIf", metadata.exif
    # Neither packed nor in a language.
    yield b"iTXt", XMP_KEYWORD + bytes(5) + metadata.xmp


def _chunk(file: IO[bytes], kind: bytes, body: bytes) -> None:
    if body or kind == b"IEND":
        file.write(struct.pack(">I4s", len(body), kind))
        file.write(body)
        file.write(struct.pack(">I", isal_zlib.crc32(body, isal_zlib.crc32(kind))))


def _write_tiff(
    file: IO[bytes],
    strips: Iterable[Levels],
    shape: tuple[int, int, int],
    metadata: Metadata | None,
) -> None:
    """(height, width, channels), by TIFF 6.0 (the predictor: section 14; deflate: Adobe's technical
    notes). RGB files carry a small sRGB profile, which would not fit grey ones. The directory lies
    behind the pixels."""
    height, width, channels = shape
    offsets, counts, depth = [], [], 0
    file.write(struct.pack("<2sHI", b"II", 42, 0))
    for strip in strips:
        depth = strip.itemsize * 8
        # Each value less the one to its left, little-endian.
        differences = strip.astype(strip.dtype.newbyteorder("<"))
        differences[:, 1:] -= strip[:, :-1]
        offsets.append(file.tell())
        counts.append(file.write(isal_zlib.compress(differences.tobytes(), LEVEL)))
    tags: dict[int, tuple[str, list[int] | bytes]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [depth] * channels),
        259: ("H", [DEFLATE]),
        262: ("H", [BLACK_IS_ZERO if channels < 3 else RGB]),
        273: ("I", offsets),
        277: ("H", [channels]),
        278: ("I", [min(STRIP, height)]),
        279: ("I", counts),
        # A resolution is obligatory; this one says nothing.
        282: ("II", [1, 1]),
        283: ("II", [1, 1]),
        284: ("H", [CONTIGUOUS]),
        296: ("H", [NO_UNIT]),
        317: ("H", [HORIZONTAL]),
    }
    if channels in (2, 4):
        tags[338] = ("H", [STRAIGHT_ALPHA])
    if channels >= 3:
        tags[34675] = ("B", srgb_profile())
    entries = {
        tag: (TIFF_TYPES[kind], struct.pack(f"<{len(numbers)}{kind[0]}", *numbers))
        for tag, (kind, numbers) in tags.items()
    }
    directories: Mapping[int, Tags] = {}
    if metadata is not None:
        directories = metadata.directories
        entries |= metadata.tags
        entries[XMP] = BYTE, metadata.xmp
        if metadata.density is None:
            entries[296] = SHORT, struct.pack("<H", NO_UNIT)
        if metadata.iptc:
            # Readers expect LONG, whose bytes nothing turns round.
            entries[IPTC] = LONG, metadata.iptc + bytes(-len(metadata.iptc) % 4)
    # The directory, at the file's end; where it is stands at the start.
    start = file.tell() + file.tell() % 2
    file.seek(start)
    file.write(with_directories(entries, directories, start))
    file.seek(4)
    file.write(struct.pack("<I", start))
