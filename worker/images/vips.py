"""libvips, set up for files of strangers, and colours by ICC profiles.

Of its decoders only those of five formats exist for this process, and only from memory: a file
cannot reach another one. No operation is kept for later (its cache holds whole images), and the
warnings it logs are raised as errors where they matter.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pyvips
import structlog
from numpy.typing import NDArray
from pyvips.voperation import concurrency_set

log = structlog.get_logger(__name__)

pyvips.block_untrusted_set(True)
pyvips.operation_block_set("VipsForeignLoad", True)
for _format in ("Png", "Jpeg", "Webp", "Tiff", "Heif"):
    pyvips.operation_block_set(f"VipsForeignLoad{_format}Buffer", False)
pyvips.cache_set_max(0)
# A second thread gains nothing at a colour transform and takes a core from another job.
concurrency_set(1)
logging.getLogger("pyvips").setLevel(logging.ERROR)

Levels = NDArray[np.unsignedinteger[Any]]
"""(rows, width, channels) of uint8 or uint16, as they are in files."""

LOADERS: dict[str, Callable[..., pyvips.Image]] = {
    "PNG": pyvips.Image.pngload_buffer,
    "JPEG": pyvips.Image.jpegload_buffer,
    "WEBP": pyvips.Image.webpload_buffer,
    "TIFF": pyvips.Image.tiffload_buffer,
    "AVIF": pyvips.Image.heifload_buffer,
}

PROFILE = "icc-profile-data"

ICC_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK"}
"""The colour space that a profile must state, in bytes 16 to 20 (ICC.1:2022, 7.2)."""

INTERPRETATIONS = {1: ("b-w", "grey16"), 3: ("srgb", "rgb16"), 4: ("cmyk", "cmyk")}
"""libvips' names for colours, by channels: of 8 bits and of 16."""

INTENT: dict[str, Any] = {"intent": "relative", "black_point_compensation": True}
"""The darkest ink as black: what viewers and editors do."""


def image_of(levels: Levels, interpretation: str, profile: bytes | None) -> pyvips.Image:
    """A libvips image of (H, W, C) levels, with an ICC profile where there is one; a view of the
    same memory where it lies in one piece."""
    image = pyvips.Image.new_from_array(levels, interpretation=interpretation)
    if profile is not None:
        attach(image, PROFILE, profile)
    return image


def attach(image: pyvips.Image, name: str, block: bytes) -> None:
    """Has the image's file hold the block, which libvips knows by this name."""
    blob: Any = block  # the stub leaves out that a blob is bytes
    image.set_type(pyvips.GValue.blob_type, name, blob)


def levels_of(image: pyvips.Image) -> Levels:
    """Decodes all of an image of 8 or 16 bits."""
    return image.numpy().reshape(image.height, image.width, image.bands)


def reason_of(error: pyvips.Error) -> str:
    """The last line of libvips' messages: those above may be about earlier files."""
    lines = [line.strip() for line in error.detail.splitlines() if line.strip()]
    return (lines[-1] if lines else error.message).rstrip(".")


_one_jpeg = threading.Lock()


@contextmanager
def jpeg_warnings() -> Iterator[list[str]]:
    """Has, behind the block, what libjpeg warned of within it.

    libvips looks for warnings before each piece of a file, so not behind the last one, and leaves
    them in its buffer of errors.
    """
    warnings: list[str] = []
    with _one_jpeg:
        pyvips.vips_lib.vips_error_clear()
        yield warnings
        text = pyvips.ffi.string(pyvips.vips_lib.vips_error_buffer()).decode(errors="replace")
        prefix = "VipsJpeg: "
        lines = [line for line in text.splitlines() if line.startswith(prefix)]
        warnings += [line.removeprefix(prefix).rstrip(".") for line in lines]


@cache
def srgb_profile() -> bytes:
    """libvips' sRGB profile, some 500 bytes."""
    black = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    profile = black.icc_transform("srgb", input_profile="srgb").get(PROFILE)
    assert isinstance(profile, bytes)
    return profile


def to_srgb(levels: Levels, mode: str, profile: bytes) -> Levels | None:
    """The levels in 16 bits of sRGB by the file's profile, or None where that is of no use.

    `mode` is one of `ICC_SPACES`; L comes back as one channel, the others as three.
    """
    space = b"RGB " if levels.shape[2] == 3 else ICC_SPACES[mode]
    # A damaged profile, or one for another colour model: viewers ignore those, and refusing the
    # image for its label would be of no use.
    if profile[36:40] != b"acsp" or profile[16:20] != space:
        log.warning("icc profile ignored", mode=mode, space=profile[16:20].hex())
        return None
    try:
        if levels.shape[2] == 3 and _is_srgb(profile):
            return None
        srgb = _transform(levels, profile)
    except pyvips.Error as error:
        log.warning("icc profile ignored", mode=mode, reason=reason_of(error))
        return None
    return srgb[:, :, 1:2] if mode == "L" else srgb


def _is_srgb(profile: bytes) -> bool:
    """Whether an RGB profile means sRGB, under whatever name, to half of one of 255 levels.

    Most files have such a profile: they need no conversion, and one would cost 16 bits the last.
    """
    steps = np.linspace(0, 255, 17).astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
    error = _transform(colours, profile).astype(np.int32) - 257 * colours.astype(np.int32)
    return bool(np.abs(error).max() <= 128)


def _transform(levels: Levels, profile: bytes) -> Levels:
    """From a profile's colours to 16 bits of sRGB."""
    interpretation = INTERPRETATIONS[levels.shape[2]][levels.itemsize - 1]
    image = image_of(levels, interpretation, profile)
    if levels.itemsize == 1:
        return levels_of(image.icc_transform("srgb", embedded=True, depth=16, **INTENT))
    # From 16 bits to 16 the direct way is a table of 33 steps a side, some 12 levels of 255 off in
    # the dark; through Lab in floating point it is as exact as from 8 bits.
    lab = image.icc_import(embedded=True, **INTENT)
    return levels_of(lab.icc_export(output_profile="srgb", depth=16, **INTENT))
