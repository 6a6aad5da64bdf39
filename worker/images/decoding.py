"""From an image file to a `DecodedImage`: upright, sRGB, free of metadata.

The header is read first (`jobs.formats.examine`), so the decoder only ever sees a whole file of an
allowed kind and size. It must then find what the header says, or the file is refused.

libjpeg warns of blemishes that cost no pixel as it does of lost ones, and tells only the first
warning of a file; so a file cannot just be read again with warnings allowed: the blemish would hide
damage behind it. It is taken out instead, and the rest is read as strictly as before.
"""

from __future__ import annotations

import io
import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pyvips
import structlog
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from jobs.errors import ImageTruncated, UnsupportedFormat
from jobs.formats import examine
from jobs.image_file import Header
from jobs.jpeg import APP0, DRI, segments

from .colours import from_ycbcr, full_range, unpremultiply
from .colours import to_srgb as colours_to_srgb
from .vips import (
    ICC_SPACES,
    LOADERS,
    PROFILE,
    Levels,
    jpeg_warnings,
    levels_of,
    reason_of,
    to_srgb,
)

Depth = Literal[8, 16]

log = structlog.get_logger(__name__)

# Rows of an input that are filled at once; even, so that cells of two rows stay whole.
FILL_STRIP = 256

OTHERS = frozenset(("GIF", "BMP", "JPEG2000", "HEIC"))
"""Formats that libvips does not read."""
COLOURS = {"L": 1, "RGB": 3, "CMYK": 4, "YCbCr": 3}

MIRRORED, QUARTERS = {2, 4, 5, 7}, (0, 0, 0, 2, 2, 1, 3, 3, 1)
"""EXIF orientation: those to be mirrored left and right; then quarter turns to the left of each."""

# libjpeg's messages about what may cost no pixel.
BLEMISH = re.compile(r"extraneous bytes before marker|unknown JFIF revision number")
STRAY_END = re.compile(r"extraneous bytes before marker 0xd9$")


