"""From an image file to a `Picture`: upright, sRGB, free of metadata.

The header is walked first (`jobs.formats.examine`), so the decoder only ever sees a whole file
of an allowed kind and size. It must then find what the header says, or the file is refused.
"""

from __future__ import annotations

import numpy as np
import pyvips
import structlog
import torch
from torch import Tensor

from jobs.errors import ImageTruncated, UnsupportedFormat
from jobs.formats import examine
from jobs.image_file import Header

from . import jpeg
from .library import LOADERS, PROFILE, image_of, levels_of
from .picture import Levels, Picture
from .transparency import fill_hidden

__all__ = ["decode"]

log = structlog.get_logger(__name__)

COLOURS = {"L": 1, "RGB": 3, "CMYK": 4, "YCbCr": 3}
ICC_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
"""The colour space that a profile must state, in bytes 16 to 20 (ICC.1:2022, 7.2)."""

INTERPRETATIONS = {1: ("b-w", "grey16"), 3: ("srgb", "rgb16"), 4: ("cmyk", "cmyk")}
"""libvips' names for colours, by channels: of 8 bits and of 16."""

INTENT = "relative"
"""With black point compensation, the darkest ink as black: what viewers and editors do."""

TURNS: dict[int, tuple[bool, int]] = {
    1: (False, 0),
    2: (True, 0),
    3: (False, 2),
    4: (True, 2),
    5: (True, 1),
    6: (False, 3),
    7: (True, 3),
    8: (False, 1),
}
"""EXIF orientation: whether to mirror left and right, then quarter turns to the left."""


def decode(data: bytes, max_pixels: int) -> Picture:
    """Read a PNG, JPEG, WebP, TIFF or AVIF file.

    Of the several pictures in a camera's JPEG the first is taken; animations are refused. Colours
    under fully transparent pixels are replaced by those around.

    Raises:
        ImageError: not an image, cut off, animated, more than `max_pixels`, or of a kind that has
            no clear meaning as RGB.
    """
    header = examine(data, max_pixels)
    try:
        image, levels = _read_jpeg(data, header) if header.format == "JPEG" else _read(data, header)
    except pyvips.Error as error:
        raise ImageTruncated(f"The file is cut off or broken: {_reason(error)}.") from error
    profile = image.get(PROFILE) if PROFILE in image.get_fields() else None
    assert profile is None or isinstance(profile, bytes)
    return _picture(levels, profile, header)


def _read(data: bytes, header: Header, *, strict: bool = False) -> tuple[pyvips.Image, Levels]:
    """Decodes all of it. `strict` fails at warnings, too: of a TIFF these say that it has tags of
    its own, of a JPEG mostly that pixels are missing."""
    fail_on = "warning" if strict else "error"
    image = LOADERS[header.format](data, access="sequential", fail_on=fail_on)
    _check(image, header)
    return image, levels_of(image)


def _read_jpeg(data: bytes, header: Header) -> tuple[pyvips.Image, Levels]:
    try:
        return _read(data, header, strict=True)
    except pyvips.Error as error:
        reason = _reason(error)
        if not jpeg.is_blemish(reason):
            raise
    data = jpeg.without_blemishes(data)
    try:
        read = _read(data, header, strict=True)
    except pyvips.Error as error:
        reason = _reason(error)
        if not jpeg.ends_with_stray_bytes(reason, data):
            raise
        read = _read(data, header)
    log.warning("jpeg read in spite of a blemish", reason=reason)
    return read


def _reason(error: pyvips.Error) -> str:
    """The last line of libvips' messages: those above may be about earlier files."""
    lines = [line.strip() for line in error.detail.splitlines() if line.strip()]
    return (lines[-1] if lines else error.message).rstrip(".")


def _check(image: pyvips.Image, header: Header) -> None:
    """What the decoder is about to give, against what was promised."""
    said = header.upright if header.format == "AVIF" else (header.width, header.height)
    if (image.width, image.height) != said:
        raise ImageTruncated(
            f"The file is broken: its header says {said[0]} x {said[1]} pixels "
            f"and its data {image.width} x {image.height}."
        )
    colours = COLOURS[header.mode.removesuffix("A")]
    if image.format not in ("uchar", "ushort") or image.bands < colours:
        raise UnsupportedFormat(
            f"{image.bands} channels of the kind {image.format} are not read; "
            "greyscale, RGB, palette and CMYK of 8 or 16 bits are."
        )


