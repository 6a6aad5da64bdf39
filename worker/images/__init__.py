"""Image files and tensors: decoding what was uploaded, writing what is handed back.

A decoded image is upright (EXIF orientation applied), sRGB (ICC profile applied) and free of
metadata, which `metadata_of` reads. Its colours and its opacity are kept apart: only the colours go
through the network. What the file was, grey or coloured, of 8 bits or 16, the result is again.
"""

from __future__ import annotations

from jobs.image_file import check_side

from .decoding import DecodedImage, Depth, decode
from .metadata import Metadata, metadata_of
from .writing import rows_of, write

__all__ = [
    "DecodedImage",
    "Depth",
    "Metadata",
    "check_side",
    "decode",
    "metadata_of",
    "rows_of",
    "write",
]
