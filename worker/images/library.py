"""libvips, set up for files of strangers.

Of its decoders only those of the five formats exist for this process, and only from memory: a file
can neither reach another one nor name a further file. No operation is kept for later (its cache
holds whole pictures), and the warnings it logs are raised as errors where they matter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pyvips
from pyvips.voperation import concurrency_set

from .picture import Levels

__all__ = ["LOADERS", "PROFILE", "image_of", "levels_of", "srgb_profile"]

pyvips.block_untrusted_set(True)
pyvips.operation_block_set("VipsForeignLoad", True)
for _format in ("Png", "Jpeg", "Webp", "Tiff", "Heif"):
    pyvips.operation_block_set(f"VipsForeignLoad{_format}Buffer", False)
pyvips.cache_set_max(0)
# A second thread gains nothing at a colour transform and takes a core from another job.
concurrency_set(1)
logging.getLogger("pyvips").setLevel(logging.ERROR)

LOADERS: dict[str, Callable[..., pyvips.Image]] = {
    "PNG": pyvips.Image.pngload_buffer,
    "JPEG": pyvips.Image.jpegload_buffer,
    "WEBP": pyvips.Image.webpload_buffer,
    "TIFF": pyvips.Image.tiffload_buffer,
    "AVIF": pyvips.Image.heifload_buffer,
}

PROFILE = "icc-profile-data"


def image_of(levels: Levels, interpretation: str, profile: bytes | None) -> pyvips.Image:
    """A libvips image of (H, W, C) levels, with an ICC profile where there is one."""
    height, width, channels = levels.shape
    kind = "uchar" if levels.itemsize == 1 else "ushort"
    # A view of the same memory where it lies in one piece, which a picture without opacity does.
    data = np.ascontiguousarray(levels).data
    image = pyvips.Image.new_from_memory(data, width, height, channels, kind)
    image = image.copy(interpretation=interpretation)
    if profile is not None:
        blob: Any = profile  # the stub leaves out that a blob is bytes
        image.set_type(pyvips.GValue.blob_type, PROFILE, blob)
    return image


def levels_of(image: pyvips.Image) -> Levels:
    """Decodes all of an image of 8 or 16 bits."""
    kind: type[np.unsignedinteger[Any]] = np.uint8 if image.format == "uchar" else np.uint16
    levels = np.frombuffer(image.write_to_memory(), dtype=kind)
    return levels.reshape(image.height, image.width, image.bands)


@cache
def srgb_profile() -> bytes:
    """libvips' sRGB profile, some 500 bytes."""
    black = pyvips.Image.black(1, 1, bands=3).copy(interpretation="srgb")
    profile = black.icc_transform("srgb", input_profile="srgb").get(PROFILE)
    assert isinstance(profile, bytes)
    return profile
