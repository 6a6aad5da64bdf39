"""EXIF blocks (CIPA DC-008), of which only the orientation matters."""

from __future__ import annotations

import struct

from .directory import directories
from .header import ORIENTATION, FileFault, valid

__all__ = ["MOST_EXIF", "orientation_in"]

MOST_EXIF = 64 * 1024
"""What a JPEG can hold; in other formats as much of a longer block is looked at."""

PREFIX = b"Exif\0\0"


def orientation_in(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 (upright) when the block has none or is broken."""
    block = exif[:MOST_EXIF].removeprefix(PREFIX).removeprefix(PREFIX)
    if block[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    try:
        return valid(next(directories(block, 1)).value(ORIENTATION, 1))
    # A camera's broken EXIF block does not make its image unreadable.
    except (FileFault, struct.error):
        return 1