@dataclass(frozen=True)
class DecodedImage:
    """An input as the pipeline takes it.

    `rgb` is (1, 3, H, W) float32 in [0, 1], sRGB, upright; three equal channels where the file is
    `grey`. `alpha` is the opacity, (1, 1, H, W) likewise, or None for a file without such a
    channel. `depth` is the bits a channel that the result deserves: 16 where the file had more
    than 8.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    grey: bool = False
    depth: Depth = 8
    header: Header = field(default_factory=lambda: Header("", 0, 0))
    """Of the file"""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.rgb.shape[-1], self.rgb.shape[-2]

    @property
    def channels(self) -> int:
        """Of the result: grey 1, grey and alpha 2, RGB 3, RGB and alpha 4."""
        return (1 if self.grey else 3) + (self.alpha is not None)


def decode(data: bytes, max_pixels: int, page: int | None = None) -> DecodedImage:
    """Read an image file of one of `jobs.formats.FORMATS`.

    Of the several images in a camera's JPEG the first is taken; of a TIFF's pages and an
    animation's frames that which `page`, from 1, says. Colours under fully transparent pixels are
    replaced by those around.

    Raises:
        ImageError: not an image, cut off, of several pages of which none is asked for, more than
            `max_pixels`, or of a kind that has no clear meaning as RGB.
    """
    header = examine(data, max_pixels, page)
    if header.lacks_end:
        log.warning("image read without the mark of its end", format=header.format)
        # libjpeg would warn as of pixels.
        data += b"\xff\xd9" if header.format == "JPEG" else b""
    read = _read_jpeg if header.format == "JPEG" else _read
    try:
        levels, profile = (_read_other if header.format in OTHERS else read)(data, header)
    except pyvips.Error as error:
        raise ImageTruncated(f"The file is cut off or broken: {reason_of(error)}.") from error
    return _image(levels, profile, header)


def _read(data: bytes, header: Header, *, strict: bool = False) -> tuple[Levels, bytes | None]:
    """All levels, and the profile. `strict` fails at warnings, too: of a TIFF these say that it has
    tags of its own, of a JPEG mostly that pixels are missing."""
    fail_on = "warning" if strict else "error"
    page = {"page": header.directory} if header.format == "TIFF" else {}
    # Some of a JPEG's warnings only lie in a buffer that all threads share.
    with jpeg_warnings() if strict else nullcontext(list[str]()) as warnings:
        image = LOADERS[header.format](data, access="sequential", fail_on=fail_on, **page)
        _check(image, header)
        levels = levels_of(image)
    for warning in warnings:
        if not STRAY_END.search(warning):
            raise ImageTruncated(f"The file is cut off or broken: {warning}.")
    profile = image.get(PROFILE) if PROFILE in image.get_fields() else None
    assert profile is None or isinstance(profile, bytes)
    return levels, profile


def _check(image: pyvips.Image, header: Header) -> None:
    # What the decoder is about to give, against what was promised.
    _check_size(header, image.width, image.height)
    if (
        image.format not in ("uchar", "ushort")
        or image.bands < COLOURS[header.mode.removesuffix("A")]
    ):
        raise UnsupportedFormat(
            f"{image.bands} channels of the kind {image.format} are not read; "
            "greyscale, RGB, palette and CMYK of 8 or 16 bits are."
        )


def _check_size(header: Header, width: int, height: int) -> None:
    size = header.upright if header.format == "AVIF" else (header.width, header.height)
    if (width, height) != size:
        raise ImageTruncated(
            f"The file is broken: its header says {size[0]} x {size[1]} pixels "
            f"and its data {width} x {height}."
        )


def _read_jpeg(data: bytes, header: Header) -> tuple[Levels, bytes | None]:
    try:
        return _read(data, header, strict=True)
    except pyvips.Error as error:
        reason = reason_of(error)
        if BLEMISH.search(reason) is None:
            raise
    data = without_blemishes(data)
    try:
        pixels = _read(data, header, strict=True)
    except pyvips.Error as error:
        reason = reason_of(error)
        # Bytes between the last scan and the end are the last thing there is, so they hide nothing;
        # but where a scan has intervals, they may be one whose marker was lost.
        if not STRAY_END.search(reason) or any(marker == DRI for marker, _, _ in segments(data)):
            raise
        pixels = _read(data, header)
    log.warning("jpeg read in spite of a blemish", reason=reason)
    return pixels


def without_blemishes(data: bytes) -> bytes:
    """A JPEG file without bytes between its segments, and with JFIF's revision 1 in place of
    others, which mean the same to a decoder. What follows a scan stays as it is."""
    clean, stop = bytearray(data[:2]), 2
    for marker, start, stop in segments(data):
        segment = bytearray(data[start:stop])
        if marker == APP0 and segment[2:7] == b"JFIF\0" and len(segment) > 7:
            segment[7] = 1
        clean += bytes((0xFF, marker)) + segment
    return bytes(clean + data[stop:])


def _read_other(data: bytes, header: Header) -> tuple[Levels, bytes | None]:
    """What libvips does not read: GIF, BMP and JPEG 2000 by Pillow, HEIC by libheif."""
    try:
        levels, profile = (_heic if header.format == "HEIC" else _pillow)(data, header)
    # The decoders raise errors of many kinds, and all mean that the file cannot be decoded.
    except Exception as error:
        raise ImageTruncated(f"The file is cut off or broken: {error}.") from error
    levels = levels.reshape(*levels.shape[:2], -1)
    _check_size(header, levels.shape[1], levels.shape[0])
    return levels, profile


def _pillow(data: bytes, header: Header) -> tuple[Levels, bytes | None]:
    with Image.open(io.BytesIO(data), formats=(header.format,)) as image:
        left, top, right, bottom = image.tile[0].extents or (0, 0, *image.size)
        image.load()
        levels = np.asarray(image if header.depth == 16 else image.convert(header.mode))
        if header.format == "GIF" and header.mode == "RGBA":
            # Pillow fills the screen around a smaller image with one of its colours.
            screen = np.zeros_like(levels)
            screen[top:bottom, left:right] = levels[top:bottom, left:right]
            levels = screen
        return levels, image.info.get("icc_profile")


def _heic(data: bytes, header: Header) -> tuple[Levels, bytes | None]:
    import pi_heif

    file = pi_heif.open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    image = file[file.primary_index]
    return np.array(image), image.info.get("icc_profile")


def _image(levels: Levels, profile: bytes | None, header: Header) -> DecodedImage:
    mode = header.mode.removesuffix("A")
    colours, bands = COLOURS[mode], levels.shape[2]
    if header.format in ("AVIF", "HEIC"):
        # AVIF's decoder gives three equal channels where there are no colours.
        colours = 3 if bands >= 3 else 1
        planes = levels[:, :, :colours], levels[:, :, colours:]
        narrow, depth = header.narrow_range, header.depth
        planes = full_range(planes[0], depth, narrow=narrow), full_range(planes[1], depth)
        levels = np.concatenate(planes, axis=2)
    elif mode == "YCbCr" and bands > colours:
        # Colours stored at half the size: libtiff has made RGB of them, and opacity beside it.
        mode = "RGB"
    alpha = None
    if header.mode.endswith("A") and bands > colours:
        first = colours + header.opacity
        if header.is_premultiplied:
            levels = unpremultiply(levels, first)
        alpha = _unit(levels[:, :, first : first + 1], header)
    rgb = _rgb(levels[:, :, :colours], mode, profile, header)
    if alpha is not None:
        fill_hidden(rgb, alpha)
    bits: Depth = 16 if levels.itemsize == 2 else 8
    return DecodedImage(rgb, alpha, mode == "L", bits, header)


def _rgb(levels: Levels, mode: str, profile: bytes | None, header: Header) -> Tensor:
    """The colours, (1, 3, H, W). A file without a profile is taken to be sRGB already."""
    # Of a PNG with both, the colours count (W3C PNG, third edition, 4.3).
    if header.format == "PNG" and header.colours is not None:
        profile = None
    if profile is not None and mode in ICC_SPACES:
        srgb = to_srgb(levels, mode, profile)
        if srgb is not None:
            levels, mode = srgb, "RGB"
    planes = _unit(levels, header)
    if mode == "CMYK":
        # Without a profile inks have no colours of their own: as browsers show them.
        return (1 - planes[:, :3]).mul_(1 - planes[:, 3:])
    if mode == "YCbCr":
        return from_ycbcr(planes)
    if header.colours is not None and profile is None:
        planes = colours_to_srgb(planes, header.colours)
    return planes if planes.shape[1] == 3 else planes.repeat(1, 3, 1, 1)


def _unit(levels: Levels, header: Header) -> Tensor:
    """Levels to upright (1, C, H, W) float32 in [0, 1]."""
    # AVIF's decoder has turned it already.
    turn = 1 if header.format == "AVIF" else header.orientation
    upright = np.rot90(levels[:, ::-1] if turn in MIRRORED else levels, QUARTERS[turn])
    planes = np.ascontiguousarray(np.moveaxis(upright, -1, 0), dtype=np.float32)
    return torch.from_numpy(planes)[None].div_(np.iinfo(levels.dtype).max)


def fill_hidden(rgb: Tensor, alpha: Tensor) -> None:
    """Gives the pixels of `rgb`, (1, 3, H, W), in place, a colour where `alpha` is 0.

    What lies under fully transparent pixels is arbitrary, often black or white, and upscaling would
    mix it into the visible edge: a dark fringe on every background but black.

    Averages over ever larger cells, weighted by opacity, from which each hidden pixel takes the
    finest one with anything visible (push-pull filling: Gortler et al., "The Lumigraph", SIGGRAPH
    1996, section 3.4). Everything that shows at all stays exactly as it is, and so does an image
    that is hidden altogether. Needs about as much memory again as `rgb`.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return
    height = rgb.shape[-2]
    strips = [slice(top, min(top + FILL_STRIP, height)) for top in range(0, height, FILL_STRIP)]
    weights = _halve(alpha)
    colours = rgb.new_empty((1, 3, *weights.shape[-2:]))
    for rows in strips:
        visible = rgb[:, :, rows] * alpha[:, :, rows]
        colours[:, :, rows.start // 2 : (rows.stop + 1) // 2] = _halve(visible)
    around = _spread(colours, weights)
    for rows in strips:
        # One row of cells more on either side, for the interpolation between cells.
        first = max(rows.start // 2 - 1, 0)
        cells = around[:, :, first : (rows.stop + 1) // 2 + 1]
        fine = _double(cells)[:, :, rows.start - 2 * first :, : rgb.shape[-1]]
        part = rgb[:, :, rows]
        part.copy_(torch.where(hidden[:, :, rows], fine[:, :, : part.shape[-2]], part))


def _spread(colours: Tensor, weights: Tensor) -> Tensor:
    """A colour for every cell, in place of the sums of opacity times colour."""
    visible = weights > 0
    coarse = None if visible.all() else (_halve(colours), _halve(weights))
    colours.div_(weights.where(visible, 1))
    if coarse is None:
        return colours
    around = _double(_spread(*coarse))[:, :, : colours.shape[-2], : colours.shape[-1]]
    return torch.where(visible, colours, around, out=colours)


def _halve(cells: Tensor) -> Tensor:
    return avg_pool2d(cells, 2, ceil_mode=True)


def _double(cells: Tensor) -> Tensor:
    return interpolate(cells, scale_factor=2, mode="bilinear", align_corners=False)