def _picture(levels: Levels, profile: bytes | None, header: Header) -> Picture:
    mode = header.mode.removesuffix("A")
    colours, bands = COLOURS[mode], levels.shape[2]
    if header.format == "AVIF":
        # Three equal channels where there are no colours.
        colours = 3
        levels = _full_range(levels, header.depth)
    elif mode == "YCbCr" and bands > colours:
        # Colours stored at half the size: libtiff has made RGB of them, and opacity beside it.
        mode = "RGB"
    alpha = None
    if header.mode.endswith("A") and bands > colours:
        alpha = _unit(levels[:, :, colours : colours + 1], header)
    rgb = _rgb(levels[:, :, :colours], mode, profile, header)
    if alpha is not None:
        fill_hidden(rgb, alpha)
    return Picture(rgb, alpha, grey=mode == "L", depth=16 if levels.itemsize == 2 else 8)


def _full_range(levels: Levels, depth: int) -> Levels:
    """AVIF's 10 and 12 bits, which come in the upper bits of 16, spread to all of 0..65535."""
    if levels.itemsize == 1:
        return levels
    white = ((1 << depth) - 1) << (16 - depth)
    spread: Levels = np.rint(levels * np.float32(65535 / white)).astype(np.uint16)
    return spread


def _rgb(levels: Levels, mode: str, profile: bytes | None, header: Header) -> Tensor:
    """The colours, (1, 3, H, W). A file without a profile is taken to be sRGB already."""
    if profile is not None and mode in ICC_SPACES:
        converted = _to_srgb(levels, mode, profile)
        if converted is not None:
            levels, mode = converted, "RGB"
    planes = _unit(levels, header)
    if mode == "CMYK":
        # Without a profile inks have no colours of their own: as browsers show them.
        return (1 - planes[:, :3]).mul_(1 - planes[:, 3:])
    if mode == "YCbCr":
        return _from_ycbcr(planes)
    return planes if planes.shape[1] == 3 else planes.repeat(1, 3, 1, 1)


def _to_srgb(levels: Levels, mode: str, profile: bytes) -> Levels | None:
    """The levels in 16 bits of sRGB by the file's profile, or None where that is of no use."""
    expected = b"RGB " if levels.shape[2] == 3 else ICC_SPACES[mode]
    # A damaged profile, or one for another colour model: viewers ignore those, and refusing the
    # picture for its label would help nobody.
    if profile[36:40] != b"acsp" or profile[16:20] != expected:
        log.warning("icc profile ignored", mode=mode, space=profile[16:20].hex())
        return None
    try:
        if levels.shape[2] == 3 and _is_srgb(profile):
            return None
        converted = _transformed(levels, profile)
    except pyvips.Error as error:
        log.warning("icc profile ignored", mode=mode, reason=_reason(error))
        return None
    return converted[:, :, 1:2] if mode == "L" else converted


def _is_srgb(profile: bytes) -> bool:
    """Whether an RGB profile means sRGB, under whatever name, to half of one of 255 levels.

    Most files have such a profile: they need no conversion, and one would cost 16 bits the last.
    """
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
    moved = _transformed(colours, profile).astype(np.int32) - 257 * colours.astype(np.int32)
    return bool(np.abs(moved).max() <= 128)


def _transformed(levels: Levels, profile: bytes) -> Levels:
    """From a profile's colours to 16 bits of sRGB."""
    interpretation = INTERPRETATIONS[levels.shape[2]][levels.itemsize - 1]
    image = image_of(levels, interpretation, profile)
    if levels.itemsize == 1:
        image = image.icc_transform(
            "srgb", embedded=True, intent=INTENT, black_point_compensation=True, depth=16
        )
    else:
        # From 16 bits to 16 the direct way is a table of 33 steps a side, some 12 levels of
        # 255 off in the dark; through Lab in floating point it is as exact as from 8 bits.
        image = image.icc_import(embedded=True, intent=INTENT, black_point_compensation=True)
        image = image.icc_export(
            output_profile="srgb", intent=INTENT, black_point_compensation=True, depth=16
        )
    return levels_of(image)


def _from_ycbcr(levels: Tensor) -> Tensor:
    """TIFF's bare YCbCr (TIFF 6.0, section 21): full range, the matrix of Rec. ITU-R BT.601."""
    y, cb, cr = levels[:, 0], levels[:, 1] - 128 / 255, levels[:, 2] - 128 / 255
    red, blue = y + 1.402 * cr, y + 1.772 * cb
    green = (y - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], dim=1).clamp(0, 1)


def _unit(levels: Levels, header: Header) -> Tensor:
    """Levels to upright (1, C, H, W) float32 in [0, 1]."""
    # AVIF's decoder has turned it already.
    mirrored, quarters = TURNS[1 if header.format == "AVIF" else header.orientation]
    upright = np.rot90(levels[:, ::-1] if mirrored else levels, quarters)
    planes = np.ascontiguousarray(np.moveaxis(upright, -1, 0), dtype=np.float32)
    return torch.from_numpy(planes)[None].div_(np.iinfo(levels.dtype).max)
