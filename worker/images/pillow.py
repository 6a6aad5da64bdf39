"""What libvips does not read: GIF, BMP and JPEG 2000 through Pillow, HEIC through libheif."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from jobs.errors import ImageTruncated
from jobs.image_file import Header

from .vips import Levels

FORMATS = frozenset(("GIF", "BMP", "JPEG2000", "HEIC"))


def read(data: bytes, header: Header) -> tuple[Levels, bytes | None]:
    """All levels, (H, W, C), and the ICC profile.

    Raises:
        ImageTruncated: the file is broken.
    """
    try:
        levels, profile = (_heic if header.format == "HEIC" else _pillow)(data, header)
    # The decoders raise errors of many kinds, and all mean that the file cannot be decoded.
    except Exception as error:
        raise ImageTruncated(f"The file is cut off or broken: {error}.") from error
    levels = levels.reshape(*levels.shape[:2], -1)
    if levels.shape[1::-1] != (header.width, header.height):
        raise ImageTruncated(
            f"The file is broken: its header says {header.width} x {header.height} pixels and its "
            f"data {levels.shape[1]} x {levels.shape[0]}."
        )
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
